"""Tables of any size train, and a training that has collapsed says so."""

import warnings

import pytest
import torch

import rvi_fast
from rvi_fast.testing import low_rank_table
from rvi_fast.training import CollapseWarning, Recipe, recipe


def test_a_small_table_is_trained_as_ever():
    assert recipe(40) == Recipe(16, 667, 0.01, 0.01)
    assert recipe(1000) == Recipe(250, 500, 0.01, 0.01)
    assert recipe(5000) == Recipe(256, 100, 0.01, 0.01)


@pytest.mark.parametrize("num_data", [1, 17, 900, 5_121, 20_000, 100_000, 10**6, 10**8])
def test_the_decoder_walks_no_further_between_visits_than_it_may(num_data):
    found = recipe(num_data)
    steps = -(-num_data // found.batch_size)
    assert found.lr * steps <= 0.6 * (1 + 1e-12)
    assert found.epochs >= 50
    assert found.epochs * steps >= 2000
    assert 16 <= found.batch_size <= 4096


def test_a_larger_table_never_gets_larger_learning_rates():
    found = [recipe(2**n, batch_size=64) for n in range(7, 24)]
    assert sorted(found, key=lambda own: -own.lr) == found
    assert sorted(found, key=lambda own: -own.posterior_lr) == found
    # after a thousand steps Adam has forgotten a visit: more make no difference
    assert found[-1].posterior_lr == pytest.approx(0.01 * (1 - 0.999**20) ** 0.5)


def test_what_is_given_stays():
    given = {"batch_size": 33, "epochs": 7, "lr": 0.5, "posterior_lr": 0.25}
    assert recipe(10**6, **given) == Recipe(*given.values())
    assert recipe(10**6, lr=0.02).posterior_lr == 0.02
    with pytest.raises(ValueError, match="batch_size: expected an integer >= 1, got 0"):
        recipe(10, batch_size=0)
    with pytest.raises(ValueError, match="num_data: expected an integer >= 1, got 0"):
        recipe(0)


def train(**options):
    """Root mean square error of missing entries over that of means, after 313 steps an epoch."""
    x, mask = low_rank_table(20_000, 50, rank=4)
    generator = torch.Generator().manual_seed(0)
    model = rvi_fast.models.rvi(
        *x.shape, latent_dim=8, hidden=(32, 32), groups=(25, 50), generator=generator
    )
    chosen = {"batch_size": 64, "epochs": 4, "progress": False, "eval_every": 0} | options
    rvi_fast.fit(model, x, mask=mask, **chosen)
    means = x.masked_fill(~mask, torch.nan).nanmean(0)
    wrong = (rvi_fast.training.impute(model, x, mask=mask) - x)[~mask]
    return float(wrong.square().mean().sqrt() / (x - means)[~mask].square().mean().sqrt())


def test_20_000_rows_train_with_the_recipe_and_collapse_without():
    found = recipe(20_000, batch_size=64, epochs=4)
    assert train(lr=found.lr, posterior_lr=found.posterior_lr) < 0.55
    # no better than means: it is not that anything would do
    assert train(lr=0.01) > 0.95


def test_a_model_whose_rows_say_nothing_is_warned_of():
    x, mask = low_rank_table(200, 6, rank=2)

    def fit(**options):
        model = rvi_fast.models.rvi(*x.shape, latent_dim=3, hidden=(8,), groups=(4,))
        options = {"epochs": 60, "lr": 0.05, "batch_size": 50, "progress": False} | options
        return rvi_fast.fit(model, x, mask=mask, **options)

    with pytest.warns(CollapseWarning, match=r"are the prior.* lr, which is 0\.05"):
        history = fit(kl_weight=100.0)
    assert history["kl"][-1] < 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error", CollapseWarning)
        fit(lr=0.01)
