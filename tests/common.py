"""What the tests of several files are made of."""

import itertools
import os
import resource
import subprocess
import sys
import traceback
from contextlib import contextmanager

import torch
from torch.utils.data import Dataset

from rvi_fast import fit, models


def pairs(*axes):
    """Few tuples of one value of each axis: any two values of two axes stand together in one.

    For parameters whose product is large, and of which no code looks at more than two at a time. The
    next tuple is the first of those of the product that hold the most pairs not yet held.
    """
    places = [range(len(axis)) for axis in axes]
    missing = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(range(len(axes)), 2)
        for i in places[a]
        for j in places[b]
    }
    product = [(*itertools.combinations(enumerate(at), 2),) for at in itertools.product(*places)]
    tuples = []
    while missing:
        held = max(product, key=lambda pairs: len(missing.intersection(pairs)))
        missing.difference_update(held)
        at = {axis: place for pair in held for axis, place in pair}
        tuples.append(tuple(axis[at[number]] for number, axis in enumerate(axes)))
    return tuples


class Items(Dataset):
    """Rows as a function of their numbers gives them."""

    def __init__(self, num_data, item):
        self.num_data, self.item = num_data, item

    def __len__(self):
        return self.num_data

    def __getitem__(self, row):
        return self.item(row)


class Rows:
    """The data of `Inputs`, as a source that the host reads."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return self.inputs.num_data

    def read(self, rows):
        return self.inputs.batch(torch.from_numpy(rows))


def small_model(num_data, num_features, place="device", builder=models.rvi, **options):
    """The same in every process; `place` may be a directory."""
    if builder is models.rvi:
        options = {"groups": (3, 5)} | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return builder(num_data, num_features, latent_dim=3, hidden=(5,), storage=place, **options)


def short_fit(model, x, **options):
    options = {"epochs": 4, "batch_size": 8, "lr": 0.02} | options
    return fit(model, x, **{"progress": False} | options)


def assert_same(model, history, other, other_history):
    assert history == other_history
    for name, tensor in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def killed_until_it_ends(start, chance, least=0.01):
    """Starts a process again and again and kills it early, six times at most."""
    kills = 0
    while True:
        process = start()
        process.join(chance.uniform(least, 0.05 + 0.1 * kills) if kills < 6 else None)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills >= 2


@contextmanager
def files_up_to(size):
    """A write past that size fails half way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_python(code, **environment):
    """A process of its own that runs it, ended."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_cases(cases, run):
    """A line for each case by its name; how many `run` has raised in."""
    failed = 0
    for name, (case, *arguments) in cases.items():
        try:
            run(case, *arguments)
            print(f"ok      {name}", flush=True)
        except Exception:
            failed += 1
            print(f"failed  {name}\n{traceback.format_exc()}", flush=True)
    return failed
