"""`RowImputer`: rows in, imputations out, whatever stands beside a row; as a program of torch too."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rvi_fast import data, fit, impute, infer, models
from rvi_fast.scaler import Scaler
from rvi_fast.training import RowImputer

D, STEPS = 16, 4


def table(num_data, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_data, 3, generator=generator)
    x = x @ torch.randn(3, D, generator=torch.Generator().manual_seed(9))
    return x.masked_fill(torch.rand(num_data, D, generator=generator) < 0.3, torch.nan)


def bits(x):
    return torch.where(x.isnan(), x, (x > 0).float())


def codes(x):
    return x.abs().clamp(0, 2).round()


HALVES = torch.arange(D) % 2 == 1
# what is built, and how its data are made
MODELS = {
    "gaussian": (models.rvi, {"groups": (3, 5)}, lambda x: 5 * x - 3),
    "mixture": (models.rvi, {"groups": (3, 5), "form": "mixture"}, lambda x: x),
    "held": (models.rvi, {"groups": (3,), "learn_std": False, "skip": True}, lambda x: x),
    "vad": (models.vad, {"likelihood": "bernoulli"}, bits),
    "vae": (models.vae, {}, lambda x: x),
    "refined": (models.vae, {"refine_steps": STEPS, "mask_input": True}, lambda x: x),
    "conv": (models.vad, {"decoder": "conv"}, lambda x: x),
    "categorical": (models.rvi, {"groups": (3,), "likelihood": ("categorical", 3)}, codes),
    "counts": (models.rvi, {"groups": (3,), "likelihood": "negative_binomial"}, codes),
    "mixed": (
        models.rvi,
        {"groups": (3,), "likelihood": ["student_t", "bernoulli"] * (D // 2)},
        lambda x: torch.where(HALVES, bits(x), x),
    ),
}


def trained(kind):
    build, options, made = MODELS[kind]
    first = torch.Generator().manual_seed(0)
    model = build(60, D, latent_dim=4, hidden=(8,), generator=first, **options)
    fit(model, made(table(60, 0)), epochs=2, lr=0.01, progress=False, eval_every=0)
    return model, made(table(13, 1))


def steps_of(kind):
    return {} if MODELS[kind][0] is models.vae else {"steps": STEPS}


@pytest.fixture(scope="module", params=MODELS)
def served(request):
    model, new = trained(request.param)
    return model, RowImputer(model, seed=3, **steps_of(request.param)), new, request.param


def test_it_gives_the_bits_of_impute(served):
    model, serve, new, kind = served
    posterior = infer(model, new, shared_noise=True, seed=3, **steps_of(kind))
    assert torch.equal(serve(new), impute(model, new, posterior=posterior))
    # numbers where a mask says missing are not looked at
    known = ~new.isnan()
    assert torch.equal(serve(torch.where(known, new, 1.0), known), serve(new))


@pytest.mark.parametrize("kind", ["gaussian", "refined", "conv", "mixed"])
def test_its_program_gives_the_same_of_other_rows(kind, tmp_path):
    model, new = trained(kind)
    serve = RowImputer(model, **steps_of(kind))
    torch.export.save(serve.program(new), tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    for rows in (new, new.flip(0), new.roll(5, 0)):
        torch.testing.assert_close(program(rows), serve(rows))


@pytest.mark.parametrize("size", [1, 8, 64])
def test_in_batches_a_row_does_not_depend_on_those_beside_it(size):
    model, _ = trained("gaussian")
    serve, new = RowImputer(model, steps=STEPS), table(70, 2)
    whole = serve.in_batches(new, batch_size=size)
    order = torch.randperm(len(new), generator=torch.Generator().manual_seed(0))
    assert torch.equal(serve.in_batches(new[order], batch_size=size), whole[order])
    for part in (slice(0, 1), slice(3, 70), slice(11, 19)):
        assert torch.equal(serve.in_batches(new[part], batch_size=size), whole[part])
    torch.testing.assert_close(whole, serve(new))


def test_threads_get_what_one_thread_gets():
    model, _ = trained("mixed")
    serve, parts = RowImputer(model, steps=STEPS), MODELS["mixed"][2](table(64, 2)).split(8)
    wanted = list(map(serve, parts))
    with ThreadPoolExecutor(8) as pool:
        assert all(map(torch.equal, pool.map(serve, parts), wanted))


def test_training_the_model_further_changes_nothing():
    model, new = trained("gaussian")
    serve, kept = RowImputer(model, steps=STEPS), copy.deepcopy(model)
    before = serve(new)
    fit(model, table(60, 0), epochs=1, lr=0.1, progress=False, eval_every=0)
    assert torch.equal(serve(new), before)
    assert not torch.equal(RowImputer(model, steps=STEPS)(new), before)
    assert torch.equal(RowImputer(kept, steps=STEPS)(new), before)


def test_bent_columns_serve_and_are_not_exported():
    model, _ = trained("gaussian")
    x = table(200, 5).exp().double()
    bend = data.ColumnTransform.fit(x.numpy(), kind="log")
    scale = data.Standardizer.fit(bend.transform(x.numpy()))
    model.scaler = Scaler(scale, bend)
    serve, new = RowImputer(model, steps=STEPS), x[:9]
    posterior = infer(model, new, steps=STEPS, shared_noise=True)
    assert torch.equal(serve(new), impute(model, new, posterior=posterior))
    with pytest.raises(ValueError, match=r"expected a scale alone for torch\.export"):
        serve.program(new)


def test_what_cannot_be_served_is_refused():
    model, new = trained("mixed")
    with pytest.raises(ValueError, match="steps: expected"):
        RowImputer(model, steps=0)
    with pytest.raises(ValueError, match=r"expected RowImputer\.program\(x\)"):
        torch.export.export(RowImputer(model, steps=2), (new,))
    with pytest.raises(ValueError, match="batch_size: expected"):
        RowImputer(model).in_batches(new, batch_size=0)
    model.posterior = torch.nn.Identity()
    with pytest.raises(TypeError, match="model: expected a RelayPosterior or an EncoderPosterior"):
        RowImputer(model)
