"""What a run gives to who iterates over it."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.frames import Frame
from lfd.preprocess import Image
from lfd.spec import Labels


@dataclass(frozen=True)
class Result:
    """A frame and what the model made of it; all sinks have it.

    Attributes:
        frame: The picture, its place in the source, and when it was taken.
        class_map: (H, W) uint8 classes at the frame's size; it is the receiver's own.
        labels: The classes' names and colours: `labels.names[class_map[y, x]]`.
        stream: Position of its source among those given.
        latency_ms: From its capture until now.
        infer_ms: Of the inference, for all streams that were in it.
    """

    frame: Frame
    class_map: Image
    labels: Labels
    stream: int
    latency_ms: float
    infer_ms: float
