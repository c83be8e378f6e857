"""OpenVINO beside ONNX Runtime on the same files, and the choice of a backend by what a file was quantised for."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from doubles import ListSource
from hypothesis import given
from hypothesis import strategies as st
from onnx_bytes import field, onnx_with, says

from deploy.backends import ort
from deploy.backends.openvino import OpenVinoSession, _core, _reason
from deploy.backends.ort import OrtSession
from deploy.frames import FrameSource
from deploy.opening import PARALLEL, open_model
from deploy.session import BACKENDS, INT8_TARGET_KEY, class_map, int8_target, open_session
from lfd.errors import MissingDependencyError, ModelError, UsageError
from lfd.spec import METADATA_KEY, ModelSpec

ROOT = Path(__file__).parents[2]
CAPABILITIES = "OPTIMIZATION_CAPABILITIES"


@pytest.fixture
def quantised_for(tmp_path: Path, tiny_model: Path) -> Callable[[str], Path]:
    def make(target: str) -> Path:
        return onnx_with(tiny_model, tmp_path / f"{target}.onnx", **{INT8_TARGET_KEY: target})

    return make


# --- which backend; needs no OpenVINO -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "target"),
    [
        (b"", None),
        (says(other="ort"), None),
        (says(other="x", lfd_int8_target="openvino"), "openvino"),
        (b"\x08\x96\x01" + says(lfd_int8_target="trt"), "trt"),  # a number, field 1
        (b"\x0d1234\x091234567\x08" + says(lfd_int8_target="ort"), "ort"),  # of 4 and of 8 bytes
        (says(lfd_int8_target="x" * 99), "x" * 32),
        (says(lfd_int8_target="x" * (2 << 20)), None),  # more than metadata may have
        (b"\x3c?xml" + says(lfd_int8_target="ort"), None),  # no protocol buffer from here on
        (field(14, b"\x0a\xff\xff\xff\xff\x7f"), None),
        (field(14, field(1, INT8_TARGET_KEY.encode()) + field(2, b"\xff")), "\ufffd"),
        (b"\x72" + b"\xff" * 12, None),
    ],
)
def test_what_a_file_was_quantised_for(tmp_path: Path, tiny_model: Path, tail: bytes, target: str | None) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_model.read_bytes() + tail)
    assert int8_target(path) == target


@given(st.binary(max_size=200))
def test_any_bytes_have_a_target_or_none(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    assert int8_target(path) is None


@given(st.lists(st.tuples(st.integers(2, 40), st.binary(max_size=300)), max_size=8), st.text(max_size=20))
def test_it_is_found_among_whatever_else(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[tuple[int, bytes]], target: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "among.onnx"
    others = b"".join(field(number, content) for number, content in blocks if number != 14)
    path.write_bytes(others + says(**{INT8_TARGET_KEY: target}) + others)
    assert int8_target(path) == target


@pytest.mark.parametrize("target", ["openvino", "trt", "other"])
def test_ort_refuses_the_symmetric_flavour(quantised_for: Callable[[str], Path], target: str) -> None:
    path = quantised_for(target)
    with pytest.raises(ModelError, match=rf"quantised for '{target}'.*the backend openvino.*--target ort"):
        open_session(path, "ort")
    assert OrtSession(path).spec.model == "tiny", "the class takes it, to see how accurate it is"


@pytest.mark.parametrize("name", ["a.engine", "a.plan"])
def test_an_engine_is_not_taken_for_a_model(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"ptrt")
    with pytest.raises(ModelError, match="beside it"):
        open_session(tmp_path / name)


def test_without_openvino_it_says_what_to_install(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"lfd-toolkit\[openvino\]"):
        open_session(tiny_model, "openvino")


# --- OpenVINO ---------------------------------------------------------------------------------------------------------

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed: pip install 'lfd-toolkit[openvino]'"
)


@pytest.fixture(params=["openvino", "openvino-bf16"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino-bf16" and "BF16" not in _core().get_property("CPU", CAPABILITIES):
        pytest.skip("this processor has no bf16")
    return str(request.param)


SIGNAL_AFTER = """
import os, signal, sys, threading
from pathlib import Path
from deploy.backends.openvino import OpenVinoSession
held = [OpenVinoSession(Path(sys.argv[1]), threads=1)]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda number, frame: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""


@needs_openvino
def test_a_signal_after_a_session_went_in_another_thread(tiny_model: Path) -> None:
    """With a Core of its own a session left the main thread without a signal stack, on processors that have AMX."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER, str(tiny_model)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@needs_openvino
def test_runs_and_knows_its_spec(tiny_model: Path, spec: ModelSpec, backend: str) -> None:
    rng = np.random.default_rng(0)
    with open_session(tiny_model, backend, threads=1) as session, open_session(tiny_model, "ort") as ort:
        assert session.spec == spec == ort.spec and session.batch == ort.batch == 1
        assert session.build.onnx_sha256 == ort.build.onnx_sha256
        assert session.build.precision == {"openvino": "fp32", "openvino-bf16": "bf16"}[backend]
        assert session.build.backend.startswith("openvino CPU") and session.build.device
        assert session.build.versions["openvino"].replace(".", "").isdecimal()
        for _ in range(5):
            image = rng.integers(0, 256, (24, 32, 3), np.uint8)
            np.testing.assert_array_equal(class_map(session, image), class_map(ort, image))


@needs_openvino
@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[:, :, ::-1],
        lambda a: a[..., ::-1],
        np.asfortranarray,
        lambda a: np.lib.stride_tricks.as_strided(a, writeable=False),
    ],
)
def test_any_layout_of_the_frame(tiny_model: Path, view: Callable[[np.ndarray], np.ndarray]) -> None:
    frame = view(np.random.default_rng(0).integers(0, 256, (1, 24, 32, 3), np.uint8))
    with open_session(tiny_model, "openvino") as session:
        np.testing.assert_array_equal(session.run(frame), frame.argmax(3))


@needs_openvino
def test_the_result_outlives_the_session(tiny_model: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1, 24, 32, 3), np.uint8)
    with open_session(tiny_model, "openvino") as session:
        out = session.run(frame)
        assert not out.flags.owndata, "a view, valid until the next run"
    np.testing.assert_array_equal(out, frame.argmax(3))
    with pytest.raises(ModelError, match="failed while running"):
        session.run(frame)


@needs_openvino
@pytest.mark.parametrize(
    ("batch", "match"),
    [
        (np.zeros((1, 24, 33, 3), np.uint8), "this model takes"),
        (np.zeros((2, 24, 32, 3), np.uint8), "this model takes"),
        (np.zeros((1, 3, 24, 32), np.uint8), "this model takes"),
        (np.zeros((1, 24, 32, 3), np.float32), "uint8"),
        (np.zeros((1, 24, 32, 3), np.int8), "uint8"),
    ],
)
def test_a_batch_that_does_not_fit(tiny_model: Path, batch: np.ndarray, match: str) -> None:
    with open_session(tiny_model, "openvino") as session, pytest.raises(ModelError, match=match):
        session.run(batch)


XML = b"<?xml version='1.0'?><net name='x' version='11'></net>"


@needs_openvino
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda good: good[: len(good) // 2], "OpenVINO cannot load it"),
        (lambda good: np.random.default_rng(0).integers(0, 256, 4096, np.uint8).tobytes(), "OpenVINO cannot load it"),
        (lambda good: b"not a model", "OpenVINO cannot load it"),
        (lambda good: XML, "OpenVINO cannot load it"),
        (lambda good: good.replace(METADATA_KEY.encode(), b"x" * len(METADATA_KEY)), "has no ModelSpec"),
        (lambda good: good.replace(b'"schema"', b'"schemx"'), "ModelSpec cannot be read"),
        (lambda good: good.replace(b"[24, 32]", b"[32, 24]"), "takes .24, 32, 3., but its ModelSpec says .32, 24, 3."),
        (lambda good: good.replace(b'"class_map"', b'"logits"   '), "its ModelSpec says logits"),
        (lambda good: good.replace(b"ArgMax", b"ArgMux"), "OpenVINO cannot load it .*ArgMux"),
        (lambda good: good + says(lfd_precision="int8"), "is int8, but OpenVINO runs it in fp32"),
    ],
)
def test_bad_files(
    tmp_path: Path,
    tiny_model: Path,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[bytes], bytes],
    match: str,
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(change(tiny_model.read_bytes()))
    with pytest.raises(ModelError, match=match) as caught:
        open_session(path, "openvino")
    assert "\n" not in str(caught.value) and "m.onnx" in str(caught.value) and ".cpp" not in str(caught.value)
    assert capfd.readouterr() == ("", ""), "OpenVINO writes nothing of its own"


@needs_openvino
def test_every_cut_of_the_file_is_a_model_error(tmp_path: Path, tiny_model: Path) -> None:
    good, path = tiny_model.read_bytes(), tmp_path / "m.onnx"
    for length in range(1, len(good), 37):
        path.write_bytes(good[:length])
        with pytest.raises(ModelError):
            open_session(path, "openvino")


@needs_openvino
@pytest.mark.parametrize(
    ("target", "default"), [("openvino", "openvino"), ("ort", "onnxruntime"), ("trt", None), ("other", None)]
)
def test_a_file_goes_where_it_was_quantised_for(
    quantised_for: Callable[[str], Path], target: str, default: str | None
) -> None:
    path = quantised_for(target)
    if default is None:
        with pytest.raises(ModelError, match="the backend openvino"):
            open_session(path)
    else:
        assert open_session(path).build.backend.startswith(default)
    assert open_session(path, "openvino").build.backend.startswith("openvino"), "which runs every flavour"


@needs_openvino
def test_bf16_on_a_processor_without_it(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(UsageError, match="no bf16"):
        open_session(tiny_model, "openvino-bf16")


def test_errors_without_places_in_sources() -> None:
    text = "Exception from src/a.cpp:1:\nCheck 'x' failed at src/b.cpp:2:\nModel can't\nbe parsed\n\n"
    assert _reason(RuntimeError(text)) == "Model can't be parsed"
    assert _reason(RuntimeError("Check 'all there is'")) == "Check 'all there is'"
    assert _reason(RuntimeError("x" * 999)) == "x" * 200


@needs_openvino
def test_it_brings_neither_torch_nor_onnx(tiny_model: Path) -> None:
    code = (
        "import sys, blocker; blocker.install()\n"
        "from pathlib import Path\nfrom deploy.session import open_session\n"
        f"open_session(Path({str(tiny_model)!r}), 'openvino')\n"
        "assert not set(blocker.BLOCKED) & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"LFD_BLOCK_TORCH": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'deploy'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@needs_openvino
def test_every_backend_is_callable_with_path_and_threads(tiny_model: Path, backend: str) -> None:
    with BACKENDS[backend](tiny_model, 1, 1) as session:
        assert isinstance(session, OpenVinoSession)


@pytest.mark.parametrize("name", ["ort", "openvino", "openvino-bf16"])
def test_threads_that_run_a_session_side_by_side_each_keep_their_result(tiny_model: Path, name: str) -> None:
    if name != "ort":
        pytest.importorskip("openvino")
    if name == "openvino-bf16" and "BF16" not in _core().get_property("CPU", CAPABILITIES):
        pytest.skip("this processor has no bf16")
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (1, 24, 32, 3), np.uint8) for _ in range(8)]
    with open_session(tiny_model, name, threads=1) as session:
        assert session.parallel == 1
        expected = [session.run(frame).copy() for frame in frames]
    with open_session(tiny_model, name, threads=2, parallel=2) as session, ThreadPoolExecutor(2) as pool:
        assert session.parallel == 2
        both = threading.Barrier(2)

        def run(number: int) -> bool:
            both.wait(10)
            found = session.run(frames[number])
            both.wait(10)  # the other thread's run has ended too
            return np.array_equal(found, expected[number])

        assert all(pool.map(run, [*range(8)] * 20))


@pytest.mark.parametrize(
    ("sources", "threads", "parallel"),
    [
        ([], 2, 1),
        (["a.mp4"], 1, 1),
        (["a.mp4"], 2, PARALLEL),
        (["a.mp4", "street:"], 8, PARALLEL),
        (["a.mp4", "0"], 8, 1),
        ([ListSource(1)], 4, PARALLEL),
        ([ListSource(1, live=True)], 4, 1),
    ],
)
def test_frames_of_files_are_inferred_side_by_side(
    tiny_model: Path, sources: list[str | FrameSource], threads: int, parallel: int
) -> None:
    with open_model(tiny_model, "ort", threads, sources) as session:
        assert session.parallel == parallel


@pytest.mark.parametrize(("cores", "parallel"), [(1, 1), (2, 2), (16, 2)])
def test_it_knows_the_cores_where_nobody_says_how_many_threads(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, cores: int, parallel: int
) -> None:
    monkeypatch.setattr("deploy.opening.usable_cores", lambda: cores)
    monkeypatch.setattr("deploy.backends.ort.usable_cores", lambda: cores)
    asked: list[int] = []
    real = ort.make_options
    monkeypatch.setattr(ort, "make_options", lambda module, each: asked.append(each) or real(module, each))
    with open_model(tiny_model, "ort", 0, ["a.mp4"]) as session:
        assert session.parallel == parallel and asked == [0 if parallel == 1 else cores - 1]  # and who calls twice


@pytest.mark.parametrize(("sources", "threads", "measured"), [(["0"], 4, 4), (["0"], 0, 0), (["a.mp4"], 4, 2)])
def test_auto_is_measured_with_the_threads_of_an_inference(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str], threads: int, measured: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("deploy.auto.choose", lambda path, each, say: asked.append(each) or "ort")
    with open_model(tiny_model, "auto", threads, sources):
        assert asked == [measured]
