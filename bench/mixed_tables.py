"""Imputers side by side on tables of numbers, counts, yes/no and classes: the error of each column.

    python bench/mixed_tables.py --write-results                # all imputers, seeds 0 to 2
    python bench/mixed_tables.py --imputers relay --development # seeds 100 to 102

30 % of the entries are hidden completely at random, by the seed (`bench/imputation/mechanisms.py`), and
score: numbers and counts by the root mean square error in standard deviations of the column, yes/no and
classes by the share that is wrong. Tables and their columns' laws: `bench/imputation/mixed_tables.py`.
Rows are on disk as soon as they are known, and those that are there are not made again.

Imputers, one thread each, seeded: `mean_mode`; `iterative` (scikit-learn's IterativeImputer,
BayesianRidge, 10 rounds, on standardised numbers and one-hot codes, of which that of the first class is
left out: with all of them each is 1 less the others, which miss with it, and stays at its mean; the
class with the largest code is taken); `boosting` (scikit-learn's HistGradientBoosting, a classifier or
regressor for each column from all others, their gaps as they are); `miceforest` (5 data sets, 5 rounds,
mean or mode of the five) and `miceforest_point` (one data set without mean matching: the models'
predictions), which need `pip install miceforest "lightgbm<4.6"`; `relay` (RelayImputer, defaults, with
the laws).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from imputation.mechanisms import mcar
from imputation.mixed_tables import MIXED, MixedTable, classes_of
from imputation.results import Results

RATE = 0.3
FIELDS = ("imputer", "table", "seed", "column", "error", "cpu_s")
RESULTS = Path(__file__).parent / "results"
SEEDS, DEVELOPMENT = (0, 1, 2), (100, 101, 102)
# beside which no column may be worse
PEERS = ("iterative", "miceforest", "miceforest_point")


def mean_mode(x: np.ndarray, laws: list[Any], seed: int) -> np.ndarray:
    """Means of numbers and counts, the most frequent class."""
    filled = x.copy()
    for column, law in enumerate(laws):
        own = x[:, column][~np.isnan(x[:, column])]
        middle = np.bincount(own.astype(int)).argmax() if classes_of(law) else own.mean()
        filled[np.isnan(x[:, column]), column] = middle
    return filled


def iterative(x: np.ndarray, laws: list[Any], seed: int) -> np.ndarray:
    """Chained ridge regressions of standardised numbers and one-hot codes."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    codes, widths = [], []
    for column, law in zip(x.T, laws, strict=True):
        k = classes_of(law)
        own = (column[:, None] == np.arange(1, k)).astype(float)
        own[np.isnan(column)] = np.nan
        codes.append(own if k else ((column - np.nanmean(column)) / np.nanstd(column))[:, None])
        widths.append(max(k - 1, 1))
    found = IterativeImputer(random_state=seed).fit_transform(np.hstack(codes))
    parts = np.split(found, np.cumsum(widths)[:-1], axis=1)
    filled = np.empty_like(x)
    for column, (part, law) in enumerate(zip(parts, laws, strict=True)):
        if classes_of(law):
            first = 1 - part.sum(1, keepdims=True)
            filled[:, column] = np.hstack([first, part]).argmax(1)
        else:
            filled[:, column] = part[:, 0] * np.nanstd(x[:, column]) + np.nanmean(x[:, column])
    return np.where(np.isnan(x), filled, x)


def boosting(x: np.ndarray, laws: list[Any], seed: int) -> np.ndarray:
    """Boosted trees for each column from all others, which take gaps as they are."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    filled = x.copy()
    kinds = np.array([classes_of(law) > 0 for law in laws])
    for column in range(x.shape[1]):
        others, gaps = np.delete(x, column, 1), np.isnan(x[:, column])
        made = HistGradientBoostingClassifier if kinds[column] else HistGradientBoostingRegressor
        model = made(random_state=seed, categorical_features=np.delete(kinds, column))
        model.fit(others[~gaps], x[~gaps, column])
        filled[gaps, column] = model.predict(others[gaps])
    return filled


def _miceforest(sets: int, **options: Any) -> Callable[[np.ndarray, list[Any], int], np.ndarray]:
    def fill(x: np.ndarray, laws: list[Any], seed: int) -> np.ndarray:
        import miceforest
        import pandas

        frame = pandas.DataFrame(x, columns=[f"c{column}" for column in range(x.shape[1])])
        for name, law in zip(frame.columns, laws, strict=True):
            if classes_of(law):
                frame[name] = frame[name].astype("Int64").astype("category")
        kernel = miceforest.ImputationKernel(frame, num_datasets=sets, random_state=seed, **options)
        kernel.mice(5, num_threads=1)
        drawn = np.stack(
            [kernel.complete_data(number).astype(float).to_numpy() for number in range(sets)]
        )
        filled = drawn.mean(0)
        for column, law in enumerate(laws):
            if k := classes_of(law):
                votes = (drawn[:, :, column, None] == np.arange(k)).sum(0)
                filled[:, column] = votes.argmax(1)
        return np.where(np.isnan(x), filled, x)

    return fill


def relay(x: np.ndarray, laws: list[Any], seed: int) -> np.ndarray:
    """RelayImputer with a law for each column."""
    from rvi_fast.sklearn import RelayImputer

    return RelayImputer(likelihood=laws, random_state=seed).fit_transform(x)


IMPUTERS: dict[str, Callable[[np.ndarray, list[Any], int], np.ndarray]] = {
    "mean_mode": mean_mode,
    "iterative": iterative,
    "boosting": boosting,
    "miceforest": _miceforest(5),
    "miceforest_point": _miceforest(1, mean_match_candidates=0),
    "relay": relay,
}


def errors(table: MixedTable, filled: np.ndarray, hidden: np.ndarray) -> list[float]:
    """Of each column, see the module."""
    found = []
    for column, law in enumerate(table.laws):
        own = hidden[:, column]
        truth, said = table.x[own, column], filled[own, column]
        wrong = np.sqrt(np.mean((said - truth) ** 2)) / table.x[:, column].std()
        found.append(float(np.mean(said != truth) if classes_of(law) else wrong))
    return found


def scored(imputer: str, name: str, seed: int) -> list[dict[str, str]]:
    """Rows of the results, one for each column."""
    table = MIXED[name](seed)
    hidden = mcar(table.x, RATE, seed)
    given, start = np.where(hidden, np.nan, table.x), time.process_time()
    filled = IMPUTERS[imputer](given, table.laws, seed)
    spent = time.process_time() - start
    return [
        dict(
            zip(FIELDS, (imputer, name, str(seed), column, f"{e:.5g}", f"{spent:.3g}"), strict=True)
        )
        for column, e in zip(table.names, errors(table, filled, hidden), strict=True)
    ]


def page(rows: list[dict[str, str]]) -> str:
    """Means over seeds of each column, and the columns of which a peer is better, in Markdown."""
    names = [name for name in IMPUTERS if any(row["imputer"] == name for row in rows)]
    cells: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    times: dict[str, list[float]] = {name: [] for name in names}
    for row in rows:
        of = cells.setdefault((row["table"], row["column"]), {}).setdefault(row["imputer"], {})
        of[row["seed"]] = float(row["error"])
        times[row["imputer"]].append(float(row["cpu_s"]))
    missed = []
    lines = [
        "| table | column | seeds | " + " | ".join(names) + " |",
        "|---" * (len(names) + 3) + "|",
    ]
    for (table, column), of in cells.items():
        # those that all imputers have been run on
        seeds = sorted(set.intersection(*(set(own) for own in of.values())), key=int)
        if not seeds:
            continue
        means = {name: float(np.mean([own[seed] for seed in seeds])) for name, own in of.items()}
        best = min(means.values())
        shown = [
            ("**{:.4f}**" if means[name] == best else "{:.4f}").format(means[name])
            if name in means
            else ""
            for name in names
        ]
        lines.append(f"| {table} | {column} | {len(seeds)} | " + " | ".join(shown) + " |")
        for peer in PEERS:
            if "relay" in of and peer in of and means["relay"] > means[peer]:
                apart = np.array([of["relay"][seed] - of[peer][seed] for seed in seeds])
                error = apart.std(ddof=1) / np.sqrt(len(apart)) if len(apart) > 1 else np.nan
                missed.append(
                    f"- {table} {column}: {means['relay']:.4f}, {peer} {means[peer]:.4f} "
                    f"(difference {apart.mean():.4f} +- {error:.4f})"
                )
    spent = ", ".join(f"{name} {np.mean(own):.1f}" for name, own in times.items())
    return "\n".join(
        [
            *lines,
            "",
            f"CPU seconds of a table, one thread, mean: {spent}.",
            "",
            "Columns of which a peer is better than `relay`, with the standard error over seeds:",
            "",
            *(missed or ["- none"]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_option = parser.add_argument
    add_option("--imputers", nargs="+", choices=list(IMPUTERS), default=list(IMPUTERS))
    add_option("--tables", nargs="+", choices=list(MIXED), default=list(MIXED))
    add_option("--development", action="store_true", help="the seeds that choices are made on")
    add_option("--out", type=Path, default=Path("build/mixed_tables"), help="where results go")
    add_option("--write-results", action="store_true", help="they go to bench/results")
    given = parser.parse_args()
    path = (RESULTS if given.write_results else given.out) / "mixed_tables.csv"
    results = Results(path, FIELDS, 4)
    warnings.simplefilter("ignore")
    done = {own[:3] for own in results.keys()}  # noqa: SIM118  (it is no dictionary)
    for seed in DEVELOPMENT if given.development else SEEDS:
        for name in given.tables:
            for imputer in given.imputers:
                key = (imputer, name, str(seed))
                if key in done:
                    continue
                rows = scored(imputer, name, seed)
                results.add(rows)
                print(*key, *(row["error"] for row in rows), rows[0]["cpu_s"], flush=True)
    head = (
        "# Tables of numbers, counts, yes/no and classes\n\n`python bench/mixed_tables.py "
        "--write-results`; every row is in `mixed_tables.csv`. What is measured: the heading of that "
        "file. 30 % missing completely at random, of seeds "
        f"{', '.join(sorted({row['seed'] for row in results.rows()}, key=int))}; means over those that "
        "every imputer shown has been run on, whose number is given.\n\n"
    )
    path.with_suffix(".md").write_text(head + page(results.rows()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
