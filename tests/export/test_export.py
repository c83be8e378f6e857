"""ONNX export against PyTorch, the parity check, and lfd-export as typed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.session import class_map, open_session
from export.cli import main
from export.graph import MOST_PRODUCTS, DeployGraph
from export.parity import Parity, compare
from export.runnable import BATCH_KEY, parse_batch
from export.to_onnx import OPSET, to_onnx
from export.verify import open_runnable
from lfd.checkpoint import save_model
from lfd.cli import main as train
from lfd.data import open_dataset
from lfd.errors import ExportError, ModelError, UsageError
from lfd.models import create_model
from lfd.normalize import Normalize, Predictor
from lfd.quantize.topology import UPSAMPLING
from lfd.spec import METADATA_KEY, Labels, ModelSpec, Preprocess

MODELS = ["lraspp_mobilenet_v3_small", "deeplabv3_resnet18_os16"]


@pytest.fixture(scope="module")
def labels(folder: Path) -> Labels:
    return open_dataset(f"folder:{folder}", "val").labels


def network(name: str, labels: Labels) -> torch.nn.Module:
    """A network with statistics from real passes, so that batch norm does something."""
    torch.manual_seed(0)
    model, _ = create_model(name, len(labels))
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(4, 3, 48, 64) * 2 + 0.5)
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def exported(
    request: pytest.FixtureRequest, labels: Labels, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run and its export."""
    root = tmp_path_factory.mktemp("export")
    model = network(request.param, labels)
    spec = ModelSpec(request.param, labels, Preprocess((48, 64), (0.4, 0.45, 0.5), (0.2, 0.3, 0.25)))
    save_model(root / "run/model.safetensors", model, spec)
    to_onnx(model, spec, root / "model.onnx")
    return root / "run", root / "model.onnx"


@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_is_the_normalised_network(name: str, color: Any, labels: Labels) -> None:
    model = network(name, labels)
    preprocess = Preprocess((48, 64), (0.4, 0.45, 0.5), (0.2, 0.3, 0.25), color=color)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    frame = torch.randint(0, 256, (1, 48, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        logits = DeployGraph(model, preprocess, "logits")(frame)
        direct = model(Normalize(preprocess)(frame.permute(0, 3, 1, 2)))["out"]
    full = torch.nn.functional.interpolate(direct, (48, 64), mode="bilinear", align_corners=False)
    assert torch.allclose(logits, full, atol=1e-4 * float(full.abs().max()))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "the source is untouched"
    classes = DeployGraph(model, preprocess, "class_map")(frame)
    assert classes.dtype == torch.uint8 and classes.shape == (1, 48, 64)
    assert torch.equal(classes.long(), logits.argmax(1))


def test_the_file_carries_everything_and_no_paths(exported: tuple[Path, Path]) -> None:
    proto = onnx.load(exported[1])
    assert {e.domain: e.version for e in proto.opset_import} == {"": OPSET}
    assert [p.key for p in proto.metadata_props] == [METADATA_KEY]
    (frame,), (out,) = proto.graph.input, proto.graph.output
    assert frame.type.tensor_type.elem_type == out.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_value for d in frame.type.tensor_type.shape.dim] == [1, 48, 64, 3]
    assert [d.dim_value for d in out.type.tensor_type.shape.dim] == [1, 48, 64]
    assert b"site-packages" not in exported[1].read_bytes() and b"/lfd/models" not in exported[1].read_bytes()
    spec = open_session(exported[1]).spec
    assert spec.provenance["params"] > 0 and spec.provenance["macs"] > 0  # type: ignore[operator]


def test_class_maps_equal_the_torch_models(exported: tuple[Path, Path], folder: Path) -> None:
    run, path = exported
    data = open_dataset(f"folder:{folder}", "test")
    torch_model, spec = __import__("lfd.checkpoint", fromlist=["load_model"]).load_model(run)
    predict = Predictor(torch_model, spec.preprocess, torch.device("cpu"))
    with open_session(path) as session:
        for index in range(len(data)):
            image = data[index].image
            assert (class_map(session, image) == predict(image)).mean() > 0.999


def test_logits_output_and_another_size(labels: Labels, tmp_path: Path) -> None:
    model = network(MODELS[0], labels)
    spec = ModelSpec(MODELS[0], labels, Preprocess((48, 64)))
    exported = to_onnx(model, spec, tmp_path / "x.onnx", (32, 96), "logits")
    assert exported.preprocess.size_hw == (32, 96)
    with open_session(tmp_path / "x.onnx") as session:
        image = np.random.default_rng(0).integers(0, 256, (32, 96, 3), np.uint8)
        assert session.run(image[None]).shape == (1, 3, 32, 96)
        assert class_map(session, image).shape == (32, 96)


def test_parity_of_a_model_with_itself_and_with_another(
    exported: tuple[Path, Path], folder: Path, labels: Labels
) -> None:
    run, path = exported
    data = open_dataset(f"folder:{folder}", "test")
    same = compare(open_runnable(run), open_runnable(path), data)
    assert same and same.agreement > 0.999 and same.pictures == 4 and abs(same.miou_delta) < 0.01
    source = open_runnable(path)
    flipped = dataclasses.replace(source, predict=lambda frame: (source.predict(frame) + 1) % 3)
    other = compare(open_runnable(run), flipped, data, limit=2)
    assert not other and other.pictures == 2 and "DIFFERENT" in str(other)


@pytest.mark.parametrize(("agreement", "passes"), [(0.999, True), (0.99899, False)])
def test_parity_passes_at_its_bound(agreement: float, passes: bool) -> None:
    assert bool(Parity(1, agreement, (agreement, "x"), (0.5, 0.5), 0.999)) == passes


def test_sizes_and_classes_must_fit(exported: tuple[Path, Path], folder: Path) -> None:
    data = open_dataset(f"folder:{folder}", "test")
    with pytest.raises(ModelError, match="one size"):
        compare(open_runnable(exported[0], (32, 32)), open_runnable(exported[1]), data)
    with pytest.raises(ModelError, match="classes"):
        compare(
            open_runnable(exported[0]), open_runnable(exported[1]), open_dataset("street:?size=48x64&frames=1", "val")
        )


def test_a_spec_that_is_not_the_graphs_is_refused(exported: tuple[Path, Path], tmp_path: Path) -> None:
    proto = onnx.load(exported[1])
    spec = ModelSpec.from_json(proto.metadata_props[0].value, "x")
    proto.metadata_props[0].value = dataclasses.replace(spec, output="logits").to_json()
    onnx.save(proto, tmp_path / "lies.onnx")
    with pytest.raises(ModelError, match="its ModelSpec says logits"):
        open_session(tmp_path / "lies.onnx")


def first_dims(proto: onnx.ModelProto) -> list[int | str]:
    sides = [value.type.tensor_type.shape.dim[0] for value in (*proto.graph.input, *proto.graph.output)]
    return [side.dim_param or side.dim_value for side in sides]


@pytest.mark.parametrize(
    ("name", "batch", "output"),
    [
        ("lraspp_mobilenet_v3_small", "dynamic", "logits"),
        ("deeplabv3_mobilenet_v2_os16", 3, "logits"),
        ("pspnet_resnet18s_os16", 1, "logits"),
    ],
)
def test_families_and_batches(name: str, batch: Any, output: Any, labels: Labels, tmp_path: Path) -> None:
    """Each frame's result is what the torch network gives for that frame alone, resized in the family's own way."""
    model = network(name, labels)
    spec = ModelSpec(name, labels, Preprocess((40, 72)))  # no multiple of 16, nor of the pyramid's cells
    exported = to_onnx(model, spec, tmp_path / "x.onnx", output=output, batch=batch)
    proto = onnx.load(tmp_path / "x.onnx")
    assert first_dims(proto) == (["batch"] * 2 if batch == "dynamic" else [batch] * 2)
    assert exported.provenance.get(BATCH_KEY, 1) == batch
    operators = {node.op_type for node in proto.graph.node}
    assert not {op for op in operators if op.startswith("Gather") or op in ("If", "Loop", "Reshape")}
    enlarge = [node for node in proto.graph.node if node.op_type == "MatMul"]
    assert [set(node.input) & set(UPSAMPLING) for node in enlarge[-2:]] == [{"upsample_columns"}, {"upsample_rows"}]
    assert bool(model.align_corners) == ("lraspp" not in name)
    normalize = Normalize(spec.preprocess)
    with open_session(tmp_path / "x.onnx", threads=1) as session:
        for count in (1, 3) if batch == "dynamic" else (batch,):
            frames = torch.randint(0, 256, (count, 40, 72, 3), dtype=torch.uint8)
            found = session.run(frames.numpy())
            for at in range(count):
                with torch.no_grad():
                    logits = model(normalize(frames[at : at + 1].permute(0, 3, 1, 2)))["out"]
                full, other = (
                    torch.nn.functional.interpolate(logits, (40, 72), mode="bilinear", align_corners=corners)[0]
                    for corners in (bool(model.align_corners), not model.align_corners)
                )
                if output == "class_map":
                    assert (found[at] == full.argmax(0).numpy()).mean() > 0.999
                else:
                    error = float(np.abs(found[at] - full.numpy()).max())
                    assert error < 1e-4 * float(full.abs().max()), "within the noise of fp32"
                    assert float((full - other).abs().max()) > 100 * error, "the other way of resizing would show"
        if batch != "dynamic":
            with pytest.raises(ModelError, match=f"this model takes \\({batch}, "):
                session.run(np.zeros((batch + 1, 40, 72, 3), np.uint8))


class Shrinking(torch.nn.Module):
    """Logits of a grid of its own, which are means of the picture."""

    def __init__(self, grid: tuple[int, int], align_corners: bool) -> None:
        super().__init__()
        self.grid, self.align_corners = grid, align_corners

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": torch.nn.functional.adaptive_avg_pool2d(x, self.grid)}


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 90), st.integers(1, 90)), st.booleans()
)
def test_two_matrix_products_enlarge_as_interpolate_does(
    grid: tuple[int, int], size: tuple[int, int], align_corners: bool
) -> None:
    graph = DeployGraph(Shrinking(grid, align_corners), Preprocess(size), "logits")
    assert (graph.upsample_rows is None) == (grid == size or grid[0] * (grid[1] / size[0] + 1) > MOST_PRODUCTS)
    frame = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8)
    logits = graph.network((frame.permute(0, 3, 1, 2) - graph.mean) * graph.scale)["out"].flip(1)
    expected = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    assert torch.allclose(graph(frame), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("grid", "by_matrices"), [((12, 15), True), ((45, 60), True), ((90, 120), False), ((180, 240), False)]
)
def test_many_products_are_left_to_resize(grid: tuple[int, int], by_matrices: bool) -> None:
    graph = DeployGraph(Shrinking(grid, False), Preprocess((180, 240)), "logits")
    assert (graph.upsample_columns is not None) == by_matrices


class RuledOut(Shrinking):
    """A cell in which a class is never chosen."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        out = super().forward(x)["out"].clone()
        out[:, 1, 2, 3] = -torch.inf
        return {"out": out}


def test_a_class_that_is_ruled_out_in_a_cell_is_ruled_out_there_alone() -> None:
    """0 times infinity is no number: the products would spread it over all rows and columns."""
    frame = torch.randint(0, 256, (1, 48, 64, 3), dtype=torch.uint8)
    found, free = (DeployGraph(m((6, 8), False), Preprocess((48, 64)), "logits")(frame) for m in (RuledOut, Shrinking))
    near = torch.zeros(48, 64, dtype=torch.bool)
    near[12:28, 20:36] = True  # of the cell's centre in each direction by a cell
    assert torch.allclose(found[:, :, ~near], free[:, :, ~near], atol=1e-5)
    assert not torch.isfinite(found[0, 1, 16:24, 24:32]).any()


class Fixed(torch.nn.Module):
    """A network that only knows two frames."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.conv(x)
        return {"out": found + x.new_ones(1) if len(x) == 1 else found.reshape(2, 3, 8, 8)}


def test_a_batch_that_cannot_be_open_is_one_line(labels: Labels, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"batch|express") as caught:
        to_onnx(Fixed(), ModelSpec("x", labels, Preprocess((8, 8))), tmp_path / "x.onnx", batch="dynamic")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "batch"), [("1", 1), ("16", 16), ("4096", 4096), ("dynamic", "dynamic")])
def test_batches_that_can_be_asked_for(text: str, batch: Any) -> None:
    assert parse_batch(text) == batch


@pytest.mark.parametrize("text", ["", "0", "-1", "4097", "1.5", "Dynamic", "\u0662", "9" * 5000])
def test_batches_that_cannot(text: str) -> None:
    with pytest.raises(UsageError, match="expected 1 to 4096, or dynamic"):
        parse_batch(text)


def test_an_imported_checkpoint_keeps_its_way_of_resizing(folder: Path, tmp_path: Path) -> None:
    """From the .pth of the CIRKD family to a checked .onnx, by the commands."""
    from tests.lfd.test_cirkd import theirs

    pth, imported, out = tmp_path / "psp.pth", tmp_path / "t.safetensors", tmp_path / "t.onnx"
    torch.save(theirs("pspnet", "mobilenet_v2", 128, 3), pth)
    data = ("--data", f"folder:{folder}")
    made = CliRunner().invoke(train, ["import", str(pth), *data, "--size", "42x66", "-o", str(imported)])
    assert made.exit_code == 0, made.output
    code, text, errors = invoke("onnx", imported, "-o", out, *data, "--batch", "dynamic")
    assert code == 0 and "batch dynamic" in text and "parity   same" in text, errors
    graph = onnx.load(out).graph
    modes = [a.s for n in graph.node for a in n.attribute if a.name == "coordinate_transformation_mode"]
    assert set(modes) == {b"align_corners"} and len(modes) == 4
    columns = next(onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == UPSAMPLING[1])
    assert columns[0, 0] == 1 > columns[0, 1], "of the logits' first two columns, only one is a corner"
    assert open_session(out).spec.preprocess.color == "BGR"


class TwoStems(torch.nn.Module):
    """Two convolutions on the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.a(x) + self.b(x)}


class Skip(torch.nn.Module):
    """One convolution on the picture, and the picture itself once more where no hook sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.conv(x) + 0.5 * x.flip(1)}


class Grouped(torch.nn.Module):
    """A first convolution into which no channel order can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1, groups=3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.conv(x)}


class Plain(Grouped):
    """One that can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)


@pytest.mark.parametrize("color", ["RGB", "BGR"])
@pytest.mark.parametrize(("kind", "folded"), [(TwoStems, False), (Skip, False), (Grouped, False), (Plain, True)])
def test_any_network_gets_its_own_input(kind: Any, folded: bool, color: Any, labels: Labels, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    preprocess = Preprocess((16, 24), (0.4, 0.45, 0.5), (0.2, 0.3, 0.25), color=color)
    assert DeployGraph(model, preprocess, "logits").folded == folded
    to_onnx(model, ModelSpec("x", labels, preprocess), tmp_path / "x.onnx", output="logits")
    frame = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), np.uint8)
    with torch.no_grad():
        expected = model(Normalize(preprocess)(torch.from_numpy(frame).permute(0, 3, 1, 2)))["out"].numpy()
    with open_session(tmp_path / "x.onnx") as session:
        np.testing.assert_allclose(session.run(frame), expected, atol=1e-4)
    assert not any(node.op_type.startswith("Gather") for node in onnx.load(tmp_path / "x.onnx").graph.node)


def test_a_size_that_the_network_does_not_take(labels: Labels, tmp_path: Path) -> None:
    model = Plain().eval()
    model.multiple = 32
    with pytest.raises(UsageError, match=r"multiples of 32\. Fix: 32x64 or 64x64"):
        to_onnx(model, ModelSpec("x", labels, Preprocess((40, 64))), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_failed_export_leaves_no_folder(exported: tuple[Path, Path], tmp_path: Path) -> None:
    code, _, _ = invoke("onnx", exported[0], "-o", tmp_path / "new/dir/x.onnx", "--data", "street:?frames=2")
    assert code == 4 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("exported", MODELS[:1], indirect=True)
def test_commands_on_a_good_run(exported: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    run, _ = exported
    out = tmp_path / "m.onnx"
    code, text, errors = invoke("onnx", run, "-o", out, "--data", f"folder:{folder}", "--pictures", 2)
    assert code == 0 and "parity   same" in text, errors
    code, text, _ = invoke("verify", run, out, "--data", f"folder:{folder}")
    assert code == 0 and text.startswith("same") and "4 pictures" in text
    code, _, errors = invoke("onnx", run, "-o", out, "--data", f"folder:{folder}")
    assert code == 2 and "--overwrite" in errors
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("exported", MODELS[:1], indirect=True)
def test_a_graph_that_is_not_the_model_is_not_written(
    exported: tuple[Path, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import export.graph

    original = export.graph.DeployGraph.forward
    monkeypatch.setattr(export.graph.DeployGraph, "forward", lambda self, frame: (original(self, frame) + 1) % 2)
    code, _, errors = invoke("onnx", exported[0], "-o", tmp_path / "m.onnx", "--data", f"folder:{folder}")
    assert code == 1 and "was not written" in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("onnx", "{tmp}/none", "-o", "{tmp}/x.onnx"), 1, "no such run or file"),
        (("onnx", "{run}", "-o", "{tmp}/x.pb"), 2, ".onnx"),
        (("onnx", "{run}", "-o", "{tmp}/x.onnx"), 2, "give --data"),
        (("onnx", "{run}", "-o", "{tmp}/x.onnx", "--data", "street:"), 4, "classes"),
        (("onnx", "{run}", "-o", "{tmp}/x.onnx", "--data", "{data}", "--size", "4"), 2, "size '4'"),
        (("onnx", "{run}", "-o", "{tmp}/x.onnx", "--data", "{data}", "--pictures", "0"), 2, "--pictures 0"),
        (("onnx", "{run}", "-o", "{tmp}/x.onnx", "--data", "{data}", "--batch", "all"), 2, "batch 'all'"),
        (("verify", "{run}", "{tmp}/none.onnx", "--data", "{data}"), 4, "no such file"),
        (("verify", "{run}", "{cut}", "--data", "{data}"), 4, "cannot load"),
        (("verify", "{run}", "{bare}", "--data", "{data}"), 4, "no ModelSpec"),
        (("verify", "{run}", "{run}", "--data", "{data}", "--min-agreement", "2"), 2, "expected 0 to 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    exported: tuple[Path, Path],
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    side = tmp_path_factory.mktemp("side")
    cut, bare = side / "cut.onnx", side / "bare.onnx"
    cut.write_bytes(exported[1].read_bytes()[:5000])
    proto = onnx.load(exported[1])
    del proto.metadata_props[:]
    onnx.save(proto, bare)
    names = {"run": exported[0], "tmp": tmp_path, "data": f"folder:{folder}", "cut": cut, "bare": bare}
    exit_code, _, errors = invoke(*(a.format(**names) for a in arguments))
    assert (exit_code, errors.count("\n")) == (code, 1) and says in errors, errors
    assert not list(tmp_path.iterdir())
