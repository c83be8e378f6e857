"""DDRNet-23-slim against its paper, and against what the rest of the project asks of a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from deploy.session import open_session
from export.graph import DeployGraph
from export.to_onnx import to_onnx
from lfd.errors import CheckpointError
from lfd.models import create_model
from lfd.models.ddrnet import CONTEXT, DAPPM, Residual
from lfd.profile import count_macs, count_parameters
from lfd.spec import Labels, ModelSpec, Preprocess
from lfd.taps import FeatureTaps, dry_run

NAME = "ddrnet23_slim"
CENTRE = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
ALLOWED = {"Cast", "Sub", "Transpose", "Conv", "Relu", "Add", "Resize", "BatchNormalization", "AveragePool", "Concat"}
ALLOWED |= {"ReduceMean", "GlobalAveragePool", "MatMul"}
"""What the graph is made of: nothing that computes a shape."""


def make(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return create_model(NAME, num_classes)[0]


def test_size_and_cost_are_the_papers() -> None:
    """Table VI: 5.7 M parameters and 36.3 G at 1024x2048, which are multiply-accumulates."""
    model = make(19)
    assert round(count_parameters(model) / 1e6, 1) == 5.7
    assert round(count_macs(model, (1024, 2048)) / 1e9, 1) == 36.3


@pytest.mark.parametrize("size", [(65, 97), (180, 240), (33, 64), (64, 128)])
def test_grids_in_training_and_in_evaluation(size: tuple[int, int]) -> None:
    model = make()
    grid = tuple(-(-side // 8) for side in size)
    image = torch.randn(2, 3, *size)
    training = model(image)
    assert {key: value.shape for key, value in training.items()} == dict.fromkeys(("out", "aux"), (2, 3, *grid))
    with torch.no_grad():
        evaluation = model.eval()(image)
    assert set(evaluation) == {"out"} and evaluation["out"].shape == (2, 3, *grid)
    assert bool(evaluation["out"].isfinite().all())


def test_taps() -> None:
    model = make()
    taps = FeatureTaps(model, model.taps)  # type: ignore[arg-type]
    found = {name: (info.channels, info.grid_hw) for name, info in dry_run(taps, (65, 97)).items()}
    assert found == {
        "logits": (3, (9, 13)),
        "deep": (64, (9, 13)),
        "stage1": (32, (17, 25)),
        "stage2": (64, (9, 13)),
        "stage3": (128, (5, 7)),
        "stage4": (256, (3, 4)),
    }
    outputs = taps(torch.randn(2, 3, 65, 97))
    again = model.get_submodule("classifier.conv2")(outputs.taps["deep"])
    assert torch.equal(again, outputs.logits)
    assert outputs.aux is not None


def test_inference_needs_nothing_of_the_auxiliary_head() -> None:
    model = make().eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(image)["out"]
        for parameter in model.get_submodule("aux_classifier").parameters():
            parameter.fill_(float("nan"))
        assert torch.equal(model(image)["out"], before)


def test_a_state_dict_is_the_whole_network() -> None:
    first, second = make(), create_model(NAME, 3)[0]
    image = torch.randn(2, 3, 65, 97)
    first(image)  # statistics that are not those of a fresh network
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(first.eval()(image)["out"], second.eval()(image)["out"])


@pytest.mark.parametrize(("channels", "width", "stride"), [(8, 8, 1), (8, 16, 2)])
def test_residual_blocks_are_torchvisions(channels: int, width: int, stride: int) -> None:
    from torchvision.models.resnet import BasicBlock

    torch.manual_seed(0)
    ours = Residual(channels, width, stride).eval()
    downsample = None
    if stride > 1:
        downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    theirs = BasicBlock(channels, width, stride, downsample).eval()
    theirs.load_state_dict(ours.state_dict())
    feature = torch.randn(2, channels, 9, 7)
    with torch.no_grad():
        assert torch.allclose(ours(feature), theirs(feature), atol=1e-6)


def test_the_pyramids_last_scale_is_the_mean_of_the_feature() -> None:
    """With nothing but the last scale left, all places get one value, wherever the feature's values stood."""
    torch.manual_seed(0)
    pyramid = DAPPM(6, 4).eval()
    with torch.no_grad():
        pyramid.get_parameter("shortcut.2.weight").zero_()
        pyramid.get_parameter("compression.2.weight")[:, : 4 * CONTEXT] = 0
        pyramid.get_parameter("process3.2.weight").zero_()
        pyramid.get_parameter("process4.2.weight").copy_(torch.eye(CONTEXT)[..., None, None] * CENTRE)
        feature = torch.rand(1, 6, 5, 7)
        found = pyramid(feature)
        assert float(found.abs().max()) > 0
        assert torch.allclose(found, found[..., :1, :1].expand_as(found), atol=1e-6)
        shuffled = feature.flatten(2)[..., torch.randperm(35)].view_as(feature)
        assert torch.allclose(pyramid(shuffled), found, atol=1e-6)


def published() -> dict[str, Tensor]:
    """Return a classification checkpoint with the keys and shapes of the authors' code, where ours must fit."""
    state: dict[str, Tensor] = {}

    def conv(name: str, out: int, channels: int, side: int, bias: bool = False) -> None:
        state[f"{name}.weight"] = torch.randn(out, channels, side, side)
        if bias:
            state[f"{name}.bias"] = torch.randn(out)

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = torch.rand(channels)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def block(name: str, channels: int, width: int, bottleneck: bool, downsample: bool) -> None:
        widths = (channels, width, width, 2 * width) if bottleneck else (channels, width, width)
        for i, side in enumerate((1, 3, 1) if bottleneck else (3, 3), start=1):
            conv(f"{name}.conv{i}", widths[i], widths[i - 1], side)
            norm(f"{name}.bn{i}", widths[i])
        if downsample:
            conv(f"{name}.downsample.0", widths[-1], channels, 1)
            norm(f"{name}.downsample.1", widths[-1])

    for at, channels in ((0, 3), (3, 32)):
        conv(f"conv1.{at}", 32, channels, 3, bias=True)
        norm(f"conv1.{at + 1}", 32)
    for name, channels, width in (
        ("layer1", 32, 32),
        ("layer2", 32, 64),
        ("layer3", 64, 128),
        ("layer4", 128, 256),
        ("layer3_", 64, 64),
        ("layer4_", 64, 64),
    ):
        block(f"{name}.0", channels, width, bottleneck=False, downsample=channels != width)
        block(f"{name}.1", width, width, bottleneck=False, downsample=False)
    block("layer5.0", 256, 256, bottleneck=True, downsample=True)
    block("layer5_.0", 64, 64, bottleneck=True, downsample=True)
    for name, out, channels, side in (
        ("compression3", 64, 128, 1),
        ("compression4", 64, 256, 1),
        ("down3", 128, 64, 3),
        ("down4", 128, 64, 3),
        ("down5", 256, 128, 3),
        ("last_layer", 1024, 512, 1),
    ):
        conv(f"{name}.0", out, channels, side)
        norm(f"{name}.1", out)
    for name, out, channels in (("down4", 256, 128), ("down5", 512, 256)):
        conv(f"{name}.3", out, channels, 3)
        norm(f"{name}.4", out)
    state["linear.weight"], state["linear.bias"] = torch.randn(1000, 1024), torch.randn(1000)
    return state


def test_the_authors_classification_checkpoint_fills_the_backbone(tmp_path: Path) -> None:
    state = published()
    save_file(state, tmp_path / "imagenet.safetensors")
    model, said = create_model(NAME, 3, str(tmp_path / "imagenet.safetensors"))
    assert "imagenet.safetensors" in said
    found = model.get_submodule("backbone").state_dict()
    assert all(torch.equal(value, state[key]) for key, value in found.items())
    heads = ("down5.", "last_layer.", "linear.")
    assert set(found) == {key for key in state if not key.startswith(heads)}


def test_imagenet_weights_are_not_torchvisions() -> None:
    with pytest.raises(CheckpointError, match=r"torchvision has no ImageNet weights for ddrnet23_slim\. Fix: .*none"):
        create_model(NAME, 3, "imagenet")


def test_the_exported_graph_is_the_network(tmp_path: Path) -> None:
    model, size = make(), (65, 97)
    for _ in range(4):
        model(torch.randn(2, 3, *size))  # statistics that fit what comes
    spec = ModelSpec(NAME, Labels(("a", "b", "c"), ((0, 0, 0),) * 3), Preprocess(size))
    to_onnx(model, spec, tmp_path / "model.onnx", output="logits")
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert operators <= ALLOWED
    frame = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8)
    with open_session(tmp_path / "model.onnx", "ort") as session, torch.no_grad():
        found = session.run(frame.numpy())
        expected = DeployGraph(model, spec.preprocess, "logits")(frame)
    assert np.allclose(found, expected.numpy(), atol=1e-4 * float(expected.abs().max()))


def test_steps_lower_the_loss() -> None:
    """From random weights, on one batch that colour alone decides; both heads learn."""
    model = make()
    mask = torch.randint(0, 3, (4, 1, 8, 8)).float()
    mask = F.interpolate(mask, (64, 64)).long()[:, 0]
    image = torch.eye(3)[mask].permute(0, 3, 1, 2) * 2 - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses: list[dict[str, float]] = []
    for _ in range(8):
        logits = model(image)
        terms = {k: F.cross_entropy(F.interpolate(v, (64, 64), mode="bilinear"), mask) for k, v in logits.items()}
        losses.append({key: float(term.detach()) for key, term in terms.items()})
        optimizer.zero_grad()
        (terms["out"] + 0.4 * terms["aux"]).backward()
        assert all(p.grad is not None for p in model.parameters()), "a parameter that nothing trains"
        optimizer.step()
    assert all(losses[-1][key] < 0.75 * losses[0][key] for key in ("out", "aux"))
