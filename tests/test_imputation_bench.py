"""bench/imputers.py at tiny size: what imputers are shown, what is scored, and how they compare."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import imputers as command  # noqa: E402
from imputation import images, jobs, mechanisms, scores, tables  # noqa: E402
from imputation.gaussian import GaussianEM  # noqa: E402
from imputation.miwae import Miwae  # noqa: E402
from imputation.peers import PEERS, HotDeck  # noqa: E402
from imputation.results import Results  # noqa: E402
from imputation.soft_impute import SoftImpute  # noqa: E402
from imputation.worker import PARTS  # noqa: E402

X = np.random.default_rng(0).normal(size=(4000, 7)) * [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("name", mechanisms.MECHANISMS)
def test_columns_miss_the_rate_that_is_asked(name, rate):
    hidden = mechanisms.MECHANISMS[name](X, rate, 5)
    wanted = np.full(7, rate)
    if name == "mar":
        wanted[~hidden.any(0)] = 0.0
        assert (wanted == 0).sum() == 3
    np.testing.assert_allclose(hidden.mean(0), wanted, atol=4 * math.sqrt(rate * (1 - rate) / 4000))
    np.testing.assert_array_equal(hidden, mechanisms.MECHANISMS[name](X, rate, 5))
    assert (hidden != mechanisms.MECHANISMS[name](X, rate, 6)).any()


@pytest.mark.parametrize("name", ["mar", "mnar"])
def test_what_is_hidden_follows_the_inputs_and_nothing_else(name):
    hidden = mechanisms.MECHANISMS[name](X, 0.3, 5)
    inputs = np.flatnonzero(~mechanisms.mar(X, 0.3, 5).any(0))
    if name == "mnar":
        order = np.random.default_rng((5, 2)).permutation(7)
        inputs = np.sort(order[:3])
    others = np.setdiff1d(np.arange(7), inputs)
    sums = X[:, inputs] @ np.ones(3) / X[:, inputs].std()
    for column in others:  # weights are positive
        assert np.corrcoef(sums, hidden[:, column])[0, 1] > 0.1
    changed = X.copy()
    changed[:, others] = np.random.default_rng(1).normal(size=(4000, 4))
    np.testing.assert_array_equal(hidden, mechanisms.MECHANISMS[name](changed, 0.3, 5))


@pytest.mark.parametrize("part", PARTS)
def test_hidden_entries_reach_no_imputer(monkeypatch, part):
    job = jobs.Job("mean", "iris", "mcar", 0.3, 2)
    x, asked = tables.load("iris"), jobs.make_part(job, part)
    hidden = mechanisms.mcar(x, 0.3, 2)
    # what is hidden is anything at all, and an imputer is given the same
    other = np.where(hidden, 1e3 * np.random.default_rng(0).normal(size=x.shape), x)
    monkeypatch.setitem(tables.BUILT_IN, "iris", lambda: other)
    again = jobs.make_part(job, part)
    assert asked.given.keys() == again.given.keys()
    for name, given in asked.given.items():
        np.testing.assert_array_equal(given, again.given[name])
    scored = asked.given.get("rows", asked.given["fit"])
    np.testing.assert_array_equal(np.isnan(scored), asked.hidden)
    np.testing.assert_array_equal(scored[~asked.hidden], asked.truth[~asked.hidden])
    assert (asked.truth != again.truth)[asked.hidden].all()


def test_observed_entries_of_fit_span_zero_to_one_and_new_rows_are_a_quarter():
    asked = jobs.make_part(jobs.Job("mean", "diabetes", "mnar", 0.5, 1), "new")
    assert asked.given["rows"].shape == (442 // 4, 10)
    assert asked.given["fit"].shape == (442 - 442 // 4, 10)
    np.testing.assert_allclose(np.nanmin(asked.given["fit"], 0), 0, atol=1e-12)
    np.testing.assert_allclose(np.nanmax(asked.given["fit"], 0), 1, atol=1e-12)
    shown = {tuple(row) for row in np.nan_to_num(asked.given["fit"], nan=-9.0)}
    assert not shown & {tuple(row) for row in np.nan_to_num(asked.given["rows"], nan=-9.0)}


def test_tables_that_are_not_there_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RVI_FAST_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"yacht: expected .*uci\.npz.*RVI_FAST_DATA"):
        tables.load("yacht")
    with pytest.raises(ValueError, match=r"table: expected one of .* got 'nowhere'"):
        tables.load("nowhere")
    with pytest.raises(FileNotFoundError, match=r"RVI_FAST_DATA"):
        command.main(["--tables", "iris", "yacht", "--imputers", "mean", "--out", str(tmp_path)])
    assert not (tmp_path / "imputers.csv").exists()
    assert set(tables.DEVELOPMENT) < set(tables.TABLES)


def test_ranks_and_ratios_are_those_of_a_hand():
    errors = {
        "a": {"one": 1.0, "two": 3.0},
        "b": {"one": 2.0, "two": 2.0},
        "c": {"one": 2.0, "two": 4.0},
        "gap": {"one": 0.5},
    }
    assert scores.ranks({"a": 1.0, "b": 2.0, "c": 2.0}) == {"a": 1.0, "b": 2.5, "c": 2.5}
    found = scores.compare(errors)
    assert found == {"a": (1.5, 1.25), "b": (1.75, 1.5), "c": (2.75, 2.0)}


def share(truth, ends):
    """Of numbers that lie between the ends of their intervals."""
    return np.mean((ends[0] <= truth) & (truth <= ends[1]))


def test_intervals_hold_what_they_say_and_crps_is_that_of_the_law():
    random = np.random.default_rng(3)
    truth, draws = random.normal(size=20_000), random.normal(size=(39, 20_000))
    for level in (0.5, 0.9):
        assert abs(share(truth, scores.central(draws, level)) - level) < 0.01
    with pytest.raises(ValueError, match="draws: expected at least 19, got 18"):
        scores.central(draws[:18], 0.5)
    # of a standard normal at y: y (2 F(y) - 1) + 2 f(y) - 1 / sqrt(pi), on average 1 / sqrt(pi)
    assert abs(scores.crps(truth, draws) - 1 / math.sqrt(math.pi)) < 0.01
    pair = np.array([[0.0], [2.0]])
    assert scores.crps(np.array([1.0]), pair) == pytest.approx(1.0 - 2 * 2 / (2 * 2))


def _low_rank():
    x = tables.low_rank(1200, 8, 3)
    hidden = mechanisms.mcar(x, 0.3, 0)
    return x, hidden, np.where(hidden, np.nan, x)


def _best_error(x, hidden):
    """Of the conditional mean under the law that the table was drawn from."""
    weight = np.random.default_rng(0).normal(size=(3, 8)) / math.sqrt(3)
    covariance = weight.T @ weight + 0.04 * np.eye(8)
    made = x.copy()
    for row, h in zip(made, hidden, strict=True):
        row[h] = covariance[np.ix_(h, ~h)] @ np.linalg.solve(covariance[np.ix_(~h, ~h)], row[~h])
    return scores.rmse(x, made, hidden)


def test_gaussian_em_comes_to_the_law_of_the_data():
    x, hidden, holed = _low_rank()
    model = GaussianEM(seed=0).fit(holed[:1000])
    best = _best_error(x[1000:], hidden[1000:])
    assert scores.rmse(x[1000:], model.transform(holed[1000:]), hidden[1000:]) < 1.05 * best
    drawn = model.draws(holed[1000:], 99, seed=0)
    np.testing.assert_array_equal(
        drawn[:, ~hidden[1000:]],
        np.broadcast_to(x[1000:][~hidden[1000:]], (99, (~hidden[1000:]).sum())),
    )
    truth, drawn = x[1000:][hidden[1000:]], drawn[:, hidden[1000:]]
    for level in (0.5, 0.9):
        assert abs(share(truth, scores.central(drawn, level)) - level) < 0.06
    assert abs(np.sqrt(np.mean((drawn - truth) ** 2)) / best - math.sqrt(2)) < 0.1


def test_soft_impute_gives_rows_of_fit_the_matrix_that_it_found():
    x, hidden, holed = _low_rank()
    model = SoftImpute(seed=0, steps=2000).fit(holed)
    units = model.units.to(holed)
    made = next(m for m, penalty, _ in model._walk(units) if penalty == model.penalty)
    found = model.transform(holed)
    expected = np.where(hidden, model.units.back(made), x)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert scores.rmse(x, found, hidden) < 1.3 * _best_error(x, hidden)


def test_hot_deck_takes_the_value_of_the_nearest_row():
    x = np.array([[0.0, 0.0, 5.0], [1.0, 1.0, 7.0], [9.0, 9.0, 6.0], [0.9, 0.9, np.nan]])
    model = HotDeck().fit(x)
    assert model.transform(x)[3, 2] == pytest.approx(7.0)
    assert set(model.draws(x, 50, seed=0)[:, 3, 2].round(6)) == {5.0, 6.0, 7.0}


def test_miwae_beats_column_means_and_draws_what_is_missing(monkeypatch):
    monkeypatch.setattr("imputation.miwae.STEPS", 600)
    x, hidden, holed = _low_rank()
    model = Miwae(seed=0, samples=100).fit(holed[:1000])
    found = model.transform(holed[1000:])
    assert scores.rmse(x[1000:], found, hidden[1000:]) < 0.75 * x[1000:][hidden[1000:]].std()
    drawn = model.draws(holed[1000:], 20, seed=0)
    assert drawn.shape == (20, 200, 8)
    assert np.isfinite(drawn).all()
    assert (np.ptp(drawn, 0) > 0)[hidden[1000:]].all()
    assert (np.ptp(drawn, 0) == 0)[~hidden[1000:]].all()


def test_benchmark_runs_and_goes_on_where_it_was_killed(tmp_path, capsys):
    asked = [
        "--tables",
        "iris",
        "--imputers",
        "mean",
        "knn",
        "gaussian_em",
        "--seeds",
        "0",
        "--out",
    ]
    command.main([*asked, str(tmp_path)])
    rows = Results(tmp_path / "imputers.csv").rows()
    assert [(row["imputer"], row["rows"]) for row in rows] == [
        (imputer, part) for imputer in ("mean", "knn", "gaussian_em") for part in PARTS
    ]
    for part, row in zip(PARTS, rows[:2], strict=True):
        given = jobs.make_part(jobs.Job("mean", "iris", "mcar", 0.3, 0), part)
        error = (np.nanmean(given.given["fit"], 0) - given.truth)[given.hidden]
        assert float(row["rmse"]) == pytest.approx(math.sqrt(np.mean(error**2)), rel=1e-4)
        assert not row["cover90"]
    assert all(row["failure"] == "" and float(row["memory_mib"]) >= 0 for row in rows)
    assert 0.6 < float(rows[4]["cover90"]) <= 1
    page = (tmp_path / "imputers.md").read_text()
    assert "## confirmation, MCAR 0.3, new" in page
    assert "| mean | 3.00 |" in page
    assert (tmp_path / "imputers.png").stat().st_size > 5000
    # the last row is torn: it is made again, and nothing else is
    text = (tmp_path / "imputers.csv").read_text()
    (tmp_path / "imputers.csv").write_text(text[:-20])
    capsys.readouterr()
    command.main([*asked, str(tmp_path)])
    assert capsys.readouterr().out.startswith("1 tasks")
    again = Results(tmp_path / "imputers.csv").rows()
    assert [row["rmse"] for row in again] == [row["rmse"] for row in rows]


def test_row_scores_what_is_hidden_and_refuses_what_was_observed_and_is_changed(tmp_path):
    job = jobs.Job("mean", "iris", "mcar", 0.3, 0)
    part = jobs.make_part(job, "new")
    hidden = part.hidden
    measured = '{"fit_s": 1.5, "transform_s": 0.25, "memory_mib": 3.0}'
    (tmp_path / "new.json").write_text(measured)

    def row(filled, **other):
        np.savez(tmp_path / "new.filled.npz", filled=filled, **other)
        return jobs._row(job, "new", part, tmp_path)

    off = np.where(hidden, part.truth + 0.25, part.truth)
    # the first half of the hidden entries lies in the wide intervals, none in the narrow ones
    wide = np.linspace(0, 1, hidden.sum()) < 0.5
    ends = np.array([[[2.0], [3.0]], [[-9.0], [9.0]]]) * np.ones(hidden.sum())
    ends[1, 0] = np.where(wide, -9.0, 8.0)
    found = row(off, ends=ends)
    assert (found["rmse"], found["cover50"], found["cover90"]) == ("0.25", "0", "0.5")
    assert (found["fit_s"], found["transform_s"], found["crps"]) == ("1.5", "0.25", "")
    draws = np.repeat(part.truth[hidden][None], 100, 0)
    assert float(row(off, draws=draws)["crps"]) == pytest.approx(0, abs=1e-12)
    assert row(part.truth + 0.25)["failure"] == "expected observed entries unchanged"
    assert row(np.where(hidden, np.nan, off))["failure"].startswith("expected finite numbers")
    assert row(off[1:])["failure"].startswith("expected finite numbers")


def test_imputer_that_fails_leaves_a_row_that_says_why(tmp_path):
    # no package of that name is installed for tests
    with jobs.Workers(tmp_path, 60) as workers:
        rows = workers.run(jobs.Job("hyperimpute", "iris", "mcar", 0.3, 0), ["new"])
    assert [row["failure"] for row in rows] == [
        "ModuleNotFoundError: No module named 'hyperimpute'"
    ]
    assert rows[0]["rmse"] == ""


def test_process_of_an_imputer_knows_nothing_of_the_package():
    code = "import sys, imputation.worker, imputation.peers; sys.exit('rvi_fast' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=BENCH).returncode == 0
    assert {"relay", "mean", "missforest"} < set(PEERS)


def test_imputer_that_takes_too_long_or_dies_leaves_a_row_too():
    with jobs.Workers(None, 1) as workers:
        task = jobs.Job("missforest", "breast_cancer", "mcar", 0.3, 0)
        (slow,) = workers.run(task, ["in-sample"])
        (quick,) = workers.run(jobs.Job("mean", "iris", "mcar", 0.3, 0), ["new"])
        workers._own.process.kill()
        workers._own.process.wait()
        (dead,) = workers.run(jobs.Job("mean", "iris", "mcar", 0.3, 0), ["new"])
        (alive,) = workers.run(jobs.Job("mean", "iris", "mcar", 0.3, 0), ["new"])
    assert slow["failure"] == "over 1 CPU seconds, or out of memory"
    assert dead["failure"] == "its process has ended"
    assert quick["rmse"] == alive["rmse"] != ""


def test_u_net_learns_from_shown_pixels_alone_and_fills_in_better_than_the_mean():
    rng = np.random.default_rng(0)
    steps = np.arange(28)
    waves = np.sin(rng.uniform(0.2, 0.5, (300, 1)) * steps + rng.uniform(0, 6, (300, 1)))
    whole = ((waves[:, :, None] + 1) / 2 * np.ones(28)).reshape(300, 784).astype(np.float32)
    holed = np.where(rng.random(whole.shape) < 0.5, np.float32("nan"), whole)
    filled = images.u_net(holed[:250], holed[250:], 0, 4.0)
    mean = images.column_mean(holed[:250], holed[250:], 0, 0.0)
    ours, theirs = (images.score(whole[250:], holed[250:], x)[0] for x in (filled, mean))
    assert ours < 0.6 * theirs
    # the same with the hidden pixels shown as they come out: beyond [0, 1] they are clipped
    beyond = np.where(np.isnan(holed), 1.5, whole)
    error = 1 - whole[np.isnan(holed)]
    expected = float(np.mean(error.astype(np.float64) + error.astype(np.float64) ** 2))
    assert images.score(whole, holed, beyond)[0] == pytest.approx(expected, rel=1e-6)
