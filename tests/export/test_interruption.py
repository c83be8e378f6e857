"""What is left of lfd-export's commands that SIGTERM, a closed terminal or Ctrl-C ends: nothing, and exit code 130."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.bench.signals import SIGNALS
from export import differences, fp16, int8_runner, parity
from export.cli import main
from lfd.checkpoint import save_model
from lfd.data import open_dataset
from lfd.models import create_model
from lfd.spec import ModelSpec, Preprocess
from tests.conftest import make_folder
from tests.export.test_fp16 import export

MODEL = "lraspp_mobilenet_v3_small"
HW = (48, 64)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("pictures") / "toy", {"train": 32, "val": 2})


@pytest.fixture(scope="module")
def source(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(MODEL, pictures, tmp_path_factory.mktemp("models") / "fp32.onnx")


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = open_dataset(f"folder:{pictures}", "val").labels
    path = tmp_path_factory.mktemp("run")
    save_model(
        path / "model.safetensors", create_model(MODEL, len(labels))[0], ModelSpec(MODEL, labels, Preprocess(HW))
    )
    return path


@pytest.fixture(autouse=True)
def unheard() -> Iterator[None]:
    """Let signals that no command listens to pass: left alone, they would end the tests."""
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def after(work: Callable[..., Any], number: signal.Signals) -> Callable[..., Any]:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        found = work(*arguments, **options)
        signal.raise_signal(number)
        return found

    return interrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(
    ("words", "module", "name"),
    [
        (("onnx", "{run}", "-o", "{out}/new/a.onnx"), parity, "both_maps"),
        (("fp16", "{source}", "-o", "{out}/new/a.onnx"), fp16, "to_fp16"),
        (
            ("int8", "{source}", "-o", "{out}/new/a.onnx", "--calib", "{data}", "--target", "trt"),
            int8_runner,
            "compare",
        ),
        (("verify", "{source}", "{source}", "--out", "{out}/new/differences"), differences, "draw"),
    ],
)
def test_nothing_is_left(
    run: Path,
    source: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    module: Any,
    name: str,
    number: signal.Signals,
) -> None:
    out, aside = tmp_path / "out", tmp_path / "aside"
    for folder in (out, aside):
        folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(aside))
    monkeypatch.setattr(module, name, after(getattr(module, name), number))
    data = f"folder:{pictures}"
    split = "@val" if words[0] == "verify" else ""
    given = [word.format(run=run, source=source, out=out, data=data) for word in words]
    result = CliRunner().invoke(main, [*given, "--data", data + split])
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted"), result.output
    assert not list(out.iterdir()) and not list(aside.iterdir())
