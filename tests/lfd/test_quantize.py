"""A student in INT8: what is rounded and how, what folding leaves, and that a run with it is a run like any other."""

from __future__ import annotations

import copy
import functools
import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from lfd.checkpoint import load_model, save_model
from lfd.cli import main
from lfd.config import Config
from lfd.errors import CheckpointError, ModelError, UsageError
from lfd.init import model_of
from lfd.models import create_model
from lfd.quantize.flavours import plan
from lfd.quantize.fold import FrozenBatchNorm2d, fold
from lfd.quantize.rounding import held, round_weights
from lfd.quantize.student import as_int8, attach, find
from lfd.quantize.topology import TARGETS
from lfd.quantize.trace import PICTURE, trace
from lfd.recipe import to_toml
from lfd.resume import Progress, RunState
from lfd.spec import Labels, ModelSpec, Preprocess
from lfd.taps import FeatureTaps
from lfd.trainer import train
from lfd.weights import load_state, read_safetensors, save_tensors
from tests.lfd.test_distributed import torchrun
from tests.lfd.test_quantize_ranges import Pools
from tests.lfd.test_trainer import QUIET, config, stop_after

HW = (64, 96)
FAMILIES = (
    "lraspp_mobilenet_v3_small",
    "deeplabv3_resnet18_os16",
    "deeplabv3_mobilenet_v2_os16",
    "pspnet_resnet18s_os16",
    "ddrnet23_slim",
)


@functools.cache
def _made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model, _ = create_model(name, 5)
    with torch.no_grad():
        for _ in range(2):
            model.train()(torch.randn(2, 3, *HW) * 2 + 0.5)
    return model.eval()


def network(name: str) -> nn.Module:
    """A network with statistics of its own."""
    return copy.deepcopy(_made(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_changes_nothing_in_evaluation_and_keeps_every_path(name: str) -> None:
    model, image = network(name), torch.randn(2, 3, *HW)
    paths = [path for path, _ in model.named_modules()]
    before = {k: v.shape for k, v in model.state_dict().items()}
    with torch.no_grad():
        taps = FeatureTaps(model, model.taps)(image)
        fold(model, HW)
        folded = FeatureTaps(model, model.taps)(image)
    assert torch.allclose(folded.logits, taps.logits, atol=1e-4 * float(taps.logits.abs().max()))
    for tap, feature in taps.taps.items():
        assert torch.allclose(folded.taps[tap], feature, atol=1e-4 * float(feature.abs().max())), tap
    assert [path for path, _ in model.named_modules()] == paths
    norms = [m for p, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and not p.startswith("aux")]
    assert len(norms) == (12 if name == "ddrnet23_slim" else 0), "those in front of their convolutions"
    assert all(isinstance(m, FrozenBatchNorm2d) for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()(image)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()), "no statistic moves in training"
    assert len(state) < len(before)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kernel_is_rounded_and_logits_are_not(name: str) -> None:
    model = network(name)
    fold(model, HW)
    topology = trace(model, HW)
    convs = [p for p, m in model.named_modules() if isinstance(m, nn.Conv2d) and not p.startswith("aux")]
    for target in TARGETS:
        found = plan(topology, target)
        assert {f"{path}:conv2d:0" for path in convs} <= set(found.weights)
        assert all(found.weights[f"{path}:conv2d:0"] == {1: 0} for path in convs)
        assert found.first == f"{convs[0]}:conv2d:0" and PICTURE in found.tensors
        if target == "ort":
            assert found.inputs == {found.first: {0: PICTURE}}, "the others are rounded where they are made"
        else:
            assert not found.outputs
            assert all(0 in found.inputs[f"{path}:conv2d:0"] for path in convs)


def test_what_passes_is_rounded_as_onnx_says() -> None:
    """Against the reference implementation of QuantizeLinear and DequantizeLinear, saturation with them."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    for target, kind in (("ort", TensorProto.UINT8), ("trt", TensorProto.INT8)):
        int8 = attach(Pools().eval(), target, Preprocess(HW))
        int8.mode, int8.observing = "simulate", True
        int8._round(torch.tensor([-0.7, 0.0, 1.93]), int8.plan.tensors[3])
        int8.observing = False
        scale_found, zero_found = int8.grids()[3]
        steps = torch.linspace(-300, 300, 12_345)
        values = steps[(steps - steps.floor() - 0.5).abs() > 1e-3] * scale_found
        values = values.half().float() if target == "trt" else values
        steps = values / scale_found
        values = values[(steps - steps.floor() - 0.5).abs() > 1e-3]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
        inputs = [helper.make_tensor_value_info(n, t, None) for n, t in (("x", 1), ("s", 1), ("z", kind))]
        graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
        reference = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
        zero = np.array(zero_found, helper.tensor_dtype_to_np_dtype(kind))
        assert (int(zero) == 0) == (target == "trt")
        scale = np.array(scale_found, np.float32)
        (wanted,) = reference.run(None, {"x": values.numpy(), "s": scale, "z": zero})
        found = int8._round(values, int8.plan.tensors[3]).numpy()
        assert np.array_equal(found, wanted), "but for ties, where x / s and x (1 / s) differ by a rounding"


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31 - 1), st.sampled_from([0, 1, None]))
def test_a_kernel_is_on_127_steps_of_its_largest_weight(out: int, into: int, seed: int, axis: int | None) -> None:
    rng = np.random.default_rng(seed)
    weights = (rng.normal(size=(out, into, 3, 3)) * rng.choice([0, 1e-6, 1, 1e3], (out, into, 1, 1))).astype(np.float32)
    found = round_weights(torch.from_numpy(weights), axis, "ort").numpy()
    others = tuple(a for a in range(4) if a != axis)
    scale = np.abs(weights).max(others, keepdims=True) / np.float32(127)
    grid = np.divide(found, scale, out=np.zeros_like(found), where=scale > 0)
    assert np.abs(grid - np.rint(grid)).max() < 1e-3 and np.abs(grid).max() < 127.001
    assert (np.abs(found - weights) <= 0.5001 * scale).all(), "at a tie either side is right"


@given(st.floats(2.0**-30, 2.0**17, width=32))
def test_scales_for_tensorrt_are_the_next_numbers_of_fp16(x: float) -> None:
    big = max(np.float32(x), np.float32(2.0**-20))
    half = np.float16(min(big, np.float32(65504)))
    with np.errstate(over="ignore"):
        up = np.nextafter(half, np.float16(np.inf))
    wanted = up if half < big and np.isfinite(up) else half
    assert float(held(torch.tensor([x], dtype=torch.float32), "trt")) == float(wanted)


@pytest.mark.parametrize(("name", "target"), [("ddrnet23_slim", "ort"), ("deeplabv3_resnet18_os16", "trt")])
def test_a_picture_counts_once_for_a_range(name: str, target: Any) -> None:
    model = network(name)
    int8 = attach(model, target, Preprocess(HW))
    seen: dict[str, int] = dict.fromkeys(int8.plan.tensors, 0)

    def count(tensor: str, *_: object) -> None:
        seen[tensor] += 1

    for tensor in int8.plan.tensors:
        int8._of(tensor).activation_post_process.register_forward_hook(partial(count, tensor))
    int8.observing = True
    with torch.no_grad(), as_int8(model):
        model(torch.randn(1, 3, *HW))
    assert set(seen.values()) == {1}


def test_gradients_pass_inside_the_range_and_stop_outside() -> None:
    int8 = attach(Pools().eval(), "ort", Preprocess(HW))
    name = int8.plan.tensors[1]
    int8.mode = "simulate"
    quantizer = int8._of(name)
    quantizer(torch.tensor([-1.0, 1.0]))
    quantizer.enable_observer(False)
    x = torch.tensor([-3.0, -0.5, 0.25, 3.0], requires_grad=True)
    int8._round(x, name).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 0]


def test_off_it_is_the_float_network_and_a_copy_has_its_own_quantisers() -> None:
    model, image = network("lraspp_mobilenet_v3_small"), torch.randn(1, 3, *HW)
    with torch.no_grad():
        before = model(image)["out"]
        int8 = attach(model, "trt", Preprocess(HW))
        int8.observing = True
        int8.train()
        with as_int8(model):
            model(image)
        int8.observing = False
        other = copy.deepcopy(model)
        assert torch.allclose(model(image)["out"], before, atol=1e-4)
        with as_int8(model):
            rounded = model(image)["out"]
            assert torch.allclose(other(image)["out"], before, atol=1e-4), "the copy is off"
        assert 0 < float((rounded - before).abs().max()) < 0.5 * float(before.abs().max())
        copied = find(other)
        assert copied is not None and copied is not int8
        with as_int8(other):
            assert torch.equal(other(image)["out"], rounded)


def test_a_failing_pass_leaves_nothing_switched_on() -> None:
    model = Pools().eval()
    attach(model, "ort", Preprocess(HW))
    with as_int8(model), pytest.raises(RuntimeError):
        model(torch.zeros(1, 4, *HW))
    assert torch.overrides._get_current_function_mode_stack() == []


# Runs.


@pytest.fixture(scope="module")
def float_run(toy_run: Path) -> Path:
    return toy_run


def quantized(folder: Path, run: Path, sections: dict[str, Any] | None = None, **train_values: Any) -> Config:
    """LFD in INT8 from a float run, which is its own teacher."""
    parts = {
        "train": {"init": str(run), "model": "lraspp_mobilenet_v3_small"} | train_values,
        "distill": {"teacher": str(run), "method": "lfd"},
        "optimizer": {"lr": 1e-4},
    }
    more = dict(sections or {})
    how = more.pop("quantize", {})
    for name, values in more.items():
        parts[name] = parts.get(name, {}) | values
    made = config(folder, **parts)
    return replace(made, quantize=replace(made.quantize, to="int8", **how))


def test_a_run_in_int8_leaves_a_model_that_predicts_as_it_was_scored(
    folder: Path, float_run: Path, tmp_path: Path
) -> None:
    said = Console(record=True, width=200, file=io.StringIO())
    best = train(quantized(folder, float_run), tmp_path / "run", False, False, said)
    assert "int8     for ort: 93 activations and 56 kernels are rounded" in said.export_text()
    model, spec = load_model(tmp_path / "run")
    assert spec.provenance["quantize"] == "int8" and spec.provenance["weights"] == "run"
    assert len(str(spec.provenance["init"])) == 16 and str(float_run) not in spec.to_json()
    int8 = find(model)
    assert int8 is not None and int8.target == "ort" and int8.mode == "off" and not model.training
    result = CliRunner().invoke(main, ["eval", str(tmp_path / "run"), "--data", f"folder:{folder}@val", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["miou"] == pytest.approx(best, abs=1e-6), "scored with the rounding"
    assert best > 0.55


EVERYTHING = {
    "train": {"ema": 0.9, "accumulate": 2, "amp": "bf16"},
    "optimizer": {"clip_norm": 1.0, "warmup": 2, "schedule": "cosine"},
    "distill": {"balance": "ema"},
    "quantize": {"target": "trt", "observe": 0.7, "second_teacher": 0.5},
    "data": {"size": "32x32"},
}


@pytest.mark.parametrize("sections", [{}, EVERYTHING], ids=["defaults", "all states"])
def test_resuming_in_int8_equals_the_uninterrupted_run_bit_for_bit(
    folder: Path, float_run: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = quantized(folder, float_run, sections)
    train(run, whole, False, False, QUIET)
    stop_after(2, lambda: train(run, parts, False, False, QUIET))
    train(run, parts, True, False, QUIET)
    a, b = load_state(whole / "resume.pt"), load_state(parts / "resume.pt")
    assert a["step"] == b["step"] == 6 and a["best"] == b["best"]
    for part in ("distiller", "average"):
        assert set(a[part]) == set(b[part]) and all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    assert any("int8.ranges" in key for key in a["distiller"]) and bool(a["average"]) == bool(sections)
    assert all(bool(torch.isfinite(v).all()) for v in a["average"].values())
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def test_ranges_follow_for_their_share_of_the_run_and_then_stay(
    folder: Path, float_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[int, dict[str, Any]] = {}

    def keep(state: RunState, at: Progress) -> None:
        ranges = state.job.distiller.state_dict().items()
        found[at.step] = {k: v.clone() for k, v in ranges if k.endswith((".scale", ".zero_point"))}

    monkeypatch.setattr(RunState, "save", keep)
    run = quantized(folder, float_run, {"quantize": {"observe": 0.5}}, save_every=1)
    train(run, tmp_path / "run", False, False, QUIET)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    assert all(any(not torch.equal(found[n][k], found[n + 1][k]) for k in found[n]) for n in (1, 2))
    assert all(torch.equal(found[3][k], found[n][k]) for k in found[3] for n in (4, 5, 6))


@pytest.mark.slow
def test_two_processes_train_one_network_with_the_same_ranges(folder: Path, float_run: Path, tmp_path: Path) -> None:
    """The ranges are the first process's, which sees its share of each batch: all else follows from them."""
    path = tmp_path / "r.toml"
    frozen = {"quantize": {"observe": 0.0}, "optimizer": {"name": "sgd", "lr": 1e-4}, "data": {"scale": (0.8, 1.25)}}
    run = quantized(folder, float_run, frozen, batch=8, eval_every=1, steps=2)
    path.write_text(to_toml(run))
    two = torchrun("distill", "--recipe", str(path), "--out", f"{tmp_path}/two")
    best = train(run, tmp_path / "one", False, False, QUIET)
    _, errors = two.communicate(timeout=250)
    assert two.returncode == 0 and "Warning" not in errors, errors
    a, b = (load_state(tmp_path / name / "resume.pt") for name in ("one", "two"))
    assert set(a["distiller"]) == set(b["distiller"]) and b["best"] == pytest.approx(best, abs=2e-2)
    begun = load_model(float_run)[0]
    attach(begun, "ort", Preprocess((48, 64)))
    start = begun.state_dict()
    for key, value in a["distiller"].items():
        other = b["distiller"][key]
        if key.endswith((".scale", ".zero_point")):
            assert torch.equal(value, other), key
        elif key.startswith("student.") and not key.startswith("student.int8"):
            moved = float((value - start[key.removeprefix("student.")]).norm())
            # A rounding that falls on the other side of a tie is a whole step: close, not equal.
            assert float((value - other).norm()) <= 0.3 * moved + 1e-6, key


def test_a_run_begins_with_the_weights_of_another(folder: Path, float_run: Path, tmp_path: Path) -> None:
    """Without a step that changes anything, what comes out is what went in; the network's name is the run's."""
    assert model_of(float_run) == "lraspp_mobilenet_v3_small"
    arguments = ["teacher", "--init", str(float_run), "--data", f"folder:{folder}", "--out", str(tmp_path / "x")]
    tuning = ["--steps", "1", "--batch", "2", "--device", "cpu", "--set", "optimizer.lr=0", "--set", "data.workers=0"]
    result = CliRunner().invoke(main, [*arguments, *tuning])
    assert result.exit_code == 0, result.output
    before, after = (read_safetensors(p / "model.safetensors")[0] for p in (float_run, tmp_path / "x"))
    moved = ("running_mean", "running_var", "num_batches_tracked")
    assert all(torch.equal(v, after[k]) for k, v in before.items() if not k.endswith(moved))
    assert load_model(tmp_path / "x")[1].provenance["weights"] == "run"


def test_what_does_not_fit_is_refused(folder: Path, float_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = config(folder, train={"init": str(float_run), "model": "deeplabv3_resnet18_os16"})
    with pytest.raises(UsageError, match=r"is lraspp_mobilenet_v3_small, the run's network deeplabv3_resnet18_os16"):
        train(other, out, False, False, QUIET)
    caffe = config(folder, train={"init": str(float_run)}, data={"normalize": "caffe"})
    with pytest.raises(UsageError, match="trained on other values of a pixel"):
        train(caffe, out, False, False, QUIET)
    torch.manual_seed(0)
    strange = create_model("lraspp_mobilenet_v3_small", 2)[0]
    labels = Labels(("a", "b"), ((0, 0, 0), (1, 1, 1)))
    save_model(
        tmp_path / "s.safetensors", strange, ModelSpec("lraspp_mobilenet_v3_small", labels, Preprocess((48, 64)))
    )
    with pytest.raises(ModelError, match="the model has 2 classes"):
        train(config(folder, train={"init": str(tmp_path / "s.safetensors")}), out, False, False, QUIET)
    with pytest.raises(CheckpointError, match="no such run"):
        train(config(folder, train={"init": str(tmp_path / "none")}), out, False, False, QUIET)
    with pytest.raises(UsageError, match="is the run to begin with"):
        train(config(folder, train={"init": str(float_run)}), float_run, False, True, QUIET)
    train(quantized(folder, float_run, steps=1, eval_every=1), tmp_path / "int8", False, False, QUIET)
    begin = config(folder, train={"init": str(tmp_path / "int8")})
    with pytest.raises(UsageError, match="was trained in INT8 for ort, its batch norms are folded"):
        train(begin, out, False, False, QUIET)
    trt = quantized(folder, tmp_path / "int8", {"quantize": {"target": "trt"}})
    with pytest.raises(UsageError, match="--quantize-target ort"):
        train(trt, out, False, False, QUIET)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--quantize", "int8"], "give it as --init RUN"),
        (["--quantize", "int4", "--init", "x"], "int8"),
        (["--quantize", "int8", "--init", "x", "--quantize-target", "tvm"], "trt"),
        (["--quantize", "int8", "--init", "x", "--compile"], "does not go with --compile"),
        (["--quantize", "int8", "--init", "x", "--set", "quantize.observe=2"], "expected 0 to 1"),
        (["--quantize-target", "ort"], "no effect without --quantize"),
        (["--init", "x", "--weights", "none"], "leave one away"),
    ],
)
def test_a_configuration_without_sense_is_refused(arguments: list[str], says: str, tmp_path: Path) -> None:
    command = ["distill", "--data", "street:", "--teacher", "t", "--student", "ddrnet23_slim", "--out", f"{tmp_path}/o"]
    result = CliRunner().invoke(main, [*command, *arguments])
    assert result.exit_code == 2 and says in result.output and len(result.output.strip().splitlines()) == 1, (
        result.output
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("int8.flavour", 9, "for a target that is not known here"),
        (
            "int8.ranges.picture.scale",
            -0.5,
            "a range or a factor that is none; expected positive ones, zero points inside",
        ),
        ("int8.ranges.picture.zero_point", 1, "a range or a factor that is none"),
        ("int8.factors.backbone/0/0", 0.0, "a range or a factor that is none"),
        ("int8.factors.backbone/0/0", float("inf"), "not finite everywhere"),
    ],
)
def test_a_file_of_int8_is_looked_at_when_loaded(
    tmp_path: Path, openvino_file: Path, key: str, value: float, says: str
) -> None:
    state, metadata = read_safetensors(openvino_file)
    state[key].fill_(value)
    save_tensors(tmp_path / "x.safetensors", state, metadata)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_model(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def openvino_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openvino") / "x.safetensors"
    model = create_model("lraspp_mobilenet_v3_small", 3)[0]
    spec = ModelSpec("lraspp_mobilenet_v3_small", Labels(("a", "b", "c"), ((0, 0, 0),) * 3), Preprocess((48, 64)))
    int8 = attach(model.eval(), "openvino", spec.preprocess)
    int8.observing = True
    int8.train()
    with torch.no_grad(), as_int8(model):
        model(torch.randn(1, 3, 48, 64))
    save_model(path, model, spec)
    return path


def test_a_file_of_int8_has_its_target_and_its_ranges(openvino_file: Path) -> None:
    found = find(load_model(openvino_file)[0])
    assert found is not None and found.target == "openvino"
    stored = read_safetensors(openvino_file)[0]
    scales = [float(stored[f"int8.ranges.{name.replace('.', '/')}.scale"]) for name in found.plan.tensors]
    assert [scale for scale, _ in found.grids()] == [max(scale, 2.0**-20) for scale in scales]
    assert len(set(scales)) > 20
