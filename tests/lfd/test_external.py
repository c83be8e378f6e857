"""Networks of others: torchvision's, smp's and a user's own; and bare weights that become models."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from lfd.checkpoint import import_weights, load_model, parse_normalize, save_model
from lfd.errors import CheckpointError, LfdError, MissingDependencyError, UsageError
from lfd.models import check_name, create_model, external
from lfd.models.external_outputs import adapt, check_input_size
from lfd.normalize import Predictor
from lfd.profile import count_macs, count_parameters
from lfd.spec import Labels, ModelSpec, Preprocess
from lfd.taps import FeatureTaps, dry_run
from tests.lfd.test_cirkd import theirs
from tests.lfd.test_cli import invoke

K = 4
LABELS = Labels(("a", "b", "c", "d"), ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)))
SEGMENTATION = torchvision.models.segmentation

MODULE = """
import torch
from torch import nn

from neighbour import WIDTH


class Tiny(nn.Module):
    taps = {"deep": "head:input"}
    multiple = 4

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.head = nn.Conv2d(WIDTH, num_classes, 1)

    def forward(self, image):
        return {"logits": self.head(self.stem(image).relu())}


def broken(num_classes):
    raise RuntimeError("no\\nway")


def number(num_classes):
    return 3


def bare(num_classes):
    return nn.Conv2d(3, num_classes, 1)


class Derives(nn.Module):
    taps = property(lambda self: {"deep": "head:input"})
    backbone = property(lambda self: self.stem)

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.head = nn.Conv2d(WIDTH, num_classes, 1)

    def forward(self, image):
        return self.head(self.stem(image))


def leaves(num_classes):
    raise SystemExit(3)


def silent(num_classes):
    network = Tiny(num_classes)
    network.taps = {"deep": 3}
    return network
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of a user's in the current directory, which leaves a mark when it is imported; nobody trusts it."""
    name = f"my_networks_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{MODULE}")
    (tmp_path / "neighbour.py").write_text("WIDTH = 5")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(external, "_trusted", set())
    monkeypatch.delenv(external.TRUST, raising=False)
    yield name
    for module in (name, "neighbour"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_torchvisions_networks_give_torchvisions_logits(name: str) -> None:
    torch.manual_seed(0)
    options = {} if "lraspp" in name else {"aux_loss": True}
    reference = getattr(SEGMENTATION, name)(weights=None, weights_backbone=None, num_classes=K, **options).eval()
    model, said = create_model(f"torchvision:{name}", K)
    assert "random weights" in said and model.training
    model.load_state_dict(reference.state_dict())
    image = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        out = model.eval()(image)
        full = nn.functional.interpolate(out["out"], image.shape[2:], mode="bilinear", align_corners=False)
        assert torch.allclose(full, reference(image)["out"], atol=1e-5) and set(out) == {"out"}
    assert set(model.train()(image)) == ({"out"} if "lraspp" in name else {"out", "aux"})


@pytest.mark.parametrize("name", external.external_torchvision.NAMES)
def test_torchvisions_networks_are_the_published_ones(name: str) -> None:
    """Parameters and multiply-accumulates (520x520, 21 classes) that torchvision publishes with its weights.

    Both count the auxiliary head, which on ResNets is a 3x3 convolution 1024 -> 256 and a 1x1 one at stride 8.
    """
    published = torchvision.models.get_model_weights(name).DEFAULT.meta
    with torch.device("meta"):
        model, _ = create_model(f"torchvision:{name}", 21)
    assert sum(p.numel() for p in model.parameters()) == published["num_params"]
    head = 65 * 65 * (1024 * 256 * 9 + 256 * 21) if "resnet" in name else 0
    assert (count_macs(model, (520, 520)) + head) / 1e9 == pytest.approx(published["_ops"], rel=0.002)


@pytest.mark.parametrize(
    ("name", "strides", "multiple"),
    [
        ("torchvision:fcn_resnet50", (4, 8, 8, 8), 1),
        ("torchvision:deeplabv3_mobilenet_v3_large", (4, 8, 16, 16), 1),
        ("smp:Segformer/mit_b0", (4, 8, 16, 32), 32),
        ("smp:Unet/resnet18", (4, 8, 16, 32), 1),
        ("smp:FPN/efficientnet-b0", (4, 8, 16, 32), 32),
        ("smp:PSPNet/resnet18", (4, 8), 8),
        ("smp:DeepLabV3Plus/mobilenet_v2", (4, 8, 16, 16), 16),
        ("smp:UPerNet/tu-convnext_atto", (4, 8, 16, 32), 32),
        ("smp:DPT/tu-vit_tiny_patch16_224", (16, 16, 16, 16), 16),
    ],
)
def test_every_network_keeps_the_contract_of_ours(name: str, strides: tuple[int, ...], multiple: int) -> None:
    if name.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch", reason="needs the extra smp")
    torch.manual_seed(0)
    model, said = create_model(name, K)
    assert "random weights" in said and model.training
    assert (model.align_corners, model.multiple) == (False, multiple)
    size = (64, 96)
    check_input_size(model, size)
    taps = FeatureTaps(model, model.taps)  # type: ignore[arg-type]
    shapes = dry_run(taps, size)
    assert [s for s in shapes if s.startswith("stage")] == [f"stage{i + 1}" for i in range(len(strides))]
    for index, stride in enumerate(strides, start=1):
        assert shapes[f"stage{index}"].grid_hw == (size[0] // stride, size[1] // stride), index
    outputs = taps(torch.randn(2, 3, *size))
    assert outputs.logits.shape[:2] == (2, K) and {"deep"} < set(outputs.taps)
    outputs.taps["deep"].sum().backward()
    taps.remove()
    with torch.no_grad():
        out = model.eval()(torch.randn(1, 3, *size))
        again = copy.deepcopy(model)(torch.zeros(1, 3, *size))
    assert set(out) == set(again) == {"out"}
    frame = torch.zeros(*size, 3, dtype=torch.uint8).numpy()
    assert Predictor(model, Preprocess(size), torch.device("cpu"))(frame).shape == size


def test_segformers_costs_are_the_papers() -> None:
    """Xie et al., NeurIPS 2021, table 1: SegFormer-B0 on ADE20K, 3.8 M parameters and 8.4 GFLOPs at 512x512."""
    pytest.importorskip("segmentation_models_pytorch", reason="needs the extra smp")
    model, _ = create_model("smp:Segformer/mit_b0", 150)
    assert count_parameters(model) / 1e6 == pytest.approx(3.8, abs=0.05)
    assert count_macs(model, (512, 512)) / 1e9 == pytest.approx(8.4, abs=0.05)


def test_smps_keys_are_smps_own() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="needs the extra smp")
    torch.manual_seed(0)
    reference = smp.FPN("resnet18", encoder_weights=None, classes=K).eval()
    model, _ = create_model("smp:FPN/resnet18", K)
    model.load_state_dict(reference.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(image)["out"], reference(image))


def test_an_encoder_starts_from_a_classification_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="needs the extra smp")
    source = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(source, tmp_path / "resnet18.pth")
    model, said = create_model("smp:Unet/resnet18", K, str(tmp_path / "resnet18.pth"))
    assert "resnet18.pth" in said
    assert torch.equal(
        model.get_submodule("encoder").state_dict()["layer4.1.conv2.weight"], source["layer4.1.conv2.weight"]
    )
    with pytest.raises(CheckpointError, match=r"resnet18\.pth: does not fit"):
        create_model("smp:Unet/resnet34", K, str(tmp_path / "resnet18.pth"))


def test_weights_that_cannot_be_fetched_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="needs the extra smp")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", "/nowhere")
    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", _refuse)
    with pytest.raises(CheckpointError, match=r"cannot be had \(ConnectionError: no network\)\. Fix: .*--weights none"):
        create_model("smp:Unet/resnet18", K, "imagenet")


def _refuse(*_: object, **__: object) -> str:
    raise ConnectionError("no\nnetwork")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torchvision:fcn_resnet5", "Did you mean 'fcn_resnet50'"),
        ("torchvison:fcn_resnet50", "Did you mean 'torchvision:'"),
        ("smp:Unt/resnet18", "Did you mean 'Unet'"),
        ("smp:Unet/resnt18", "Did you mean 'resnet18'"),
        ("smp:Unet", "expected smp:Arch/encoder"),
        ("smp:Unet/tu-hf-hub:somebody/network", "unknown network of timm"),
        ("smp:Unet/tu-convnext_ato", "Did you mean 'convnext_atto'"),
        ("smp:UnetPlusPlus/mit_b0", "cannot be built"),
        ("a b:c", "expected a name of"),
        ("../evil:make", "expected a name of"),
        ("deeplabv3_resnet18_os", "Did you mean 'deeplabv3_resnet18_os8'"),
    ],
)
def test_a_name_that_means_nothing_is_one_line(name: str, says: str) -> None:
    if name.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch", reason="needs the extra smp")
    with pytest.raises(UsageError, match=says) as caught:
        create_model(name, K)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_smp_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lfd-toolkit\[smp\]'"):
        check_name("smp:Unet/resnet18")


def test_nobodys_code_is_run_before_the_user_named_it(own: str, tmp_path: Path) -> None:
    name = f"{own}:Tiny"
    spec = ModelSpec(name, LABELS, Preprocess((32, 32)))
    save_model(tmp_path / "theirs.safetensors", nn.Conv2d(3, K, 1), spec)
    attempts: list[Callable[[], object]] = [
        lambda: create_model(name, K),
        lambda: check_name(name),
        lambda: load_model(tmp_path / "theirs.safetensors"),
    ]
    for attempt in attempts:
        with pytest.raises(LfdError, match=f"set {external.TRUST}={own}$"):
            attempt()
    code, _, error = invoke("eval", tmp_path / "theirs.safetensors", "--data", "street:?size=32x32&frames=8")
    assert code == 1 and external.TRUST in error
    external.trust("other:Tiny")
    external.trust(f"{own}.inner:Tiny")
    with pytest.raises(UsageError, match=external.TRUST):
        create_model(name, K)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("how", ["typed", "environment"])
def test_a_users_own_network_from_the_current_directory(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    name = f"{own}:Tiny"
    if how == "typed":
        external.trust(name)
    else:
        monkeypatch.setenv(external.TRUST, f"other, {own}")
    model, said = create_model(name, K)
    assert "as its factory returns it" in said and (tmp_path / "ran").exists()
    assert dry_run(FeatureTaps(model, model.taps), (16, 32))["deep"].channels == 5  # type: ignore[arg-type]
    save_model(tmp_path / "run/model.safetensors", model, ModelSpec(name, LABELS, Preprocess((16, 32))))
    loaded, spec = load_model(tmp_path / "run")
    assert spec.model == name and all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    again, said = create_model(name, K, str(tmp_path / "run/model.safetensors"))
    assert "model.safetensors" in said and torch.equal(
        again.state_dict()["stem.weight"], model.state_dict()["stem.weight"]
    )
    with pytest.raises(UsageError, match=r"input 18x32: Tiny .* multiples of 4\. Fix: 16x32 or 20x32"):
        check_input_size(model, (18, 32))


def test_attributes_that_a_network_derives_stay_its_own(own: str) -> None:
    external.trust(f"{own}:Derives")
    model, _ = create_model(f"{own}:Derives", K)
    assert set(model.state_dict()) == {f"{part}.{kind}" for part in ("stem", "head") for kind in ("weight", "bias")}
    assert model.backbone is model.stem and model.taps == {"deep": "head:input"} and model.multiple == 1


@pytest.mark.parametrize("typed", [("--model", "{}"), ("--set", "train.model={}"), ("--recipe", "theirs.toml")])
def test_only_what_is_typed_is_trusted(own: str, tmp_path: Path, typed: tuple[str, str]) -> None:
    (tmp_path / "theirs.toml").write_text(f'train.model = "{own}:Tiny"\n')
    options = ("--weights", "none", "--out", tmp_path / "run", "--data", f"folder:{tmp_path / 'nowhere'}")
    code, _, error = invoke("teacher", typed[0], typed[1].format(f"{own}:Tiny"), *options)
    assert code in (1, 2) and (external.TRUST in error) == (typed[0] == "--recipe"), error
    assert bool(external._trusted) == (typed[0] != "--recipe") and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("factory", "weights", "says"),
    [
        ("Tyny", "none", "Did you mean 'Tiny'"),
        ("broken", "none", r"broken\(4\) fails \(RuntimeError: no way\)"),
        ("leaves", "none", r"leaves\(4\) fails \(SystemExit: 3\)"),
        ("number", "none", "number returns a int; expected an nn.Module"),
        ("silent", "none", "its taps are"),
        ("Tiny", "imagenet", "Fix: --weights none"),
        ("Tiny", "nothing.pth", "no such file"),
    ],
)
def test_a_factory_that_does_not_do_is_one_line(own: str, factory: str, weights: str, says: str) -> None:
    external.trust(f"{own}:{factory}")
    with pytest.raises(LfdError, match=says) as caught:
        create_model(f"{own}:{factory}", K, weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, r"no module '\w+' in .*package\.module:factory"),
        ("import not_there_at_all", "needs not_there_at_all, which is not installed"),
        ("import sys; sys.exit('usage: ...')", r"cannot be imported \(SystemExit: usage"),
        ("1 / 0", r"cannot be imported \(ZeroDivisionError"),
        ("def", r"cannot be imported \(SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    own: str, tmp_path: Path, request: pytest.FixtureRequest, text: str | None, says: str
) -> None:
    module = f"{own}_{abs(hash(request.node.name))}"
    if text is not None:
        (tmp_path / f"{module}.py").write_text(text)
    external.trust(f"{module}:make")
    with pytest.raises(UsageError, match=says) as caught:
        create_model(f"{module}:make", K)
    assert "\n" not in str(caught.value)


class Gives(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, image: Tensor) -> object:
        return self.value


LOGITS = torch.zeros(1, K, 2, 2)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.zeros(1, 3, 2, 2), r"a tensor of shape \(1, 3, 2, 2\); expected logits \(B, 4, h, w\)"),
        (torch.zeros(1, K), r"a tensor of shape \(1, 4\)"),
        ((LOGITS, LOGITS), "a tuple of 2 entries"),
        ({"masks": LOGITS}, "a dict with the entries masks"),
        ({"out": None}, "a dict with the entries out"),
        (None, "a NoneType"),
    ],
)
def test_an_output_that_is_no_logits_is_refused(value: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        adapt(Gives(value), K, {}, "")(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("value", [LOGITS, {"out": LOGITS, "aux": LOGITS}, {"logits": LOGITS}])
def test_an_output_that_is_logits_becomes_a_dictionary(value: object) -> None:
    model = adapt(Gives(value), K, {}, "")
    aux = isinstance(value, dict) and "aux" in value
    assert set(model(torch.zeros(1, 3, 4, 4))) == ({"out", "aux"} if aux else {"out"})
    assert set(model.eval()(torch.zeros(1, 3, 4, 4))) == {"out"}


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 64))
def test_the_sizes_that_an_error_names_are_taken(height: int, width: int, multiple: int) -> None:
    model = adapt(nn.Identity(), K, {}, "", multiple)
    if not (height % multiple or width % multiple):
        check_input_size(model, (height, width))
        return
    with pytest.raises(UsageError, match=f"multiples of {multiple}") as caught:
        check_input_size(model, (height, width))
    for fix in str(caught.value).partition("Fix: ")[2].split(" or "):
        rows, columns = (int(side) for side in fix.split("x"))
        check_input_size(model, (rows, columns))
        assert abs(rows - height) < multiple and abs(columns - width) < multiple


def test_import_of_a_checkpoint_as_torchvision_publishes_it(tmp_path: Path) -> None:
    """Such a file has 21 classes and an auxiliary head."""
    torch.manual_seed(0)
    name = "deeplabv3_mobilenet_v3_large"
    reference = getattr(SEGMENTATION, name)(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    assert reference.aux_classifier is not None
    torch.save(reference.state_dict(), tmp_path / "coco.pth")
    data = _folder(tmp_path / "voc", 21)
    typed = ("import", tmp_path / "coco.pth", "--model", f"torchvision:{name}", "--data", f"folder:{data}")
    code, said, error = invoke(*typed, "-o", tmp_path / "teacher.safetensors")
    assert code == 0, error
    assert f"torchvision:{name}, 21 classes, input 48x64, RGB less (123.7, 116.3, 103.5) over" in said
    model, spec = load_model(tmp_path / "teacher.safetensors")
    assert spec.preprocess == Preprocess((48, 64)) and spec.model == f"torchvision:{name}"
    image = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        full = nn.functional.interpolate(model(image)["out"], (48, 64), mode="bilinear", align_corners=False)
        assert torch.allclose(full, reference.eval()(image)["out"], atol=1e-5)


def _folder(root: Path, classes: int) -> Path:
    from tests.conftest import make_folder

    make_folder(root, {"val": 1})
    lines = [f'[[class]]\nname = "class {i}"\ncolor = [{i}, 0, 0]' for i in range(classes)]
    (root / "labels.toml").write_text("\n".join(["ignore = 255", *lines]))
    return root


@functools.cache
def bare_deeplab() -> nn.Module:
    network: nn.Module = SEGMENTATION.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=len(LABELS)
    )
    return network


@pytest.mark.parametrize(
    ("wrap", "suffix"),
    [
        ("", ".pth"),
        ("", ".safetensors"),
        ("module.", ".pth"),
        ("model.", ".safetensors"),
        ("model.module.", ".pth"),
        ("network.", ".pth"),
    ],
)
def test_import_takes_off_what_trainers_put_around(tmp_path: Path, wrap: str, suffix: str) -> None:
    """Also a file without auxiliary head, and from before batch norms counted."""
    reference = bare_deeplab()
    state = {f"{wrap}{k}": v for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert not any("aux_classifier" in key for key in state)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    name = "torchvision:deeplabv3_mobilenet_v3_large"
    model, _ = import_weights(path, name, LABELS, Preprocess((48, 64)))
    assert model.aux_classifier is None
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in reference.state_dict().items() if "num_b" not in k)


def test_import_of_smps_own_file(folder: Path, tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="needs the extra smp")
    reference = smp.Segformer("mit_b0", encoder_weights=None, classes=3).eval()
    save_file(reference.state_dict(), tmp_path / "smp.safetensors")
    typed = ("import", tmp_path / "smp.safetensors", "--model", "smp:Segformer/mit_b0", "--data", f"folder:{folder}")
    code, _, error = invoke(*typed, "-o", tmp_path / "t.safetensors")
    assert code == 2 and "multiples of 32. Fix: 32x64 or 64x64" in error and not list(tmp_path.glob("t.*"))
    code, said, error = invoke(*typed, "--size", "64x96", "--normalize", "half", "-o", tmp_path / "t.safetensors")
    assert code == 0 and "RGB less (127.5, 127.5, 127.5) over (127.5, 127.5, 127.5)" in said, error
    model, _ = load_model(tmp_path / "t.safetensors")
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(image)["out"], reference(image))
    code, said, _ = invoke("eval", tmp_path / "t.safetensors", "--data", f"folder:{folder}", "--device", "cpu")
    assert code == 0 and "mIoU" in said
    code, _, error = invoke("import", tmp_path / "t.safetensors", *typed[2:], "-o", tmp_path / "again.safetensors")
    assert code == 2 and "knows its classes and input already" in error


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "torchvision:fcn_resnet50"), "does not fit the model: it lacks"),
        (("--model", "torchvision:lraspp_mobilenet_v3_larg"), "Did you mean 'lraspp_mobilenet_v3_large'"),
        ((), "Fix: `lfd-train import FILE --model NAME`"),
        (("--normalize", "half"), "--normalize half without --model"),
        (("--model", "{ours}", "--normalize", "halff"), "Did you mean 'half'"),
        (("--model", "{ours}", "--normalize", "1,2/3"), "expected three means"),
        (("--model", "{ours}", "--normalize", "0,0,0/1,0,1"), "expected three means"),
        (("--model", "{ours}", "--normalize", "nan,0,0/1,1,1"), "expected three means"),
        (("--model", "{ours}", "--normalize", "123.7,116.3,103.5/58.4,57.1,57.4"), "Fix: divide them by 255"),
        (("--model", "{ours}"), "as lraspp_mobilenet_v3_large of 3 classes"),
        (("--model", "somebodys.networks:make"), "no module 'somebodys'"),
    ],
)
def test_an_import_that_does_not_fit_is_one_line_and_no_file(
    folder: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    model, _ = create_model("torchvision:lraspp_mobilenet_v3_large", 5)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    typed = [option.format(ours="lraspp_mobilenet_v3_large") for option in options]
    code, _, error = invoke(
        "import", tmp_path / "x.pth", *typed, "--data", f"folder:{folder}", "-o", tmp_path / "out/t.safetensors"
    )
    assert code in (1, 2) and says in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_the_family_without_auxiliary_head_is_taken(tmp_path: Path) -> None:
    state = {k: v for k, v in theirs("deeplabv3", "resnet18", 128, K).items() if not k.startswith("auxlayer.")}
    torch.save(state, tmp_path / "x.pth")
    model, spec = load_model(tmp_path / "x.pth", (LABELS, (64, 64)))
    assert model.aux_classifier is None and spec.model == "deeplabv3_resnet18s_os8"
    save_model(tmp_path / "y.safetensors", model, spec)
    assert load_model(tmp_path / "y.safetensors")[0].aux_classifier is None


@pytest.mark.parametrize(
    ("text", "mean", "std", "color"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "RGB"),
        ("half", (0.5,) * 3, (0.5,) * 3, "RGB"),
        ("unit", (0.0,) * 3, (1.0,) * 3, "RGB"),
        ("0.1, 0.2, 0.3 / 1, 0.5, 0.25", (0.1, 0.2, 0.3), (1.0, 0.5, 0.25), "RGB"),
        ("caffe", tuple(v / 255 for v in (104.00698793, 116.66876762, 122.67891434)), (1 / 255,) * 3, "BGR"),
    ],
)
def test_inputs_by_name_and_number(text: str, mean: tuple[float, ...], std: tuple[float, ...], color: str) -> None:
    found = parse_normalize(text, (8, 8))
    assert found.mean == pytest.approx(mean) and found.std == pytest.approx(std) and found.color == color


def test_list_names_the_forms() -> None:
    code, said, _ = invoke("list", "models")
    assert code == 0 and {"torchvision:fcn_resnet101", "smp:Arch/encoder"} <= set(said.split())
