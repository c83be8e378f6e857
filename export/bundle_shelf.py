"""The folder of `lfd-export all`: what is planned, what lies aside until its last gate, and what is in its place."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from deploy.artifact import engine_info_path, sha256
from export.bundle_report import File
from lfd.errors import UsageError
from lfd.files import check_free, locked

REPORT = "report.json"
TABLE = "report.md"
FP32, FP16 = "fp32", "fp16"
INT8: dict[str, Literal["ort", "openvino", "trt"]] = {"int8_ort": "ort", "int8_openvino": "openvino", "int8_trt": "trt"}
"""An int8 file to its target."""
ENGINES = {"engine_fp32": "fp32", "engine_fp16": "fp16", "engine_int8": "int8_trt"}
"""An engine to the file that it is built from."""
ASIDE = re.compile(r"\..+\.\d{1,9}\.partial(\.[^.]+)?")
"""Names of what is not finished: a shelf's staging folder, and files of `lfd.files.replacing`."""
ABSOLUTE = re.compile(r"(?<![^\s:'\"(])/(?:[^\s/:'\"]+/)+")
"""The folders of an absolute path in a text."""


def check_folder(out: Path, source: Path, overwrite: bool) -> None:
    """Refuse a folder that must not be written to, before any work is done; see `check_empty`.

    Raises:
        UsageError: It is the one that an .onnx source lies in, is no folder or not writable, another process is at work
            in it, or it holds something that may not be replaced.
    """
    if source.suffix == ".onnx" and source.resolve().parent == out.resolve():
        raise UsageError(f"{source} lies in {out} itself, where it could be replaced; choose another folder")
    if os.path.lexists(out) and not out.is_dir():
        raise UsageError(f"{out} is {'a file' if out.exists() else 'a link to nothing'}; choose a folder")
    check_free(out / REPORT, overwrite=True)
    if out.is_dir():
        with locked(out):
            check_empty(out, overwrite)


def check_empty(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something, unless that may be replaced; what a killed run left aside is nothing.

    Raises:
        UsageError: It is so.
    """
    if out.is_dir() and not overwrite and not all(ASIDE.fullmatch(path.name) for path in out.iterdir()):
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
        """Give a file its name in the folder; an engine's record goes first, whose hash then tells an older engine.

        The report of an earlier run goes before the first of them: it never lies beside newer files.
        """
        if not any(file.state == "written" for file in self.files.values()):
            for name in (REPORT, TABLE):
                (self._out / name).unlink(missing_ok=True)
        for staged, final in zip(self._paths(key, self._staging), self._paths(key, self._out), strict=True):
            with staged.open("rb") as file:
                os.fsync(file.fileno())  # so that a power cut leaves the older one, or this one whole
            staged.replace(final)
        self.change(key, state="written")

    def _paths(self, key: str, folder: Path) -> tuple[Path, ...]:
        path = folder / self.files[key].name
        return (engine_info_path(path), path) if key in ENGINES else (path,)

    def plain(self, error: Exception) -> str:
        """Return an error's text as a line without folders, which are the user's affair."""
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = " ".join(said.split())
        for folder in (self._staging, self._out):
            text = text.replace(f"{folder}{os.sep}", "")
        return ABSOLUTE.sub("", text)

    def discard(self) -> None:
        """Remove what lies aside."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def sweep(self, complete: bool) -> None:
        """Remove what lies aside, and an older file of a name that a gate refused now.

        Any other older file stays, with a remark: it may be all that there is.
        """
        self.discard()
        for key, file in self.files.items():
            older = [path for path in self._paths(key, self._out) if path.exists()]
            if file.state == "written" or not older:
                continue
            if complete and file.state == "refused":
                for path in older:
                    path.unlink()
            elif self._paths(key, self._out)[-1] in older:
                reason = f"{file.reason}; " if file.reason else ""
                self.change(key, reason=f"{reason}the file of this name that lies here is of an earlier run")
