"""Straight lines and maps of the latent space, on spaces where the answers are known."""

import numpy as np
import pytest
import torch
from torch import nn

from rvi_fast import models
from rvi_fast.experiments import experiment
from rvi_fast.experiments.latents import explore


def explored(directory, decoder, means, x, test_means=None, labels=None):
    test_means = means if test_means is None else test_means
    labels = np.zeros(len(test_means), np.int64) if labels is None else labels
    return explore(decoder, means, x, test_means, labels, directory)


def test_a_decoder_that_copies_draws_the_lines_between_the_images(tmp_path):
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    found = explored(tmp_path, nn.Identity(), torch.from_numpy(x), x)
    lines = np.load(tmp_path / "interpolation.npy")
    assert lines.shape == (3, 11, 4)
    np.testing.assert_array_equal(lines[:, 0], x[:6:2])
    np.testing.assert_array_equal(lines[:, -1], x[1:6:2])
    np.testing.assert_allclose(lines[:, 5], (x[:6:2] + x[1:6:2]) / 2, rtol=1e-6)
    assert found["off_data"] == pytest.approx(found["off_data_pixels"])
    assert found["off_data"][0] == pytest.approx(0, abs=1e-7)
    # the middle of each line, measured here one by one
    middle = [min(np.sqrt(np.mean((x.astype(np.float64) - line[5]) ** 2, 1))) for line in lines]
    assert found["off_data"][4] == pytest.approx(np.mean(middle), rel=1e-6)


def test_pixels_are_scaled_and_gaps_are_zero(tmp_path):
    pixels = np.array([[0, 255], [255, 0]], np.uint8)
    explored(tmp_path, nn.Identity(), torch.eye(2), pixels)
    lines = np.load(tmp_path / "interpolation.npy")
    np.testing.assert_array_equal(lines[0, [0, -1]], [[0, 1], [1, 0]])
    gaps = np.array([[np.nan, 1], [2, np.nan]], np.float32)
    found = explored(tmp_path, nn.Identity(), torch.eye(2), gaps)
    assert np.isfinite(found["off_data"]).all()


def test_the_map_shows_the_directions_of_most_variance(tmp_path):
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(300, 3)) * [9, 3, 0.1]
    turn, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    rows = torch.from_numpy(scores @ turn + 5)
    labels = np.arange(300) % 4
    explored(tmp_path, nn.Identity(), torch.eye(3), np.eye(3, dtype=np.float32), rows, labels)
    plane = np.load(tmp_path / "map.npy")
    np.testing.assert_array_equal(plane[:, 2], labels)
    for axis in (0, 1):
        assert abs(np.corrcoef(plane[:, axis], scores[:, axis])[0, 1]) > 0.999
    np.testing.assert_allclose(plane[:, :2].mean(0), 0, atol=1e-5)
    # the same rows in the same picture, whatever sign the decomposition gave
    explored(
        tmp_path, nn.Identity(), torch.eye(3), np.eye(3, dtype=np.float32), rows.flip(1), labels
    )
    np.testing.assert_allclose(np.load(tmp_path / "map.npy"), plane, atol=1e-4)


def test_agreement_counts_nearest_neighbours_of_the_same_label(tmp_path):
    # first component: four pairs far apart; second: splits them
    rows = torch.tensor([[0.0, 0], [1, 9], [20, 0], [21, 9], [40, 0], [41, 9]])
    own = np.repeat([0, 1, 2], 2)
    x = np.eye(2, dtype=np.float32)
    found = explored(tmp_path, nn.Identity(), torch.eye(2), x, rows, own)
    assert found["agreement"] == [1.0, 1.0]
    found = explored(tmp_path, nn.Identity(), torch.eye(2), x, rows, np.arange(6))
    assert found["agreement"] == [0.0, 0.0]


def test_one_latent_dimension_has_a_map_and_one_row_has_none(tmp_path):
    x = np.ones((3, 2), np.float32)
    decoder = nn.Linear(1, 2)
    found = explored(tmp_path, decoder, torch.tensor([[0.0], [1], [2]]).requires_grad_(), x)
    assert len(found["agreement"]) == 1
    assert not np.load(tmp_path / "map.npy")[:, 1].any()
    with pytest.raises(ValueError, match="rows: expected at least 2"):
        explored(tmp_path, decoder, torch.zeros(1, 1), x[:1])


def test_pictures_show_what_a_law_expects_and_not_its_outputs(tmp_path):
    x = (np.random.default_rng(0).random((20, 4)) < 0.5).astype(np.float32)
    model = models.rvi(20, 4, latent_dim=2, groups=(3, 3), likelihood="bernoulli")
    with torch.no_grad():
        model.decoder[-1].weight.mul_(1000)
    part = experiment.Part(x, np.ones_like(x, bool), np.ones_like(x, bool), None)
    experiment._progress(model, part, tmp_path)
    shown = np.load(tmp_path / "progression.npy")
    assert shown.min() >= 0
    assert shown.max() <= 1
