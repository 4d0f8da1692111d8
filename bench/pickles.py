"""Bytes of pickled imputers, and what most of them are.

    python bench/pickles.py 10000x20 131072x50

Of a table of numbers with 5 factors and a fifth of it missing. Training is cut short, which changes no
size but those of trees a little.
"""

from __future__ import annotations

import pickle
import sys

import numpy as np

from rvi_fast.sklearn import RelayImputer


def main() -> None:
    """Prints a line for each table."""
    for size in sys.argv[1:] or ["10000x20", "131072x50"]:
        rows, columns = map(int, size.split("x"))
        generator = np.random.default_rng(0)
        factors = generator.normal(size=(rows, 5)) @ generator.normal(size=(5, columns))
        x = (factors + 0.3 * generator.normal(size=factors.shape)).astype(np.float32)
        x[generator.random(x.shape) < 0.2] = np.nan
        imputer = RelayImputer(random_state=0, epochs=1, steps=2).fit(x)
        blend = imputer.blend_
        parts = {
            "all": imputer,
            "relay model": imputer.model_,
            "linear model": blend.linear,
            "trees": blend.forest,
            "trees as scikit-learn pickles them": blend.forest and blend.forest.passes,
        }
        sizes = {name: len(pickle.dumps(part)) / 1e6 for name, part in parts.items()}
        print(size, ", ".join(f"{name} {own:.2f} MB" for name, own in sizes.items()), flush=True)


if __name__ == "__main__":
    main()
