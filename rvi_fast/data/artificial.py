"""The artificial data set: dense linear mixtures of draws from ten distributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

FEATURES = 300
# draws of each distribution in one row
REPEATS = 3
# uniforms behind one draw; the most that a distribution below takes
_UNIFORMS = 6
# half a step of numpy's 53-bit uniforms: keeps u out of 0, where logarithms end
_HALF_STEP = 2.0**-54
_EULER = 0.5772156649015329
_ROWS, _MIXING = 0, 1  # uses of the seed
_CHUNK = 4096  # rows held in float64 at a time


def _normal(u: np.ndarray) -> np.ndarray:
    return np.sqrt(-2.0 * np.log(u[0])) * np.cos(2.0 * np.pi * u[1])


def _laplace(u: np.ndarray) -> np.ndarray:
    return np.log(u[0]) - np.log(u[1])  # the difference of two exponentials


# name -> (draw from uniforms [6, ...], mean, variance)
DISTRIBUTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float, float]] = {
    "normal": (_normal, 0.0, 1.0),
    "uniform": (lambda u: u[0], 1 / 2, 1 / 12),
    # Beta(2, 5): the second smallest of six uniforms
    "beta": (lambda u: np.sort(u, axis=0)[1], 2 / 7, 10 / 392),
    "exponential": (lambda u: -np.log(u[0]), 1.0, 1.0),
    # Gamma(3, 1): the sum of three exponentials
    "gamma": (lambda u: -np.log(u[0]) - np.log(u[1]) - np.log(u[2]), 3.0, 3.0),
    "gumbel": (lambda u: -np.log(-np.log(u[0])), _EULER, np.pi**2 / 6),
    "laplace": (_laplace, 0.0, 2.0),
    "logistic": (lambda u: np.log(u[0]) - np.log1p(-u[0]), 0.0, np.pi**2 / 3),
    # exp(N(0, 1/4))
    "lognormal": (
        lambda u: np.exp(0.5 * _normal(u)),
        np.exp(1 / 8),
        (np.exp(1 / 4) - 1) * np.exp(1 / 4),
    ),
    # Weibull of shape 2
    "rayleigh": (lambda u: np.sqrt(-2.0 * np.log(u[0])), np.sqrt(np.pi / 2), 2 - np.pi / 2),
}


def artificial(num_rows: int = 10_000, *, seed: int = 0, first: int = 0) -> np.ndarray:
    """Draws rows of the artificial set, mixtures of draws from ten distributions.

        x_i = A s_i,   A_dk = normal / sqrt(30),   s_i in R^30

    s_i holds three independent draws from each of ten distributions, shifted and scaled to mean 0 and
    variance 1: normal, uniform, Beta(2, 5), exponential, Gamma(3), Gumbel, Laplace, logistic,
    lognormal (sigma 1/2), Rayleigh. So 300 features lie in 30 dimensions. The paper (section 5.1)
    names the sizes and three of the distributions; the rest of this law is ours.

    All draws are functions of uniforms from numpy's Philox generator, in closed form: the result is
    the same on every machine, to the last digit or so of float32.

    Args:
        num_rows: N.
        seed: of A and of the rows.
        first: number of the first row; rows 10,000 to 11,999 are the test part of
            `load_data("artificial")`.

    Returns:
        [N, 300] float32; a row depends on its number and the seed alone.

    >>> artificial(2).shape
    (2, 300)
    >>> bool((artificial(1, first=1) == artificial(2)[1:]).all())
    True
    """
    for name, value, least in (("num_rows", num_rows, 1), ("first", first, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    sources = REPEATS * len(DISTRIBUTIONS)
    mixing = _normal(_uniforms(seed, _MIXING, 0, 2 * FEATURES * sources, 1).reshape(2, -1))
    mixing = mixing.reshape(sources, FEATURES) / np.sqrt(sources)
    rows = np.empty((num_rows, FEATURES), np.float32)
    per_row = sources * _UNIFORMS
    for start in range(0, num_rows, _CHUNK):
        part = rows[start : start + _CHUNK]
        u = _uniforms(seed, _ROWS, first + start, per_row, len(part))
        u = u.reshape(len(part), len(DISTRIBUTIONS), REPEATS, _UNIFORMS).transpose(1, 3, 0, 2)
        draws = [
            (draw(u[position]) - mean) / np.sqrt(variance)
            for position, (draw, mean, variance) in enumerate(DISTRIBUTIONS.values())
        ]
        part[:] = np.concatenate(draws, axis=1) @ mixing
    return rows


def _uniforms(seed: int, use: int, first: int, per_row: int, num_rows: int) -> np.ndarray:
    """Uniforms in (0, 1) of rows `first`, ...: [num_rows * per_row]."""
    generator = np.random.Philox(np.random.SeedSequence((seed, use)))
    # Philox makes four numbers at a time, and per_row is a multiple of four
    generator.advance(first * per_row // 4)
    return np.random.Generator(generator).random(num_rows * per_row) + _HALF_STEP
