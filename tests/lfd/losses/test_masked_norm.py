"""The batch norm over counted cells against torch's, given those cells alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lfd.losses.masked_norm import MaskedBatchNorm2d


@given(st.integers(0, 2**20), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_it_is_torchs_over_the_cells_that_count(seed: int, batch: int, channels: int, side: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 3 + 2 * torch.randn(batch, channels, side, side + 1, generator=generator)
    known = (torch.rand(batch, side, side + 1, generator=generator) < share).float()
    norm = MaskedBatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    found = norm(x, known).movedim(1, -1)[known > 0]
    alone = x.movedim(1, -1)[known > 0]
    if len(alone) > 1:  # torch refuses a single value
        expected = F.batch_norm(alone, None, None, norm.weight, norm.bias, training=True)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_its_gradient_is_torchs_and_void_gets_none() -> None:
    x = torch.randn(2, 3, 4, 5, dtype=torch.float32, requires_grad=True)
    known = torch.ones(2, 4, 5)
    known[0, :2] = 0
    weights = torch.randn(2, 3, 4, 5)
    norm = MaskedBatchNorm2d(3)
    (found,) = torch.autograd.grad((norm(x, known) * weights * known[:, None]).sum(), x)
    alone = x.detach().movedim(1, -1)[known > 0].requires_grad_()
    out = F.batch_norm(alone, None, None, training=True)
    (expected,) = torch.autograd.grad((out * weights.movedim(1, -1)[known > 0]).sum(), alone)
    torch.testing.assert_close(found.movedim(1, -1)[known > 0], expected, rtol=1e-3, atol=1e-5)
    assert not found.movedim(1, -1)[known == 0].any()


@pytest.mark.parametrize(
    "known", [torch.zeros(2, 3, 3), torch.zeros(2, 3, 3).index_put((torch.tensor([0]),) * 3, torch.ones(1))]
)
def test_no_cell_or_one_gives_the_bias(known: torch.Tensor) -> None:
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    out = MaskedBatchNorm2d(4)(x, known)
    assert not out.any()
    out.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
