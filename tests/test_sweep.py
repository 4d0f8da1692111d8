"""Sweeps: every run once, whatever is killed in between; what fails does not stop the others."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rvi_fast
from rvi_fast import data
from rvi_fast.experiments import experiment
from rvi_fast.experiments.experiment import Experiment
from rvi_fast.experiments.sweep import SweepError, _run_together, directory_of, sweep
from rvi_fast.training import RunDirectoryInUse
from rvi_fast.training.loop.interrupts import Interrupted
from rvi_fast.training.runs.checkpoints import latest_epoch
from rvi_fast.training.runs.directory import RunDirectory

ROOT = Path(__file__).parent.parent
FIRST = Experiment(
    rows=120, test_rows=30, epochs=8, batch_size=32, latent_dim=4, hidden=(8,), groups=(3, 5),
    infer_steps=4, lr=0.01, classifier_epochs=2, progression=True,
)  # fmt: skip
OTHERS = [
    replace(FIRST, model=model, progression=False, seed=seed)
    for model in ("vad", "vae")
    for seed in (0, 1)
]


@dataclass(frozen=True)
class Job:
    """What `work` does: a number, an error, or the end of its process."""

    number: int
    do: str = "count"

    @property
    def shape(self):
        """Odd and even numbers are of two shapes."""
        return self.number % 2


def work(job, directory):
    with (directory.parent / "calls").open("a") as file:
        file.write(f"{job.number}\n")
    if job.do == "raise":
        raise ValueError(f"no luck with {job.number}")
    if job.do == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.do == "nan":
        return {"value": float("nan")}
    return {"number": job.number, "threads": torch.get_num_threads(), "pid": os.getpid()}


def calls(out):
    return sorted(map(int, (out / "calls").read_text().split()))


def test_results_come_in_order_and_no_run_is_done_twice(tmp_path):
    jobs = [Job(3), Job(1), Job(2), Job(1)]
    results = sweep(jobs, work, tmp_path, jobs=2, progress=False)
    assert [result["number"] for result in results] == [3, 1, 2, 1]
    assert {result["threads"] for result in results} == {1}
    assert os.getpid() not in {result["pid"] for result in results}
    assert sweep([*jobs, Job(4)], work, tmp_path, progress=False)[:4] == results
    assert calls(tmp_path) == [1, 2, 3, 4]


def test_failures_are_named_at_the_end_and_repeated_alone(tmp_path):
    kinds = ("raise", "count", "die", "count", "nan", "count")
    jobs = [Job(number, do) for number, do in enumerate(kinds)]
    with pytest.raises(SweepError, match="3 of 6 runs failed") as caught:
        sweep(jobs, work, tmp_path, jobs=2, progress=False)
    assert "ValueError: no luck with 0 (test_sweep.py:" in str(caught.value)
    assert "the process died, exit code -9" in str(caught.value)
    assert calls(tmp_path) == list(range(6))
    with pytest.raises(SweepError, match="3 of 6"):
        sweep(jobs, work, tmp_path, jobs=1, progress=False)
    assert calls(tmp_path) == [0, 0, 1, 2, 2, 3, 4, 4, 5]


def test_a_directory_says_what_it_holds_and_a_damaged_result_is_made_again(tmp_path):
    sweep([Job(7)], work, tmp_path, progress=False)
    (result,) = tmp_path.glob("*/result.json")
    assert json.loads((result.parent / "config.json").read_text()) == asdict(Job(7))
    made = json.loads(result.read_text())["made"]
    assert (made["version"], made["resumed"]) == (rvi_fast.__version__, False)
    assert 0 <= made["seconds"] < 60
    result.write_text('{"number":')
    assert sweep([Job(7)], work, tmp_path, progress=False)[0]["number"] == 7
    assert json.loads(result.read_text())["made"]["resumed"]
    assert calls(tmp_path) == [7, 7]


def test_checkpoints_that_a_kill_left_beside_a_result_are_removed(tmp_path):
    sweep([Job(7)], work, tmp_path, progress=False)
    (result,) = tmp_path.glob("*/result.json")
    left = result.parent / "checkpoints" / "epoch-1"
    left.mkdir(parents=True)
    assert sweep([Job(7)], work, tmp_path, progress=False)[0]["number"] == 7
    assert not left.parent.exists()
    assert calls(tmp_path) == [7]


def test_nothing_to_run_and_a_second_sweep_are_handled(tmp_path):
    assert sweep([], work, tmp_path, progress=False) == []
    with RunDirectory(tmp_path), pytest.raises(RunDirectoryInUse):
        sweep([Job(1)], work, tmp_path, progress=False)
    with pytest.raises(ValueError, match="jobs: expected"):
        sweep([Job(1)], work, tmp_path, jobs=0)


SCRIPT = """
import functools, sys
sys.path.insert(0, {tests!r})
from test_sweep import FIRST, OTHERS, slowly
from rvi_fast.experiments.sweep import sweep
if __name__ == "__main__":
    sweep([FIRST, *OTHERS], slowly, {out!r}, jobs=2, progress=False)
"""


def slowly(configuration, directory, *, checkpoint_every=0, pause=0.05):
    """Checkpoints after every epoch; an epoch takes long enough to be killed in."""
    work = experiment.work(configuration, directory, checkpoint_every=checkpoint_every)
    arguments = next(work)
    while True:
        history = yield arguments | {"callbacks": [lambda *_: time.sleep(pause)]}
        try:
            arguments = work.send(history)
        except StopIteration as end:
            return end.value


def without_checkpoints(configuration, directory):
    """As `slowly`, and it would not save anything before its end."""
    return slowly(configuration, directory, checkpoint_every=1e6, pause=0.5)


def test_a_sweep_killed_at_any_moment_repeats_nothing_and_loses_nothing(tmp_path):
    out, script = tmp_path / "out", tmp_path / "start.py"
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests"), out=str(out)))
    chance, seen, progress, kills = random.Random(1), {}, {}, 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    while True:
        process = subprocess.Popen([sys.executable, str(script)], env=environment)
        # until something new was done, then at a random moment
        began, before = time.monotonic(), sum(progress.values())
        while process.poll() is None and time.monotonic() - began < 120 and kills < 3:
            if sum(epochs_of(out).values()) > before:
                time.sleep(chance.uniform(0.0, 0.3))
                break
            time.sleep(0.01)
        if kills < 3 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        if process.wait() == 0:
            break
        # what was done is as it was
        for path, state in seen.items():
            assert (path.stat().st_mtime_ns, path.read_bytes()) == state
        seen = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.glob("*/result.json")}
        now = epochs_of(out)
        assert all(now[run] >= epochs for run, epochs in progress.items())
        progress = now
    assert kills >= 2
    for path, state in seen.items():
        assert (path.stat().st_mtime_ns, path.read_bytes()) == state
    assert not [*out.glob("*/checkpoints")]
    # a run that nothing interrupted, in this process
    results = sweep([FIRST, *OTHERS], work, out, progress=False)
    for number, configuration in enumerate([FIRST, OTHERS[3]]):
        single = tmp_path / f"single{number}"
        single.mkdir()
        expected = experiment.run(configuration, single)
        assert results[[0, 4][number]] == json.loads(json.dumps(expected))


def test_a_sweep_stopped_by_ctrl_c_leaves_a_checkpoint_in_each_run_at_work(tmp_path):
    script = tmp_path / "start.py"
    text = SCRIPT.replace("slowly", "without_checkpoints")
    script.write_text(text.format(tests=str(ROOT / "tests"), out=str(tmp_path / "out")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len([*tmp_path.glob("out/*/metrics.jsonl")]) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "the sweep was stopped; started again it goes on" in process.communicate()[1]
    begun = [path.parent for path in tmp_path.glob("out/*/metrics.jsonl")]
    assert len(begun) == 2
    assert all(latest_epoch(directory) is not None for directory in begun)
    assert not [*tmp_path.glob("out/*/result.json")]


def epochs_of(out):
    """The epoch that each run would go on from; one that is done is at its end."""
    runs = {path.parent: latest_epoch(path.parent) or 0 for path in out.glob("*/config.json")}
    return {run: FIRST.epochs if (run / "result.json").exists() else runs[run] for run in runs}


def test_elsewhere_than_on_the_cpu_runs_of_one_shape_are_at_work_in_one_process(tmp_path):
    jobs = [Job(number) for number in range(7)]
    results = sweep(jobs, work, tmp_path, jobs=2, device="cuda", progress=False)
    assert [result["number"] for result in results] == list(range(7))
    assert len({result["pid"] for result in results}) == 1
    # in groups of two, each as soon as it is full
    assert list(map(int, (tmp_path / "calls").read_text().split())) == [0, 2, 1, 3, 4, 6, 5]
    together = {0: 2, 1: 2, 2: 2, 3: 2, 4: 2, 5: 1, 6: 2}
    for job in jobs:
        made = json.loads((directory_of(tmp_path, job) / "result.json").read_text())["made"]
        assert (made["device"], made["together"]) == ("cuda", together[job.number])


def test_of_runs_in_one_process_the_one_that_ends_it_fails_alone(tmp_path):
    kinds = ("count", "raise", "die", "count", "nan", "count")
    jobs = [Job(2 * number, do) for number, do in enumerate(kinds)]
    with pytest.raises(SweepError, match="3 of 6 runs failed") as caught:
        sweep(jobs, work, tmp_path, jobs=6, device="cuda", progress=False)
    assert "ValueError: no luck with 2 (test_sweep.py:" in str(caught.value)
    assert f"{directory_of(tmp_path, jobs[2])}: the process died, exit code -9" in str(caught.value)
    # those that were waiting are done, and those that were done are not repeated
    assert calls(tmp_path) == [0, 2, 4, 4, 6, 8, 10]
    assert len([*tmp_path.glob("*/result.json")]) == 3


def alone(configuration, directory):
    """Its result, as JSON holds it."""
    directory.mkdir()
    return json.loads(json.dumps(experiment.run(configuration, directory)))


def found(directory):
    result = json.loads((directory / "result.json").read_text())
    result.pop("made")
    return result


def test_runs_that_are_trained_together_have_the_results_of_each_alone(tmp_path):
    """Whatever becomes of those beside them, and wherever those notice it."""
    broken = [
        replace(FIRST, lr=-1.0),
        replace(FIRST, classifier_epochs=2, data="artificial"),
        replace(FIRST, infer_steps=-1),
    ]
    good = [FIRST, OTHERS[1], OTHERS[3]]
    tasks = [(each, tmp_path / f"{number}") for number, each in enumerate([*good, *broken])]
    for wrong in (False, True):
        # with one whose arguments are wrong `fit_many` trains none
        chosen = [task for task in tasks if wrong or task[0].lr > 0]
        said = {}
        _run_together(experiment.work, "cpu", chosen, lambda one, said=said: said.update([one]))
        assert [said[number] for number in range(3)] == [None] * 3
        for number, each in enumerate(good):
            assert found(tmp_path / f"{number}") == alone(each, tmp_path / f"{number}-{wrong}")
            (tmp_path / f"{number}" / "result.json").unlink()
        errors = [said[number] for number in range(3, len(chosen))]
        assert ["ValueError: lr: expected" in error for error in errors] == [True] * wrong + [
            False
        ] * 2
        assert "classifier_epochs: artificial has no labels (experiment.py:" in errors[-2]
        assert "ValueError: steps: expected" in errors[-1]


def test_runs_that_are_trained_together_go_on_after_ctrl_c(tmp_path):
    tasks = [(each, tmp_path / f"{number}") for number, each in enumerate([FIRST, OTHERS[1]])]

    def stopped(configuration, directory):
        work = experiment.work(configuration, directory)
        arguments, epochs = next(work), []

        def stop(model, history):
            epochs.append(history.epochs)
            if configuration is FIRST and history.epochs == 3:
                os.kill(os.getpid(), signal.SIGINT)

        yield arguments | {"callbacks": [stop]}

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted):
            _run_together(stopped, "cpu", tasks, print)
    finally:
        signal.signal(signal.SIGINT, before)
    assert all(3 <= latest_epoch(directory) < FIRST.epochs for _, directory in tasks)
    said = []
    _run_together(experiment.work, "cpu", tasks, said.append)
    assert sorted(said) == [(0, None), (1, None)]
    for each, directory in tasks:
        assert found(directory) == alone(each, tmp_path / f"{directory.name}-alone")
        assert json.loads((directory / "result.json").read_text())["made"]["resumed"]


def test_an_experiment_scores_what_it_says(tmp_path):
    result = experiment.run(FIRST, tmp_path)
    assert len(result["elastic"]) == FIRST.epochs
    assert result["elastic"][-1] == pytest.approx(result["train_observed"])
    assert 0 < result["train_observed"] < 2
    assert len(result["accuracy"]) == len(result["cross_entropy"]) == 2
    assert len(result["stages"]) == 4
    images = np.load(tmp_path / "progression.npy")
    assert images.shape == (5, 8, 64)
    # no relay and no deviation: one image for all rows
    np.testing.assert_allclose(images[0], images[0, :1].repeat(8, 0), atol=1e-6)
    assert np.abs(images[3] - images[3, :1]).max() > 1e-3
    complete = experiment.run(replace(OTHERS[0], missing=0.0), tmp_path / "complete")
    assert complete["train_missing"] is None
    assert complete["test_missing"] is None


def test_tables_with_gaps_are_standardised_on_what_is_shown(tmp_path):
    x = np.random.default_rng(0).normal(50, 9, (80, 5)).astype(np.float32)
    x[::7, 2], x[:, 4] = np.nan, 3.0
    data.save_table(tmp_path / "t.csv", x)
    options = {"data": str(tmp_path / "t.csv"), "rows": 50, "test_rows": 10, "missing": 0.3}
    train, test = experiment.parts(replace(FIRST, **options), None)
    shown = np.where(train.mask, train.x, np.nan)
    np.testing.assert_allclose(np.nanmean(shown, 0), 0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(shown, 0), [1, 1, 1, 1, 0], atol=1e-5)
    assert len(test.x) == 10
    assert not (train.mask & np.isnan(train.x)).any()
    assert np.isfinite(list(train.scores("train", np.zeros_like(train.x)).values())).all()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"rows": 10**6}, "rows"),
        ({"test_rows": 0}, "test_rows"),
        ({"data": "artificial", "boxes": 1}, "boxes"),
        ({"data": "artificial"}, "classifier_epochs"),
        ({"data": "artificial", "classifier_epochs": 0, "latents": True}, "latents"),
    ],
)
def test_experiments_that_cannot_be_are_refused(changes, name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}: "):
        experiment.run(replace(FIRST, **{"epochs": 1} | changes), tmp_path)
