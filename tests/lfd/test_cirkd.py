"""The CIRKD family's networks and checkpoints, against that repository's own values and published figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from lfd.errors import CheckpointError
from lfd.models import cirkd, create_model
from lfd.normalize import Normalize
from lfd.taps import FeatureTaps

Named = Iterator[tuple[str, tuple[int, ...]]]


def conv(name: str, *shape: int) -> Named:
    yield f"{name}.weight", shape


def norm(name: str, channels: int) -> Named:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def resnet(depth: int) -> Named:
    """Their ResNet with the deep stem, module by module as it is constructed."""
    for index, (before, after) in enumerate(((3, 64), (64, 64), (64, 128)), start=1):
        yield from conv(f"conv{index}", after, before, 3, 3)
        yield from norm(f"bn{index}", after)
    bottleneck, before = depth > 34, 128
    for stage, blocks in enumerate({18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]):
        width = 64 << stage
        after = width * (4 if bottleneck else 1)
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            shapes = [(width, before, 3, 3), (width, width, 3, 3)]
            if bottleneck:
                shapes = [(width, before, 1, 1), (width, width, 3, 3), (after, width, 1, 1)]
            for index, shape in enumerate(shapes, start=1):
                yield from conv(f"{name}.conv{index}", *shape)
                yield from norm(f"{name}.bn{index}", shape[0])
            if block == 0:
                yield from conv(f"{name}.downsample.0", after, before, 1, 1)
                yield from norm(f"{name}.downsample.1", after)
            before = after


def mobilenet() -> Named:
    """Their MobileNetV2: every block one flat sequence."""
    yield from conv("net.features.0.0", 32, 3, 3, 3)
    yield from norm("net.features.0.1", 32)
    before, block = 32, 0
    for expand, after, count in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(count):
            block += 1
            name, hidden, at = f"net.features.{block}.conv", before * expand, 0
            for shape in ((hidden, before, 1, 1), (hidden, 1, 3, 3), (after, hidden, 1, 1))[expand == 1 :]:
                yield from conv(f"{name}.{at}", *shape)
                yield from norm(f"{name}.{at + 1}", shape[0])
                at += 3
            before = after


def head(kind: str, channels: int, width: int, k: int) -> Named:
    if kind == "deeplabv3":
        parts = {"b0.0": (1, 0), "b1.block.0": (3, 0), "b2.block.0": (3, 0), "b3.block.0": (3, 0), "b4.gap.1": (1, 1)}
        for name, (side, at) in parts.items():
            yield from conv(f"aspp.{name}", width, channels, side, side)
            yield from norm(f"aspp.{name[:-1]}{at + 1}", width)
        yield from conv("aspp.project.0", width, 5 * width, 1, 1)
        yield from norm("aspp.project.1", width)
    else:
        for level in (1, 2, 3, 4):
            yield from conv(f"psp.conv{level}.0", channels // 4, channels, 1, 1)
            yield from norm(f"psp.conv{level}.1", channels // 4)
    yield from conv("block.0", width, width if kind == "deeplabv3" else 2 * channels, 3, 3)
    yield from norm("block.1", width)
    last = "block.4" if kind == "deeplabv3" else "classifier"
    yield from conv(last, k, width, 1, 1)
    yield f"{last}.bias", (k,)


def theirs(kind: str, backbone: str, width: int, k: int = 4) -> dict[str, Tensor]:
    """A state_dict as their code would write it; tensors of one stored number, which cost nothing."""
    deep = "mobilenet" not in backbone
    channels = 320 if not deep else 512 if backbone == "resnet18" else 2048
    named = [(f"pretrained.{n}", s) for n, s in (resnet(int(backbone[6:])) if deep else mobilenet())]
    named += [(f"head.{n}", s) for n, s in head(kind, channels, width, k)]
    if deep:
        inner = channels // 8
        named += [(f"auxlayer.block.{n}", s) for n, s in conv("0", inner, channels // 2, 3, 3)]
        named += [(f"auxlayer.block.{n}", s) for n, s in norm("1", inner)]
        named += [("auxlayer.block.4.weight", (k, inner, 1, 1)), ("auxlayer.block.4.bias", (k,))]
    return {name: torch.tensor(i / len(named)).expand(shape) for i, (name, shape) in enumerate(named)}


FAMILY = {
    "deeplabv3_resnet101s_os8": ("deeplabv3", "resnet101", 256),
    "deeplabv3_resnet50s_os8": ("deeplabv3", "resnet50", 256),
    "deeplabv3_resnet18s_os8": ("deeplabv3", "resnet18", 128),
    "deeplabv3_mobilenet_v2_os8": ("deeplabv3", "mobilenetv2", 128),
    "pspnet_resnet50s_os8": ("pspnet", "resnet50", 512),
    "pspnet_resnet18s_os8": ("pspnet", "resnet18", 128),
    "pspnet_mobilenet_v2_os8": ("pspnet", "mobilenetv2", 128),
}


def by_the_rule(key: str, position: int, shape: list[int]) -> Tensor:
    """The README's rule for the reference's weights."""
    a = np.arange(math.prod(shape), dtype=np.float64)
    wave = np.sin(0.7 * a + position)
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if key.endswith("running_var"):
        value = 1 + 0.5 * np.abs(wave)
    elif len(shape) == 1:
        value = 1 + 0.1 * wave if key.endswith("weight") else 0.1 * wave
    else:
        noise = 43758.5453 * np.sin(12.9898 * a + 78.233 * position)
        value = (2 * (noise - np.floor(noise)) - 1) * math.sqrt(3 / math.prod(shape[1:]))
    return torch.from_numpy(value.reshape(shape).astype(np.float32))


@pytest.mark.shared
def test_deeplabv3_resnet18_gives_their_repositorys_values(real: Path) -> None:
    refs = np.load(real / "refs" / "cirkd_deeplabv3_resnet18.npz")
    shapes = {str(k): json.loads(str(s)) for k, s in zip(refs["keys"], refs["shapes"], strict=True)}
    assert shapes == {k: list(v.shape) for k, v in theirs("deeplabv3", "resnet18", 128, 19).items()}
    state = {key: by_the_rule(key, i, shapes[key]) for i, key in enumerate(sorted(shapes))}
    model, name, k = cirkd.load(state, "the reference")
    assert (name, k) == ("deeplabv3_resnet18s_os8", 19) and not model.training
    taps = FeatureTaps(model, model.taps)  # type: ignore[arg-type]
    with torch.no_grad():
        outputs = taps(torch.from_numpy(refs["input"]))
        aux = model.aux_classifier(outputs.taps["stage3"])  # type: ignore[operator]
    for found, key in ((outputs.logits, "out0"), (aux, "out1"), (outputs.taps["deep"], "out2")):
        assert np.allclose(found.numpy(), refs[key], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILY)
def test_a_checkpoint_is_recognised_and_every_tensor_finds_its_place(name: str) -> None:
    """Both sides write their modules in the order of construction, which is the order of computation."""
    state = theirs(*FAMILY[name])
    assert cirkd.recognise(state) == (name, 4)
    model, found, k = cirkd.load(state, "x.pth")
    assert (found, k) == (name, 4)
    filled = model.state_dict()
    assert list(filled) == list(cirkd.rename(state))
    for key, value, expected in zip(filled, filled.values(), state.values(), strict=True):
        assert value.shape == expected.shape, key
        if value.dim():
            assert value.flatten()[0] == expected.flatten()[0], key


def test_other_checkpoints_are_not_of_the_family() -> None:
    psp = theirs("pspnet", "resnet18", 128)
    others = {
        "nothing": {},
        "torchvision's": torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None
        ).state_dict(),
        "ours": create_model("pspnet_resnet18s_os8", 4)[0].state_dict(),
        "the 7x7 stem": {k: v for k, v in psp.items() if not k.startswith("pretrained.conv3.")},
        "another depth": psp | {"pretrained.layer3.2.conv1.weight": torch.zeros(1)},
        "no head": {k: v for k, v in psp.items() if not k.startswith("head.classifier.")},
        "a broken head": psp | {"head.classifier.weight": torch.zeros(())},
        "another backbone": {k: v for k, v in psp.items() if not k.startswith("pretrained.")},
    }
    for what, state in others.items():
        assert cirkd.recognise(state) is None, what
        with pytest.raises(CheckpointError, match=r"x\.pth: is no segmentation checkpoint of the CIRKD family"):
            cirkd.load(state, "x.pth")


def test_our_own_and_torchvisions_keys_stay_as_they_are() -> None:
    for source in (
        create_model("deeplabv3_resnet18s_os8", 4)[0],
        create_model("pspnet_mobilenet_v2_os8", 4)[0],
        torchvision.models.resnet50(weights=None),
        torchvision.models.mobilenet_v2(weights=None),
        torchvision.models.mobilenet_v3_small(weights=None),
    ):
        state = source.state_dict()
        assert list(cirkd.rename(state)) == list(state)


def test_the_later_revisions_widths_are_named() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"late\.pth: 'head\.aspp\.b0\.0\.weight' has shape \(512, 512, 1, 1\); deeplabv3_resnet18s_os8 expects "
        r"\(128, 512, 1, 1\)",
    ):
        cirkd.load(theirs("deeplabv3", "resnet18", 512), "late.pth")


def test_what_lacks_or_exceeds_is_named_and_old_files_load() -> None:
    state = theirs("pspnet", "resnet18", 128)
    old = {k: v for k, v in state.items() if "num_batches_tracked" not in k}
    model, _, _ = cirkd.load(old, "old.pth")
    assert not model.get_submodule("backbone.bn1").num_batches_tracked  # type: ignore[operator]
    without = {k: v for k, v in state.items() if k != "auxlayer.block.0.weight"}
    with pytest.raises(CheckpointError, match=r"x\.pth: .*lacks 'aux_classifier\.0\.weight'"):
        cirkd.load(without, "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: .*has 'criterion\.weight', which the model has not"):
        cirkd.load(state | {"criterion.weight": torch.zeros(3)}, "x.pth")
    with pytest.raises(CheckpointError, match=r"two keys .* both mean 'aux_classifier\.4\.bias'"):
        cirkd.load(state | {"aux_classifier.4.bias": torch.zeros(4)}, "x.pth")


def resnet_tensors() -> Iterator[tuple[str, Tensor]]:
    return ((name, torch.full(shape, 0.5)) for name, shape in resnet(18))


def backbone_file(kind: str, path: Path) -> Path:
    """An ImageNet checkpoint as one finds it."""
    if kind == "cirkd resnet":
        state = dict(resnet_tensors()) | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    elif kind == "timm resnet":
        state = {k: v + 0.5 for k, v in create_model("pspnet_resnet18s_os8", 4)[0].backbone.state_dict().items()}  # type: ignore[union-attr, operator]
        state |= {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    elif kind == "cirkd mobilenet":
        state = {n.removeprefix("net."): torch.full(s, 0.5) for n, s in mobilenet()}
        state |= {"features.18.0.weight": torch.zeros(1280, 320, 1, 1), "classifier.1.weight": torch.zeros(10, 1280)}
    else:
        state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("cirkd resnet", "deeplabv3_resnet18s_os16"),
        ("timm resnet", "pspnet_resnet18s_os16"),
        ("cirkd mobilenet", "deeplabv3_mobilenet_v2_os16"),
    ],
)
def test_an_imagenet_checkpoint_fills_the_backbone(tmp_path: Path, kind: str, name: str) -> None:
    path = backbone_file(kind, tmp_path / "weights.pth")
    model, said = create_model(name, 4, str(path))
    assert "weights.pth" in said
    state = model.get_submodule("backbone").state_dict()
    source = torch.load(path)
    for value, expected in zip(state.values(), source.values(), strict=False):  # behind them the classifier
        assert torch.equal(value, expected.to(value.dtype))


@pytest.mark.parametrize(
    ("kind", "name", "match"),
    [
        (
            "torchvision resnet",
            "pspnet_resnet18s_os8",
            r"lacks .*'conv1\.0\.weight'; expected the CIRKD family's resnet18",
        ),
        ("cirkd resnet", "deeplabv3_resnet18_os8", r"lacks .*'conv1\.weight'; expected torchvision's"),
        ("cirkd resnet", "pspnet_mobilenet_v2_os8", r"lacks .*mobilenetv2-imagenet\.pth"),
    ],
)
def test_one_stem_is_not_taken_for_the_other(tmp_path: Path, kind: str, name: str, match: str) -> None:
    with pytest.raises(CheckpointError, match=rf"weights\.pth: {match}"):
        create_model(name, 4, str(backbone_file(kind, tmp_path / "weights.pth")))


def test_torchvision_has_no_weights_for_a_deep_stem() -> None:
    with pytest.raises(
        CheckpointError, match=r"no ImageNet weights for resnet18s.*--weights FILE.*resnet18-imagenet.*--weights none"
    ):
        create_model("pspnet_resnet18s_os8", 4, "imagenet")


def test_their_input_is_bgr_less_the_mean() -> None:
    image = torch.randint(0, 256, (1, 3, 4, 5), dtype=torch.uint8)
    spec = cirkd.preprocess((4, 5), "letterbox")
    assert (spec.size_hw, spec.resize) == ((4, 5), "letterbox")
    expected = image.float() - torch.tensor(cirkd.PREPROCESS_MEAN_BGR).view(3, 1, 1)
    assert torch.allclose(Normalize(spec)(image), expected, atol=1e-4)
