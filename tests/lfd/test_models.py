from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lfd.errors import CheckpointError, UsageError
from lfd.models import MODELS, create_model
from lfd.profile import count_macs, count_parameters
from lfd.taps import FeatureTaps, dry_run

SMALL = [name for name in MODELS if "resnet101" not in name]


@pytest.mark.parametrize("name", SMALL)
def test_every_model_keeps_the_contract(name: str) -> None:
    torch.manual_seed(0)
    model, said = create_model(name, 5)
    assert "random weights" in said and model.training
    stride = int(name.rpartition("_os")[2]) if "_os" in name else 8
    size = (64, 96)
    out = model(torch.randn(2, 3, *size))
    assert out["out"].shape == (2, 5, size[0] // stride, size[1] // stride)
    assert ("aux" in out) == name.startswith("deeplabv3")
    assert set(model.eval()(torch.randn(1, 3, *size))) == {"out"}
    taps = FeatureTaps(model, model.taps)  # type: ignore[arg-type]
    shapes = dry_run(taps, size)
    assert "deep" in shapes and shapes["deep"].grid_hw == shapes["logits"].grid_hw
    taps.remove()


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


def test_dilating_resnet18_follows_torchvisions_rule() -> None:
    """On ResNet-50, where torchvision dilates itself, our in-place edit gives the same strides and dilations."""
    from lfd.models.deeplabv3 import _dilate

    ours = torchvision.models.resnet50(weights=None)
    _dilate(ours, 8)
    theirs = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
    pairs = zip(ours.modules(), theirs.modules(), strict=True)
    for a, b in pairs:
        if isinstance(a, nn.Conv2d) and isinstance(b, nn.Conv2d):
            assert (a.stride, a.dilation, a.padding) == (b.stride, b.dilation, b.padding)


@pytest.mark.parametrize(
    ("arch", "name"), [("resnet18", "deeplabv3_resnet18_os16"), ("mobilenet_v3_small", "lraspp_mobilenet_v3_small")]
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


def test_taps_are_removed_without_trace() -> None:
    model, _ = create_model("lraspp_mobilenet_v3_small", 5)
    taps = FeatureTaps(model, {"deep": "classifier.high_classifier:input"})
    assert set(taps(torch.randn(2, 3, 32, 32)).taps) == {"deep"}
    taps.remove()
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(UsageError, match="classifier"):
        FeatureTaps(model, {"deep": "clasifier"})
