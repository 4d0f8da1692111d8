"""One model of a table with numbers, yes/no, classes and counts.

python examples/mixed_table.py
"""

import argparse

import numpy as np

from rvi_fast.sklearn import RelayImputer

NAMES = ("weight", "smokes", "group", "visits")
LAWS = ["gaussian", "bernoulli", ("categorical", 3), "poisson"]


def people(rows):
    """A table whose columns all depend on health, which is not among them."""
    generator = np.random.default_rng(0)
    health = generator.normal(size=rows)
    weight = 70 - 8 * health + generator.normal(0, 4, rows)
    smokes = health + generator.normal(size=rows) < 0
    group = np.digitize(health + 0.5 * generator.normal(size=rows), (-0.5, 0.5))
    visits = generator.poisson(np.exp(1 - health))
    table = np.column_stack((weight, smokes, group, visits)).astype(float)
    return table, generator.random(table.shape) < 0.3


def main(rows, epochs):
    truth, holes = people(rows)
    table = np.where(holes, np.nan, truth)
    imputer = RelayImputer(likelihood=LAWS, estimate="mode", epochs=epochs, random_state=0)
    filled = imputer.fit_transform(table)
    assert set(filled[:, 1]) <= {0.0, 1.0}, "yes/no comes back as 0 or 1"
    assert set(filled[:, 2]) <= {0.0, 1.0, 2.0}, "a class as its code"

    for column, (name, law) in enumerate(zip(NAMES, LAWS, strict=True)):
        hidden = holes[:, column]
        was, said = truth[hidden, column], filled[hidden, column]
        if law in ("gaussian", "poisson"):
            middle = np.nanmean(table[:, column])
            error, plain = (np.sqrt(np.mean((guess - was) ** 2)) for guess in (said, middle))
            print(f"{name}: off by {error:.2f}, the column's mean by {plain:.2f}")
        else:
            values, counts = np.unique(table[~hidden, column], return_counts=True)
            plain = np.mean(was != values[counts.argmax()])
            print(f"{name}: wrong in {np.mean(said != was):.0%}, the commonest in {plain:.0%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer rows and epochs")
    small = parser.parse_args().small
    main(400 if small else 2000, 40 if small else None)
