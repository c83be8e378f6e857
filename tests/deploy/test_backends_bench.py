"""The table of backends: what is a family, what the table says, and a run of it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner
from onnx_bytes import onnx_with

from benchmarks.backends import Row, families, main, table
from lfd.errors import UsageError


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "a_int8_ort", "b"], {"a": ["a", "a_int8_ort"], "b": ["b"]}),
        (["a_int8_ort", "a"], {"a": ["a", "a_int8_ort"]}),
        (["ab", "a"], {"ab": ["ab"], "a": ["a"]}),
        (["a_int8_ort"], {"a_int8_ort": ["a_int8_ort"]}),
    ],
)
def test_a_family_is_a_file_and_what_goes_on_after_its_name(names: list[str], expected: dict[str, list[str]]) -> None:
    found = families([Path(f"{name}.onnx") for name in names])
    assert list(found.items()) == list({k: [Path(f"{n}.onnx") for n in v] for k, v in expected.items()}.items())


def test_two_files_of_one_name() -> None:
    with pytest.raises(UsageError, match="two files are called 'a'"):
        families([Path("x/a.onnx"), Path("y/a.onnx")])


def test_the_table() -> None:
    rows = [
        Row("a", "a.onnx", "fp32", "ort", 2, 10.04, (10.0, 10.1), 1.0, 0.4167),
        Row("a", "a.onnx", "fp32", "ort", 1, 17.0, (17.0,), None, None),
        Row("a", "a.onnx", "bf16", "openvino-bf16", 2, 5.0, (5.0,), 0.99853, None),
    ]
    assert table(rows).splitlines() == [
        "| model | file | backend | runs in | p50 ms, 2 threads | p50 ms, 1 thread | agrees with ort fp32 | mIoU |",
        "|---|---|---|---|--:|--:|--:|--:|",
        "| a | a.onnx | ort | fp32 | 10.0 | 17.0 | 100.00 % | 41.67 |",
        "| a | a.onnx | openvino-bf16 | bf16 | 5.0 |  | 99.85 % |  |",
    ]


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_a_run(tmp_path: Path, tiny_model: Path) -> None:
    model = onnx_with(tiny_model, tmp_path / "m.onnx")
    int8 = onnx_with(tiny_model, tmp_path / "m_int8_ort.onnx", lfd_int8_target="ort")
    options = ["--data", "street:?size=48x64&frames=4", "--images", "2", "--threads", "1", "--turns", "2"]
    options += ["--seconds", "0.1", "--out", str(tmp_path / "o.json")]
    done = CliRunner().invoke(main, [str(int8), str(model), *options])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "o.json").read_text())
    rows = [row for row in record["rows"] if row["backend"] != "openvino-bf16"]
    assert [(row["file"], row["backend"]) for row in rows] == [
        ("m.onnx", "ort"),
        ("m.onnx", "openvino"),
        ("m_int8_ort.onnx", "ort"),
        ("m_int8_ort.onnx", "openvino"),
    ]
    assert all(row["agreement"] == 1 and row["miou"] is None and len(row["turns_ms"]) == 2 for row in rows)
    assert (record["data"], record["scored"]) == ("street", 2) and "| m | m.onnx | ort | fp32 |" in done.output
    assert CliRunner().invoke(main, [str(model), *options]).exit_code == 2, "it exists"
