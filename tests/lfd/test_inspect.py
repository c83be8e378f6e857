"""`lfd-train inspect`: what each module gives and costs, as a user reads it to choose taps."""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lfd.checkpoint import save_model
from lfd.errors import UsageError
from lfd.inspect_model import WIDTH, Inspection, Row, inspect_model, to_record, to_text
from lfd.models import create_model
from lfd.profile import count_macs, run_copy
from lfd.spec import Labels, ModelSpec, Preprocess
from lfd.taps import FeatureTaps
from tests.lfd.test_cli import invoke

LABELS = Labels(("a", "b", "c"), ((0, 0, 0), (1, 0, 0), (0, 1, 0)))
SIZE = (32, 48)


class Known(nn.Module):
    """A network whose every figure can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = {"deep": "head:input", "stage1": "stem.0", "entry": "split:0", "tokens": "attend.project@tokens"}
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, padding=1), nn.BatchNorm2d(8))
        self.split = Split()
        self.attend = Attend()
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)])
        self.shared = nn.Conv2d(8, 8, 1, bias=False)
        self.alias = self.shared
        self.idle = nn.Linear(5, 7)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        first, _ = self.split(self.stem(image))
        return {"out": self.head(self.shared(self.shared(self.convs[0](self.attend(first)))))}


class Split(nn.Module):
    def forward(self, grid: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return grid, {"twice": grid * 2}


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 8)

    def forward(self, grid: Tensor) -> Tensor:
        tokens = self.project(grid.flatten(2).transpose(1, 2))
        mixed = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return mixed.transpose(1, 2).unflatten(2, grid.shape[2:])


CELLS = 8 * 12
FIGURES: dict[str, tuple[tuple[int, ...], int | None, int | None, int | None]] = {
    # path: (shape, stride, parameters, multiply-accumulates)
    "stem": ((8, 8, 12), 4, 3 * 8 * 9 + 8 + 16, CELLS * 3 * 8 * 9),
    "stem.0": ((8, 8, 12), 4, 3 * 8 * 9 + 8, CELLS * 3 * 8 * 9),
    "stem.1": ((8, 8, 12), 4, 16, 0),
    "split": ((), None, 0, 0),
    "split:0": ((8, 8, 12), 4, None, None),
    "split:1:twice": ((8, 8, 12), 4, None, None),
    "attend": ((8, 8, 12), 4, 72, CELLS * 64 + 2 * CELLS * CELLS * 8),  # Q K^T and its product with V
    "attend.project": ((CELLS, 8), 4, 72, CELLS * 64),
    "convs": ((), None, 72, CELLS * 72),
    "convs.0": ((8, 8, 12), 4, 72, CELLS * 72),
    "shared": ((8, 8, 12), 4, 64, 2 * CELLS * 64),
    "idle": ((), None, 42, 0),
    "head": ((3, 8, 12), 4, 27, CELLS * 24),
    ":out": ((3, 8, 12), 4, None, None),
}
TOTAL = CELLS * (216 + 64 + 16 * CELLS + 72 + 128 + 24)


def rows(model: nn.Module) -> dict[str, Row]:
    return {row.path: row for row in inspect_model(model, SIZE).rows}


def test_every_figure_of_a_small_network_is_the_one_by_hand() -> None:
    found = rows(Known())
    assert set(found) == {"", *FIGURES}
    for path, expected in FIGURES.items():
        row = found[path]
        assert (row.shape, row.stride, row.params, row.macs) == expected, path
    assert found[""].macs == TOTAL == inspect_model(Known(), SIZE).macs
    assert [found[path].calls for path in ("", "stem", "convs", "shared", "idle")] == [1, 1, 0, 2, 0]
    assert found["attend.project"].layout == "@tokens" and found["idle"].layout is None


def test_declared_taps_are_marked_and_listed() -> None:
    found = inspect_model(Known(), SIZE)
    marked = {row.path: row.taps for row in found.rows if row.taps}
    assert marked == {"stem.0": ("stage1",), "split:0": ("entry",), "attend.project": ("tokens",)}
    assert found.taps["deep"] == ("head:input", (8, 8, 12), 4)
    assert set(found.taps) == {"deep", "stage1", "entry", "tokens"}


@pytest.mark.parametrize("name", ["deeplabv3_resnet18_os8", "lraspp_mobilenet_v3_small", "smp:UPerNet/mit_b0"])
def test_every_row_that_looks_like_a_feature_can_be_tapped(name: str) -> None:
    """What the table offers is what `lfd.taps` takes: the same channels, on a grid of that stride."""
    if name.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch", reason="needs the extra smp")
    model, _ = create_model(name, 3)
    size = (64, 96)
    offered = [r for r in inspect_model(model, size).rows if r.layout is not None and r.calls == 1 and r.shape[0]]
    assert len(offered) > 50
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    found: dict[str, Tensor] = {}
    changed: set[str] = set()  # such as the last norm of a residual block, to which the shortcut is added in place
    while not found:
        wanted = {row.path: row.path + (row.layout or "") for row in offered if row.path not in changed}
        taps = FeatureTaps(model.eval(), wanted)
        try:
            with torch.no_grad():
                found = taps(torch.zeros(1, 3, *size)).taps
        except UsageError as error:
            assert "in place" in str(error)
            changed.add(str(error).split("'")[1])
        finally:
            taps.remove()
    assert len(changed) < len(offered) / 4
    for row in offered:
        if row.path in changed:
            continue
        feature = found[row.path]
        assert feature.shape[1] == (row.shape[0] if row.layout == "" else row.shape[-1]), row
        if row.stride is not None:
            assert feature.shape[2:] == tuple(-(-side // row.stride) for side in size), row


def test_the_network_stays_as_it_was() -> None:
    model = Known().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inspect_model(model, SIZE)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_network_that_reads_values_runs_on_the_cpu() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1, bias=False)

        def forward(self, image: Tensor) -> Tensor:
            assert float(image.sum()) == 0  # which a tensor without values cannot say
            found: Tensor = self.conv(image)
            return found

    assert run_copy(Reads(), SIZE, lambda _, image: image.device.type) == "meta"
    assert count_macs(Reads(), SIZE) == 6 * SIZE[0] * SIZE[1]
    assert inspect_model(Reads(), SIZE).rows[1].macs == 6 * SIZE[0] * SIZE[1]


def test_a_network_that_fails_says_why() -> None:
    with pytest.raises(
        UsageError, match=r"Sequential fails on an input of 4x4 \(RuntimeError: .*Kernel size"
    ) as caught:
        inspect_model(nn.Sequential(nn.Conv2d(3, 2, 9)), (4, 4))
    assert "\n" not in str(caught.value)


def test_a_network_that_cannot_be_copied_says_so() -> None:
    model = Known()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"Known fails .*cannot pickle"):
        inspect_model(model, SIZE)


@functools.cache
def inspected(name: str) -> tuple[nn.Module, Inspection]:
    model, _ = create_model(name, 19)
    return model, inspect_model(model, (64, 128))


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_small", "deeplabv3_resnet18_os16", "torchvision:fcn_resnet50"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_table_is_legible(name: str, depth: int) -> None:
    model, found = inspected(name)
    text = to_text(found, name, depth).splitlines()
    assert all(len(line) <= WIDTH for line in text)
    modules = [path for path, _ in model.named_modules() if path and path.count(".") < depth]
    listed = [line.split()[-1] for line in text[: text.index("declared taps:")] if line]
    assert [path for path in listed if path in modules] == modules
    assert f"({len(found.rows) - sum(r.depth <= depth for r in found.rows)} more lie deeper" in "\n".join(text)
    assert f"--set distill.student_taps.deep={model.taps['deep']}" in text[-2]  # type: ignore[index]
    assert json.loads(json.dumps(to_record(found)))["params"] == found.params


def test_a_long_path_gets_a_line_of_its_own_and_stays_whole() -> None:
    model: nn.Module = nn.Conv2d(3, 2, 1)
    for _ in range(6):
        model = nn.Sequential(
            nn.ModuleDict({"a_rather_long_name_of_a_module": model})["a_rather_long_name_of_a_module"]
        )
    deep = nn.Sequential()
    deep.add_module("module_with_a_name_of_very_many_characters_" * 3, model)
    text = to_text(inspect_model(deep, SIZE), "deep", 9)
    path = list(dict(deep.named_modules()))[-1]
    assert f"\n    {path}\n" in text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    model, _ = create_model("lraspp_mobilenet_v3_small", 3)
    save_model(
        tmp_path / "run/model.safetensors", model, ModelSpec("lraspp_mobilenet_v3_small", LABELS, Preprocess(SIZE))
    )
    return tmp_path / "run"


def test_inspect_as_typed(run: Path) -> None:
    params = sum(p.numel() for p in create_model("lraspp_mobilenet_v3_small", 3)[0].parameters())
    for typed in (
        (run,),
        (run / "model.safetensors",),
        ("lraspp_mobilenet_v3_small", "--size", "32x48", "--classes", 3),
    ):
        code, said, error = invoke("inspect", *typed)
        assert code == 0 and f"input 32x48: {params / 1e6:.2f} M parameters" in said, error
        assert "classifier.high_classifier:input" in said
    code, said, _ = invoke("inspect", run, "--size", "64x64", "--json")
    record: dict[str, Any] = json.loads(said)
    assert (
        code == 0 and record["size_hw"] == [64, 64] and record["taps"]["deep"][0] == "classifier.high_classifier:input"
    )
    assert record["macs"] == count_macs(create_model("lraspp_mobilenet_v3_small", 3)[0], (64, 64))


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("lraspp_mobilenet_v3_smal",), "Did you mean 'lraspp_mobilenet_v3_small'"),
        (("smp:Segformer/mit_b0", "--size", "90x90"), "Fix: 64x64 or 96x96"),
        (("lraspp_mobilenet_v3_small", "--size", "64"), "expected HEIGHTxWIDTH"),
        (("lraspp_mobilenet_v3_small", "--classes", "0"), "--classes"),
        (("{run}", "--classes", "3"), "--classes 3 has no effect"),
        (("{run}/nothing.safetensors",), "unknown model"),
        (("{run}/..",), "expected a run"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(run: Path, typed: tuple[str, ...], says: str) -> None:
    if typed[0].startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch", reason="needs the extra smp")
    code, said, error = invoke("inspect", *(part.format(run=run) for part in typed))
    assert code in (1, 2) and says in error and error.count("\n") == 1 and not said
