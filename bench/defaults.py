"""What each default of `RelayImputer` is worth: one argument changed at a time.

    RVI_FAST_DATA=DIR OMP_NUM_THREADS=1 python bench/defaults.py --jobs 2 --write-results

Tables and seeds are some of those that choices are made on (`imputation/tables.py`), none of those that
figures are published of. 30 % of the entries are hidden; a quarter of the rows is kept from `fit`, and
its hidden entries are scored. With `--write-results` the table goes to bench/results/defaults.md.
"""

from __future__ import annotations

import argparse
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from imputation.jobs import Job, make_part
from imputation.scores import rmse
from imputation.tables import DEVELOPMENT

RESULTS = Path(__file__).parent / "results" / "defaults.md"
# digits take five times as long as any other
TABLES = tuple(name for name in DEVELOPMENT if name != "digits")
SEEDS = (100, 101)
OTHERS: dict[str, tuple[Any, ...]] = {
    "members": (("relay",), ("linear", "relay")),
    "column_transform": ("none",),
    "latent_dim": (8, 32),
    "hidden": ((64,), (128, 128)),
    "groups": ((), (10, 20, 40)),
    "top": (0.25, 1.0),
    "epochs": (50, 200),
    "lr": (0.003, 0.03),
    "kl_weight": (0.5, 2.0),
    "decoder_weight_decay": (0.01, 0.1),
    "initial_log_std": (-3.0, -1.0),
    "scale_factor": (1.0,),
    "steps": (50, 200),
}
HEAD = (
    "`RVI_FAST_DATA=DIR OMP_NUM_THREADS=1 python bench/defaults.py --write-results`: `RelayImputer` "
    "with one argument other than its default, on the tables {tables}, seeds {seeds}, 30 % hidden, rows "
    "that `fit` has not seen. Root mean square error relative to that of the defaults, mean over "
    "tables and its standard error; tables where it is less; CPU seconds of `fit` and `transform` "
    "relative to those of the defaults.\n\n"
    "| argument | default | instead | error, relative | better on | CPU time, relative |\n"
    "|---|---|---|---|---|---|\n"
)


def measured(task: tuple[str, int, str, Any]) -> tuple[float, float]:
    """Error and CPU seconds of one imputer on one table."""
    import torch

    from rvi_fast.sklearn import RelayImputer

    table, seed, argument, value = task
    torch.set_num_threads(1)
    part = make_part(Job("relay", table, "mcar", 0.3, seed), "new")
    own = {argument: value} if argument else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # collapses are among what is measured
        began = time.process_time()
        imputer = RelayImputer(random_state=seed, **own).fit(part.given["fit"])
        filled = imputer.transform(part.given["rows"])
        seconds = time.process_time() - began
    return rmse(part.truth, filled, part.hidden), seconds


def lines(found: dict[tuple[str, int, str, Any], tuple[float, float]], tables: list[str]) -> str:
    """A row for each alternative."""
    from inspect import signature

    from rvi_fast.sklearn import RelayImputer

    defaults = signature(RelayImputer).parameters
    rows = []
    for argument, values in OTHERS.items():
        for value in values:
            ratios = np.array([
                [
                    np.divide(found[table, seed, argument, value], found[table, seed, "", None])
                    for seed in SEEDS
                ]
                for table in tables
            ]).mean(1)  # fmt: skip
            error, seconds = ratios.T
            spread = error.std(ddof=1) / len(error) ** 0.5 if len(error) > 1 else float("nan")
            rows.append(
                f"| `{argument}` | {defaults[argument].default} | {value} | {error.mean():.3f} ± "
                f"{spread:.3f} | {(error < 1).sum()} of {len(error)} | {seconds.mean():.2f} |\n"
            )
    return "".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, metavar="NAME")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--write-results", action="store_true")
    options = parser.parse_args()
    tables = list(options.tables)
    variants = [("", None), *((name, value) for name in OTHERS for value in OTHERS[name])]
    tasks = [(*place, *own) for place, own in product(product(tables, SEEDS), variants)]
    with ProcessPoolExecutor(options.jobs) as pool:
        found = dict(zip(tasks, pool.map(measured, tasks), strict=True))
    head = HEAD.format(tables=", ".join(tables), seeds=", ".join(map(str, SEEDS)))
    text = head + lines(found, tables)
    print(text)
    if options.write_results:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
