"""Metadata for .onnx files without the package onnx, which an edge device does not have."""

from __future__ import annotations

from pathlib import Path


def varint(value: int) -> bytes:
    low = bytes([value & 127 | (128 if value > 127 else 0)])
    return low + (varint(value >> 7) if value > 127 else b"")


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def says(**entries: str) -> bytes:
    """Metadata to put behind a model: a protocol buffer's parts may come in any order."""
    return b"".join(field(14, field(1, k.encode()) + field(2, v.encode())) for k, v in entries.items())


def onnx_with(model: Path, path: Path, **entries: str) -> Path:
    """Write a copy of a model that says more."""
    path.write_bytes(model.read_bytes() + says(**entries))
    return path
