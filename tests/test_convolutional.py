"""Decoders of images."""

import numpy as np
import pytest
import torch
from torch.nn.functional import conv_transpose2d, relu

import rvi_fast
from rvi_fast import models
from rvi_fast.models import ConvDecoder


def test_outputs_are_transposed_convolutions_of_a_small_image_and_an_offset():
    decoder = ConvDecoder(5, (2, 6, 9), hidden=(4, 3)).double()
    with torch.no_grad():
        decoder.bias.normal_()
    z = torch.randn(3, 2, 5, dtype=torch.float64)
    linear, first, second = (
        part for part in decoder.layers if hasattr(part, "weight") and part.weight is not None
    )
    # 6 x 9 is a part of 4 (2 x 3), the least that doubling twice reaches
    small = (z.reshape(6, 5) @ linear.weight.T + linear.bias).reshape(6, 4, 2, 3)
    middle = conv_transpose2d(relu(small), first.weight, first.bias, 2, 1)
    large = conv_transpose2d(relu(middle), second.weight, second.bias, 2, 1)
    assert large.shape == (6, 2, 8, 12)
    expected = large[:, :, :6, :9].reshape(3, 2, 108) + decoder.bias
    torch.testing.assert_close(decoder(z), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("features", "given", "shape"),
    [(784, None, (1, 28, 28)), (192, None, (3, 8, 8)), (12, (3, 4), (1, 3, 4))],
)
def test_images_are_squares_unless_told_otherwise(features, given, shape):
    model = models.vad(9, features, latent_dim=4, hidden=(3, 2), decoder="conv", image_shape=given)
    assert model.decoder.image_shape == shape
    assert model.decode(torch.zeros(2, 4)).shape == (2, features)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "cnn"}, "decoder: expected one of dense, conv, got 'cnn'"),
        ({"decoder": "conv"}, "image_shape: .* images of 7 features, which are no square"),
        ({"decoder": "conv", "image_shape": (2, 4)}, "image_shape: expected one of 7 features"),
        ({"decoder": "conv", "image_shape": (7,)}, r"image_shape: expected \(height, width\)"),
        ({"image_shape": (1, 7)}, "image_shape: expected None for a dense decoder"),
        ({"decoder": "conv", "image_shape": (1, 7), "hidden": ()}, "hidden: expected one or more"),
        (
            {"decoder": "conv", "image_shape": (1, 7), "likelihood": ("categorical", 3)},
            "decoder: expected 'dense' for a likelihood that takes 21 outputs",
        ),
    ],
)
def test_what_is_no_image_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.rvi(9, 7, latent_dim=4, **options)


def test_a_saved_model_is_built_again(tmp_path):
    model = models.rvi(20, 15, latent_dim=4, decoder="conv", image_shape=(3, 5), hidden=(3,))
    x = np.random.default_rng(0).integers(0, 256, (20, 15), np.uint8)
    rvi_fast.fit(model, x, epochs=2, progress=False, run_dir=tmp_path)
    loaded = rvi_fast.load(tmp_path)
    assert torch.equal(loaded.reconstruct(), model.reconstruct())
    assert loaded.config == model.config


def test_yes_and_no_start_at_what_each_pixel_is_on_the_whole():
    x = (torch.rand(500, 16, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    model = models.rvi(500, 16, latent_dim=3, decoder="conv", hidden=(2,), likelihood="bernoulli")
    rvi_fast.fit(model, x, epochs=1, lr=1e-9, progress=False)
    torch.testing.assert_close(torch.sigmoid(model.decoder.bias), x.mean(0), atol=0.01, rtol=0)


def test_digits_are_filled_in_better_than_by_a_dense_decoder_of_the_same_training():
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")
    x = (datasets.load_digits().data * (255 / 16)).astype(np.uint8)
    generator = np.random.default_rng(0)
    x = x[generator.permutation(len(x))]
    shown = generator.random(x.shape) < 0.5
    errors = {}
    for kind in ("dense", "conv"):
        model = models.rvi(
            1500, 64, latent_dim=16, decoder=kind, generator=torch.Generator().manual_seed(0)
        )
        options = {"epochs": 40, "batch_size": 64, "lr": 3e-3, "progress": False}
        rvi_fast.fit(model, x[:1500], mask=shown[:1500], eval_every=0, **options)
        found = rvi_fast.infer(model, x[1500:], mask=shown[1500:], steps=50, progress=False)
        decoded = model.reconstruct(posterior=found)
        errors[kind] = rvi_fast.data.elastic(x[1500:], decoded, ~shown[1500:])
    assert errors["conv"] < errors["dense"]
