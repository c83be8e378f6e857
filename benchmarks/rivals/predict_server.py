"""Ultralytics' predict on a film: run by an environment of its own, without this project.

`benchmarks.pipeline` starts it and writes the name of a case per line to its standard input; it answers each with a
line of JSON: frames, and wall and processor milliseconds a frame. The first line it writes says what it measures.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

NETWORKS = ("yolo26n-sem.yaml", "yolo11n-seg.yaml")
"""Semantic segmentation where the release has it, else instances."""
ALONE_FRAMES = 64


def same_settings(threads: int) -> None:
    """Give every session that is opened without options those of `deploy.backends.ort`."""
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    plain = ort.InferenceSession
    ort.InferenceSession = lambda path, sess_options=None, **more: plain(path, sess_options or options, **more)


def export(yolo: Callable[..., Any], size_hw: tuple[int, int]) -> tuple[str, str]:
    """Export the first network that this release knows, its weights random; return its name and file."""
    for network in NETWORKS:
        try:
            model = yolo(network)
        except FileNotFoundError:
            continue
        return network, str(model.export(format="onnx", imgsz=size_hw))
    raise SystemExit(f"this release of ultralytics knows none of {', '.join(NETWORKS)}")


def fitted(film: str, size_hw: tuple[int, int]) -> list[np.ndarray[Any, Any]]:
    """Return the film's first frames as the exported network takes them, (1, 3, H, W) float32 in [0, 1]."""
    capture = cv2.VideoCapture(film)
    frames: list[np.ndarray[Any, Any]] = []
    while len(frames) < ALONE_FRAMES and (read := capture.read())[0]:
        image = cv2.resize(read[1], size_hw[::-1])[:, :, ::-1]
        frames.append(np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32) / 255)
    return frames


def cases(model: Any, path: str, film: str, folder: Path, size_hw: tuple[int, int]) -> dict[str, Callable[[], int]]:
    """Return what can be measured: each returns over how many frames it ran."""
    session = importlib.import_module("onnxruntime").InferenceSession(path)
    name, frames = session.get_inputs()[0].name, fitted(film, size_hw)

    def predict(save: bool) -> int:
        found = model.predict(
            film, stream=True, save=save, imgsz=size_hw, verbose=False, project=str(folder), name="film", exist_ok=True
        )
        return sum(1 for _ in found)

    return {
        "session alone": lambda: sum(1 for frame in 3 * frames if session.run(None, {name: frame})),
        "null": functools.partial(predict, save=False),
        "film": functools.partial(predict, save=True),
    }


def main() -> None:
    """Serve until the standard input ends."""
    film, folder = sys.argv[1], Path(sys.argv[2])
    size_hw, threads = (int(sys.argv[3]), int(sys.argv[4])), int(sys.argv[5])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the package prints is no answer
    same_settings(threads)
    package = importlib.import_module("ultralytics")
    network, path = export(package.YOLO, size_hw)
    jobs = cases(package.YOLO(path), path, film, folder, size_hw)
    for job in jobs.values():
        job()
    versions = {name: importlib.import_module(name).__version__ for name in ("ultralytics", "onnxruntime", "torch")}
    print(json.dumps({"network": network, "size_hw": size_hw, "versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        begin, cpu = time.perf_counter(), time.process_time()
        frames = jobs[line.strip()]()
        spent = {"wall_ms": time.perf_counter() - begin, "cpu_ms": time.process_time() - cpu}
        scaled = {key: seconds * 1e3 / frames for key, seconds in spent.items()}
        print(json.dumps({"frames": frames, **scaled}), file=answers, flush=True)


if __name__ == "__main__":
    main()
