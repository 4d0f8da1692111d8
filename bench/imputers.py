"""Imputers side by side: error, calibration, CPU time and memory over many tables.

    python bench/imputers.py                                     # quick imputers, some minutes
    python bench/imputers.py --imputers all --environments DIR --mechanism mcar mar mnar \\
        --rates 0.1 0.3 0.5 0.7 --write-results                  # the whole grid, days of one core
    python bench/imputers.py --imputers relay --again --write-results        # one of them again

Hides entries of complete tables (`bench/imputation/tables.py`) and scores what is filled in; every
imputer gets a process of its own, which knows nothing of the hidden entries (`jobs.py`,
`worker.py`). What is measured is said in `jobs.make_part`, `scores.py` and `mechanisms.py`. Rows of
the results are on disk as soon as they are known, and a run that is started again makes only those
that are not there. The page and the picture are made of all rows.

By default the tables are all but the large ones and the seeds 0 to 4, which figures are published of;
`--development` takes the tables and seeds that choices are made on. Packages that are compared need
environments of their own: `python -m imputation.environments DIR`, from within `bench`, makes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from imputation import report, tables
from imputation.jobs import Job, Workers
from imputation.mechanisms import MECHANISMS
from imputation.peers import FAST, PEERS
from imputation.results import Results
from imputation.worker import PARTS

RESULTS = Path(__file__).parent / "results"


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with what it stands for filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    known = (*tables.TABLES, *tables.SIZED)
    add("--tables", nargs="+", choices=known, metavar="NAME", help=f"of {', '.join(known)}")
    names = (*PEERS, "all")
    add(
        "--imputers",
        nargs="+",
        choices=names,
        default=list(FAST),
        metavar="NAME",
        help=f"of {names}",
    )
    add("--mechanism", nargs="+", choices=list(MECHANISMS), default=["mcar"])
    add("--rates", nargs="+", type=float, default=[0.3], help="of hidden entries")
    add("--seeds", nargs="+", type=int, help="of hidden entries, rows and imputers")
    add("--rows", choices=[*PARTS, "both"], default="both", help="which rows are scored")
    add("--jobs", type=int, default=1, help="processes at a time")
    add("--limit", type=int, default=600, help="CPU seconds of an imputer on a table")
    add("--environments", type=Path, help="folder with an environment for each package")
    add("--development", action="store_true", help="the tables and seeds that choices are made on")
    add("--again", action="store_true", help="make rows that are there again")
    add("--out", type=Path, default=Path("build/imputers"), help="where results go")
    add("--write-results", action="store_true", help="they go to bench/results")
    given = parser.parse_args(arguments)
    for rate in given.rates:
        if not 0 < rate < 1:
            parser.error(f"--rates: expected 0 < rate < 1, got {rate}")
    if given.write_results:
        given.out = RESULTS
    if "all" in given.imputers:
        given.imputers = list(PEERS)
    sets = (tables.TABLES, tables.CONFIRMATION_SEEDS)
    if given.development:
        sets = (tables.DEVELOPMENT, tables.DEVELOPMENT_SEEDS)
    given.tables, given.seeds = given.tables or list(sets[0]), given.seeds or list(sets[1])
    given.parts = list(PARTS) if given.rows == "both" else [given.rows]
    return given


def wanted(given: argparse.Namespace, there: set[tuple[str, ...]]) -> list[tuple[Job, list[str]]]:
    """What to run, each with the parts that are not there."""
    grid = product(given.mechanism, given.rates, given.imputers, given.tables, given.seeds)
    jobs = [Job(imputer, table, how, rate, seed) for how, rate, imputer, table, seed in grid]
    missing = [(job, [p for p in given.parts if job.key(p) not in there]) for job in jobs]
    return [(job, parts) for job, parts in missing if parts]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is asked for and not there, and writes page and picture."""
    given = options(arguments)
    results = Results(given.out / "imputers.csv")
    if given.again:
        asked = {job.key(part) for job, parts in wanted(given, set()) for part in parts}
        results.forget(lambda row: tuple(row.values())[:6] in asked)
    todo = wanted(given, results.keys())
    # what is not there is refused before anything runs
    for table in {job.table for job, _ in todo} & set(tables.UCI):
        tables.load(table)
    print(f"{len(todo)} tasks, rows go to {results.path}", flush=True)

    with (
        Workers(given.environments, given.limit) as workers,
        ThreadPoolExecutor(given.jobs) as pool,
    ):
        for rows in pool.map(lambda item: workers.run(*item), todo):
            results.add(rows)
            for row in rows:
                shown = row["failure"] or f"{row['rmse']}  {row['fit_s']} s"
                print(
                    *(row[name] for name in ("imputer", "table", "seed", "rows")), shown, flush=True
                )
    report.write(results.rows(), results.path.with_suffix(""))


if __name__ == "__main__":
    main()
