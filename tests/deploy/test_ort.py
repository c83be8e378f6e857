from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploy.session import BACKENDS, class_map, open_session
from lfd.errors import ModelError, UsageError
from lfd.spec import METADATA_KEY, ModelSpec


def test_runs_and_knows_its_spec(tiny_model: Path, spec: ModelSpec) -> None:
    image = np.zeros((24, 32, 3), np.uint8)
    image[:8, :, 0], image[8:16, :, 1], image[16:, :, 2] = 9, 9, 9
    with open_session(tiny_model, threads=1) as session:
        assert session.spec == spec and session.batch == 1
        assert session.build.backend.startswith("onnxruntime") and len(session.build.onnx_sha256) == 64
        np.testing.assert_array_equal(class_map(session, image), np.repeat([0, 1, 2], 8)[:, None].repeat(32, 1))


@pytest.mark.parametrize("shape", [(1, 24, 33, 3), (2, 24, 32, 3), (1, 3, 24, 32)])
def test_a_batch_that_does_not_fit(tiny_model: Path, shape: tuple[int, ...]) -> None:
    with open_session(tiny_model) as session, pytest.raises(ModelError, match="this model takes"):
        session.run(np.zeros(shape, np.uint8))


def test_another_dtype_is_a_model_error(tiny_model: Path) -> None:
    with open_session(tiny_model) as session, pytest.raises(ModelError, match="uint8"):
        session.run(np.zeros((1, 24, 32, 3), np.float32))


def broken(kind: str, path: Path, good: bytes) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        rng = np.random.default_rng(0)
        path.write_bytes(
            {
                "empty": b"",
                "truncated": good[: len(good) // 2],
                "random": rng.integers(0, 256, 4096, np.uint8).tobytes(),
                "text": b"not a model",
                # Another key of the same length: the file is a valid ONNX without our record.
                "no spec": good.replace(METADATA_KEY.encode(), b"x" * len(METADATA_KEY)),
                "bad spec": good.replace(b'"schema"', b'"schemx"'),
                "other size": good.replace(b"[24, 32]", b"[32, 24]"),
            }[kind]
        )


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("missing", "no such file"),
        ("folder", "is a folder"),
        ("empty", "0 bytes"),
        ("truncated", "m.onnx"),
        ("random", "cannot load it"),
        ("text", "cannot load it"),
        ("no spec", "has no ModelSpec"),
        ("bad spec", "ModelSpec cannot be read"),
        ("other size", "its ModelSpec says"),
    ],
)
def test_bad_files(tmp_path: Path, tiny_model: Path, kind: str, match: str) -> None:
    path = tmp_path / "m.onnx"
    broken(kind, path, tiny_model.read_bytes())
    with pytest.raises(ModelError, match=match) as caught:
        open_session(path)
    assert "\n" not in str(caught.value) and "m.onnx" in str(caught.value)


def test_every_cut_of_the_file_is_a_model_error(tmp_path: Path, tiny_model: Path) -> None:
    good, path = tiny_model.read_bytes(), tmp_path / "m.onnx"
    for length in range(1, len(good), 37):
        path.write_bytes(good[:length])
        with pytest.raises(ModelError):
            open_session(path)


def test_backends() -> None:
    with pytest.raises(UsageError, match=r"unknown backend 'orr'\. Did you mean 'ort'"):
        open_session(Path("x.onnx"), backend="orr")
    assert all(callable(make) for make in BACKENDS.values())
