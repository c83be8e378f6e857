"""Every name of TensorRT's API that the export uses, against the API as it is in 10.3 and in 11.4."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import REAL, ROOT
from tests.export.fake_cuda import STATUS, make_cuda
from tests.export.fake_tensorrt import Script, make

SOURCES = [*sorted((ROOT / "export").glob("*trt*.py")), *(ROOT / "deploy/backends" / n for n in ("cuda.py", "trt.py"))]
OBJECTS_IN = [ROOT / "export/trt_build.py", ROOT / "deploy/backends/cuda.py", ROOT / "deploy/backends/trt.py"]

OBJECTS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "complaint": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}
"""The class of each variable in OBJECTS_IN that is an object of TensorRT; `self._x` is the same object as `x`."""

IMPLEMENTED = {"Log": "ILogger", "Monitor": "IProgressMonitor"}
"""Our class to the one of TensorRT that calls it."""

UNTOLD = {
    ("OnnxParser", "get_error"): "ParserError",
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
}
"""What methods return whose signature the file does not give, or not in Python's names."""

ASKED = {("HardwareCompatibilityLevel", "SAME_COMPUTE_CAPABILITY")}
"""Names that are not in both, which the code asks for with hasattr."""

MODULE = {"__version__"}


@pytest.fixture(scope="module")
def api() -> dict[str, dict[str, dict[str, str]]]:
    path = REAL / "refs/tensorrt_api.json"
    if not path.is_file():
        pytest.skip(f"no {path}, which lists TensorRT's API; set LFD_TEST_DATA")
    found = json.loads(path.read_text())
    assert set(found) == {"10.3.0", "11.4.0"}
    return dict(found)


def nodes() -> Iterator[ast.AST]:
    """All nodes of all files that use TensorRT's objects."""
    for path in OBJECTS_IN:
        yield from ast.walk(ast.parse(path.read_text()))


def chains(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """Every `trt.A` and `trt.A.B`."""
    for node in ast.walk(tree):
        names: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            names.append(inner.attr)
            inner = inner.value
        if names and isinstance(inner, ast.Name) and inner.id == "trt":
            yield tuple(reversed(names))


def plain(node: ast.AST) -> str | None:
    """`config` for `config` and for `self._config`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr.lstrip("_")
    return node.id if isinstance(node, ast.Name) else None


def returned(api: dict[str, Any], owner: str, method: str) -> str | None:
    """The class that a method returns, by its signature in 10.3, which has it for all but two."""
    arrow = re.search(r"-> (\w+)", str(api["10.3.0"][owner].get(method, "")))
    return UNTOLD.get((owner, method)) or (arrow.group(1) if arrow else None)


def parameters(signature: str) -> list[str]:
    return re.findall(r"(?:\(|, )(\w+): ", signature)


@pytest.mark.shared
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_constants_and_classes_stand_in_both_versions(path: Path, api: dict[str, Any]) -> None:
    used = set(chains(ast.parse(path.read_text())))
    for version, classes in api.items():
        for name, *members in used:
            assert name in MODULE or name in classes, f"trt.{name} is not in {version}"
            for member in members[:1]:
                known = member in classes[name] or (name, member) in ASKED
                assert known or member == "__init__", f"trt.{name}.{member} is not in {version}"


@pytest.mark.shared
def test_what_is_not_in_both_is_asked_for(api: dict[str, Any]) -> None:
    asked = {
        (call.args[0].attr, call.args[1].value)
        for call in nodes()
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "hasattr"
        if isinstance(call.args[0], ast.Attribute) and isinstance(call.args[1], ast.Constant)
    }
    assert asked == ASKED
    assert all(any(name not in api[v][owner] for v in api) for owner, name in ASKED), "asked for without need"


@pytest.mark.shared
def test_members_of_objects_stand_in_both_versions(api: dict[str, Any]) -> None:
    seen = set()
    for node in nodes():
        if isinstance(node, ast.Attribute) and (owner := OBJECTS.get(plain(node.value) or "")):
            seen.add(owner)
            for version, classes in api.items():
                assert node.attr in classes[owner], f"{owner}.{node.attr} is not in {version}"
                if isinstance(node.ctx, ast.Store):
                    assert "settable" in classes[owner][node.attr], f"{owner}.{node.attr} cannot be set in {version}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keywords = {keyword.arg for keyword in node.keywords}
            assert not (keywords and plain(node.func.value) in OBJECTS), "by position: names may differ"
    assert seen == set(OBJECTS.values()) - {"INetworkDefinition"}, "the table and the code have parted"


@pytest.mark.shared
def test_every_object_of_tensorrt_is_in_the_table(api: dict[str, Any]) -> None:
    for node in nodes():
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        call, target = node.value.func, plain(node.targets[0])
        made = None
        if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id == "trt":
            made = call.attr
        elif isinstance(call, ast.Attribute) and (owner := OBJECTS.get(plain(call.value) or "")):
            made = returned(api, owner, call.attr)
        if made in set(OBJECTS.values()):
            assert OBJECTS.get(target or "") == made, f"{target} is a {made}"


@pytest.mark.shared
def test_classes_that_tensorrt_calls_have_its_signatures(api: dict[str, Any]) -> None:
    found = [n for n in nodes() if isinstance(n, ast.ClassDef) and n.name in IMPLEMENTED]
    assert len(found) == len(IMPLEMENTED)
    for ours in found:
        theirs = IMPLEMENTED[ours.name]
        methods = {f.name: [a.arg for a in f.args.args] for f in ours.body if isinstance(f, ast.FunctionDef)}
        for version, classes in api.items():
            wanted = {name: text for name, text in classes[theirs].items() if name not in ("__init__",) and "(" in text}
            assert set(methods) - {"__init__"} == set(wanted), f"{theirs} in {version}"
            for name, text in wanted.items():
                assert methods[name] == parameters(text), f"{theirs}.{name} in {version}: {text}"


@pytest.mark.shared
@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_the_fake_is_faithful(version: str, api: dict[str, Any]) -> None:
    classes, fake = api[version], make(version, Script())
    for name, value in vars(fake).items():
        if name.startswith("__") or isinstance(value, ModuleType):
            continue
        assert name in classes, f"{name} is not in {version}"
        own = {m for m in vars(value) if not m.startswith("_")}
        own |= {m for m in getattr(value, "__slots__", ()) if not m.startswith("_")}
        assert own <= set(classes[name]), f"{name} in {version}: {own - set(classes[name])}"
        for member in own:
            function = vars(value).get(member)
            if inspect.isfunction(function) and "(" in classes[name][member]:
                expected = parameters(classes[name][member])
                assert list(inspect.signature(function).parameters) == expected, f"{name}.{member} in {version}"


def test_the_fake_of_cuda_is_faithful() -> None:
    real: Any = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    for name, value in vars(make_cuda()).items():
        if name.startswith("cuda"):
            assert hasattr(real, name), name
            for member in value if isinstance(value, type) else ():
                assert getattr(getattr(real, name), member.name).value == member.value, member
    for member in STATUS:
        assert getattr(real.cudaError_t, member.name).value == member.value
    # Every call gives its error first, also where there is no driver.
    for answer in (real.cudaGetDeviceCount(), real.cudaGetLastError(), real.cudaStreamCreateWithFlags(1)):
        assert isinstance(answer, tuple) and isinstance(answer[0], real.cudaError_t)


def test_every_call_of_cuda_is_one_of_the_fakes() -> None:
    used = {
        node.attr
        for node in nodes()
        if isinstance(node, ast.Attribute) and plain(node.value) == "cuda" and isinstance(node.ctx, ast.Load)
    }
    assert used <= set(vars(make_cuda())) and {"cudaMalloc", "cudaGraphLaunch"} <= used
