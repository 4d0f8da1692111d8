"""Small versions of bench/mixed.py and bench/binary_images.py: a law that fits the data wins."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from rvi_fast import likelihoods

BENCH = Path(__file__).parent.parent / "bench"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mixed():
    return loaded("mixed")


def test_the_table_is_the_one_that_is_claimed(mixed):
    x = mixed.table(0)
    assert x.shape == (2000, 10)
    likelihoods.Mixed(mixed.LAWS).check(torch.from_numpy(x))
    assert [len(np.unique(x[:, column])) for column in (4, 5, 6, 7)] == [2, 2, 3, 7]
    np.testing.assert_array_equal(x, mixed.table(0))
    assert (x != mixed.table(1)).any()


def test_probabilities_of_rounded_gaussians_sum_to_one(mixed):
    mean, std = torch.tensor([[0.3], [-2.0], [4.0]]).double(), torch.tensor(0.6).double()
    for most, codes in ((1, 2), (6, 7), (np.inf, 60)):
        each = [mixed._of_interval(torch.tensor([float(k)]), mean, std, most) for k in range(codes)]
        torch.testing.assert_close(torch.stack(each).exp().sum(0), torch.ones_like(mean))
    normal = torch.distributions.Normal(mean, std)
    expected = (normal.cdf(torch.tensor(3.5)) - normal.cdf(torch.tensor(2.5))).log()
    found = mixed._of_interval(torch.tensor([3.0]), mean, std, 6)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # where a difference of distribution functions would be 0
    far = mixed._of_interval(torch.tensor([40.0]), mean, std, np.inf)
    assert far.isfinite().all()


def test_mixed_beats_gaussians_in_nats_and_in_the_error_of_every_kind(mixed):
    found = mixed.scores(0, rows=1000, epochs=250, batch_size=128)
    for name, value in found["Mixed"].items():
        other = found["Gaussian"][name]
        assert value > other if name.startswith("nats") else value < other, name
    # by no small margin where a Gaussian is furthest from the truth
    assert found["Mixed"]["nats"] > found["Gaussian"]["nats"] + 0.1


def test_bernoulli_models_know_the_missing_pixels_better_than_their_frequencies():
    pytest.importorskip("sklearn", reason="scikit-learn, which has the digits, is not installed")
    binary = loaded("binary_images")
    x, mask = binary.images("digits", None, 0)
    assert set(np.unique(x)) == {0, 255}
    found = binary.scores(x, mask, epochs=60, names=("RVI",), latent_dim=4, groups=(8,))
    (nats, wrong), (frequencies, middle) = found["RVI"], found["frequencies"]
    assert nats > frequencies + 1.5
    assert wrong < 0.8 * middle
