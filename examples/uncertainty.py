"""Intervals that are checked, and an analysis by multiple imputation.

python examples/uncertainty.py
"""

import argparse

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression

from rvi_fast.sklearn import RelayImputer


def main(rows, num_draws):
    bunch = load_diabetes(scaled=False)
    truth, target = bunch.data[:rows], bunch.target[:rows]
    holes = np.random.default_rng(0).random(truth.shape) < 0.3
    table = np.where(holes, np.nan, truth)
    # the target takes part: what is filled in without it would know nothing of what is asked later
    with_target = np.column_stack((table, target))
    imputer = RelayImputer(random_state=0).fit(with_target)

    for coverage in (0.5, 0.9):
        low, high = (bound[:, :-1] for bound in imputer.impute_interval(with_target, coverage))
        inside = ((low <= truth) & (truth <= high))[holes].mean()
        print(f"{coverage:.0%} intervals hold {inside:.0%} of {holes.sum()} hidden entries")

    column = bunch.feature_names.index("bmi")
    slopes, variances = [], []
    for draw in imputer.sample(with_target, num_draws, random_state=0):
        x = draw[:, :-1]
        model = LinearRegression().fit(x, target)
        residual = target - model.predict(x)
        noise = residual @ residual / (len(x) - x.shape[1] - 1)
        spread = np.linalg.inv(np.cov(x, rowvar=False) * (len(x) - 1))
        slopes.append(model.coef_[column])
        variances.append(noise * spread[column, column])
    # Rubin's rule: what one table leaves open, and what the tables disagree about
    between = np.var(slopes, ddof=1)
    error = np.sqrt(np.mean(variances) + (1 + 1 / num_draws) * between)
    whole = LinearRegression().fit(truth, target).coef_[column]
    print(f"slope of bmi {np.mean(slopes):.1f} +- {error:.1f}; of the whole table {whole:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer rows and draws")
    small = parser.parse_args().small
    main(120 if small else 442, 5 if small else 50)
