import math

import pytest
import torch

from rvi_fast import RelayPosterior
from rvi_fast.reference import normal_noise, philox


def noise(index, seed=7, num_samples=1, latent_dim=8, dtype=torch.float64):
    index = torch.as_tensor(index)
    return normal_noise(torch.tensor([seed]), index, num_samples, latent_dim, dtype)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, words):
    counter, key, words = (
        tuple(torch.tensor(int(word, 16)) for word in text.split())
        for text in (counter, key, words)
    )
    assert philox(counter, key) == words


def test_counter_and_key_are_what_the_definition_says():
    row, sample, dimension, seed = 2**33 + 5, 2, 6, -(2**40) + 9
    mask = 0xFFFFFFFF
    counter = (dimension // 4, sample, row & mask, row >> 32)
    words = philox(
        tuple(map(torch.tensor, counter)),
        tuple(map(torch.tensor, (seed & mask, seed >> 32 & mask))),
    )
    first, second = (int(word) >> 8 for word in words[2:])  # dimensions 6 and 7
    radius = math.sqrt(-2 * math.log((first + 1) / 2**24))
    angle = 2 * math.pi * second / 2**24
    got = noise([row], seed, num_samples=3)[sample, 0, dimension:]
    expected = torch.tensor([radius * math.cos(angle), radius * math.sin(angle)])
    torch.testing.assert_close(got, expected.double(), rtol=1e-6, atol=1e-6)


def test_law_is_standard_normal():
    draws = noise(torch.arange(20_000), num_samples=2, latent_dim=25).flatten()
    count = len(draws)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = float((draws**power).mean()) - moment
        assert abs(error) < 5 * math.sqrt(variance / count)
    ranks = torch.arange(count, dtype=torch.float64) / count
    distance = (torch.special.ndtr(draws.sort().values) - ranks).abs().max()
    assert distance < 2.2 / math.sqrt(count)  # Kolmogorov-Smirnov, false alarm once in 8000
    assert draws.abs().max() < 5.77


def test_rows_samples_dimensions_and_seeds_are_uncorrelated():
    count = 4000
    rows = noise(torch.arange(count), num_samples=3, latent_dim=6)
    columns = torch.cat(
        [*rows, noise(torch.arange(count) + count)[0], noise(range(count), 8)[0]], 1
    )
    later = torch.cat([columns[1:], columns[:1]])
    correlations = torch.corrcoef(torch.cat([columns, later], 1).T)
    off = correlations - torch.eye(len(correlations))
    assert off.abs().max() < 5.5 / math.sqrt(count)


def test_number_depends_on_seed_row_sample_and_dimension_alone():
    everything = noise(torch.arange(50), num_samples=5, latent_dim=11)
    index = torch.tensor([40, 3, 40], dtype=torch.int32)
    for samples, dimensions in ((1, 11), (5, 4), (3, 1), (2, 7)):
        some = noise(index, num_samples=samples, latent_dim=dimensions)
        assert torch.equal(some, everything[:samples, index.long(), :dimensions])


def test_distant_rows_and_seeds_have_noise_of_their_own():
    rows = [5, 2**31 + 5, 2**32 + 5, 2**33 + 5, 2**62 + 5]
    draws = [*noise(rows)[0], *(noise([5], seed)[0, 0] for seed in (8, -7, 7 + 2**32, 2**63 - 1))]
    for i, draw in enumerate(draws):
        assert not any(torch.isclose(draw, other).any() for other in draws[:i])


def test_float32_equals_float64_to_rounding():
    index = torch.arange(20_000)
    single, double = (noise(index, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    # the angle is rounded to 2^-24 of up to 2 pi, and the radius is below 5.77
    assert (single - double).abs().max() < 5.77 * 2 * math.pi * 2**-23


def test_posterior_gives_a_row_the_same_noise_in_whatever_batch():
    posterior = RelayPosterior(60, 5, groups=(3,), dtype=torch.float64)
    index = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    everything = posterior(torch.arange(60), seed=3, num_samples=2).z
    parts = [posterior(part, seed=3, num_samples=2).z for part in index.split(17)]
    torch.testing.assert_close(torch.cat(parts, 1), everything[:, index], rtol=1e-13, atol=1e-13)
    assert posterior(index, seed=3).z.sub(everything[0, index]).abs().max() < 1e-13


def test_seeds_drawn_by_torch_differ_from_call_to_call():
    posterior = RelayPosterior(60, 5, groups=(3,))
    torch.manual_seed(0)
    first, second = (posterior(torch.arange(60)).z for _ in range(2))
    assert not torch.isclose(first, second).any()
    torch.manual_seed(0)
    assert torch.equal(posterior(torch.arange(60)).z, first)
