"""A checkpoint among the models of lfd-bench: the same class maps as lfd-train's, measured by a process of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from deploy.bench.cli import main
from deploy.bench.models import is_checkpoint
from deploy.bench.probe import Probe, Request, _Child
from deploy.bench.record import from_json
from export import torch_probe
from export.torch_probe import TorchSession, describe, prepare
from lfd.checkpoint import load_model, save_model
from lfd.errors import CheckpointError, MissingDependencyError, ModelError
from lfd.models import create_model
from lfd.normalize import Predictor
from lfd.preprocess import Image
from lfd.profile import count_macs, count_parameters
from lfd.spec import Labels, ModelSpec, Preprocess

TINY = Path(__file__).parents[1] / "golden" / "tiny.onnx"
LABELS = Labels(("blue", "green", "red"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))
"""Those of TINY, which says which channel is the largest."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a small network of random weights."""
    folder = tmp_path_factory.mktemp("runs") / "student"
    folder.mkdir()
    torch.manual_seed(0)
    model, _ = create_model("lraspp_mobilenet_v3_small", 3)
    spec = ModelSpec("lraspp_mobilenet_v3_small", LABELS, Preprocess((48, 64)), provenance={"method": "lfd"})
    save_model(folder / "model.safetensors", model, spec)
    return folder


def request(path: Path, size_hw: tuple[int, int] | None = None) -> Request:
    return Request(path, None, 1, size_hw)


def test_it_gives_the_class_maps_of_lfd_train(run: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    model, spec = load_model(run)
    golden = Predictor(model, spec.preprocess, torch.device("cpu"))
    with prepare(request(run))() as session:
        found = session.run(frames)
        assert found.shape == (3, 48, 64)
        assert found.dtype == np.uint8
        assert np.mean(found == np.stack([golden(frame) for frame in frames])) > 0.999
        assert session.build.backend == "PyTorch CPU, eager"
        assert describe(session).provenance["macs"] == count_macs(model, (48, 64))
        with pytest.raises(ModelError, match=r"a batch of uint8 \(1, 8, 8, 3\)"):
            session.run(np.zeros((1, 8, 8, 3), np.uint8))


def test_it_takes_another_size_and_counts_its_work(run: Path) -> None:
    session = TorchSession(request(run, (96, 128)))
    assert session.spec.preprocess.size_hw == (96, 128)
    assert session.described().provenance["macs"] > 3 * count_macs(load_model(run)[0], (48, 64))  # type: ignore[operator]
    assert session.run(np.zeros((1, 96, 128, 3), np.uint8)).shape == (1, 96, 128)


def test_a_process_runs_a_checkpoint_and_says_of_a_broken_one_what_is_wrong(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    frame = np.zeros((30, 40, 3), np.uint8)
    with Probe(run) as probe:
        spec = ModelSpec.from_json(probe.load([frame], 1)["spec"], "spec")
        assert spec.preprocess.size_hw == (48, 64)
        assert spec.provenance["macs"] == count_macs(load_model(run)[0], (48, 64))
        assert len(probe.ask("measure", count=2, batch=2)[0]["model_ms"]) == 2
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            probe.ask("load", [frame], path=str(tmp_path), threads=1, backend=None, size_hw=None)


def test_without_torch_it_says_to_export_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, extra: str) -> None:
        raise MissingDependencyError(f"{module} is not installed")

    monkeypatch.setattr(torch_probe, "require", missing)
    with pytest.raises(
        MissingDependencyError, match=r"not installed here. Fix: where it is, lfd-export onnx student -o"
    ):
        prepare(request(run))


def test_checkpoint_and_file_stand_in_one_report(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured in this process, since a process with PyTorch takes its time; that one is tested above."""

    class Local:
        pid = os.getpid()

        def __init__(self, path: Path) -> None:
            self._path, self._child = path, _Child(prepare, describe) if is_checkpoint(path) else _Child()

        def ask(self, op: str, pictures: Sequence[Image] = (), **message: Any) -> tuple[dict[str, Any], list[Image]]:
            result = getattr(self._child, op)(message, list(pictures))
            return ({}, result) if isinstance(result, list) else (result, [])

        def load(self, frames: Sequence[Image], threads: int, backend: str | None, size_hw: Any) -> dict[str, Any]:
            message = {"path": str(self._path), "threads": threads, "backend": backend, "size_hw": size_hw}
            return self.ask("load", frames, **message)[0]

        def __enter__(self) -> Local:
            return self

        def __exit__(self, *_: object) -> None: ...

    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("deploy.bench.benchmark.Probe", Local)
    monkeypatch.setattr("deploy.bench.sweep.Probe", Local)
    args = [str(TINY), "--teacher", str(run), "--seconds", "0.05", "--size", "64x32", "--threads", "1"]
    asked = ["--scenario", "offline", "--batch", "2", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*args, *asked], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = from_json((tmp_path / "out" / "bench.json").read_text(), "bench.json")
    assert record.teacher.name == "student"
    assert record.teacher.backend == "PyTorch CPU, eager"
    assert record.teacher.file_bytes == (run / "model.safetensors").stat().st_size
    assert record.teacher.params == count_parameters(load_model(run)[0])
    assert [o.batch for o in record.teacher.offline] == [2]
    assert [m.what for m in record.students[0].result.missing] == ["offline, batch 2"]
    checkpoint, file = record.sweep
    assert (checkpoint.name, checkpoint.size_hw, checkpoint.reason) == ("student", (64, 32), None)
    assert "no other size" in (file.reason or "")
