"""A decoder whose last layer sees the latents beside what its hidden layers give."""

import pytest
import torch
from torch import nn

import rvi_fast
from rvi_fast import fit, infer, models
from rvi_fast.models import Skip
from rvi_fast.models.decoder import split_last, width_after
from rvi_fast.training.loop.step import LinearChain, decoder_step
from rvi_fast.training.runs.export import export

N, D, T = 40, 7, 3
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
HOLED = X.masked_fill(torch.rand(N, D, generator=torch.Generator().manual_seed(1)) < 0.3, torch.nan)


def made(builder=models.rvi, **options):
    options = {"latent_dim": T, "hidden": (6, 5), "skip": True} | options
    if builder is models.rvi:
        options["groups"] = (4,)
    return builder(N, D, generator=torch.Generator().manual_seed(3), **options)


BUILDERS = pytest.mark.parametrize("builder", [models.rvi, models.vad, models.vae])


@BUILDERS
def test_outputs_are_a_linear_map_of_latents_and_of_hidden_layers(builder):
    model, z = made(builder), torch.randn(4, T)
    last = split_last(model.decoder)[1]
    assert last.in_features == 5 + T
    hidden = model.decoder[0].inner(z)
    expected = hidden @ last.weight[:, :5].T + z @ last.weight[:, 5:].T + last.bias
    torch.testing.assert_close(model.decode(z), expected)
    assert width_after(model.decoder, T) == D


@BUILDERS
def test_without_hidden_layers_there_is_nothing_to_skip(builder):
    model, plain = made(builder, hidden=()), made(builder, hidden=(), skip=False)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert isinstance(model.decoder[0], nn.Linear)


@BUILDERS
def test_configs_say_so_where_it_is_and_are_as_they_were_where_it_is_not(builder):
    model = made(builder)
    assert model.config["skip"] is True
    again = models.build(model.config, generator=torch.Generator().manual_seed(3))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert "skip" not in made(builder, skip=False).config


def test_a_run_and_an_export_bring_the_model_back(tmp_path):
    model = made()
    fit(model, HOLED, epochs=3, batch_size=16, run_dir=tmp_path / "run", progress=False)
    export(model, tmp_path / "model.safetensors")
    for path in (tmp_path / "run", tmp_path / "model.safetensors"):
        found = rvi_fast.load(path)
        assert torch.equal(found.reconstruct(), model.reconstruct())


def test_new_rows_are_inferred_without_autograd_as_with_it(monkeypatch):
    model = made()
    fit(model, HOLED, epochs=3, batch_size=16, progress=False)
    for parameter in (*model.decoder.parameters(), *model.likelihood.parameters()):
        parameter.requires_grad_(False)
    assert isinstance(decoder_step(model, learn=False), LinearChain)
    model.requires_grad_(True)
    expected = infer(model, HOLED, steps=12)
    # a hook takes autograd
    model.decoder[0].register_forward_hook(lambda *_: None)
    torch.testing.assert_close(infer(model, HOLED, steps=12).rows, expected.rows)


def test_a_hook_within_the_skip_takes_autograd():
    for part in (
        lambda m: m.decoder[0],
        lambda m: m.decoder[0].inner,
        lambda m: m.decoder[0].inner[1],
    ):
        model = made()
        assert isinstance(decoder_step(model), LinearChain)
        part(model).register_forward_hook(lambda *_: None)
        assert not isinstance(decoder_step(model), LinearChain)


def test_a_last_layer_of_another_width_is_refused():
    decoder = nn.Sequential(Skip(nn.Sequential(nn.Linear(T, 5), nn.ReLU())), nn.Linear(5, D))
    with pytest.raises(ValueError, match=r"decoder: expected a layer of 8 inputs"):
        models.LatentModel(made().posterior, decoder, rvi_fast.GaussianLikelihood(D))


def test_what_cannot_skip_is_refused():
    with pytest.raises(ValueError, match="skip: expected False for a convolutional decoder"):
        models.vad(N, 49, decoder="conv", skip=True)
    with pytest.raises(TypeError, match="skip: expected True or False, got 'yes'"):
        models.vad(N, D, skip="yes")
