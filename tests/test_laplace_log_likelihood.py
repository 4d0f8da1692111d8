"""What only Laplace's law has; `test_laws` holds what all have."""

import pytest
import torch

from rvi_fast import laplace_log_likelihood, linear_laplace_log_likelihood
from rvi_fast.likelihoods import Laplace
from rvi_fast.testing import assert_close

B, D, S = 4, 33, 2


def normal(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=dtype)


@pytest.mark.parametrize("shape", [(), (D,), (B, D)])
def test_value_equals_torch_distributions(shape):
    x, location, scale = normal(B, D), normal(S, B, D), normal(*shape).abs() + 0.3
    mask = x.abs() < 1
    expected = (torch.distributions.Laplace(location, scale).log_prob(x) * mask).sum(-1)
    assert_close([laplace_log_likelihood(x, location, scale, mask)], [expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_at_the_kink_is_zero_and_one_over_the_scale_beside_it(dtype):
    x = torch.zeros(B, D, dtype=dtype)
    x[1], x[2] = 1.0, -1.0
    location, scale = torch.zeros_like(x).requires_grad_(), torch.tensor(0.5, dtype=dtype)
    laplace_log_likelihood(x, location, scale).sum().backward()
    assert torch.equal(location.grad, 2.0 * x)
    bias = torch.zeros(D, dtype=dtype, requires_grad=True)
    hidden, weight = torch.ones(1, 1, dtype=dtype), torch.zeros(D, 1, dtype=dtype)
    for row, expected in zip(x[:3], (0.0, 2.0, -2.0), strict=True):
        bias.grad = None
        linear_laplace_log_likelihood(hidden, weight, bias, row[None], scale).sum().backward()
        assert torch.equal(bias.grad, torch.full_like(bias, expected))


def test_a_far_entry_pulls_no_more_than_a_near_one():
    location = torch.zeros(1, 3, requires_grad=True)
    laplace_log_likelihood(torch.tensor([[1e-3, 1.0, 1e6]]), location, 2.0).sum().backward()
    assert location.grad.tolist() == [[0.5, 0.5, 0.5]]


def test_the_likeliest_scale_is_the_mean_absolute_error():
    x = normal(200, D)
    law = Laplace(D, scale="feature", dtype=torch.float64)
    with torch.no_grad():
        law.log_scale.copy_(x.abs().mean(0).log())
    law(x, torch.zeros_like(x)).sum().backward()
    assert law.log_scale.grad.abs().max() < 1e-9


def test_draws_have_laplace_tails():
    draws = Laplace(1).sample(torch.zeros(100_000, 1), noise=normal(100_000, 1)).detach().abs()
    for far in (0.1, 1.0, 3.0, 6.0):
        share = torch.exp(torch.tensor(-far))
        assert abs((draws > far).double().mean() - share) < 4 * (share / 100_000).sqrt()
