"""lfd-train as typed: every wrong thing gets one line, its exit code, and leaves nothing behind."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from lfd.cli import main
from lfd.console import guarded
from lfd.data.camvid import LABELS
from lfd.errors import UsageError
from lfd.methods import METHODS
from lfd.models import MODELS, create_model
from lfd.spec import ModelSpec, Preprocess
from tests.conftest import make_folder
from tests.lfd.test_weights import Payload


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory of an untrained CamVid network."""
    from lfd.checkpoint import save_model

    model, _ = create_model("lraspp_mobilenet_v3_small", len(LABELS))
    save_model(
        tmp_path / "run/model.safetensors", model, ModelSpec("lraspp_mobilenet_v3_small", LABELS, Preprocess((48, 64)))
    )
    return tmp_path / "run"


TEACH = ("teacher", "--weights", "none", "--steps", 2, "--batch", 2, "--set", "data.workers=0")
SMALL = ("--model", "lraspp_mobilenet_v3_small")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((*TEACH, *SMALL, "--data", "folder:/no/such/place"), 1, "/no/such/place: no such folder"),
        ((*TEACH, *SMALL, "--data", "camvd:x"), 2, "Did you mean 'camvid'"),
        ((*TEACH, *SMALL), 2, "no data set"),
        ((*TEACH, "--data", "street:"), 2, "no model"),
        (
            (*TEACH, "--model", "lraspp_mobilnet_v3_small", "--data", "street:"),
            2,
            "Did you mean 'lraspp_mobilenet_v3_small'",
        ),
        ((*TEACH, *SMALL, "--data", "street:", "--set", "optimizer.lrr=1"), 2, "Did you mean 'lr'"),
        ((*TEACH, *SMALL, "--data", "street:", "--set", "optimiser.lr=1"), 2, "Did you mean 'optimizer'"),
        ((*TEACH, *SMALL, "--data", "street:", "--recipe", "defualt"), 2, "Did you mean 'default'"),
        ((*TEACH, *SMALL, "--data", "street:", "--size", "big"), 2, "size 'big'"),
        ((*TEACH, *SMALL, "--data", "street:", "--device", "cuda:99"), 2, "device 'cuda:99'"),
        ((*TEACH, *SMALL, "--data", "street:", "--amp", "fp8"), 2, "value of train.amp 'fp8'"),
        ((*TEACH, *SMALL, "--data", "street:", "--resume"), 2, "no resume.pt"),
        ((*TEACH, *SMALL, "--data", "street:@test"), 2, "names a split"),
        ((*TEACH, *SMALL, "--data", "street:?frames=4", "--set", "data.crop=big"), 2, "data.crop: size 'big'"),
        (("distill", "--student", "x", "--data", "street:"), 2, "no teacher"),
        ((*TEACH, *SMALL, "--data", "street:", "--set", "distill.method=lfd"), 2, "trains on labels alone"),
        ((*TEACH, *SMALL, "--data", "street:", "--set", "train.steps=3"), 2, "train.steps is given twice"),
        ((*TEACH, *SMALL, "--data", "street:", "--set", "optimizer.lr=" + "[" * 5000), 2, "optimizer.lr = '[[["),
        ((*TEACH, *SMALL, "--data", "folder:"), 1, "expected folder:PATH"),
        (
            ("distill", "--teacher", "t", "--student", "x", "--data", "street:", "--method", "ldf"),
            2,
            "Did you mean 'lfd'",
        ),
    ],
)
def test_wrong_calls_end_in_one_line(tmp_path: Path, arguments: tuple[object, ...], code: int, says: str) -> None:
    out = tmp_path / "out"
    exit_code, _, errors = invoke(*arguments, "--out", out)
    assert (exit_code, errors.count("\n")) == (code, 1), errors
    assert says in errors and not out.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "0 bytes"), (b"\x00" * 100, "broken"), (None, "no such run or file")],
)
@pytest.mark.parametrize("command", ["distill", "eval"])
def test_broken_checkpoints_end_in_one_line(
    tmp_path: Path, folder: Path, command: str, content: bytes | None, says: str
) -> None:
    path = tmp_path / "t.safetensors"
    if content is not None:
        path.write_bytes(content)
    data = ("--data", f"folder:{folder}")
    wanted = {
        "eval": ("eval", path, *data),
        "distill": (
            "distill",
            "--teacher",
            path,
            "--student",
            "lraspp_mobilenet_v3_small",
            *TEACH[1:],
            *data,
            "--out",
            tmp_path / "o",
        ),
    }[command]
    code, _, errors = invoke(*wanted)
    assert (code, errors.count("\n")) == (1, 1) and says in errors and "t.safetensors" in errors, errors
    assert not (tmp_path / "o").exists()


def test_a_pickle_with_code_is_refused(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "teacher.pth"
    path.write_bytes(pickle.dumps(Payload(tmp_path / "pwned")))
    code, _, errors = invoke("eval", path, "--data", f"folder:{folder}")
    assert code == 1 and "refused" in errors and not (tmp_path / "pwned").exists()


def test_other_classes_are_named(run: Path, folder: Path) -> None:
    code, _, errors = invoke("eval", run, "--data", f"folder:{folder}")
    assert code == 4 and "11 classes" in errors and "3" in errors and errors.count("\n") == 1


def test_an_existing_run_is_kept(run: Path, folder: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    code, _, errors = invoke(*TEACH, *SMALL, "--data", f"folder:{folder}", "--out", run)
    assert code == 2 and "--overwrite" in errors
    assert (run / "model.safetensors").read_bytes() == before


def test_overwrite_keeps_what_is_not_the_runs(run: Path, folder: Path) -> None:
    (run / "notes.txt").write_text("mine")
    code, out, errors = invoke(*TEACH, *SMALL, "--data", f"folder:{folder}", "--out", run, "--overwrite")
    assert code == 0, errors
    assert (run / "notes.txt").read_text() == "mine" and "random weights" in out and "best val mIoU" in out


def test_a_call_that_fails_keeps_the_run_it_would_overwrite(run: Path, folder: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    for wrong in (("--set", "data.crop=big"), ("--weights", "/no/such.pth"), ("--device", "cuda:99")):
        code, _, errors = invoke(*TEACH, *SMALL, "--data", f"folder:{folder}", "--out", run, "--overwrite", *wrong)
        assert code in (1, 2) and errors.count("\n") == 1, errors
        assert [p.name for p in run.iterdir()] == ["model.safetensors"]
        assert (run / "model.safetensors").read_bytes() == before


def test_brackets_in_a_path_are_only_brackets(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "toy[/old]", {"train": 4, "val": 2})
    code, text, errors = invoke(*TEACH, *SMALL, "--data", f"folder:{root}", "--out", tmp_path / "run[1]")
    assert code == 0 and f"folder:{root}" in text and "run[1]/model.safetensors" in text, errors


def test_labels_without_a_class_are_an_error_and_not_a_score(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "void", {"train": 4, "val": 2})
    for path in (root / "masks/val").iterdir():
        cv2.imwrite(str(path), np.full((48, 64), 255, np.uint8))
    code, _, errors = invoke(*TEACH, *SMALL, "--data", f"folder:{root}", "--out", tmp_path / "o")
    assert code == 1 and "no labelled pixel" in errors


@pytest.mark.parametrize("module", ["torch", "rich", "cv2"])
def test_a_missing_package_is_named_with_its_extra(module: str, folder: Path) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from lfd.cli import main; main(['teacher', '--out', 'never', '--data', 'folder:{folder}'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "lfd-toolkit[train]" in done.stderr and done.stderr.count("\n") == 1


def test_a_resumed_run_keeps_its_configuration(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    assert invoke(*TEACH, *SMALL, "--data", f"folder:{folder}", "--out", out)[0] == 0
    code, _, errors = invoke("teacher", "--out", out, "--resume", "--batch", 4)
    assert code == 2 and "keeps its configuration" in errors
    code, _, errors = invoke("teacher", "--out", out, "--resume", "--recipe", "cpu_small")
    assert code == 2 and "leave --recipe" in errors
    code, text, errors = invoke("teacher", "--out", out, "--resume")
    assert code == 0 and "after step 2" in text, errors


def test_eval_prints_a_table_or_json(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "out"
    assert invoke(*TEACH, *SMALL, "--data", f"folder:{folder}", "--out", out)[0] == 0
    code, text, _ = invoke("eval", out, "--data", f"folder:{folder}@val", "--json")
    record = json.loads(text)
    assert code == 0 and record["pictures"] == 4 and set(record["iou"]) == {"ground", "sky", "thing"}
    code, text, _ = invoke("eval", out, "--data", f"folder:{folder}@val")
    assert code == 0 and f"{record['miou']:.2%}" in text and "thing" in text


def test_a_corrupt_picture_stops_with_its_path(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "d", {"train": 4, "val": 2})
    (root / "images/train/002.png").write_bytes(b"not a picture")
    code, _, errors = invoke(*TEACH, *SMALL, "--data", f"folder:{root}", "--out", tmp_path / "o")
    assert code == 1 and "images/train/002.png" in errors and errors.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("kind", "names"),
    [("methods", METHODS), ("models", MODELS), ("datasets", ["street", "camvid", "folder"]), ("recipes", ["default"])],
)
def test_list(kind: str, names: list[str]) -> None:
    code, text, _ = invoke("list", kind)
    assert code == 0 and all(name in text for name in names)
    assert invoke("list", "model")[0] == 2


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UsageError("--size 3; expected HxW"), 2, "error: --size 3; expected HxW"),
        (np.linalg.LinAlgError("a defect"), None, ""),
        (MemoryError(), 1, "error: not enough memory. Fix: a smaller size or batch"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_a_command_ends(error: BaseException, code: int | None, says: str) -> None:
    @click.command()
    @guarded
    def command() -> None:
        raise error

    result = CliRunner().invoke(command)
    if code is None:
        assert result.exception is error, "a defect of ours keeps its traceback"
    else:
        assert (result.exit_code, result.stderr.strip()) == (code, says)
