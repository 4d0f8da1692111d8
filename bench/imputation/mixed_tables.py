"""Complete tables of numbers, counts, yes/no and classes, each with the law of every column.

Columns of yes/no and classes hold codes from 0 on. `adult` and `shop` are drawn anew for each seed;
`credit` and `obesity` are UCI's, see `tables`, whose columns of few values that name something are
classes here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import tables


class MixedTable(NamedTuple):
    """A table [N, D] float64, names of its columns, and their laws as `RelayImputer` takes them."""

    x: np.ndarray
    names: list[str]
    laws: list[Any]


def classes_of(law: Any) -> int:
    """Of how many classes a column of this law holds codes; 0 for numbers and counts."""
    return 2 if law == "bernoulli" else law[1] if isinstance(law, tuple) else 0


def adult(seed: int, rows: int = 2000) -> MixedTable:
    """People: like UCI's Adult in its kinds of columns and what depends on what, with its rarities.

    Schooling follows a hidden ability; occupation and sector follow schooling and sex; marriage and
    household follow age; hours, gains and whether income is high follow the rest. Numbers are skewed,
    gains mostly 0, two classes of each wide column rare.
    """
    rng = np.random.default_rng((seed, 1))
    ability, diligence = rng.normal(size=(2, rows))
    female = rng.random(rows) < 0.35
    age = np.clip(17 + rng.gamma(2.6, 8.5, rows), 17, 90).round()

    def chosen(scores: np.ndarray) -> np.ndarray:
        return (scores + rng.gumbel(size=scores.shape)).argmax(1)

    schooling = np.clip(np.rint(10 + 2.2 * ability + 0.6 * rng.normal(size=rows)), 1, 16)
    degree = np.digitize(schooling, [6, 9, 10, 11, 13, 15])
    older = (age - 38) / 13
    marital = chosen(
        np.column_stack(
            [
                0.8 - 1.8 * older,
                1.0 + 1.2 * older - 0.5 * female,
                -0.6 + 0.5 * older + 0.5 * female,
                -3.5 + 2.0 * older + 1.0 * female,
                -2.5 + 0.0 * older,
            ]
        )
    )
    married = marital == 1
    household = np.where(
        married, np.where(female, 1, 0), np.where(age < 25, 2, 3 + (rng.random(rows) < 0.4))
    )
    slopes = rng.normal(size=(3, 10)) * np.array([[1.3], [0.9], [0.4]])
    person = np.column_stack([(schooling - 10) / 2.5, 2.0 * female - 0.7, older])
    occupation = chosen(person @ slopes + np.array([*[0.0] * 8, -2.5, -3.0]))
    sector = chosen(
        np.eye(10)[occupation] @ (0.8 * rng.normal(size=(10, 5)))
        + np.array([2.5, 0.5, 0.5, 0.0, -1.5])
    )
    hours = 40 + 4 * diligence + 3 * married - 4 * female + 3 * rng.normal(size=rows)
    hours = np.clip(np.rint(hours - 12 * (age > 65)), 5, 90)
    logit = 0.9 * person[:, 0] + 1.6 * married + 0.06 * (hours - 40) + 0.4 * older - 2.0
    rich = rng.random(rows) < 1 / (1 + np.exp(-1.5 * logit))
    invests = rng.random(rows) < 0.06 + 0.2 * rich
    gain = np.where(invests, rng.lognormal(8.0 + 0.7 * rich, 0.9), 0.0).round()
    children = rng.poisson(np.exp(-0.6 + 1.0 * married - 0.5 * (age < 25)))
    x = [age, schooling, degree, marital, household, occupation, sector, female, hours, gain]
    laws = [
        *("gaussian", "gaussian", ("categorical", 7), ("categorical", 5), ("categorical", 5)),
        *(("categorical", 10), ("categorical", 5), "bernoulli", "gaussian", "gaussian"),
        *("poisson", "bernoulli"),
    ]
    names = (
        "age schooling degree marital household occupation sector female hours gain children rich"
    )
    return MixedTable(np.column_stack([*x, children, rich]).astype(float), names.split(), laws)


def shop(seed: int, rows: int = 1500) -> MixedTable:
    """Purchases that a hidden kind of customer, one of six, and two hidden numbers bring forth."""
    rng = np.random.default_rng((seed, 2))
    kind, (thrift, loyalty) = rng.integers(0, 6, rows), rng.normal(size=(2, rows))
    centres = rng.normal(size=(6, 4))
    numbers = centres[kind] + np.column_stack([thrift, loyalty, thrift * loyalty, thrift**2 - 1])
    numbers = numbers + 0.4 * rng.normal(size=numbers.shape)
    numbers[:, 3] = np.exp(numbers[:, 3] / 2)

    def classes(count: int) -> np.ndarray:
        scores = (2 * rng.normal(size=(6, count)))[kind] + np.outer(thrift, rng.normal(size=count))
        return (scores + rng.gumbel(size=scores.shape)).argmax(1)

    region, channel, brand = classes(4), classes(3), classes(8)
    member = rng.random(rows) < 1 / (1 + np.exp(-2.5 * loyalty))
    returned = rng.random(rows) < 1 / (1 + np.exp(-2 * thrift * np.where(channel == 0, 1, -1)))
    orders = rng.poisson(np.exp(0.8 + 0.6 * loyalty + 0.3 * centres[kind, 0]))
    items = rng.poisson(1 + orders * np.exp(0.4 - 0.3 * thrift))
    laws = [
        *["gaussian"] * 4,
        *(("categorical", 4), ("categorical", 3), ("categorical", 8)),
        *("bernoulli", "bernoulli", "poisson", "poisson"),
    ]
    names = [
        "size",
        "colour",
        "price",
        "weight",
        "region",
        "channel",
        "brand",
        "member",
        "returned",
        "orders",
        "items",
    ]
    x = [numbers, region, channel, brand, member, returned, orders, items]
    return MixedTable(np.column_stack(x).astype(float), names, laws)


def _uci(name: str, most: int) -> MixedTable:
    """One of UCI's: what takes at most so many values, all whole numbers from 0 on, is a class."""
    x, laws = tables.load(name), []
    for column in x.T:
        values = np.unique(column)
        coded = len(values) <= most and (values == np.arange(len(values))).all()
        laws.append(
            ("bernoulli" if len(values) == 2 else ("categorical", len(values)))
            if coded
            else "gaussian"
        )
    return MixedTable(x, [f"{name}{number}" for number in range(x.shape[1])], laws)


MIXED: dict[str, Callable[[int], MixedTable]] = {
    "adult": adult,
    "shop": shop,
    "credit": lambda seed: _uci("credit", 15),
    "obesity": lambda seed: _uci("obesity", 15),
}
