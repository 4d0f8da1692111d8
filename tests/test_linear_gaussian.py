"""Linear-Gaussian models against the covariance with missing entries marginalised out by hand."""

import copy
import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from rvi_fast.models import linear_search, ppca
from rvi_fast.models.linear_em import Factors, Joint, factor_step, gains, joint_step
from rvi_fast.models.linear_rows import Rows, opened

N, D, R = 400, 6, 2


def drawn(num_data=N, num_features=D, rank=R, missing=0.3, noise=0.3, seed=0):
    """A table, the same with holes, and the weight that it comes from."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    weight = torch.randn(num_features, rank, **options)
    scales = noise * (1 + torch.arange(num_features) / num_features)
    x = torch.randn(num_data, rank, **options) @ weight.T + 3.0
    x = x + scales * torch.randn(num_data, num_features, **options)
    holes = torch.rand(num_data, num_features, **options) < missing
    return x, x.masked_fill(holes, torch.nan), weight


def set_to(weight, bias, scale):
    """A model with these numbers."""
    model = ppca(len(bias), noise="scalar" if scale.dim() == 0 else "feature")
    state = {"weight": weight, "bias": bias, "log_scale": scale.log()}
    model.load_state_dict(state)
    return model


def any_model(noise="feature"):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(D, R, generator=generator, dtype=torch.float64)
    bias = torch.randn(D, generator=generator, dtype=torch.float64)
    scale = 0.2 + torch.rand(D, generator=generator, dtype=torch.float64)
    return set_to(weight, bias, scale if noise == "feature" else scale[0])


def joint_of(model):
    """Mean and covariance of x."""
    noise = (2 * model.log_scale).exp().expand(model.num_features)
    return model.bias, model.weight @ model.weight.T + noise.diag()


@pytest.mark.parametrize("noise", ["feature", "scalar"])
def test_likelihood_is_that_of_the_observed_block_of_the_covariance(noise):
    model, (_, x, _) = any_model(noise), drawn(30)
    bias, covariance = joint_of(model)
    log_prob = model.log_prob(x)
    assert log_prob.dtype == torch.float64
    for row, found in zip(x, log_prob, strict=True):
        seen = ~row.isnan()
        block = MultivariateNormal(bias[seen], covariance[seen][:, seen])
        torch.testing.assert_close(found, block.log_prob(row[seen]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("noise", ["feature", "scalar"])
def test_posterior_and_prediction_are_conditionals_of_the_joint_gaussian(noise):
    model, (_, x, _) = any_model(noise), drawn(30)
    bias, covariance = joint_of(model)
    mean, spread = model.posterior(x)
    predicted, std = model.predictive(x)
    filled = model.impute(x)
    for row in range(30):
        seen = ~x[row].isnan()
        gain = torch.linalg.inv(covariance[seen][:, seen])
        deviation = x[row, seen] - bias[seen]
        to_latents, to_all = model.weight[seen].T @ gain, covariance[:, seen] @ gain
        torch.testing.assert_close(mean[row], to_latents @ deviation)
        own = torch.eye(R, dtype=torch.float64) - to_latents @ model.weight[seen]
        torch.testing.assert_close(spread[row], own)
        expected = bias + to_all @ deviation
        variance = (covariance - to_all @ covariance[seen]).diagonal()
        torch.testing.assert_close(predicted[row, ~seen], expected[~seen])
        torch.testing.assert_close(std[row, ~seen], variance[~seen].sqrt())
        torch.testing.assert_close(filled[row], torch.where(seen, x[row], expected))


def test_draws_have_the_joint_distribution_of_what_is_missing():
    model, x = any_model(), torch.full((1, D), torch.nan, dtype=torch.float64)
    x[0, :3] = torch.tensor([1.0, -1.0, 0.5])
    draws = model.impute(x, draws=40_000, generator=torch.Generator().manual_seed(0))[:, 0]
    assert torch.equal(draws[:, :3], x[:, :3].expand(40_000, 3))
    bias, covariance = joint_of(model)
    gain = covariance[3:, :3] @ torch.linalg.inv(covariance[:3, :3])
    left = covariance[3:, 3:] - gain @ covariance[:3, 3:]
    mean = bias[3:] + gain @ (x[0, :3] - bias[:3])
    assert (draws[:, 3:].mean(0) - mean).abs().max() < 5 * (left.diagonal().max() / 40_000).sqrt()
    # their own sampling error: 1 / sqrt(20,000) of the variances
    assert (draws[:, 3:].T.cov() - left).abs().max() < 0.035 * left.diagonal().max()


def steps_of(kind, x, count):
    """Penalised likelihoods before each of some steps, and the last model."""
    data = opened(x, None, scalar=kind == "scalar")[0]
    generator = torch.Generator().manual_seed(2)
    bias = torch.zeros(D, dtype=torch.float64)
    if kind == "joint":
        model = Joint(bias, torch.eye(D, dtype=torch.float64))
    else:
        weight = torch.randn(D, R, generator=generator, dtype=torch.float64)
        model = Factors(bias, weight, bias + 0.5)
    found = []
    for _ in range(count):
        if kind == "joint":
            model, log_prob = joint_step(model, data, ridge=3.0)
        else:
            model, log_prob = factor_step(
                model, data, ridge=5.0, floor=0.5, scalar=kind == "scalar"
            )
        found.append(float(log_prob))
    return found, model, data


@pytest.mark.parametrize("kind", ["feature", "scalar", "joint"])
def test_no_step_makes_the_penalised_likelihood_smaller(kind):
    found, _, _ = steps_of(kind, drawn()[1], 60)
    assert found[-1] > found[0] + 100
    rises = np.diff(found)
    assert rises.min() > -1e-9 * abs(found[-1]), rises
    assert abs(rises[-1]) < 1e-4


@pytest.mark.parametrize("kind", ["feature", "scalar", "joint"])
def test_steps_end_where_the_gradient_of_the_penalised_likelihood_is_zero(kind):
    _, model, data = steps_of(kind, drawn(100)[1], 800)
    (rows,) = data.blocks(1)
    leaves = [part.clone() for part in model]
    if kind == "scalar":
        leaves[2] = leaves[2][0].clone()
    leaves = [leaf.requires_grad_() for leaf in leaves]
    if kind == "joint":
        bias, covariance = leaves
        penalty = 1.5 * (covariance.logdet() + covariance.inverse().trace())
    else:
        bias, weight, noise = leaves
        covariance = weight @ weight.T + (noise * torch.ones(D)).diag()
        pull = 5.0 * (weight.square().sum(1) / noise).sum()
        penalty = 0.5 * (pull + (noise.log() + 0.5 / noise).sum())
    log_prob = -penalty
    for x, known in zip(rows.x, rows.known.bool(), strict=True):
        block = MultivariateNormal(bias[known], covariance[known][:, known])
        log_prob = log_prob + block.log_prob(x[known])
    for gradient in torch.autograd.grad(log_prob, leaves):
        assert gradient.abs().max() < 1e-5


def test_a_covariance_is_the_same_distribution_as_its_factors():
    _, joint, data = steps_of("joint", drawn(100)[1], 20)
    factors = joint.factors()
    assert factors.weight.shape == (D, D - 1)
    whole = factors.weight @ factors.weight.T + factors.noise.diag()
    torch.testing.assert_close(whole, joint.covariance)
    (rows,) = data.blocks(1)
    missing = rows.known == 0
    predicted = [model.predicted(rows)[missing] for model in (factors, joint)]
    torch.testing.assert_close(*predicted)


@pytest.mark.parametrize("missing", [0.0, 0.2, 0.8])
@pytest.mark.parametrize("repeated", [False, True])
def test_gains_are_inverses_of_what_rows_show(missing, repeated):
    _, x, _ = drawn(24, missing=missing)
    if repeated:
        x = torch.where(x[::8].isnan().repeat_interleave(8, 0), torch.nan, drawn(24)[0])
    root = torch.randn(D, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    model = Joint(root[0], root @ root.T + 0.1 * torch.eye(D, dtype=torch.float64))
    known = ~x.isnan()
    found = gains(model, Rows(torch.where(known, x, 0.0), known.double()))
    total, log_prob = torch.zeros_like(root), 0.0
    for row, seen, weights in zip(x, known, found.weights, strict=True):
        if not bool(seen.any()):
            assert bool((weights == 0).all())
            continue
        block = MultivariateNormal(model.bias[seen], model.covariance[seen][:, seen])
        inverse = torch.zeros_like(root)
        inverse[seen.nonzero(), seen.nonzero()[:, 0]] = block.precision_matrix
        total, log_prob = total + inverse, log_prob + block.log_prob(row[seen])
        expected = inverse @ torch.where(seen, row - model.bias, 0.0)
        torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(found.gain, total)
    torch.testing.assert_close(found.log_prob, log_prob)


def angle(one, other):
    """Largest principal angle between two subspaces, in radians."""
    bases = [torch.linalg.qr(weight)[0] for weight in (one, other)]
    return float(torch.linalg.svdvals(bases[0].T @ bases[1]).min().clamp(max=1).arccos())


@pytest.mark.parametrize("noise", ["feature", "scalar"])
def test_a_known_subspace_mean_and_scale_are_found(noise):
    _, holed, weight = drawn(10_000, 12, 3)
    model = ppca(12, latent_dim=3, noise=noise).fit(holed, tol=1e-7)
    assert angle(model.weight, weight) < 0.05
    assert (model.bias - 3.0).abs().max() < 0.15
    scales = 0.3 * (1 + torch.arange(12, dtype=torch.float64) / 12)
    if noise == "feature":
        torch.testing.assert_close(model.log_scale.exp(), scales, rtol=0.06, atol=0)
    else:
        assert model.log_scale.shape == ()
        torch.testing.assert_close(
            model.log_scale.exp(), scales.square().mean().sqrt(), rtol=0.05, atol=0
        )


def test_factors_are_principal_axes_the_strongest_first():
    model = ppca(12, latent_dim=3).fit(drawn(1000, 12, 3)[1])
    inner = model.weight.T @ (model.weight / (2 * model.log_scale).exp()[:, None])
    off = inner - inner.diagonal().diag()
    assert off.abs().max() < 1e-8 * inner.max()
    assert bool((inner.diagonal().diff() < 0).all())


def test_the_number_of_factors_is_found_on_held_out_entries():
    table = drawn(300, 12, 2, missing=0.5)[1]
    assert ppca(12).fit(table).latent_dim == 2
    noise = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
    assert ppca(10).fit(noise).latent_dim == 0


def test_masks_nan_numpy_and_torch_say_the_same():
    full, holed, _ = drawn()
    mask = ~holed.isnan()
    expected = ppca(D, latent_dim=2).fit(holed)
    masked = np.ma.MaskedArray(full.numpy(), ~mask.numpy())
    backwards = np.ascontiguousarray(holed.numpy()[::-1])[::-1]
    swapped = holed.numpy().astype(holed.numpy().dtype.newbyteorder())
    plain = [(full, mask), (full.numpy(), mask.numpy()), (holed.numpy(), None)]
    for x, known in (*plain, (masked, None), (backwards, None), (swapped, None)):
        model = ppca(D, latent_dim=2).fit(x, known)
        assert torch.equal(model.weight, expected.weight)
        assert torch.equal(model.impute(x, known), expected.impute(holed))
        assert torch.equal(model.log_prob(x, known), expected.log_prob(holed))


def test_pixels_count_as_fractions():
    pixels = torch.randint(0, 256, (50, D), dtype=torch.uint8)
    mask = torch.rand(50, D) < 0.7
    model, other = (ppca(D, latent_dim=2).fit(x, mask) for x in (pixels, pixels.double() / 255))
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.impute(pixels, mask), other.impute(pixels.double() / 255, mask))


def test_units_of_features_change_units_of_predictions_alone():
    holed = drawn()[1]
    unit, shift = torch.logspace(-6, 6, D, dtype=torch.float64), 100.0 * torch.arange(D)
    expected = ppca(D).fit(holed).impute(holed)
    found = ppca(D).fit(holed * unit + shift).impute(holed * unit + shift)
    torch.testing.assert_close((found - shift) / unit, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [None, 1, 8])
@pytest.mark.parametrize("noise", ["feature", "scalar"])
def test_tables_without_information_are_all_right(rank, noise):
    _, x, _ = drawn(20)
    unseen, constant, lonely = x.clone(), x.clone(), torch.full_like(x, torch.nan)
    unseen[:, 1], unseen[3:6] = torch.nan, torch.nan
    constant[:, 2] = 7.0
    lonely[4, 1] = 2.0
    tables = {
        "unseen": unseen,
        "constant": constant,
        "lonely": lonely,
        "nothing": torch.full_like(x, torch.nan),
        "one row": x[:1],
        "two rows": x[:2],
        "complete": drawn(20)[0],
    }
    for name, table in tables.items():
        model = ppca(D, latent_dim=rank, noise=noise).fit(table)
        mean, std = model.predictive(table)
        for found in (*model.buffers(), mean, std, model.log_prob(table)):
            assert bool(found.isfinite().all()), name
        assert bool((std > 0).all())
        filled, seen = model.impute(table), ~table.isnan()
        assert torch.equal(filled[seen], table[seen]), name
        far = table[seen].abs().max() if bool(seen.any()) else 0
        assert filled.abs().max() <= 10 * far, name
    model = ppca(D, latent_dim=rank, noise=noise).fit(unseen)
    assert bool((model.weight[1] == 0).all())
    assert model.bias[1] == 0
    model = ppca(D, latent_dim=rank, noise=noise).fit(constant)
    assert model.impute(torch.full((1, D), torch.nan))[0, 2] == pytest.approx(7.0, abs=1e-6)


def test_more_features_than_rows_leave_predictions_better_than_means():
    full, holed, _ = drawn(30, 50, 3)
    filled = ppca(50).fit(holed).impute(holed)
    holes = holed.isnan()
    means = holed.nanmean(0).expand_as(full)
    error, plain = ((full - other)[holes].square().mean() for other in (filled, means))
    assert error < 0.25 * plain


def test_repeated_patterns_of_missing_entries_change_nothing():
    full, _, _ = drawn(300)
    known = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]]).bool()
    mask = known[torch.arange(300) % 3]
    data = opened(full, mask, scalar=False)[0]
    assert data.order is not None
    alone = dataclasses.replace(data, order=None)
    bias = torch.zeros(D, dtype=torch.float64)
    joint = Joint(bias, torch.eye(D, dtype=torch.float64) + 0.3)
    weight = torch.linspace(-1, 1, D * R, dtype=torch.float64).view(D, R)
    options = {"ridge": 1.0, "floor": 0.1, "scalar": False}
    for kind in ("joint", "factors"):
        results = [
            joint_step(joint, d, ridge=1.0)
            if kind == "joint"
            else factor_step(Factors(bias, weight, bias + 1), d, **options)
            for d in (data, alone)
        ]
        for found, expected in zip(results[0][0], results[1][0], strict=True):
            torch.testing.assert_close(found, expected)
        torch.testing.assert_close(results[0][1], results[1][1])


def test_states_and_copies_of_a_fitted_model_are_the_model():
    holed = drawn()[1]
    model = ppca(D).fit(holed)
    assert model.latent_dim > 0
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = ppca(D)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.impute(holed), model.impute(holed))
    assert torch.equal(copy.deepcopy(model).log_prob(holed), model.log_prob(holed))
    with pytest.raises(RuntimeError, match="size mismatch"):
        ppca(D + 1).load_state_dict(model.state_dict())


def test_a_table_is_left_as_it_is_and_its_dtype_kept():
    holed = drawn()[1].float()
    before = holed.clone()
    filled = ppca(D).fit(holed).impute(holed)
    assert filled.dtype == torch.float32
    torch.testing.assert_close(holed, before, equal_nan=True, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_bits_and_torchs_own_state_stays():
    holed, state = drawn()[1], torch.get_rng_state()
    one, other = (ppca(D).fit(holed, seed=3) for _ in range(2))
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ppca(0), ValueError, "num_features: expected an integer >= 1, got 0"),
        (lambda: ppca(3, latent_dim=0), ValueError, "latent_dim: expected an integer >= 1, got 0"),
        (lambda: ppca(3, noise="row"), ValueError, "noise: expected one of feature, scalar"),
        (lambda: ppca(3).fit(torch.zeros(4, 2)), ValueError, r"x: expected shape \[N, 3\]"),
        (
            lambda: ppca(3).fit([[1.0]]),
            TypeError,
            "x: expected a tensor or a numpy array, got list",
        ),
        (lambda: ppca(3).fit(torch.zeros(4, 3).int()), TypeError, "x: expected floating point"),
        (
            lambda: ppca(3).fit(torch.zeros(4, 3), torch.zeros(4, 3)),
            TypeError,
            "mask: expected bool",
        ),
        (lambda: ppca(3).fit(torch.zeros(4, 3), max_iter=0), ValueError, "max_iter: expected"),
        (lambda: ppca(3).fit(torch.zeros(4, 3), tol=-1), ValueError, "tol: expected"),
        (lambda: ppca(3).impute(torch.zeros(4, 3), draws=-1), ValueError, "draws: expected"),
        (
            lambda: ppca(3).fit(torch.tensor([[1.0, 2.0, 3.0], [1.0, math.inf, 2.0]])),
            ValueError,
            "x: infinite in row 1, column 1",
        ),
        (
            lambda: ppca(3).fit(np.array([[1.0, 2.0, -1e200], [1.0, 3.0, 1e200]])),
            ValueError,
            "x: expected numbers whose squares float64 can hold, got larger ones in column 2",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_large_table_converges_on_some_rows_and_ends_on_all(monkeypatch):
    monkeypatch.setattr(linear_search, "_SAMPLE", 500)
    _, holed, weight = drawn(20_000, 12, 3)
    model = ppca(12, latent_dim=3).fit(holed)
    # the sampling error of 500 rows is six times as large
    assert angle(model.weight, weight) < 0.015
