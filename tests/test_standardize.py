"""`fit` standardises, and everything public speaks the units of the data."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from helpers import Items
from torch import nn
from torch.utils.data import TensorDataset

from rvi_fast import GaussianLikelihood, fit, impute, infer, load, models
from rvi_fast.data.scaling import FarEntriesWarning, Standardizer
from rvi_fast.scaler import Scaler
from rvi_fast.training import CheckpointError, export, load_checkpoint
from rvi_fast.training.settings import Settings

N, D = 60, 5
CENTRE = np.array([2e5, 1.7e9, 0.3, 0.0, -40.0])
SPREAD = np.array([5e4, 1.0, 0.05, 1e-6, 12.0])
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(N, 2)) @ RNG.normal(size=(2, D)) + 0.1 * RNG.normal(size=(N, D))
FULL = CENTRE + SPREAD * Z
MASK = RNG.random((N, D)) < 0.7
X = np.where(MASK, FULL, np.nan)
FAST = {"epochs": 3, "batch_size": 16, "lr": 0.02, "progress": False}


def make(builder=models.rvi, num_data=N, num_features=D):
    torch.manual_seed(7)
    options = {"groups": (3,)} if builder is models.rvi else {}
    return builder(num_data, num_features, latent_dim=3, hidden=(8,), **options)


def trained(x=X, builder=models.rvi, **options):
    model = make(builder, *np.shape(x))
    model.history = fit(model, x, **FAST | options)
    return model


@pytest.fixture(scope="module")
def model():
    return trained(epochs=30)


def table_in_raw_units():
    """Price, age, area, a rate and rooms, correlated; and which entries are shown."""
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(2, 5))
    z = rng.normal(size=(1000, 2)) @ mixing + 0.3 * rng.normal(size=(1000, 5))
    z = (z - z.mean(0)) / z.std(0)
    full = np.array([2e5, 40.0, 120.0, 0.3, 4.0]) + np.array([5e4, 12.0, 35.0, 0.05, 1.2]) * z
    return full, rng.random(full.shape) < 0.8


def column_errors(filled, full, shown):
    """RMSE over the missing entries of each column, in its standard deviations."""
    errors = np.where(shown, np.nan, np.asarray(filled) - full)
    return np.sqrt(np.nanmean(errors**2, axis=0)) / full.std(0)


def test_the_first_program_fills_in_a_table_in_raw_units():
    full, shown = table_in_raw_units()
    x = np.where(shown, full, np.nan)
    torch.manual_seed(0)
    model = models.rvi(*x.shape)
    fit(model, x, epochs=100, progress=False)
    errors = column_errors(impute(model, x), full, shown)
    by_hand = Standardizer.fit(x)
    torch.manual_seed(0)
    standardised = models.rvi(*x.shape)
    fit(standardised, by_hand.transform(x), epochs=100, progress=False, standardize=False)
    filled = impute(standardised, by_hand.transform(x)).double().numpy()
    hand = column_errors(filled * by_hand.std + by_hand.mean, full, shown)
    assert (errors < 0.8).all()
    np.testing.assert_allclose(errors, hand, rtol=0.02)


def test_one_wrong_entry_spoils_no_column():
    full, shown = table_in_raw_units()
    full = (full - full.mean(0)) / full.std(0)
    x = np.where(shown, full, np.nan)
    row = int(np.flatnonzero(shown[:, 1])[10])
    x[row, 1] = 1e6
    torch.manual_seed(0)
    model = models.rvi(*x.shape)
    with pytest.warns(FarEntriesWarning, match=f"1000000.0 at row {row}, column 1"):
        fit(model, x, epochs=60, progress=False, eval_every=0)
    filled = impute(model, x)
    assert filled[row, 1] == 1e6
    assert (column_errors(filled, full, shown) <= 1.1).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_constant_column_and_one_seen_once_are_filled_with_their_number(dtype):
    x = np.where(MASK, 0.001, np.nan).astype(dtype)
    x[:, 1] = X[:, 1]
    x[:, 2] = np.nan
    x[3, 2] = 0.3
    model = trained(x)
    for num_draws in (None, 2):
        filled = impute(model, x, num_draws=num_draws).numpy().reshape(-1, N, D)
        assert (filled[..., [0, 3, 4]] == dtype(0.001)).all()
        assert (filled[..., 2] == dtype(0.3)).all()
    assert (model.reconstruct()[:, [0, 3, 4]].numpy() == dtype(0.001)).all()
    assert impute(model, x + 1, posterior=infer(model, x + 1, steps=5)).isfinite().all()


def test_the_smallest_table_comes_back_with_what_it_says():
    x = np.array([[1, np.nan, 3], [2, 5, 4]])
    assert impute(trained(x), x)[0, 1] == 5


def test_a_column_that_was_never_observed_is_said_to_be_filled_with_0():
    x = X.copy()
    x[:, 3] = np.nan
    with pytest.warns(UserWarning, match="nothing is observed in column 3: filled in as 0"):
        model = trained(x)
    assert (impute(model, x)[:, 3] == 0).all()


@pytest.mark.parametrize("num_draws", [None, 2])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_observed_entries_keep_value_and_dtype(dtype, num_draws):
    x = np.where(MASK, RNG.normal(size=(N, D)), np.nan).astype(dtype)
    x[0, 0] = dtype(1) / dtype(3)
    for standardize in (True, False):
        filled = impute(trained(x, standardize=standardize), x, num_draws=num_draws).numpy()
        assert filled.dtype == dtype
        assert np.isfinite(filled).all()
        for draw in filled.reshape(-1, N, D):
            np.testing.assert_array_equal(draw[~np.isnan(x)], x[~np.isnan(x)])


def test_digits_that_float32_cannot_hold_are_learned_from(model):
    filled = impute(model, X).numpy()
    np.testing.assert_array_equal(filled[MASK], X[MASK])
    assert (np.abs(filled - CENTRE) < 8 * SPREAD).all()
    assert len(np.unique(filled[~MASK[:, 1], 1])) == (~MASK[:, 1]).sum()
    assert (column_errors(filled, FULL, MASK) < 1).all()


def test_everything_public_speaks_the_units_of_the_data(model):
    far = 8 * torch.from_numpy(SPREAD)
    centre = torch.from_numpy(CENTRE)
    assert ((model.reconstruct() - centre).abs() < far).all()
    posterior = infer(model, X, steps=50)
    assert ((model.reconstruct(posterior=posterior) - centre).abs() < far).all()
    assert ((impute(model, X, posterior=posterior, num_draws=3) - centre).abs() < far).all()
    own = copy.deepcopy(model)
    own.scaler = None
    z = model.scaler.to_model(torch.from_numpy(X), torch.float32)
    same = infer(own, z, steps=50)
    assert torch.equal(same.rows, posterior.rows)
    factor = infer(model, X, steps=20, scale_factor="held-out").rows
    assert torch.equal(infer(own, z, steps=20, scale_factor="held-out").rows, factor)


@pytest.mark.parametrize("given", ["nan", "mask"])
def test_log_prob_is_a_density_in_the_units_of_the_data(model, given):
    x, mask = torch.from_numpy(X), None
    if given == "mask":
        x, mask = torch.from_numpy(FULL), torch.from_numpy(MASK)
    z = torch.randn(2, N, 3)
    mean = model.to_data(model.decoder(z))
    scale = model.likelihood.scale * model.scaler.std
    exact = torch.distributions.Normal(mean, scale).log_prob(torch.from_numpy(FULL))
    exact = torch.where(torch.from_numpy(MASK), exact, 0.0).sum(-1)
    torch.testing.assert_close(
        model.log_prob(x, z, mask).double(), exact.detach(), rtol=1e-4, atol=1e-3
    )
    index = torch.arange(N)
    objective = model(index, x, mask, seed=3)
    drawn, kl = model.posterior(index, seed=3)
    torch.testing.assert_close(objective.log_prob, model.log_prob(x, drawn, mask).mean())
    torch.testing.assert_close(objective.loss, kl.mean() - objective.log_prob)


def test_what_is_given_in_the_units_of_the_model_is_converted_once():
    class Own(models.LatentModel):
        def forward(self, index, x, mask=None, **options):
            objective = super().forward(index, x, mask, **options)
            return objective._replace(loss=objective.loss + 0.0)

        def log_prob(self, x, z, mask=None):
            return super().log_prob(x, z, mask)

    plain = trained()
    parts = make()
    own = Own(parts.posterior, parts.decoder, parts.likelihood)
    history = fit(own, X, **FAST)
    assert history["loss"] == pytest.approx(plain.history["loss"], rel=1e-4)
    index, x = torch.arange(N), torch.from_numpy(X)
    torch.testing.assert_close(own(index, x, seed=1).loss, loss_of(own, index, x))


def loss_of(model, index, x):
    return models.LatentModel.forward(model, index, x, seed=1).loss


def test_an_encoder_sees_standardised_numbers():
    model = trained(builder=models.vae, epochs=30)
    filled = impute(model, X).numpy()
    np.testing.assert_array_equal(filled[MASK], X[MASK])
    assert (np.abs(filled - CENTRE) < 8 * SPREAD).all()
    assert np.isfinite(model.history["loss"]).all()


# what carries the scale


def assert_same_scale(model, other):
    for name in ("mean", "std", "limit"):
        own = getattr(other.scaler, name)
        assert own.dtype == torch.float64
        assert torch.equal(own.cpu(), getattr(model.scaler, name))


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save", "state_dict", "export", "half"])
def test_the_scale_goes_where_the_model_goes(model, tmp_path, way):
    model = models.LatentModel(
        model.posterior, model.decoder, model.likelihood, config=model.config
    )
    model.scaler = copy.deepcopy(trained().scaler)
    other = copy.deepcopy(model)
    if way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    if way == "save":
        torch.save(model, buffer := io.BytesIO())
        other = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    if way == "state_dict":
        other = make()
        other.load_state_dict(model.state_dict())
    if way == "export":
        export(model, tmp_path / "model.safetensors")
        other = load(tmp_path / "model.safetensors")
    if way == "half":
        other = copy.deepcopy(model).half().to(torch.float32).to("cpu", torch.float64)
    assert_same_scale(model, other)
    if way != "half":
        assert torch.equal(impute(other, X), impute(model, X))


def test_the_scale_follows_to_a_device_without_memory(model):
    other = copy.deepcopy(model).to("meta")
    assert other.scaler.mean.is_meta
    assert other.scaler.mean.dtype == torch.float64
    assert other.to_empty(device="cpu").scaler.mean.shape == (D,)


def test_weights_without_a_scale_mean_data_as_they_are(model):
    old = trained(standardize=False)
    assert not any(name.startswith("scaler") for name in old.state_dict())
    other = copy.deepcopy(model)
    other.load_state_dict(old.state_dict())
    assert other.scaler is None
    part = {k: v for k, v in model.state_dict().items() if k.startswith("likelihood")}
    kept = copy.deepcopy(model)
    kept.load_state_dict(part, strict=False)
    assert_same_scale(model, kept)


def test_a_run_keeps_its_scale_and_goes_on_with_it(tmp_path):
    expected = make()
    history = fit(expected, X, **FAST | {"epochs": 4})
    fit(make(), X, **FAST | {"epochs": 2}, run_dir=tmp_path)
    assert_same_scale(expected, load(tmp_path))
    model = make()
    assert fit(model, X, **FAST | {"epochs": 4}, run_dir=tmp_path, resume=True) == history
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    with pytest.raises(ValueError, match=r"standardize: expected True as in .*, got False"):
        fit(make(), X, **FAST, run_dir=tmp_path, resume=True, standardize=False)


def test_a_run_on_a_model_with_a_scale_goes_on_in_a_new_model(tmp_path):
    begun = trained(X * 2 + 1)
    again = copy.deepcopy(begun)
    history = fit(again, X, **FAST | {"epochs": 4})
    assert_same_scale(begun, again)
    fit(copy.deepcopy(begun), X, **FAST | {"epochs": 2}, run_dir=tmp_path)
    model = make()
    assert fit(model, X, **FAST | {"epochs": 4}, run_dir=tmp_path, resume=True) == history
    assert_same_scale(begun, model)
    with pytest.raises(ValueError, match="model: expected the scale of the checkpoint"):
        fit(trained(), X, **FAST | {"epochs": 5}, run_dir=tmp_path, resume=True)


def test_a_checkpoint_that_says_nothing_of_a_scale_is_gone_on_with_without(tmp_path, monkeypatch):
    options = {**FAST, "standardize": False, "run_dir": tmp_path}
    kept = Settings.kept

    def as_before(self):
        return {name: value for name, value in kept(self).items() if name != "standardize"}

    monkeypatch.setattr(Settings, "kept", as_before)
    fit(make(), X, **options)
    assert "standardize" not in load_checkpoint(tmp_path).metadata["settings"]
    monkeypatch.undo()
    assert fit(make(), X, **options | {"epochs": 4, "resume": True}).epochs == 4
    with pytest.raises(ValueError, match=r"standardize: expected False as in .*, got True"):
        fit(make(), X, **options | {"epochs": 5, "resume": True, "standardize": True})


def test_a_fit_that_never_began_leaves_no_scale(tmp_path):
    model, broken = make(), X.copy()
    broken[3, 2] = np.inf
    with pytest.raises(ValueError, match="got inf at row 3, column 2"):
        fit(model, broken, **FAST)
    assert model.scaler is None
    (tmp_path / "checkpoints" / "epoch-000001").mkdir(parents=True)
    with pytest.raises(CheckpointError):
        fit(model, X, **FAST, run_dir=tmp_path, resume=True)
    assert model.scaler is None


# where the data come from


TENSOR = torch.from_numpy(X)


@pytest.mark.parametrize("where", ["map", "set", "one", "pair", "dict", "masked", "masked map"])
def test_the_scale_does_not_depend_on_where_the_data_lie(tmp_path, where):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "full.npy", FULL)
    held = np.load(tmp_path / "full.npy", mmap_mode="r")
    x = {
        "map": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "set": Items(N, lambda row: TENSOR[row]),
        "one": TensorDataset(TENSOR),
        "pair": Items(N, lambda row: (row, X[row])),
        "dict": Items(N, lambda row: {"x": TENSOR[row], "label": 1}),
        "masked": np.ma.masked_array(np.where(MASK, FULL, -9999.0), ~MASK),
        "masked map": np.ma.masked_array(held, ~MASK),
    }[where]
    expected, model = trained(), make()
    assert fit(model, x, **FAST) == expected.history
    assert_same_scale(expected, model)
    assert torch.equal(impute(model, x), impute(expected, X))
    assert torch.equal(infer(model, x, steps=3).rows, infer(expected, X, steps=3).rows)


@pytest.mark.parametrize(
    "item",
    [
        lambda row: (TENSOR[row], row % 2),
        lambda row: (TENSOR[row], TENSOR[row]),
        lambda row: (True, TENSOR[row]),
        lambda row: {"x": TENSOR[row], "mask": MASK[row]},
        lambda row: {"image": TENSOR[row]},
        lambda row: (row, TENSOR[row], 0),
    ],
)
def test_items_that_hold_more_than_x_are_refused_with_what_to_do(item):
    items = Items(N, item)
    with pytest.raises(ValueError, match=r"to be x \[5\], \(x,\), .* got .*TensorDataset\(x\)"):
        fit(make(), items, **FAST)


def test_masked_entries_of_pixels_are_missing():
    pixels = RNG.integers(0, 256, (N, D)).astype(np.uint8)
    expected, model = make(), make()
    history = fit(expected, pixels, mask=MASK, **FAST)
    assert fit(model, np.ma.masked_array(pixels, ~MASK), **FAST) == history
    assert model.scaler is None
    given = np.ma.masked_array(pixels, np.zeros_like(MASK))
    assert fit(make(), given, mask=MASK, **FAST) == history


def test_pixels_and_numbers_are_not_mixed_up(model):
    pixels = np.zeros((N, D), np.uint8)
    for call in (fit, infer, impute):
        with pytest.raises(TypeError, match=r"x: expected floating point.*got torch.uint8"):
            call(copy.deepcopy(model), pixels)
    with pytest.raises(ValueError, match="standardize: expected True for a model that has"):
        fit(copy.deepcopy(model), X, standardize=False)


# numbers, and other likelihoods


def test_numpy_numbers_are_numbers(tmp_path):
    options = {
        "epochs": np.int64(2),
        "batch_size": np.int32(16),
        "lr": np.float32(0.02),
        "posterior_lr": np.float64(0.02),
        "kl_weight": np.float32(1),
        "seed": np.int64(3),
        "eval_every": np.int8(1),
        "checkpoint_every": np.float32(0),
        "standardize": np.True_,
        "resume": np.False_,
        "progress": np.False_,
        "run_dir": tmp_path,
    }
    model = models.rvi(np.int64(N), np.int64(D), latent_dim=np.int32(3), hidden=(np.int64(8),))
    assert fit(model, X, **options).epochs == 2
    assert load(tmp_path).num_data == N
    infer(model, X, steps=np.int64(2), lr=np.float32(0.01), batch_size=np.int64(7))
    assert len(impute(model, X, num_draws=np.int64(2))) == 2
    for name, wrong in (("epochs", np.float64(2)), ("epochs", np.True_), ("lr", np.True_)):
        with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
            fit(make(), X, **{**FAST, name: wrong})
    with pytest.raises(TypeError, match="standardize: expected True or False, got 1"):
        fit(make(), X, **FAST, standardize=1)


class Bernoulli(nn.Module):
    num_features = D

    def forward(self, x, logits, mask=None):
        law = torch.distributions.Bernoulli(logits=logits)
        return torch.where(mask, law.log_prob(x), 0.0).sum(-1)


class WithMean(Bernoulli):
    def mean(self, logits):
        return logits.sigmoid()


@pytest.mark.parametrize("likelihood", [Bernoulli, WithMean])
def test_logits_are_not_taken_for_data(likelihood):
    parts = make()
    model = models.LatentModel(parts.posterior, parts.decoder, likelihood())
    x = (X > CENTRE).astype(np.float32)
    with pytest.raises(ValueError, match="standardize: expected False for a"):
        fit(model, x, **FAST, eval_every=0)
    able = likelihood is WithMean
    if able:
        assert ((model.reconstruct() >= 0) & (model.reconstruct() <= 1)).all()
        with pytest.raises(ValueError, match=r"expected one with a method sample\(outputs\)"):
            impute(model, x, num_draws=2)
        return
    with pytest.raises(ValueError, match="eval_every: expected 0 for a Bernoulli"):
        fit(model, x, **FAST, standardize=False)
    for call in (model.reconstruct, lambda: impute(model, x)):
        with pytest.raises(ValueError, match=r"likelihood: expected one with a method mean\(out"):
            call()
    with pytest.raises(ValueError, match="scale_factor: expected 1"):
        infer(model, x, scale_factor=2.0)


def test_a_kind_of_gaussian_likelihood_works_as_one():
    class Own(GaussianLikelihood):
        pass

    parts = make()
    model = models.LatentModel(parts.posterior, parts.decoder, Own(D))
    fit(model, X, **FAST)
    assert (impute(model, X, num_draws=2).numpy()[:, MASK] == X[MASK]).all()


def test_a_scaler_counts_in_float64():
    scaler = Scaler(Standardizer(CENTRE, SPREAD))
    own = scaler.to_model(torch.from_numpy(FULL), torch.float64)
    np.testing.assert_allclose(own, (FULL - CENTRE) / SPREAD)
    np.testing.assert_allclose(scaler.to_data(own), FULL, rtol=1e-15)


def test_a_constant_feature_adds_nothing_to_the_volume():
    scaler = Scaler(Standardizer(np.array([1.0, 5.0]), np.array([2.0, 0.0])))
    x = torch.tensor([[3.0, 5.0], [torch.nan, 5.0]])
    torch.testing.assert_close(scaler.log_volume(x, None).exp(), torch.tensor([2.0, 1.0]).double())
