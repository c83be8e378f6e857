"""What a configuration computes, and what of it has no effect."""

from __future__ import annotations

from typing import Any

import pytest

from lfd.errors import UsageError
from lfd.losses import LOSSES
from lfd.methods import METHODS, check_teacher, find_method, plan


@pytest.mark.parametrize("name", METHODS)
def test_every_method_weighs_the_parts_of_its_losses_and_says_what_it_is(name: str) -> None:
    method = METHODS[name]
    parts = {part for loss in method.losses for part in LOSSES[loss].parts}
    assert set(method.weights) == {"task"} | parts
    assert set(method.balanced) <= set(method.weights)
    assert method.about and len(method.about) <= 110
    assert all(weight >= 0 for weight in method.weights.values())


def test_no_two_losses_share_the_name_of_a_part() -> None:
    parts = [part for loss in LOSSES.values() for part in loss.parts]
    assert len(parts) == len(set(parts)) and "task" not in parts


@pytest.mark.parametrize("name", LOSSES)
def test_an_option_serves_parts_that_there_are(name: str) -> None:
    loss = LOSSES[name]
    assert set(loss.serves) <= set(vars(loss.Options()))
    assert all(set(parts) <= set(loss.parts) for parts in loss.serves.values())
    assert set(loss.active(loss.Options())) <= set(loss.parts)


def test_a_sum_has_the_losses_weights_and_balance_of_all() -> None:
    both, lfd, kd = find_method("kd+lfd"), METHODS["lfd"], METHODS["kd"]
    assert both.losses == ("kd", "lfd") and both.weights == {**lfd.weights, **kd.weights}
    assert both.balanced == lfd.balanced and "Hinton" in both.about and "Yu" in both.about
    assert plan("kd+lfd").losses == plan("lfd").losses
    found = find_method("cwd+lfd")
    assert set(found.losses) == {"cwd", "kd", "lfd"} and found.balanced == lfd.balanced
    assert found.weights["cwd_fea"] == METHODS["cwd"].weights["cwd_fea"]


def test_in_a_sum_the_method_named_after_a_part_has_its_weight() -> None:
    assert METHODS["skd"].weights["kd"] != METHODS["kd"].weights["kd"]
    assert find_method("skd+kd").weights["kd"] == METHODS["kd"].weights["kd"]
    assert find_method("kd+skd").weights["kd"] == METHODS["kd"].weights["kd"]


def test_a_loss_without_a_weight_is_not_built() -> None:
    found = plan("lfd", {"fea": 0, "aux": 0, "kl": 0})
    assert list(found.losses) == ["kd"] and found.weights == {"task": 1, "kd": 1} and found.balanced == ("task", "kd")
    part = plan("lfd", {"kl": 0})
    assert list(part.losses) == ["kd", "lfd"] and part.weights["kl"] == 0  # computed for the log, with aux


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"text": "ldf"}, "unknown method 'ldf'. Did you mean 'lfd'"),
        ({"text": "kd+lfdd"}, "unknown method 'lfdd'. Did you mean 'lfd'"),
        ({"text": "kd+"}, "unknown method ''"),
        ({"text": "kd+kd"}, "expected different distillers joined by +"),
        ({"text": "none+kd"}, "expected different distillers joined by +"),
        ({"text": "skd+lfd"}, "its methods give kd the weights 10 and 1. Fix: add +kd"),
        ({"text": "kd", "weights": {"kdd": 1.0}}, "unknown loss weight of method 'kd' 'kdd'. Did you mean 'kd'"),
        ({"text": "kd", "weights": {"kd": 0, "task": 0}}, "every loss weight of method 'kd' is 0"),
        ({"text": "kd", "balance": "ema"}, "distill.balance = 'ema' has no effect: method 'kd' balances nothing"),
        ({"text": "lfd", "weights": {"kl": 0}, "options": {"lfd": {"kl_start": 0.5}}}, "while the weight of kl is 0"),
        (
            {"text": "lfd", "weights": {"kl": 0, "aux": 0}, "options": {"lfd": {"head_width": 64}}},
            "loss.lfd.head_width = 64 has no effect while the weight of aux and kl is 0",
        ),
        ({"text": "kd", "weights": {"kd": 0}, "options": {"kd": {"temperature": 4.0}}}, "while the weight of kd is 0"),
        ({"text": "kd", "options": {"cwd": {}}}, "[loss.cwd] has no effect: the losses of method 'kd' are kd"),
        ({"text": "kd", "options": {"cdw": {}}}, "unknown section in [loss] 'cdw'. Did you mean 'cwd'"),
        (
            {"text": "cwd", "weights": {"cwd_logit": 3.0}, "options": {"cwd": {"on": "feature"}}},
            "distill.weights.cwd_logit = 3 has no effect: the options of [loss.cwd] leave cwd_logit out",
        ),
    ],
    ids=str,
)
def test_what_has_no_effect_is_refused_in_one_line(call: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(**call)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("method", "teacher"), [("kd", False), ("lfd+cwd", False), ("none", True)])
def test_a_teacher_is_there_where_it_is_of_use(method: str, teacher: bool) -> None:
    check_teacher(method, not teacher)
    with pytest.raises(UsageError, match="--teacher"):
        check_teacher(method, teacher)
