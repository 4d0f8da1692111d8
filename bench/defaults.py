"""Defaults of RelayImputer, one varied at a time: the error relative to that of the default, CPU time.

    python bench/defaults.py --write-results                    # development tables, seed 100
    python bench/defaults.py --tables iris slump --seeds 100 101 102

Development tables and seeds only (`bench/imputation/tables.py`), 30 % hidden completely at random, in
sample, columns scaled as in `bench/imputers.py`, one thread. The ratio is that of root mean square
errors over hidden entries, for each table the geometric mean over seeds; shown are the mean over tables
and its standard error. Constants inside `fit` (shrinkage, share held out, size of the forest) are set
as an argument would be. Rows are on disk as soon as they are known.
"""

from __future__ import annotations

import argparse
import importlib
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from imputation import tables
from imputation.jobs import Job, make_part
from imputation.results import Results
from imputation.scores import rmse

from rvi_fast.sklearn import RelayImputer

RESULTS = Path(__file__).parent / "results"
FIELDS = ("setting", "value", "table", "seed", "rmse", "cpu_s")
TABLES = ("iris", "slump", "airfoil", "diabetes", "clusters", "swiss_roll")
# arguments, and constants of modules of rvi_fast.sklearn
ALTERNATIVES: dict[str, tuple[Any, ...]] = {
    "latent_dim": (8, 32),
    "hidden": ((32,), (128, 128)),
    "groups": ((25,), (50, 100, 200)),
    "top": (0.25, 1.0),
    "epochs": (50, 200),
    "lr": (0.003, 0.03),
    "kl_weight": (0.5, 2.0),
    "decoder_weight_decay": (0.1, 1.0),
    "initial_log_std": (-1.0, -3.0),
    "steps": (50, 200),
    "infer_lr": (0.003, 0.03),
    "scale_factor": (1.0, 2.0),
    "column_transform": ("none", "quantile"),
    "members": (("relay",), ("linear", "relay"), ("linear", "relay", "forest", "boosting")),
    "blend._SHRINK": (50.0, 800.0),
    "blend._DOUBT": (0.0, 24.0),
    "entries._SHARE": (0.05, 0.2),
    "forest._TREES": (10, 50),
    "forest._PASSES": (1, 3),
    "forest._LEAF": (1, 6),
}


@contextmanager
def _set(setting: str, value: Any) -> Iterator[dict[str, Any]]:
    """The arguments of `RelayImputer`, with the constant set meanwhile if it is one."""
    if "." not in setting:
        yield {} if setting == "default" else {setting: value}
        return
    file, name = setting.split(".")
    module = importlib.import_module(f"rvi_fast.sklearn.{file}")
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield {}
    finally:
        setattr(module, name, before)


def measured(setting: str, value: Any, table: str, seed: int) -> dict[str, str]:
    """A row of the results."""
    part = make_part(Job("relay", table, "mcar", 0.3, seed), "in-sample")
    with _set(setting, value) as arguments:
        start = time.process_time()
        filled = RelayImputer(**arguments, random_state=seed).fit_transform(part.given["fit"])
        spent = time.process_time() - start
    error = rmse(part.truth, filled, part.hidden)
    values = (setting, str(value), table, str(seed), f"{error:.5g}", f"{spent:.3g}")
    return dict(zip(FIELDS, values, strict=True))


def page(rows: list[dict[str, str]]) -> str:
    """Of each alternative the mean ratio over tables with its standard error, and of CPU seconds."""
    found = {tuple(row[name] for name in FIELDS[:4]): row for row in rows}
    lines = [
        "| argument or constant | value | error by that of the default | CPU s by it | tables |",
        "|---|---|---|---|---|",
    ]
    for setting, value in dict.fromkeys((row["setting"], row["value"]) for row in rows):
        if setting == "default":
            continue
        ratios: dict[str, list[float]] = {}
        spent = []
        for (own, given, table, seed), row in found.items():
            default = found.get(("default", "None", table, seed))
            if (own, given) == (setting, value) and default is not None:
                ratio = np.log(float(row["rmse"]) / float(default["rmse"]))
                ratios.setdefault(table, []).append(float(ratio))
                spent.append(float(row["cpu_s"]) / float(default["cpu_s"]))
        if ratios:
            means = np.exp([np.mean(own) for own in ratios.values()])
            error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else np.nan
            lines.append(
                f"| `{setting}` | {value} | {means.mean():.3f} +- {error:.3f} "
                f"| {np.mean(spent):.2f} | {len(means)} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_option = parser.add_argument
    add_option("--tables", nargs="+", choices=tables.DEVELOPMENT, default=list(TABLES))
    add_option("--seeds", nargs="+", type=int, choices=tables.DEVELOPMENT_SEEDS, default=[100])
    add_option("--settings", nargs="+", choices=list(ALTERNATIVES), default=list(ALTERNATIVES))
    add_option("--out", type=Path, default=Path("build/defaults"), help="where results go")
    add_option("--write-results", action="store_true", help="they go to bench/results")
    given = parser.parse_args()
    results = Results((RESULTS if given.write_results else given.out) / "defaults.csv", FIELDS, 4)
    warnings.simplefilter("ignore")
    pairs = [("default", None), *((s, v) for s in given.settings for v in ALTERNATIVES[s])]
    done = results.keys()
    for seed in given.seeds:
        for table in given.tables:
            for setting, value in pairs:
                key = (setting, str(value), table, str(seed))
                if key not in done:
                    results.add([row := measured(setting, value, table, seed)])
                    print(*row.values(), flush=True)
    rows = results.rows()
    seeds = ", ".join(sorted({row["seed"] for row in rows}))
    names = ", ".join(dict.fromkeys(row["table"] for row in rows))
    head = (
        "# Defaults of RelayImputer, one varied at a time\n\n`python bench/defaults.py "
        "--write-results`; every row is in `defaults.csv`. What is measured: the heading of that "
        f"file. Tables: {names}; seeds {seeds}.\n\n"
    )
    results.path.with_suffix(".md").write_text(head + page(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
