"""A checkpoint of the CIRKD family as a user has it: eval, import, teacher; and `explain`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lfd.checkpoint import load_model, save_model
from lfd.data import open_dataset
from lfd.errors import CheckpointError
from lfd.models import cirkd, create_model
from lfd.spec import ModelSpec, Preprocess
from tests.lfd.test_cirkd import theirs
from tests.lfd.test_cli import invoke


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pth as their trainer saves it from several GPUs, of three classes."""
    path = tmp_path_factory.mktemp("theirs") / "psp_mobile_citys_best_model.pth"
    state = theirs("pspnet", "mobilenet_v2", 128, 3)
    torch.save({f"module.{key}": value for key, value in state.items()}, path)
    return path


def test_import_makes_a_model_that_knows_its_classes_and_input(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "teacher.safetensors"
    code, said, _ = invoke("import", checkpoint, "--data", f"folder:{folder}", "--size", "66x98", "-o", out)
    assert code == 0 and "pspnet_mobilenet_v2_os8, 3 classes, input 66x98, BGR" in said
    model, spec = load_model(out)
    assert spec.labels.names == ("ground", "sky", "thing")
    assert spec.preprocess == cirkd.preprocess((66, 98)) and spec.preprocess.color == "BGR"
    direct, _ = load_model(checkpoint, (spec.labels, (66, 98)))
    assert all(torch.equal(v, direct.state_dict()[k]) for k, v in model.state_dict().items())
    code, _, error = invoke("import", checkpoint, "--data", f"folder:{folder}", "-o", out)
    assert code == 2 and "--overwrite" in error
    code, said, _ = invoke("import", checkpoint, "--data", f"folder:{folder}", "-o", out, "--overwrite")
    assert code == 0 and "input 48x64" in said


def test_eval_takes_the_checkpoint_as_it_is(checkpoint: Path, folder: Path) -> None:
    code, said, _ = invoke("eval", checkpoint, "--data", f"folder:{folder}", "--device", "cpu")
    assert code == 0 and "mIoU" in said


def test_a_teacher_as_it_is_that_has_learnt_nothing_is_refused(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    """It is read, its classes and input found, it is scored: and as its weights are random, that is the end."""
    code, said, error = invoke(
        *("distill", "--teacher", checkpoint, "--student", "lraspp_mobilenet_v3_small", "--weights", "none"),
        *("--data", f"folder:{folder}", "--out", tmp_path / "run", "--steps", 2, "--batch", 2, "--device", "cpu"),
    )
    assert code == 1 and "teacher  val mIoU" in said and "nothing can be learnt from it" in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("eval", "{pth}", "--data", "street:?size=48x64&frames=8"), "has 3 classes, the data set 11"),
        (("import", "{pth}", "--data", "{folder}", "-o", "{tmp}/t.onnx"), "ends in .safetensors"),
        (("import", "{tmp}/nothing.pth", "--data", "{folder}", "-o", "{tmp}/t.safetensors"), "no such run or file"),
        (("import", "{tmp}/nan.pth", "--data", "{folder}", "-o", "{tmp}/t.safetensors"), "not finite everywhere"),
        (("eval", "{tmp}/sparse.pth", "--data", "{folder}"), "not a plain dense tensor"),
        (("eval", "{tmp}/variance.pth", "--data", "{folder}"), "a negative variance"),
        (("import", "{tmp}", "--data", "{folder}", "-o", "{tmp}/t.safetensors"), "knows its classes and input already"),
        (("import", "{tmp}/other.pth", "--data", "{folder}", "-o", "{tmp}/t.safetensors"), "not of the CIRKD family"),
    ],
)
def test_what_does_not_fit_is_one_line(
    checkpoint: Path, folder: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    state = theirs("pspnet", "mobilenet_v2", 128, 3)
    key, variance = "head.classifier.weight", "head.block.1.running_var"
    torch.save({**state, key: state[key] * float("nan")}, tmp_path / "nan.pth")
    torch.save({**state, key: state[key].to_sparse()}, tmp_path / "sparse.pth")
    torch.save({**state, variance: -torch.ones_like(state[variance])}, tmp_path / "variance.pth")
    names = {"pth": checkpoint, "folder": f"folder:{folder}", "tmp": tmp_path}
    code, _, error = invoke(*(a.format(**names) for a in arguments))
    assert code in (1, 2) and says in error and error.count("\n") == 1
    assert not list(tmp_path.glob("t.*"))


def test_export_of_the_bare_checkpoint_says_how(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="`lfd-train import` makes a file that does"):
        load_model(checkpoint)


def test_explain_as_typed(folder: Path, tmp_path: Path) -> None:
    labels = open_dataset(f"folder:{folder}", "val").labels
    for name in ("run", "teacher"):
        model, _ = create_model("lraspp_mobilenet_v3_small", 3)
        spec = ModelSpec("lraspp_mobilenet_v3_small", labels, Preprocess((48, 64)))
        save_model(tmp_path / name / "model.safetensors", model, spec)
    typed = ("explain", tmp_path / "run", "--data", f"folder:{folder}", "--count", 2, "--device", "cpu")
    code, _, error = invoke(*typed)
    assert code == 2 and "--teacher" in error
    code, said, _ = invoke(*typed, "--teacher", tmp_path / "teacher")
    assert code == 0 and "summary.json" in said and (tmp_path / "run/explain/summary.json").is_file()
    assert "of the mask lies on" in said
    code, _, error = invoke(*typed, "--teacher", tmp_path / "teacher")
    assert code == 2 and "--overwrite" in error
