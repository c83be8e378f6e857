from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from deploy.session import open_session
from export.graph import DeployGraph
from export.to_onnx import to_onnx
from lfd.errors import CheckpointError, UsageError
from lfd.models import MODELS, create_model
from lfd.models.backbones import build_backbone, dilate
from lfd.models.pspnet import PyramidPooling
from lfd.profile import count_macs, count_parameters
from lfd.spec import Labels, ModelSpec, Preprocess
from lfd.taps import FeatureTaps, dry_run

SMALL = [name for name in MODELS if "resnet101" not in name]


@pytest.mark.parametrize("name", SMALL)
def test_every_model_keeps_the_contract(name: str) -> None:
    torch.manual_seed(0)
    model, said = create_model(name, 5)
    assert "random weights" in said and model.training
    stride = int(name.rpartition("_os")[2]) if "_os" in name else 8
    size = (33, 65)  # no multiple of any stride, as a camera's is not
    grid = tuple(-(-side // stride) for side in size)
    out = model(torch.randn(2, 3, *size))
    assert out["out"].shape == (2, 5, *grid)
    assert ("aux" in out) == ("resnet" in name or "ddrnet" in name)
    assert all(v.shape == out["out"].shape for v in out.values())
    assert model.align_corners is ("mobilenet_v2" in name or "resnet18s" in name or "resnet50s" in name)
    taps = FeatureTaps(model.eval(), model.taps)  # type: ignore[arg-type]
    shapes = dry_run(taps, size)
    assert shapes["deep"].grid_hw == shapes["logits"].grid_hw == grid
    if "_os" in name:
        strides = (4, 8, min(16, stride), stride)
        for index, stage_stride in enumerate(strides, start=1):
            assert shapes[f"stage{index}"].grid_hw == tuple(-(-side // stage_stride) for side in size)
    taps.remove()
    assert set(model(torch.zeros(1, 3, *size))) == {"out"}


def test_deeplab_is_torchvisions_own_where_torchvision_has_it() -> None:
    theirs = torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    ).eval()
    ours, _ = create_model("deeplabv3_resnet50_os8", 5)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        full = nn.functional.interpolate(ours.eval()(image)["out"], (65, 97), mode="bilinear", align_corners=False)
        assert torch.allclose(full, theirs(image)["out"], atol=1e-5)


def test_lraspp_is_torchvisions_own() -> None:
    theirs = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    ).eval()
    ours, _ = create_model("lraspp_mobilenet_v3_large", 5)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        full = nn.functional.interpolate(ours.eval()(image)["out"], (64, 96), mode="bilinear", align_corners=False)
        assert torch.allclose(full, theirs(image)["out"], atol=1e-5)


def test_dilating_resnet50_is_torchvisions_own() -> None:
    ours = torchvision.models.resnet50(weights=None)
    dilate([ours.layer3, ours.layer4])
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    for a, b in zip(ours.modules(), theirs.modules(), strict=True):
        if isinstance(a, nn.Conv2d) and isinstance(b, nn.Conv2d):
            assert (a.stride, a.dilation, a.padding) == (b.stride, b.dilation, b.padding)


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_a_dilated_backbone_computes_the_plain_one_on_a_finer_grid(arch: str, stride: int) -> None:
    """The algorithme a trous: at every (32 / stride)th place it is the plain network, at the borders too."""
    torch.manual_seed(0)
    plain = torchvision.models.get_model(arch, weights=None)
    backbone = build_backbone(arch, stride).module.eval()
    backbone.load_state_dict(
        {
            k: v
            for name, v in plain.state_dict().items()
            if (k := name.removeprefix("features.")) in backbone.state_dict()
        }
    )
    stages = (
        plain.features[:18]
        if arch == "mobilenet_v2"
        else nn.Sequential(*list(plain.children())[:-2])  # without pooling and classifier
    )
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        fine, coarse = backbone(image)["out"], stages.eval()(image)
    step = 32 // stride
    assert fine.shape[-1] > coarse.shape[-1]
    assert torch.allclose(fine[..., ::step, ::step], coarse, atol=1e-5 * float(coarse.abs().max()))


@pytest.mark.parametrize("grid", [(6, 12), (23, 30), (45, 60), (4, 7), (1, 1)])
def test_pyramid_pooling_is_adaptive_pooling(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    pyramid = PyramidPooling(8).eval()
    feature = torch.randn(2, 8, *grid)
    with torch.no_grad():
        expected = [feature]
        for bins, conv in zip((1, 2, 3, 6), pyramid.convs, strict=True):
            level = conv(F.adaptive_avg_pool2d(feature, bins))
            expected.append(F.interpolate(level, grid, mode="bilinear", align_corners=True))
        assert torch.allclose(pyramid(feature), torch.cat(expected, 1), atol=1e-6)


def test_pspnet_exports_where_the_grid_is_no_multiple_of_the_pyramid(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, _ = create_model("pspnet_mobilenet_v2_os16", 3)
    spec = ModelSpec("pspnet_mobilenet_v2_os16", Labels(("a", "b", "c"), ((0, 0, 0),) * 3), Preprocess((72, 120)))
    to_onnx(model, spec, tmp_path / "model.onnx", output="logits")
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert not {op for op in operators if op.startswith("Gather")}, "adaptive pooling has come back"
    frame = torch.randint(0, 256, (1, 72, 120, 3), dtype=torch.uint8)
    with open_session(tmp_path / "model.onnx") as session, torch.no_grad():
        found = session.run(frame.numpy())
        expected = DeployGraph(model, spec.preprocess, "logits")(frame)
    assert np.allclose(found, expected.numpy(), atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("resnet18", "deeplabv3_resnet18_os16"),
        ("mobilenet_v3_small", "lraspp_mobilenet_v3_small"),
        ("mobilenet_v2", "pspnet_mobilenet_v2_os16"),
    ],
)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_classification_checkpoint_fills_the_backbone(tmp_path: Path, arch: str, name: str, kind: str) -> None:
    source = torchvision.models.get_model(arch, weights=None)
    path = tmp_path / f"{arch}.{kind}"
    if kind == "pth":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    model, said = create_model(name, 5, str(path))
    assert str(path) in said
    first = next(p for p in source.parameters())
    assert torch.equal(next(model.get_submodule("backbone").parameters()), first)


def test_a_wrong_backbone_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r50.pth"
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"r50\.pth"):
        create_model("deeplabv3_resnet18_os16", 5, str(path))
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        create_model("deeplabv3_resnet18_os16", 5, str(tmp_path / "nowhere.pth"))


def test_a_deeper_networks_checkpoint_is_not_cut_to_fit(tmp_path: Path) -> None:
    path = tmp_path / "r34.pth"
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"r34\.pth: has .* tensors that resnet18 has not.*'layer1\.2"):
        create_model("deeplabv3_resnet18_os16", 5, str(path))


def test_imagenet_weights_that_cannot_be_had_are_an_error_with_two_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet18_Weights

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", unreachable)
    with pytest.raises(CheckpointError, match=r"no route.*--weights FILE.*--weights none"):
        create_model("deeplabv3_resnet18_os16", 5, "imagenet")


@pytest.mark.parametrize("kind", ["code", "noise"])
def test_a_spoilt_copy_in_torchs_cache_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    from torchvision.models import ResNet18_Weights

    from tests.lfd.test_weights import Payload

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    copy = tmp_path / "hub/checkpoints" / ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    copy.parent.mkdir(parents=True)
    if kind == "code":
        torch.save(Payload(tmp_path / "pwned"), copy)
    else:
        copy.write_bytes(bytes(range(256)) * 12)
    with pytest.raises(CheckpointError, match=r"remove a broken copy.*--weights none"):
        create_model("deeplabv3_resnet18_os16", 5, "imagenet")
    assert not (tmp_path / "pwned").exists()


def test_imagenet_weights_through_torchvisions_api(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet18_Weights

    source = torchvision.models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *_, **__: source)
    model, said = create_model("deeplabv3_resnet18_os16", 5, "imagenet")
    assert "ResNet18_Weights" in said
    assert torch.equal(model.get_submodule("backbone").conv1.weight, source["conv1.weight"])  # type: ignore[union-attr]


def test_an_unknown_model_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Did you mean 'deeplabv3_resnet18_os8'"):
        create_model("deeplabv3_resnet18_os", 5)


def test_costs_of_a_known_network() -> None:
    """torchvision publishes for LR-ASPP (21 classes, 520x520): 3 221 538 parameters and 2.086 GFLOPs (as MACs)."""
    weights = torchvision.models.segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT
    model, _ = create_model("lraspp_mobilenet_v3_large", 21)
    assert count_parameters(model) == weights.meta["num_params"]
    assert count_macs(model, (520, 520)) / 1e9 == pytest.approx(weights.meta["_ops"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "millions", "giga"),
    [
        ("deeplabv3_resnet101s_os8", 61.1, 2371.7),
        ("deeplabv3_resnet18s_os8", 13.6, 572.0),
        ("deeplabv3_mobilenet_v2_os8", 3.2, 128.9),
        ("pspnet_resnet18s_os8", 12.9, 507.4),
    ],
)
def test_costs_of_the_cirkd_family_are_the_published_ones(name: str, millions: float, giga: float) -> None:
    """Yang et al., CVPR 2022, table 1: parameters, and "FLOPs" at 1024x2048 with 19 classes.

    Both count the auxiliary head. Their FLOPs are multiply-accumulates of convolutions whose output size
    their counter takes from padding and kernel without the dilation, so a dilated convolution counts for
    more than it costs. Counted their way ours agree, which pins strides, dilations and widths everywhere.
    """
    with torch.device("meta"):
        model = MODELS[name](19)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    counted = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, nn.Conv2d)
        cells = 1
        for axis, side in enumerate(inputs[0].shape[-2:]):
            padded = side + 2 * int(layer.padding[axis])
            cells *= (padded - layer.kernel_size[axis]) // layer.stride[axis] + 1
        counted += layer.weight.numel() * cells

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    model.train()(torch.zeros(2, 3, 1024, 2048, device="meta"))
    assert counted / 1e9 == pytest.approx(giga, abs=0.06)


def test_taps_are_removed_without_trace() -> None:
    model, _ = create_model("lraspp_mobilenet_v3_small", 5)
    taps = FeatureTaps(model, {"deep": "classifier.high_classifier:input"})
    assert set(taps(torch.randn(2, 3, 32, 32)).taps) == {"deep"}
    taps.remove()
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(UsageError, match="classifier"):
        FeatureTaps(model, {"deep": "clasifier"})
