"""What is refused before anything is read."""

from __future__ import annotations

from typing import Any

import pytest

from lfd.checks import check_config
from lfd.config import Config
from lfd.errors import UsageError
from lfd.recipe import from_mapping

FILM = {"source": "frames:film", "val": "camvid:data"}


def configured(data: dict[str, Any] | None = None, **distill: Any) -> Config:
    return from_mapping(
        {
            "train": {"model": "lraspp_mobilenet_v3_small", "weights": "none", "batch": 4},
            "data": data or {"source": "camvid:data"},
            "distill": distill,
        }
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("teacher_size", "student"),
        ("teacher_taps", {"deep": "layer"}),
        ("classes", {"sky": ["sky"]}),
        ("unlabelled", "nothing"),
    ],
)
def test_what_is_for_a_teacher_needs_one(key: str, value: Any) -> None:
    with pytest.raises(
        UsageError, match=rf"^distill\.{key} = .* has no effect without a teacher\. Fix: leave it away$"
    ):
        check_config(configured(**{key: value}))
    check_config(configured(teacher="run", method="kd", **{key: value}))


@pytest.mark.parametrize(
    ("data", "distill", "says"),
    [
        (FILM, {"method": "ifvd"}, "nothing else of method 'ifvd' is learnt from with distill.unlabelled = 'nothing'"),
        (FILM, {"method": "kd", "weights": {"kd": 0.0}}, "nothing else of method 'kd' is learnt from"),
        (
            None,
            {"method": "kd", "weights": {"kd": 0.0}},
            "at 0 learns nothing from the teacher. Fix: lfd-train teacher",
        ),
    ],
    ids=str,
)
def test_a_teacher_from_whom_nothing_is_learnt_is_refused(
    data: dict[str, Any] | None, distill: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_config(configured(data, teacher="run", unlabelled="nothing", **distill))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    check_config(configured(data, teacher="run", **distill))  # there its classes stand for labels


@pytest.mark.parametrize("method", ["kd", "kd+ifvd", "lfd"])
def test_film_teaches_what_needs_no_labels(method: str) -> None:
    chosen = check_config(configured(FILM, teacher="run", unlabelled="nothing", method=method))
    assert "kd" in chosen.losses
