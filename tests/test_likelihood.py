import copy
import math

import pytest
import torch

from rvi_fast import GaussianLikelihood, gaussian_log_likelihood
from rvi_fast.testing import assert_close

X = torch.tensor([[1.0, math.nan, -2.0], [math.nan] * 3])
MEAN = torch.tensor([[0.5, 3.0, 0.0], [0.0, 0.0, 0.0]])


def by_hand(x, mean, scale):
    return -0.5 * ((x - mean) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("kind", ["scalar", "feature", "fixed"])
def test_value_equals_the_formula(kind):
    likelihood = GaussianLikelihood(3, scale=kind, initial_scale=0.5)
    expected = by_hand(1.0, 0.5, 0.5) + by_hand(-2.0, 0.0, 0.5)
    assert_close([likelihood(X, MEAN)], [torch.tensor([expected, 0.0])], rtol=1e-6)
    mask = ~X.isnan()
    assert torch.equal(likelihood(X.nan_to_num(7.0), MEAN, mask), likelihood(X, MEAN))
    samples = torch.stack([MEAN, 2 * MEAN])
    assert_close([likelihood(X, samples)[0]], [likelihood(X, MEAN)])


@pytest.mark.parametrize(("kind", "shape"), [("scalar", ()), ("feature", (3,)), ("fixed", ())])
def test_scale_is_learned_unless_fixed(kind, shape):
    likelihood = GaussianLikelihood(3, scale=kind, initial_scale=2.0)
    assert_close([likelihood.scale], [torch.full(shape, 2.0)], rtol=1e-6)
    assert [name for name, _ in likelihood.named_parameters()] == ["log_scale"] * (kind != "fixed")
    assert list(likelihood.state_dict()) == ["log_scale"]
    log_prob = likelihood(X, MEAN.clone().requires_grad_()).sum()
    log_prob.backward()
    if kind != "fixed":
        assert likelihood.log_scale.grad.shape == shape
        assert likelihood.log_scale.grad.isfinite().all()


def test_fitted_scale_is_the_error_of_the_observed_entries():
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(500, 3, generator=generator)
    x[:, 1] = torch.where(torch.rand(500, generator=generator) < 0.5, math.nan, x[:, 1] * 4)
    likelihood = GaussianLikelihood(3, scale="feature")
    optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=40, tolerance_grad=1e-6)

    def closure():
        optimizer.zero_grad()
        loss = -likelihood(x, torch.zeros_like(x)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = torch.stack([column[~column.isnan()].square().mean().sqrt() for column in x.T])
    assert_close([likelihood.scale.detach()], [expected], rtol=1e-3)


def test_module_follows_dtype_and_copies():
    likelihood = GaussianLikelihood(3, scale="feature", dtype=torch.float64)
    assert likelihood.log_scale.dtype == torch.float64
    other = GaussianLikelihood(3, scale="feature", initial_scale=3.0)
    other.load_state_dict(copy.deepcopy(likelihood).state_dict())
    assert torch.equal(other.scale, torch.ones(3))
    assert other.to(torch.float64)(X.double(), MEAN.double()).dtype == torch.float64
    assert repr(other) == "GaussianLikelihood(num_features=3, scale='feature')"


@pytest.mark.parametrize("initial_scale", [1e-6, 1e6])
def test_extreme_scales_give_finite_values_and_gradients(initial_scale):
    likelihood = GaussianLikelihood(3, initial_scale=initial_scale)
    log_prob = likelihood(X, MEAN)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert likelihood.log_scale.grad.isfinite().all()


def test_nan_where_observed_is_refused_when_checked():
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert GaussianLikelihood(3)(X, MEAN, mask).isnan().all()
    with pytest.raises(ValueError, match="x: NaN at row 0, column 1, where the mask says observed"):
        GaussianLikelihood(3, checked=True)(X, MEAN, mask)
    expected = gaussian_log_likelihood(X, MEAN, 1.0, ~X.isnan())
    assert_close([GaussianLikelihood(3, checked=True)(X, MEAN, ~X.isnan())], [expected])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_features": 0}, ValueError, "num_features: expected an integer >= 1, got 0"),
        ({"scale": "row"}, ValueError, "scale: expected scalar, feature or fixed, got 'row'"),
        ({"initial_scale": 0.0}, ValueError, r"initial_scale: .* > 0, got 0\.0"),
        ({"initial_scale": math.nan}, ValueError, "initial_scale: .* > 0, got nan"),
        ({"initial_scale": "1"}, TypeError, "initial_scale: expected a number, got '1'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        GaussianLikelihood(**{"num_features": 3} | arguments)


@pytest.mark.parametrize("kind", ["scalar", "feature", "fixed"])
def test_data_of_another_width_is_refused(kind):
    with pytest.raises(ValueError, match=r"(x|scale): expected .*4.*, got .*3"):
        GaussianLikelihood(4, scale=kind)(X, MEAN)
