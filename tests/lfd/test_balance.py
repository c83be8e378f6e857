"""Balance in closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lfd.balance import Balance
from lfd.errors import UsageError


def run(balance: Balance, value: float, name: str = "a") -> tuple[float, float]:
    """The balanced value, and its derivative by the term."""
    x = torch.tensor(value, requires_grad=True)
    y = balance(name, x)
    y.backward()
    assert x.grad is not None
    return float(y.detach()), float(x.grad)


@given(st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_detach_is_one_with_the_gradient_of_the_logarithm(x: float) -> None:
    value, slope = run(Balance("detach", ("a",)), x)
    assert value == pytest.approx(1, rel=1e-6) and slope == pytest.approx(1 / x, rel=1e-5)


@given(st.floats(-1e6, 1e6, width=32))
@settings(max_examples=30, deadline=None)
def test_none_is_the_term_itself(x: float) -> None:
    assert run(Balance("none", ("a",)), x) == (pytest.approx(x), 1)


@pytest.mark.parametrize("kind", ["detach", "ema", "none"])
def test_a_term_of_zero_is_zero_with_its_own_gradient(kind: str) -> None:
    assert run(Balance(kind, ("a",)), 0.0) == (0, 1)


def test_ema_divides_by_the_average_up_to_this_step() -> None:
    """a_1 = L_1, a_n = 0.99 a_(n-1) + 0.01 L_n; a step whose term is 0 has nothing to say and leaves it."""
    balance = Balance("ema", ("a", "b"))
    average = None
    for x in (4.0, 2.0, 0.0, 8.0, 1000.0, 0.5):
        if x:
            average = x if average is None else 0.99 * average + 0.01 * x
        assert average is not None
        value, slope = run(balance, x)
        assert value == pytest.approx(x / average, rel=1e-5) and slope == pytest.approx(1 / average, rel=1e-5)
        assert balance.average.tolist() == pytest.approx([average, 0], rel=1e-6)
    assert run(balance, 3.0, "b") == (pytest.approx(1), pytest.approx(1 / 3))  # each part by its own average


def test_ema_stands_still_in_evaluation() -> None:
    balance = Balance("ema", ("a",)).eval()
    assert run(balance, 5.0) == (pytest.approx(1), pytest.approx(0.2)) and not balance.average.any()
    run(balance.train(), 4.0)
    assert run(balance.eval(), 2.0) == (pytest.approx(0.5), pytest.approx(0.25)) and balance.average.tolist() == [4]


def test_emas_state_goes_with_the_run_and_the_others_have_none() -> None:
    before, after = Balance("ema", ("a", "b")), Balance("ema", ("a", "b"))
    run(before, 3.0)
    run(before, 5.0, "b")
    after.load_state_dict(before.state_dict())
    assert after.average.tolist() == [3, 5] and run(after, 2.0) == run(before, 2.0)
    assert not Balance("detach", ("a",)).state_dict() and not Balance("none", ("a",)).state_dict()


@pytest.mark.parametrize("kind", ["detach", "ema", "none"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_divided_in_float32(kind: str, dtype: torch.dtype) -> None:
    term = torch.tensor(1e-3, dtype=dtype)
    found: Tensor = Balance(kind, ("a",))("a", term)
    assert found.dtype == torch.float32 and float(found) == pytest.approx(float(term) if kind == "none" else 1)


def test_an_average_passes_no_gradient_to_an_earlier_step() -> None:
    balance = Balance("ema", ("a",))
    first, second = (torch.tensor(x, requires_grad=True) for x in (4.0, 2.0))
    balance("a", first)
    balance("a", second).backward()
    assert first.grad is None and not balance.average.requires_grad


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown value of distill.balance 'emma'. Did you mean 'ema'"):
        Balance("emma", ("a",))


def test_a_step_in_two_parts_moves_the_average_as_a_whole_step_does() -> None:
    found = []
    for parts in (1, 2):
        balance = Balance("ema", ("a",), parts)
        for value in (4.0, *[2.0] * parts):
            balance("a", torch.tensor(value))
        found.append(float(balance.average))
    assert found == [pytest.approx(0.99 * 4 + 0.01 * 2)] * 2
