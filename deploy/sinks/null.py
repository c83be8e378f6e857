"""Nowhere."""

from __future__ import annotations

from deploy.frames import Frame, StreamStatus
from lfd.preprocess import Image


class NullSink:
    """Takes everything and keeps nothing: to measure, or to try a model."""

    def write(self, frame: Frame, class_map: Image) -> None:
        """Do nothing."""

    def show_status(self, status: StreamStatus) -> None:
        """Do nothing."""

    def close(self, complete: bool) -> None:
        """Do nothing."""
