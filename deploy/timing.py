"""Percentiles that were earned, by nearest rank, with nothing clipped."""

from __future__ import annotations
