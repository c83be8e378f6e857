from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lfd.config import Config
from lfd.errors import UsageError
from lfd.recipe import RECIPES, apply_set, from_mapping, read_recipe, recipe_names, to_toml


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_complete_short_and_valid(name: str, tmp_path: Path) -> None:

    record = read_recipe(name)
    config = from_mapping(record)
    assert len((RECIPES / f"{name}.toml").read_text().splitlines()) <= 45
    sections: dict[str, Any] = {"train": {"model", "init"}, "data": {"source", "val"}, "optimizer": set()}
    for section, given_elsewhere in sections.items():
        assert set(record[section]) | given_elsewhere == set(vars(getattr(config, section)))
    copy = tmp_path / "config.toml"
    copy.write_text(to_toml(config))
    assert from_mapping(read_recipe(str(copy))) == config


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("optimizer.lr=0.5", ("optimizer", "lr"), 0.5),
        ("optimizer.lr = 1", ("optimizer", "lr"), 1.0),
        ("data.scale=[1, 1.5]", ("data", "scale"), (1.0, 1.5)),
        ("train.compile=true", ("train", "compile"), True),
        ("data.size=180x240", ("data", "size"), "180x240"),
        ("distill.weights.aux=0.2", ("distill", "weights"), {"aux": 0.2}),
        ("distill.student_taps.deep=3", ("distill", "student_taps"), {"deep": "3"}),
        ('distill.student_taps.deep="3"', ("distill", "student_taps"), {"deep": "3"}),
        ("distill.teacher=2026-01-31", ("distill", "teacher"), "2026-01-31"),
    ],
)
def test_set_changes_one_value(assignment: str, path: tuple[str, str], value: object) -> None:
    config = from_mapping(apply_set({}, [assignment]))
    assert getattr(getattr(config, path[0]), path[1]) == value


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"optimiser": {}}, "Did you mean 'optimizer'"),
        ({"optimizer": {"learning_rate": 1}}, "unknown key in [optimizer] 'learning_rate'"),
        ({"optimizer": {"momentun": 1}}, "Did you mean 'momentum'"),
        ({"train": 3}, "expected a section"),
        ({"train": {"steps": "many"}}, "train.steps = 'many'; expected int"),
        ({"train": {"steps": True}}, "train.steps = True"),
        ({"train": {"steps": 0}}, "train.steps = 0; expected 1"),
        ({"train": {"batch": 1}}, "train.batch = 1; expected 2"),
        ({"train": {"amp": "bf61"}}, "Did you mean 'bf16'"),
        ({"data": {"scale": [2, 0.5]}}, "data.scale"),
        ({"data": {"crop": "big"}}, "data.crop: size 'big'"),
        ({"optimizer": {"momentum": -1}}, "optimizer.momentum = -1"),
        ({"optimizer": {"weight_decay": -1}}, "optimizer.weight_decay = -1"),
        ({"optimizer": {"power": float("nan")}}, "optimizer.power = nan"),
        ({"distill": {"weights": {"kd": -1.0}}}, "distill.weights.kd = -1"),
        ({"data": {"scale": [1]}}, "data.scale = [1]"),
        ({"data": {"source": 5}}, "data.source = 5; expected text"),
        ({"distill": {"weights": {"kd": "x"}}}, "distill.weights.kd"),
    ],
)
def test_a_wrong_recipe_is_named(record: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_mapping(record)
    assert says in str(caught.value)


@pytest.mark.parametrize("assignment", ["lr=1", "optimizer.lr", ".lr=1", "a.b.c.d=1"])
def test_a_wrong_assignment_is_named(assignment: str) -> None:
    with pytest.raises(UsageError, match=r"section\.key=value"):
        apply_set({}, [assignment])


def test_a_section_that_is_none_is_not_replaced_in_silence() -> None:
    with pytest.raises(UsageError, match=r"\[train\] = \[1\]; expected a section"):
        apply_set({"train": [1]}, ["train.steps=3"])


def test_recipes_that_cannot_be_read(tmp_path: Path) -> None:
    deep = tmp_path / "deep.toml"
    deep.write_text("x = " + "[" * 3000)
    with pytest.raises(UsageError, match="expected a TOML file"):
        read_recipe(str(deep))
    broken = tmp_path / "r.toml"
    broken.write_text("[train\n")
    with pytest.raises(UsageError, match="expected a TOML file"):
        read_recipe(str(broken))
    with pytest.raises(UsageError, match="nowhere"):
        read_recipe(str(tmp_path / "nowhere.toml"))
    with pytest.raises(UsageError, match="Did you mean 'default'"):
        read_recipe("defalt")


def test_defaults_are_valid() -> None:
    assert from_mapping({}) == Config()
