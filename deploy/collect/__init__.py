"""Frames worth learning from, kept while a model runs: the way from deployment back to training.

    DIR/20261122T210316123Z-0.png    a frame as captured; time of capture in UTC, and the stream's position
    DIR/collect.jsonl                a line for each of them, the oldest first; see `deploy.collect.record.Kept`

`frames:DIR` of lfd-train reads the folder as it is. Two figures are taken of every result, and each is held against its
own long-run mean and deviation; the one that stands out more is why a frame is kept:

    unsure    of models with logits 1 - the mean of the top-1 less the top-2 probability (`margin`); of others the
              share of pixels whose class differs from the results before and after, which agree (`flips`)
    drift     distance of the frame's class shares from their long-run average

Time is cut into slots, and each source and slot keeps the frame that stands out most. When there are too many frames or
bytes the slots become twice as long and neighbours compete: a run of any length ends with half to all of the frames
that are allowed, spread over all of it. The figures are taken behind the inference, in 0.2 to 0.9 ms a frame at
480x360; pictures are encoded and written by a thread of its own, and only those that are kept.
"""

from deploy.collect.collector import Collected, Collector
from deploy.collect.folder import Bounds, check_folder

__all__ = ["Bounds", "Collected", "Collector", "check_folder"]
