"""Features by path: the grammar, what is refused, and the grids of transformers' tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lfd.errors import UsageError
from lfd.grids import MAX_LEADING, stride_of, token_grid
from lfd.models import MODELS
from lfd.taps import FeatureTaps, TapInfo, dry_run


class Encoder(nn.Module):
    """Gives what networks give: dictionaries, lists, objects, tokens, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.tokens = nn.Identity()
        self.last = nn.Identity()
        self.pooled = nn.Identity()

    def forward(self, image: Tensor) -> Any:
        grid = self.patches(image)
        tokens = grid.flatten(2).transpose(1, 2)
        self.tokens(torch.cat([tokens[:, :1] * 0, tokens], 1))
        self.last(grid.permute(0, 2, 3, 1))
        self.pooled(grid.mean((2, 3)))
        return {"all": [grid, grid * 2], "object": SimpleNamespace(state=grid * 3)}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.shared = nn.Conv2d(6, 6, 1)
        self.idle = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        grid = self.encoder(image)["all"][0]
        return {"out": self.head(input=self.relu(self.norm(self.shared(self.shared(grid)))))}


def read(path: str, model: nn.Module | None = None, size: tuple[int, int] = (16, 24)) -> Tensor:
    torch.manual_seed(0)
    model = (model or Network()).eval()
    taps = FeatureTaps(model, {"deep": path})
    try:
        return taps(torch.randn(2, 3, *size)).taps["deep"]
    finally:
        taps.remove()


@pytest.mark.parametrize(
    ("path", "factor"),
    [
        ("encoder.patches", 1),
        ("encoder:all:0", 1),
        ("encoder:all:1", 2),
        ("encoder:object:state", 3),
        ("encoder.tokens@tokens", 1),
        ("encoder.tokens:input@tokens", 1),
        ("encoder.last@nhwc", 1),
    ],
)
def test_every_form_of_a_path_gives_the_same_feature(path: str, factor: int) -> None:
    torch.manual_seed(0)
    model = Network().eval()
    taps = FeatureTaps(model, {"deep": path, "plain": "encoder.patches"})
    found = taps(torch.randn(2, 3, 16, 24)).taps
    assert found["deep"].shape == (2, 6, 4, 6)
    assert torch.equal(found["deep"], factor * found["plain"])
    taps.remove()
    assert not any(module._forward_hooks for module in model.modules())


def test_an_input_given_by_name_and_the_network_itself_can_be_tapped() -> None:
    assert read("head:input").shape == (2, 6, 4, 6)
    assert read(":out").shape == (2, 2, 4, 6)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("encoder.patchs", "Did you mean 'encoder.patches'"),
        ("encoder.patches@token", "Did you mean 'tokens'"),
        ("encoder.patches:", "expected module.path"),
        ("idle", "not run in the forward pass"),
        ("shared", "called several times"),
        ("norm", "changes it in place"),
        ("encoder", r"is a dict with the entries all, object, not a feature map.*:all"),
        ("encoder:all", r"is a list of 2 entries, not a feature map.*:0"),
        ("encoder:all:2", "no entry '2' in a list of 2 entries"),
        ("encoder:some", "no entry 'some' in a dict with the entries all, object"),
        ("encoder.patches:0", "no entry '0' in a tensor of shape"),
        ("encoder.tokens", r"a tensor of shape \(2, 25, 6\), not a feature map.*Fix: @tokens"),
        ("encoder.patches@tokens", r"shape \(2, 6, 4, 6\).*expected \(B, N, C\)"),
        ("encoder.pooled", r"shape \(2, 6\).*Fix: tap another module"),
        ("encoder:object", "is a SimpleNamespace, not a feature map"),
    ],
)
def test_a_path_that_does_not_fit_is_one_line(path: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_the_input_of_a_module_that_is_given_nothing_is_one_line() -> None:
    class Bias(nn.Module):
        def forward(self) -> Tensor:
            return torch.zeros(1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = Bias()

        def forward(self, image: Tensor) -> Tensor:
            biased: Tensor = image + self.bias()
            return biased

    with pytest.raises(UsageError, match="'bias:input': that module is given nothing"):
        FeatureTaps(Net(), {"deep": "bias:input"})(torch.zeros(1, 3, 4, 4))


def test_a_pass_that_failed_halfway_leaves_the_taps_usable() -> None:
    model = Network().eval()
    taps = FeatureTaps(model, {"deep": "encoder.patches"})
    image, head = torch.zeros(1, 3, 16, 24), model.head
    model.head = nn.Conv2d(7, 2, 1)
    with pytest.raises(RuntimeError, match="channels"):
        taps(image)
    model.head = head
    assert taps(image).taps["deep"].shape == (1, 6, 4, 6)


def test_a_tap_behind_the_in_place_operation_is_its_result() -> None:
    assert (read("relu") >= 0).all() and read("relu").requires_grad


def test_a_recomputed_module_is_no_second_call() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, image: Tensor) -> Tensor:
            found = checkpoint(self.conv, image, use_reentrant=False)
            assert isinstance(found, Tensor)
            return found

    taps = FeatureTaps(Checkpointed(), {"deep": "conv"})
    for _ in range(2):
        taps(torch.ones(1, 3, 8, 8)).taps["deep"].square().sum().backward()
    assert taps.model.get_parameter("conv.weight").grad is not None


def test_taps_under_torch_compile_are_those_without() -> None:
    torch.manual_seed(0)
    paths = {"map": "encoder.patches", "tokens": "encoder.tokens@tokens", "entry": "encoder:all:1", "in": "head:input"}
    model = Network().eval()
    taps = FeatureTaps(model, paths)
    images = torch.randn(2, 2, 3, 16, 24)
    plain = [taps(image) for image in images]
    model.compile(backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for before, after in zip(plain, [taps(image) for image in images], strict=True):
            assert torch.equal(before.logits, after.logits)
            assert all(torch.equal(before.taps[name], after.taps[name]) for name in paths)
    torch._dynamo.reset()


def test_a_dry_run_finds_shapes_and_restores_the_mode() -> None:
    model = Network().train()
    found = dry_run(FeatureTaps(model, {"deep": "encoder.tokens@tokens"}), (16, 24))
    assert found == {"logits": TapInfo(2, (4, 6)), "deep": TapInfo(6, (4, 6))} and model.training
    assert model.norm.num_batches_tracked == 0


def test_a_dry_run_says_what_the_network_says() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 9))
    with pytest.raises(
        UsageError, match=r"Sequential fails on an input of 4x4 \(RuntimeError: .*Kernel size"
    ) as caught:
        dry_run(FeatureTaps(model, {}), (4, 4))
    assert "\n" not in str(caught.value) and model.training


def test_a_dry_run_knows_channels_that_come_last() -> None:
    with pytest.raises(UsageError, match="Fix: @nhwc"):
        dry_run(FeatureTaps(Network(), {"deep": "encoder.last"}), (16, 24))


@pytest.mark.parametrize("name", [name for name in MODELS if "101" not in name and "50" not in name])
def test_no_declared_tap_is_changed_in_place_or_missing(name: str) -> None:
    model = MODELS[name](3)
    declared: dict[str, str] = model.taps  # type: ignore[assignment]
    assert set(FeatureTaps(model, declared)(torch.zeros(2, 3, 64, 64)).taps) == set(declared)


sides = st.integers(1, 64)


@given(sides, sides, st.sampled_from((4, 8, 14, 16, 32)), st.integers(0, MAX_LEADING))
def test_tokens_of_whole_patches_lie_on_their_grid(rows: int, columns: int, patch: int, leading: int) -> None:
    """Exact where it can be: no other common divisor of the sides makes as many tokens with fewer leading ones."""
    size = (rows * patch, columns * patch)
    count = rows * columns + leading
    rivals = [s for s in range(1, min(size) + 1) if size[0] % s == size[1] % s == 0 and s != patch]
    if not any(0 <= count - size[0] // s * (size[1] // s) < leading for s in rivals):
        assert token_grid(count, size) == (rows, columns)


@given(sides, sides, st.integers(0, 10_000))
def test_a_token_grid_is_that_of_a_stride_with_few_leading_tokens(height: int, width: int, count: int) -> None:
    grid = token_grid(count, (height, width))
    possible = {(-(-height // s), -(-width // s)) for s in range(1, max(height, width) + 1)}
    fitting = [g for g in possible if 0 <= count - g[0] * g[1] <= MAX_LEADING]
    assert (grid in fitting) if fitting else grid is None


@given(sides, sides, sides)
def test_the_stride_of_a_grid_gives_the_grid(height: int, width: int, stride: int) -> None:
    grid = (-(-height // stride), -(-width // stride))
    found = stride_of(grid, (height, width))
    assert found is not None and (-(-height // found), -(-width // found)) == grid


@pytest.mark.parametrize(
    ("count", "size", "grid"),
    [
        (197, (224, 224), (14, 14)),  # ViT-B/16: 196 patches, one class token (Dosovitskiy et al., ICLR 2021)
        (50, (224, 224), (7, 7)),  # ViT-B/32
        (261, (224, 224), (16, 16)),  # DINOv2 with registers, /14: a class token and four registers
        (16384, (512, 512), (128, 128)),  # MiT, first stage, stride 4 (Xie et al., NeurIPS 2021)
        (32768, (512, 1024), (128, 256)),
        (690, (90, 120), (23, 30)),  # stride 4 with padding
        (200, (224, 224), (14, 14)),
        (206, (224, 224), None),
        (0, (224, 224), None),
    ],
)
def test_token_grids_of_known_transformers(count: int, size: tuple[int, int], grid: tuple[int, int] | None) -> None:
    assert token_grid(count, size) == grid
