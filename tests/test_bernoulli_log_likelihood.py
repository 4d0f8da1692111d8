"""What only the law of zeros and ones has; `test_laws` holds what all have."""

import pytest
import torch

from rvi_fast import bernoulli_log_likelihood
from rvi_fast.testing import assert_close

B, D, S = 4, 5, 2


def arguments():
    """x, logits, mask with every third entry missing and a row without any entry."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(B, D, generator=generator) < 0.4).double()
    logits = 3 * torch.randn(S, B, D, generator=generator, dtype=torch.float64)
    mask = (torch.arange(B * D) % 3 > 0).reshape(B, D)
    mask[0] = False
    return x, logits.requires_grad_(), mask


def test_value_equals_torch_distributions():
    x, logits, mask = arguments()
    expected = (torch.distributions.Bernoulli(logits=logits).log_prob(x) * mask).sum(-1)
    assert_close([bernoulli_log_likelihood(x, logits, mask)], [expected])


def test_pixels_of_0_and_255_are_zeros_and_ones():
    x, logits, mask = arguments()
    pixels = (255 * x).to(torch.uint8)
    expected = bernoulli_log_likelihood(x, logits, mask)
    assert_close([bernoulli_log_likelihood(pixels, logits, mask)], [expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_logits_neither_overflow_nor_lose_what_is_left(dtype):
    far = torch.tensor([[-1e4, -90.0, -30.0, 30.0, 90.0, 1e4]], dtype=dtype)
    for x in (torch.zeros_like(far), torch.ones_like(far)):
        logits = far.clone().requires_grad_()
        value = bernoulli_log_likelihood(x.T, logits.T)
        value.sum().backward()
        wrong = torch.where((far > 0) == (x > 0), 0.0, far.abs())
        torch.testing.assert_close(value[None].detach(), -wrong, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(logits.grad, x - (far > 0).to(dtype), rtol=0, atol=1e-12)
