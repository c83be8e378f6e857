"""The folder of `lfd-export all`: what is planned, what lies aside until its last gate, and what is in its place."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from deploy.artifact import engine_info_path, sha256
from export.bundle_report import File
from lfd.errors import UsageError
from lfd.files import replacing

REPORT = "report.json"
TABLE = "report.md"
FP32, FP16 = "fp32", "fp16"
INT8: dict[str, Literal["ort", "openvino", "trt"]] = {"int8_ort": "ort", "int8_openvino": "openvino", "int8_trt": "trt"}
"""An int8 file to its target."""
ENGINES = {"engine_fp32": "fp32", "engine_fp16": "fp16", "engine_int8": "int8_trt"}
"""An engine to the file that it is built from."""


def check_folder(out: Path, source: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless that may be replaced; and the one that an .onnx source lies in.

    Raises:
        UsageError: It is so, or it is a file.
    """
    if source.suffix == ".onnx" and source.resolve().parent == out.resolve():
        raise UsageError(f"{source} lies in {out} itself, where it could be replaced; choose another folder")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; choose a folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UsageError(f"{out} is not empty; choose a new folder, or replace its files with --overwrite")


class Shelf:
    """The files of one model, by a short key each.

    Args:
        out: The folder, which is there.
        stem: What all names begin with.

    Attributes:
        files: What is known of each, in the order they are made.
    """

    def __init__(self, out: Path, stem: str) -> None:
        self._out, self._staging = out, out / f".staging.{os.getpid()}.partial"
        self.files: dict[str, File] = {
            FP32: File(f"{stem}_fp32.onnx", "fp32", "any"),
            FP16: File(f"{stem}_fp16.onnx", "fp16", "any"),
            **{key: File(f"{stem}_{key}.onnx", "int8", target) for key, target in INT8.items()},
            **{key: File(f"{stem}_{key[7:]}.engine", key[7:], "trt") for key in ENGINES},
        }
        self._staging.mkdir()

    def __getitem__(self, key: str) -> File:
        return self.files[key]

    def change(self, key: str, **values: Any) -> None:
        """Note something about a file."""
        self.files[key] = replace(self.files[key], **values)

    def path(self, key: str) -> Path:
        """Return where a file lies: in its place, or aside until it has passed its last gate."""
        file = self.files[key]
        return (self._out if file.state == "written" else self._staging) / file.name

    def weigh(self, key: str) -> None:
        """Note a file's size and hash."""
        self.change(key, size=self.path(key).stat().st_size, sha256=sha256(self.path(key)))

    def place(self, key: str) -> None:
        """Give a file its name in the folder; an engine's record goes first."""
        staged, final = self.path(key), self._out / self.files[key].name
        pairs = [(engine_info_path(staged), engine_info_path(final))] if key in ENGINES else []
        for source, target in (*pairs, (staged, final)):
            with replacing(target) as aside:
                shutil.copyfile(source, aside)
        self.change(key, state="written")

    def plain(self, error: Exception) -> str:
        """Return an error's text without the folder, which is the user's affair."""
        text = " ".join(str(error).split())
        for folder in (self._staging, self._out):
            text = text.replace(f"{folder}{os.sep}", "")
        return text

    def sweep(self) -> None:
        """Remove what lies aside, and older files of names that were not written now.

        So that the folder holds what its report says. Engines that another machine is to make stay.
        """
        shutil.rmtree(self._staging, ignore_errors=True)
        for key, file in self.files.items():
            if file.state not in ("written", "elsewhere"):
                for path in (self._out / file.name, engine_info_path(self._out / file.name)):
                    if path.suffix != ".json" or key in ENGINES:
                        path.unlink(missing_ok=True)
