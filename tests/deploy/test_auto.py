"""The choice of the fastest backend: what is measured, chosen, said and remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_bytes import onnx_with

from deploy import auto
from deploy.auto import candidates, choose
from deploy.choices import MAX_CHOICES, MAX_MEMORY_BYTES, Choice, Finding, memory_path, recall, remember
from deploy.session import BACKENDS
from lfd.errors import LfdError, MissingDependencyError, ModelError, UsageError
from lfd.spec import ModelSpec

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lfd-toolkit" / "backends.json"


@dataclass
class Behaviour:
    """What a backend does: how long a run takes, how many pixels differ, and what goes wrong at which question."""

    ms: float = 4.0
    wrong: float = 0.0
    error: LfdError | None = None
    at: str = "load"


@dataclass
class World:
    """Backends by name, and what was asked of them."""

    backends: dict[str, Behaviour]
    spec: ModelSpec
    precision: str = "fp32"
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    alive: int = 0

    def probe(self, path: Path) -> FakeProbe:
        return FakeProbe(self)


class FakeProbe:
    """A measuring process that answers by a script."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = ""
        world.alive += 1

    def ask(
        self, op: str, pictures: Any = (), expected_s: float = 0, **message: Any
    ) -> tuple[dict[str, Any], list[Any]]:
        assert auto.PATIENCE_S + expected_s == auto.LIMIT_S
        self.name = message.get("backend", self.name)
        does = self._does(op)
        self.world.asked.append((op, self.name, message.get("count", 0)))
        if op == "load":
            assert len(pictures) == auto.FRAMES and message["threads"] == 2
            return {"spec": self.world.spec.to_json(), "build": {"precision": self.world.precision}}, []
        turn = sum(asked[:2] == ("measure", self.name) for asked in self.world.asked)
        # The first turn is cold, and one other was disturbed: neither is what is said.
        return {"model_ms": [does.ms * {1: 50, 3: 9}.get(turn, 1)] * message["count"]}, []

    def predict(self, image: np.ndarray) -> np.ndarray:
        does = self._does("predict")
        classes = np.zeros(image.shape[:2], np.uint8)
        classes.reshape(-1)[: round(does.wrong * classes.size)] = 1
        return classes

    def _does(self, op: str) -> Behaviour:
        does = self.world.backends[self.name]
        if does.error is not None and does.at == op:
            raise does.error
        return does

    def __enter__(self) -> FakeProbe:
        return self

    def __exit__(self, *_: object) -> None:
        self.world.alive -= 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, spec: ModelSpec) -> Callable[..., World]:
    def make(precision: str = "fp32", **backends: Behaviour) -> World:
        named = {name.replace("_", "-"): does for name, does in backends.items()}
        made = World(named, spec, precision)
        monkeypatch.setattr(auto, "Probe", made.probe)
        monkeypatch.setattr(auto, "_installed", lambda name: name in named)
        return made

    return make


B = Behaviour
CHOICES: dict[str, tuple[dict[str, Any], str, str]] = {
    "the faster": (
        {"ort": B(4.0), "openvino": B(3.1)},
        "openvino",
        "openvino: 3.1 ms a frame against ort 4.0 (measured now)",
    ),
    "the file's own, within the noise": (
        {"ort": B(4.0), "openvino": B(3.95)},
        "ort",
        "ort: 4.0 ms a frame against openvino 4.0, which is equal within 2.5 % (measured now)",
    ),
    "below a millisecond": (
        {"ort": B(0.0421), "openvino": B(0.3)},
        "ort",
        "ort: 0.042 ms a frame against openvino 0.3 (measured now)",
    ),
    "not bf16, which is mentioned": (
        {"ort": B(4.0), "openvino": B(3.0), "openvino_bf16": B(1.5, wrong=8 / 768)},
        "openvino",
        (
            "openvino: 3.0 ms a frame against ort 4.0 (measured now); openvino-bf16 takes 1.5, and agrees on 98.96 % "
            "of pixels"
        ),
    ),
    "a bf16 that gains little is not mentioned": (
        {"ort": B(4.0), "openvino": B(3.0), "openvino_bf16": B(2.7)},
        "openvino",
        "openvino: 3.0 ms a frame against ort 4.0 (measured now)",
    ),
    "not what computes something else": (
        {"ort": B(4.0), "openvino": B(1.0, wrong=8 / 768)},
        "ort",
        "ort: 4.0 ms a frame (measured now); openvino is left out: it disagrees on 1.04 % of pixels",
    ),
    "int8 rounds differently by runtime": (
        {"precision": "int8", "ort": B(4.0), "openvino": B(1.0, wrong=8 / 768)},
        "openvino",
        "openvino: 1.0 ms a frame against ort 4.0 (measured now); openvino disagrees on 1.04 % of pixels",
    ),
    "what crashed is said": (
        {"ort": B(4.0), "openvino": B(1.0, error=ModelError("killed by signal 11"), at="measure")},
        "ort",
        "ort: 4.0 ms a frame (measured now); openvino failed (killed by signal 11)",
    ),
    "the reference itself may fail": (
        {"ort": B(error=ModelError("no memory"), at="predict"), "openvino": B(3.0), "ort_cuda": B(1.0)},
        "ort-cuda",
        "ort-cuda: 1.0 ms a frame against openvino 3.0 (measured now); ort failed (no memory)",
    ),
    "a processor without bf16 is not said, a GPU that does not work is": (
        {
            "ort": B(4.0),
            "openvino": B(3.1),
            "openvino_bf16": B(error=UsageError("no bf16")),
            "ort_cuda": B(error=MissingDependencyError("no CUDA")),
        },
        "openvino",
        "openvino: 3.1 ms a frame against ort 4.0 (measured now); ort-cuda failed (no CUDA)",
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_what_is_chosen_and_why(tiny_model: Path, world: Any, case: str) -> None:
    backends, chosen, says = CHOICES[case]
    made, lines = world(**backends), list[str]()
    assert choose(tiny_model, 2, lines.append) == chosen
    assert lines == [says]
    assert made.alive == 0, "every process has ended"


def test_backends_take_turns(tiny_model: Path, world: Any) -> None:
    made = world(ort=B(4.0), openvino=B(200.0))
    choose(tiny_model, 2)
    turns = [(name, count) for op, name, count in made.asked if op == "measure"]
    assert [name for name, _ in turns] == ["ort", "openvino"] * (1 + auto.ROUNDS)
    assert turns[4:6] == [("ort", 25), ("openvino", 2)], "as many runs as fill a turn"


def test_nothing_can_run_it(tiny_model: Path, world: Any) -> None:
    world(ort=B(error=ModelError("broken")), openvino=B(error=ModelError("broken, too")))
    with pytest.raises(ModelError, match=r"^broken$"):
        choose(tiny_model, 2)


@pytest.mark.parametrize(
    ("target", "installed", "chosen"),
    [
        (None, ("ort",), "ort"),
        ("openvino", ("ort", "openvino", "openvino-bf16"), "openvino"),
        ("trt", ("ort", "openvino"), "openvino"),
        ("trt", ("ort", "ort-trt"), "ort-trt"),
    ],
)
def test_a_file_with_one_backend_is_not_measured(
    tmp_path: Path, tiny_model: Path, world: Any, target: str | None, installed: tuple[str, ...], chosen: str
) -> None:
    made, lines = world(**{name.replace("-", "_"): B() for name in installed}), list[str]()
    path = onnx_with(tiny_model, tmp_path / "m.onnx", **({"lfd_int8_target": target} if target else {}))
    assert choose(path, 2, lines.append) == chosen
    assert lines == [f"{chosen}: nothing else here runs m.onnx"] and not made.asked


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (None, ["ort", "openvino", "openvino-bf16", "ort-cuda", "ort-trt"]),
        ("ort", ["ort", "openvino", "openvino-bf16"]),
        ("openvino", ["openvino", "openvino-bf16"]),
        ("trt", ["openvino", "openvino-bf16", "ort-trt"]),
    ],
)
def test_candidates_go_by_what_a_file_was_quantised_for(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, target: str | None, names: list[str]
) -> None:
    monkeypatch.setattr(auto, "_installed", lambda name: True)
    path = onnx_with(tiny_model, tmp_path / "m.onnx", **({"lfd_int8_target": target} if target else {}))
    assert candidates(path) == names


def test_an_engine_has_one_backend(tmp_path: Path, world: Any) -> None:
    world(ort=B(), trt=B())
    (tmp_path / "m.engine").write_bytes(b"ptrt")
    assert choose(tmp_path / "m.engine", 2) == "trt"


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="no such file"):
        choose(Path("absent.onnx"))


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_it_is_measured_once(tiny_model: Path, world: Any, cache: Path) -> None:
    made, lines = world(ort=B(4.0), openvino=B(3.1), openvino_bf16=B(1.0)), list[str]()
    for _ in range(2):
        assert choose(tiny_model, 2, lines.append) == "openvino"
    day = json.loads(cache.read_text())["choices"].popitem()[1]["date_utc"]
    assert lines[1] == lines[0].replace("measured now", f"measured on {day}")
    assert sum(op == "load" for op, _, _ in made.asked) == 3
    assert [p.name for p in cache.parent.iterdir()] == ["backends.json"]


def test_what_failed_can_be_measured_again(tiny_model: Path, world: Any, cache: Path) -> None:
    made, lines = world(ort=B(4.0), openvino=B(3.1), ort_cuda=B(1.0, error=ModelError("no CUDA"))), list[str]()
    for _ in range(2):
        assert choose(tiny_model, 2, lines.append) == "openvino"
    assert lines[1].endswith(f"ort-cuda failed (no CUDA); remove {cache} to measure again")
    made.backends["ort-cuda"].error = None
    cache.unlink()
    assert choose(tiny_model, 2) == "ort-cuda"


CHANGES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "the processor": lambda patch: patch.setattr("deploy.environment._cpu", lambda: "another"),
    "a runtime": lambda patch: patch.setattr("deploy.environment._versions", lambda: {"onnxruntime": "9"}),
    "the cores": lambda patch: patch.setattr(os, "sched_getaffinity", lambda pid: set(range(99))),
    "a board's power mode": lambda patch: patch.setattr("deploy.environment._board", lambda: "MAXN"),
    "what was chosen is gone": lambda patch: patch.setattr(auto, "_installed", lambda name: name != "openvino"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_it_depends_on_has_changed(
    tiny_model: Path, world: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    made = world(ort=B(4.0), openvino=B(3.1), ort_cuda=B(5.0), ort_trt=B(6.0), openvino_bf16=B(9.0))
    choose(tiny_model, 2)
    made.asked.clear()
    CHANGES[what](monkeypatch)
    choose(tiny_model, 2)
    assert made.asked


def test_another_model_or_thread_count_is_another_question(tmp_path: Path, tiny_model: Path, world: Any) -> None:
    world(ort=B(4.0), openvino=B(3.1))
    other = onnx_with(tiny_model, tmp_path / "other.onnx", more="yes")
    keys = {auto._key(path, threads) for path in (tiny_model, other) for threads in (0, 1, 2)}
    assert len(keys) == 6
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(tiny_model.read_bytes())
    assert auto._key(copy, 0) in keys, "it goes by the content"


def good() -> dict[str, Any]:
    finding = {"backend": "openvino", "ms": 3.1, "agreement": 1.0, "reason": None}
    return {
        "backend": "openvino",
        "precision": "fp32",
        "date_utc": "2026-11-22",
        "findings": [finding, {"backend": "ort", "ms": 4.0, "agreement": 1.0, "reason": None}],
    }


def changed(**changes: Any) -> dict[str, Any]:
    return good() | changes


def found(**changes: Any) -> dict[str, Any]:
    record = good()
    record["findings"][1] |= changes
    return record


BELIEVED = [good(), found(ms=None, agreement=None, reason="no memory")]
NOT_BELIEVED = [
    None,
    [],
    {},
    changed(backend="rm -rf"),
    changed(backend=7),
    changed(backend="trt"),
    changed(date_utc="yesterday"),
    changed(date_utc=20261122),
    changed(precision="fp32\x1b[2J"),
    changed(precision=None),
    changed(findings=[]),
    changed(findings="ort"),
    changed(findings=[None]),
    found(backend="\x1b[2J"),
    found(ms="4"),
    found(ms=-1.0),
    found(ms=0.0),
    found(ms=True),
    found(ms=1e999),
    found(agreement=1.5),
    found(agreement=None),
    found(reason="a\nb"),
    found(reason="x" * 2000),
    found(reason=["x"]),
]


@pytest.mark.parametrize(("record", "believed"), [*((r, True) for r in BELIEVED), *((r, False) for r in NOT_BELIEVED)])
def test_only_what_can_be_believed_is(tiny_model: Path, world: Any, cache: Path, record: Any, believed: bool) -> None:
    made = world(ort=B(4.0), openvino=B(3.1))
    cache.parent.mkdir(parents=True)
    cache.write_text(json.dumps({"schema": 1, "choices": {auto._key(tiny_model, 2): record}}))
    assert choose(tiny_model, 2) == "openvino"
    assert bool(made.asked) is not believed
    assert recall()[auto._key(tiny_model, 2)].backend == "openvino", "and is good again"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"7",
        b'{"schema": 1}',
        b'{"schema": 1, "choices": []}',
        b'{"schema": 2, "choices": {}}',
        b'{"schema": 1, "choices": {"a": NaN}}',
        b"[" * 100_000,
        b'{"schema": 1, "choices": {}}' + b" " * MAX_MEMORY_BYTES,
    ],
)
def test_a_broken_memory_is_measured_again(tiny_model: Path, world: Any, cache: Path, content: bytes) -> None:
    made = world(ort=B(4.0), openvino=B(3.1))
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert choose(tiny_model, 2) == "openvino" and made.asked
    assert set(json.loads(cache.read_text())["choices"]) == {auto._key(tiny_model, 2)}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from([*BACKENDS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*good(), "ms", "reason"]), inner),
    max_leaves=20,
)


@given(JSON | st.fixed_dictionaries(dict.fromkeys(good(), JSON)))
def test_any_record_is_a_choice_or_none(record: Any) -> None:
    path = memory_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "choices": {"key": record}}))
    for choice in recall().values():
        assert choice.backend in BACKENDS and choice.sentence("then").isprintable()
        assert choice.sentence("then").startswith(f"{choice.backend}: ")


def test_it_forgets_the_oldest(cache: Path) -> None:
    choice = Choice("ort", "fp32", "2026-11-22", (Finding("ort", 4.0, 1.0), Finding("openvino", reason="x" * 200)))
    for number in range(MAX_CHOICES + 9):
        remember(f"{number:064}", choice)
    remember(f"{9:064}", choice)
    kept = [int(key) for key in json.loads(cache.read_text())["choices"]]
    assert kept == [*range(10, MAX_CHOICES + 9), 9], "what was measured again is new"
    assert cache.stat().st_size < MAX_MEMORY_BYTES
    assert recall()[f"{9:064}"] == choice


def test_a_folder_that_cannot_be_written(
    tiny_model: Path, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world(ort=B(4.0), openvino=B(3.1))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    lines: list[str] = []
    assert choose(tiny_model, 2, lines.append) == "openvino"
    assert len(lines) == 2 and "cannot be remembered (" in lines[1] and "\n" not in lines[1]


def test_a_user_without_a_home(tiny_model: Path, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    world(ort=B(4.0), openvino=B(3.1))
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", staticmethod(no_home))
    lines: list[str] = []
    assert choose(tiny_model, 2, lines.append) == "openvino"
    assert lines[1].startswith("the choice cannot be remembered (no home folder: ~)")


@pytest.mark.parametrize(
    ("value", "under"), [("/x/y", "/x/y"), ("", "/home/me/.cache"), ("not/absolute", "/home/me/.cache")]
)
def test_where_it_is_remembered(monkeypatch: pytest.MonkeyPatch, value: str, under: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", "/home/me")
    assert memory_path() == Path(under, "lfd-toolkit", "backends.json")


# --- real runtimes ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_real_runtimes(tiny_model: Path, cache: Path) -> None:
    lines: list[str] = []
    chosen = choose(tiny_model, 1, lines.append)
    record = json.loads(cache.read_text())["choices"].popitem()[1]
    assert chosen == record["backend"] in ("ort", "openvino") and lines[0].startswith(f"{chosen}: 0.0")
    assert {f["backend"]: f["agreement"] for f in record["findings"] if f["backend"] != "openvino-bf16"} == {
        "ort": 1.0,
        "openvino": 1.0,
    }


def test_a_crash_of_a_runtime_takes_nothing_with_it(tmp_path: Path, tiny_model: Path) -> None:
    """A real process that dies in its runtime: it is said, and the other one is chosen."""
    package = tmp_path / "openvino"
    package.mkdir()
    (package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    code = (
        f"from pathlib import Path\nfrom deploy.auto import choose\nprint(choose(Path({str(tiny_model)!r}), 1, print))"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said, chosen = done.stdout.splitlines()
    assert chosen == "ort" and "openvino failed (" in said and "killed by signal 11" in said
