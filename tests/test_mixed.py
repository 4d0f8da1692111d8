"""One table of numbers, yes/no, classes and counts is one model."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import rvi_fast
from rvi_fast import likelihoods, training

KINDS = ["gaussian", ("categorical", 3), "poisson", "bernoulli", "student_t", "gaussian"]
N, D = 400, len(KINDS)
NUMBERS = [0, 4, 5]


def table():
    """Float64 columns in units of their own, of one hidden number for each row."""
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=N)
    logits = np.stack((2 * hidden, np.zeros(N), -2 * hidden), 1) + generator.gumbel(size=(N, 3))
    x = np.stack(
        (
            1e4 + 300 * (hidden + 0.3 * generator.normal(size=N)),
            logits.argmax(1),
            generator.poisson(np.exp(1.5 + 0.8 * hidden)),
            hidden + 0.5 * generator.normal(size=N) > 0,
            -0.01 * hidden + 0.003 * generator.standard_t(3, N),
            5 - 2 * hidden + generator.normal(size=N),
        ),
        1,
    )
    return x, generator.random((N, D)) < 0.7


X, MASK = table()
GIVEN = np.where(MASK, X, np.nan)


def trained(x=GIVEN, build=rvi_fast.models.rvi, likelihood=KINDS, **options):
    torch.manual_seed(0)
    model = build(N, D, latent_dim=2, hidden=(8,), likelihood=likelihood)
    options = {"epochs": 40, "batch_size": 32, "lr": 0.01, "progress": False} | options
    return model, rvi_fast.fit(model, x, **options)


@pytest.fixture(scope="module")
def model():
    return trained()[0]


def test_columns_of_a_kind_are_one_call(monkeypatch):
    law = likelihoods.Mixed(KINDS)
    called = []
    for part in law.parts:
        part.register_forward_hook(lambda part, *_: called.append(type(part).__name__))
    law(torch.from_numpy(GIVEN).float(), torch.zeros(N, law.num_outputs))
    assert called == ["GaussianLikelihood", "Categorical", "Poisson", "Bernoulli", "StudentT"]
    assert [part.num_features for part in law.parts] == [2, 1, 1, 1, 1]


def test_only_columns_of_location_and_scale_are_standardised(model):
    scale = model.scaler.standardizer()
    others = [column for column in range(D) if column not in NUMBERS]
    assert (scale.mean[others] == 0).all()
    assert (scale.std[others] == 1).all()
    assert np.isinf(scale.limit[others]).all()
    expected = np.nanmean(GIVEN[:, NUMBERS], 0)
    np.testing.assert_allclose(scale.mean[NUMBERS], expected, rtol=1e-3, atol=1e-3)
    assert scale.std[0] == pytest.approx(300, rel=0.2)


def test_each_column_is_filled_in_with_its_kind_and_better_than_by_its_middle(model):
    filled = rvi_fast.impute(model, GIVEN).numpy()
    assert (filled[MASK] == X[MASK]).all()
    assert set(filled[:, 1]) <= {0.0, 1.0, 2.0}
    assert set(filled[:, 3]) <= {0.0, 1.0}
    hidden = ~MASK
    for column in (1, 3):
        values, counts = np.unique(GIVEN[MASK[:, column], column], return_counts=True)
        middle, wrong = values[counts.argmax()], hidden[:, column]
        own = (filled != X)[wrong, column].mean()
        assert own < 0.8 * (X[wrong, column] != middle).mean()
    for column in (0, 2, 4, 5):
        own = np.abs(filled - X)[hidden[:, column], column].mean()
        means = np.abs(X[:, column] - np.nanmean(GIVEN[:, column]))[hidden[:, column]].mean()
        assert own < 0.85 * means, column
    mean = rvi_fast.impute(model, GIVEN, estimate="mean").numpy()
    hidden_yes = mean[hidden[:, 3], 3]
    assert ((hidden_yes > 0) & (hidden_yes < 1)).all()
    model.law.check(torch.from_numpy(rvi_fast.impute(model, GIVEN, estimate="mode").numpy()))
    for draw in rvi_fast.impute(model, GIVEN, num_draws=3):
        model.law.check(draw)
        assert (draw.numpy()[MASK] == X[MASK]).all()


def test_draws_of_a_row_do_not_depend_on_the_rows_beside_it(model):
    draws = rvi_fast.impute(model, GIVEN, num_draws=3, seed=5)
    posterior = model.posterior.over(model.posterior.rows[:50].detach())
    some = rvi_fast.impute(model, GIVEN[:50], posterior=posterior, num_draws=2, seed=5)
    torch.testing.assert_close(some, draws[:2, :50])


def test_mixed_is_likelier_than_a_gaussian_for_all_columns(model):
    """Held-out entries, as densities and probabilities of the data."""
    gaussian, _ = trained(likelihood=likelihoods.Gaussian(D, scale="feature"))
    hidden = torch.from_numpy(~MASK)
    scores = []
    for each in (model, gaussian):
        with torch.no_grad():
            z = each.posterior.mean()
            scores.append(each.log_prob(torch.from_numpy(X), z, hidden).sum() / hidden.sum())
    assert scores[0] > scores[1] + 0.2


def test_error_of_a_class_is_what_its_probability_lacks():
    law = likelihoods.Mixed(["gaussian", ("categorical", 3)])
    outputs = torch.tensor([[0.5, 1.0, 0.0, -1.0]])
    x = torch.tensor([[2.0, 2.0]])
    truth, found = law.scored(x, outputs)
    assert truth.tolist() == [[2.0, 1.0]]
    torch.testing.assert_close(found[0], torch.stack((outputs[0, 0], outputs[0, 1:].softmax(0)[2])))
    truth, _ = law.scored(torch.tensor([[torch.nan, torch.nan]]), outputs)
    assert truth.isnan().all()


def test_history_falls_and_held_out_entries_are_found(model):
    _, history = trained(epochs=20)
    assert history["elastic"][-1] < history["elastic"][0]
    assert history["loss"][-1] < history["loss"][0]
    assert training.held_out_error(model, GIVEN, steps=30) < 1


def test_a_scale_factor_widens_the_columns_that_have_a_scale(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    narrow = rvi_fast.infer(model, GIVEN[:20], steps=10)
    wide = rvi_fast.infer(model, GIVEN[:20], steps=10, scale_factor=3.0)
    assert not torch.equal(narrow.rows, wide.rows)
    rvi_fast.infer(model, GIVEN, steps=3, scale_factor="held-out")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    other, _ = trained(X[:, [3, 3, 3, 3, 3, 3]], likelihood="bernoulli", epochs=1)
    with pytest.raises(
        ValueError, match=r"scale_factor: expected 1, or a model whose .* Bernoulli"
    ):
        rvi_fast.infer(other, X[:, [3] * 6], scale_factor="held-out")


@pytest.mark.parametrize("kind", ["map", "dataset", "mask"])
def test_whatever_holds_the_table_the_result_is_one(kind, tmp_path):
    whole, history = trained(epochs=2)
    x, options = GIVEN, {}
    if kind == "map":
        np.save(tmp_path / "x.npy", GIVEN)
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "dataset":
        x = TensorDataset(torch.from_numpy(GIVEN))
    else:
        x, options = np.where(MASK, X, -7.5), {"mask": MASK}
    other, found = trained(x, epochs=2, **options)
    assert found["loss"] == history["loss"]
    for name, value in whole.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("kind", ["array", "map", "dataset"])
@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        (1, 3.0, "a code 0 to 2"),
        (2, -1.0, "a count"),
        (2, 1.5, "a count"),
        (3, 2.0, "0 or 1"),
        (0, np.inf, "finite numbers"),
    ],
)
def test_what_a_column_cannot_hold_is_named(kind, column, value, words, tmp_path):
    bad = GIVEN.copy()
    bad[123, column] = value
    if kind == "map":
        np.save(tmp_path / "x.npy", bad)
        bad = np.load(tmp_path / "x.npy", mmap_mode="r")
    elif kind == "dataset":
        bad = TensorDataset(torch.from_numpy(bad))
    with pytest.raises(
        ValueError, match=rf"x: expected {words}.* got {value}.*123, column {column}"
    ):
        trained(bad, epochs=1)


def test_pixels_are_for_laws_that_take_them():
    x = (255 * X[:, [3] * 6]).astype(np.uint8)
    with pytest.raises(
        TypeError, match=r"x: expected floating point for a Categorical, got torch.u"
    ):
        trained(x, epochs=1)
    model, _ = trained(x, likelihood=["bernoulli", "gaussian"] * 3, epochs=2)
    assert rvi_fast.impute(model, x).unique().tolist() == [0.0, 1.0]


def test_a_table_is_trained_with_an_encoder_too():
    model, history = trained(build=rvi_fast.models.vae, epochs=10)
    assert history["elastic"][-1] < history["elastic"][0]
    filled = rvi_fast.impute(model, GIVEN)
    assert (filled.numpy()[MASK] == X[MASK]).all()
    assert set(filled[:, 1].tolist()) <= {0.0, 1.0, 2.0}


def test_a_column_that_is_always_one_number_and_one_that_is_never_observed():
    x = GIVEN.copy()
    x[:, 0], x[:, 5], x[:, 2] = 7.25, np.nan, np.nan
    x[3, 0] = np.nan
    with pytest.warns(UserWarning, match="nothing is observed in column 2, 5: filled in as 0"):
        model, _ = trained(x, epochs=2)
    filled = rvi_fast.impute(model, x).numpy()
    assert (filled[:, 0] == 7.25).all()
    assert (filled[:, [2, 5]] == 0).all()


def test_far_counts_are_no_far_entries():
    x = GIVEN.copy()
    x[5, 2] = 1e5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(x, epochs=1)


def test_instances_stand_for_themselves_and_are_read_back(tmp_path):
    own = [
        "gaussian",
        ("categorical", np.int64(3)),
        likelihoods.NegativeBinomial(1, size_factor=True),
        "bernoulli",
        likelihoods.StudentT(1, df="fixed", initial_df=3.0),
        "gaussian",
    ]
    model, _ = trained(likelihood=own, epochs=2, run_dir=tmp_path)
    loaded = rvi_fast.load(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(rvi_fast.impute(loaded, GIVEN), rvi_fast.impute(model, GIVEN))
    assert loaded.config == model.config


def test_a_law_without_a_name_leaves_the_model_without_a_description():
    class Unnamed(likelihoods.Bernoulli):
        pass

    model, _ = trained(likelihood=[*KINDS[:3], Unnamed(1), *KINDS[4:]], epochs=1)
    assert model.config is None


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ([], "columns: expected a law for each column"),
        (["gaussian", "gauss"], "columns: expected one of .*in column 1, got 'gauss'"),
        (["categorical"], r"columns: expected \('categorical', k\) .* column 0"),
        ([("poisson", 3)], r"columns: expected one of .* got \('poisson', 3\)"),
        ([likelihoods.Gaussian(2)], "columns: expected a Likelihood of one feature in column 0"),
        ([likelihoods.Poisson(1)] * 1 + ["mixed"], "columns: expected one of .* 'mixed'"),
    ],
)
def test_what_is_no_law_of_a_column_is_named(columns, words):
    with pytest.raises(ValueError, match=words):
        likelihoods.Mixed(columns)
    law = likelihoods.Poisson(1)
    with pytest.raises(ValueError, match="columns: expected each instance once"):
        likelihoods.Mixed([law, law])
    with pytest.raises(ValueError, match="likelihood: expected one of 6 features, got 2"):
        rvi_fast.models.vad(N, D, likelihood=["gaussian", "poisson"])


def test_memory_is_said_for_the_outputs_of_the_laws():
    one = rvi_fast.estimate_memory(1000, 6)
    classes = rvi_fast.estimate_memory(1000, 6, likelihood=("categorical", 50))
    assert classes.shared - one.shared == 4 * 4 * (65 * (300 - 6) - 1)
    assert classes.step > one.step
