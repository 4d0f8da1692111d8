"""Rows that come later and rows that go: posteriors, their `RowAdam`, files, and runs that go on."""

import copy
import os
import shutil
import signal
import sys
import warnings

import pytest
import torch
from torch import nn

import rvi_fast
from rvi_fast import fit, impute, load, models
from rvi_fast.optim import RowAdam
from rvi_fast.posteriors import RowlessPosterior
from rvi_fast.training import CheckpointWarning, export, load_checkpoint
from rvi_fast.training.loop.interrupts import Interrupted

N, MORE, D = 60, 30, 5
X = torch.randn(N + MORE, D, generator=torch.Generator().manual_seed(0))
OPTIONS = {"batch_size": 16, "lr": 0.02, "progress": False}


def posterior_of(num_data, **options):
    first = torch.Generator().manual_seed(1)
    return rvi_fast.RelayPosterior(
        num_data, 3, groups=(4,), dtype=torch.float64, generator=first, sparse=True, **options
    )


def make(num_data, builder=models.rvi, **options):
    options |= {} if builder is models.vae else {"groups": (4,)}
    first = torch.Generator().manual_seed(1)
    return builder(num_data, D, latent_dim=3, hidden=(8,), generator=first, **options)


def table_in(directory, num_data):
    return posterior_of(num_data, storage=directory)


PLACES = {"memory": lambda _, n: posterior_of(n), "files": table_in}


@pytest.mark.parametrize("place", PLACES)
def test_rows_that_are_there_stay_and_new_ones_start_at_the_mean(tmp_path, place):
    posterior = PLACES[place](tmp_path / "tables", N)
    rows, parameter, mean = posterior.rows.detach().clone(), posterior.rows, posterior.mean_row()
    before = posterior(torch.arange(N), seed=3)
    posterior.extend(MORE)
    assert posterior.rows is parameter
    assert posterior.num_data == posterior.table_size == len(posterior.rows) == N + MORE
    assert torch.equal(posterior.rows[:N], rows)
    assert torch.equal(posterior.rows[N:], mean.expand(MORE, -1))
    # they draw the noise that they drew
    assert torch.equal(posterior(torch.arange(N), seed=3).z, before.z)
    posterior.extend(1)
    assert posterior.mean().shape == (N + MORE + 1, 3)


def gradients(posterior, index, seed):
    posterior.rows.grad = None
    z, kl = posterior(index, seed=seed)
    (kl + z.sin().sum(-1)).sum().backward()


BATCHES = [[0, 1, 2], [5, 1], [7], [3, 0], [9, 8], [4]]
LATER = [[10, 3], [1, 12], [11], [0, 10, 2], [13, 5]]


class Torch:
    """The optimisers of torch on the whole table, of which new rows have had no gradient so far."""

    def __init__(self, mode, posterior):
        self.posterior = posterior
        if mode == "dense":
            posterior.sparse = False
        kind = torch.optim.Adam if mode == "dense" else torch.optim.SparseAdam
        self.optimizer = kind([posterior.rows], lr=0.1)

    def step(self):
        self.optimizer.step()


@pytest.mark.parametrize("mode", ["dense", "lazy"])
def test_row_adam_goes_on_as_torch_on_all_rows_where_new_ones_had_no_gradient(mode):
    posterior = posterior_of(10)
    optimizer = RowAdam(posterior, lr=0.1, mode=mode)
    # all rows from the beginning, where no batch has the last ones
    whole = posterior_of(14)
    with torch.no_grad():
        whole.rows[:10], whole.relays[:] = posterior.rows, posterior.relays
    reference = Torch(mode, whole)
    for step, index in enumerate(BATCHES):
        for one, stepper in ((posterior, optimizer), (whole, reference)):
            gradients(one, torch.tensor(index), step)
            stepper.step()
    posterior.extend(4)
    with torch.no_grad():
        whole.rows[10:] = posterior.rows[10:]
    for step, index in enumerate(LATER):
        for one, stepper in ((posterior, optimizer), (whole, reference)):
            gradients(one, torch.tensor(index), 100 + step)
            stepper.step()
    torch.testing.assert_close(posterior.rows.detach(), whole.rows.detach(), rtol=1e-6, atol=1e-7)
    held = optimizer.state_dict()["state"][0]
    wanted = reference.optimizer.state_dict()["state"][0]
    torch.testing.assert_close(held["exp_avg"], wanted["exp_avg"])


def test_in_mode_row_new_rows_have_not_been_visited():
    posterior = posterior_of(10)
    optimizer = RowAdam(posterior, lr=0.1, mode="row")
    for step, index in enumerate(BATCHES):
        gradients(posterior, torch.tensor(index), step)
        optimizer.step()
    posterior.extend(4)
    assert posterior.rows.grad is None
    start = posterior.rows[12].detach().clone()
    gradients(posterior, torch.tensor([12, 0]), 9)
    grad = posterior.rows.grad.coalesce()
    (slope,) = grad.values()[grad.indices()[0] == 12]
    optimizer.step()
    # the first step of Adam goes lr in the direction of each sign
    torch.testing.assert_close(posterior.rows[12].detach(), start - 0.1 * slope.sign())
    assert optimizer.state_dict()["state"][0]["row_step"].tolist()[10:] == [0, 0, 1, 0]


@pytest.mark.parametrize("mode", ["dense", "lazy", "row"])
def test_selected_rows_go_on_as_if_the_others_had_never_been(mode):
    kept = torch.tensor([7, 2, 9])
    posterior, other = posterior_of(10), posterior_of(10)
    pair = [(one, RowAdam(one, lr=0.1, mode=mode)) for one in (posterior, other)]
    for step, index in enumerate([*BATCHES, [7, 2]]):
        for one, optimizer in pair:
            gradients(one, torch.tensor(index), step)
            optimizer.step()
    posterior.select(kept)
    # which brings all rows up to date
    pair[1][1].flush()
    assert posterior.num_data == 3
    for step, place in enumerate([[0], [1, 2], [0, 2]]):
        noise = torch.randn(len(place), 3, generator=torch.Generator().manual_seed(step)).double()
        for (one, optimizer), index in zip(pair, (torch.tensor(place), kept[place]), strict=True):
            one.rows.grad = None
            z, kl = one(index, noise=noise)
            (kl + z.sin().sum(-1)).sum().backward()
            optimizer.step()
    assert torch.equal(posterior.rows, other.rows[kept])


@pytest.mark.parametrize("mode", ["dense", "lazy", "row"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_rows_selected_in_files_are_those_selected_in_memory(tmp_path, mode, elsewhere):
    new = tmp_path / "new" if elsewhere else None
    pair = posterior_of(10), table_in(tmp_path / "tables", 10)
    optimizers = [RowAdam(one, lr=0.1, mode=mode) for one in pair]
    kept, parameter = torch.tensor([7, 2, 9]), pair[1].rows

    def step(batches, seed):
        for batch in batches:
            for one, optimizer in zip(pair, optimizers, strict=True):
                gradients(one, torch.tensor(batch), seed)
                optimizer.step()

    step([*BATCHES, [7, 2]], 0)
    pair[0].select(kept)
    pair[1].select(kept, storage=new)
    assert pair[1].rows is parameter
    assert torch.equal(pair[1].rows, pair[0].rows)
    step([[0], [1, 2], [0, 2]], 1)
    held = [optimizer.state_dict()["state"][0] for optimizer in optimizers]
    assert all(torch.equal(held[0][name], held[1][name]) for name in held[0])
    assert torch.equal(pair[1].rows, pair[0].rows)
    optimizers[1].detach()
    place = new or tmp_path / "tables"
    names = {"rows.bin", "row_step.bin", "exp_avg.bin", "exp_avg_sq.bin"}
    assert {path.name for path in place.iterdir()} == names | {"tables.json", "checksums.json"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(table_in(place, 3).mean(), pair[0].mean())
        if elsewhere:  # as they were
            assert table_in(tmp_path / "tables", 10).mean().shape == (10, 3)


def test_what_is_written_to_rows_after_they_came_or_went_is_meant(tmp_path):
    posterior = table_in(tmp_path, N)
    for change in (posterior.extend, lambda n: posterior.select(range(n))):
        change(MORE)
        with torch.no_grad():
            posterior.rows[3] += 1.0
        assert torch.isfinite(posterior.mean()).all()
    with pytest.raises(ValueError, match="storage: expected a directory without tables"):
        table_in(tmp_path / "other", N).select([1], storage=tmp_path)


def test_a_model_whose_rows_lie_elsewhere_is_trained_on_and_loaded(tmp_path):
    model = make(N, storage=tmp_path / "tables")
    fit(model, X[:N], epochs=1, run_dir=tmp_path / "run", **OPTIONS)
    model.posterior.select(range(MORE), storage=tmp_path / "few")
    fit(model, X[:MORE], epochs=1, run_dir=tmp_path / "of-few", **OPTIONS)
    assert torch.equal(load(tmp_path / "of-few").posterior.rows, model.posterior.rows)
    assert load(tmp_path / "run").num_data == N


def test_damaged_rows_are_not_selected(tmp_path):
    posterior = table_in(tmp_path, N)
    content = bytearray((tmp_path / "rows.bin").read_bytes())
    content[-3] ^= 1
    (tmp_path / "rows.bin").write_bytes(content)
    held = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(rvi_fast.training.CheckpointError, match="do not match their checksum"):
        posterior.select([0])
    assert sorted(path.name for path in tmp_path.iterdir()) == held


EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree"}


def ended_at(directory, count):
    """Selects rows in a process that ends before its change of files of that number, if it makes one."""
    child = os.fork()
    if child == 0:
        seen = []

        def end(event, _):
            seen.extend([event] * (event in EVENTS))
            if len(seen) == count:
                os._exit(9)

        try:
            posterior = table_in(directory, 10)
            sys.addaudithook(end)
            posterior.select([7, 2, 9])
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_program_that_ends_while_rows_are_selected_leaves_all_or_those(tmp_path):
    directory, wanted = tmp_path / "tables", posterior_of(10).rows.detach()
    kept, count, found = wanted[[7, 2, 9]], 1, []
    while True:
        table_in(directory, 10)
        (directory / "undo-run").mkdir()
        if not ended_at(directory, count):
            break
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                again, rows = table_in(directory, 10), wanted
            except ValueError:
                again, rows = table_in(directory, 3), kept
            again.mean()
        assert torch.equal(again.rows, rows), count
        found.append(len(rows))
        # a journal is of the rows of before
        assert (directory / "undo-run").exists() == (len(rows) == 10)
        names = {path.name for path in directory.iterdir()} - {"undo-run"}
        assert names == {"rows.bin", "tables.json", "checksums.json"}
        shutil.rmtree(directory)
        count += 1
    assert found == sorted(found, reverse=True)
    assert found.count(10) > 10
    assert found.count(3) > 5


def test_a_mask_selects_and_moments_can_be_saved_copied_and_loaded():
    posterior = posterior_of(10)
    optimizer = RowAdam(posterior, lr=0.1)
    gradients(posterior, torch.tensor([4, 1]), 0)
    optimizer.step()
    wanted = posterior.rows.detach().clone()
    posterior.select(torch.arange(10) % 2 == 1)
    assert torch.equal(posterior.rows, wanted[1::2])
    posterior.extend(2)
    again, state = copy.deepcopy((posterior, optimizer)), copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)
    for one, stepper in ((posterior, optimizer), again):
        gradients(one, torch.tensor([6, 0]), 1)
        stepper.step()
    assert torch.equal(again[0].rows, posterior.rows)
    assert [len(value) for value in optimizer.raw_tables().values()] == [7] * 4


def test_what_cannot_grow_is_refused_and_left_as_it_is(tmp_path):
    shard = posterior_of(10, shard=range(3, 8))
    with pytest.raises(ValueError, match="expected all 10 rows for extend, got a shard of 5"):
        shard.extend(2)
    with pytest.raises(ValueError, match="rows=False"):
        RowlessPosterior.of(posterior_of(10)).extend(2)
    posterior = posterior_of(10)
    with pytest.raises(ValueError, match="storage: expected None for rows in memory, got 'there'"):
        posterior.select([1], storage="there")
    for index, error, said in (
        ([3, 3], ValueError, "row 3 twice"),
        ([10], IndexError, "from 0 to 9"),
        ([], TypeError, "expected int64"),
        ([0.5], TypeError, "expected int64"),
        ([True] * 9, ValueError, "index: expected"),
        ([False] * 10, ValueError, "at least one row"),
    ):
        with pytest.raises(error, match=said):
            posterior.select(index)
    for count in (0, -1, 1.5):
        with pytest.raises((ValueError, TypeError), match="num_data: expected"):
            posterior.extend(count)
    assert torch.equal(posterior.rows, posterior_of(10).rows)


def test_what_has_grown_is_exported_and_loaded(tmp_path):
    model = make(N)
    fit(model, X[:N], epochs=1, **OPTIONS)
    model.posterior.extend(MORE)
    export(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert torch.equal(loaded.posterior.rows, model.posterior.rows)
    assert loaded.config["num_data"] == N + MORE
    with pytest.raises(ValueError, match="expected the rows that the model was trained on"):
        impute(model, X)
    # trained further, with moments that begin anew
    assert fit(model, X, epochs=1, **OPTIONS).epochs == 1


def test_files_hold_what_has_grown_and_find_damage(tmp_path):
    posterior = table_in(tmp_path, N)
    optimizer = RowAdam(posterior, lr=0.1)
    gradients(posterior, torch.tensor([4, 1]), 0)
    optimizer.step()
    posterior.extend(MORE)
    gradients(posterior, torch.tensor([4, 70]), 1)
    optimizer.step()
    wanted = posterior.rows.detach().clone()
    optimizer.detach()
    del posterior, optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(table_in(tmp_path, N + MORE).rows, wanted)
    assert (tmp_path / "exp_avg.bin").stat().st_size == wanted.nbytes
    content = bytearray((tmp_path / "rows.bin").read_bytes())
    content[-3] ^= 1
    (tmp_path / "rows.bin").write_bytes(content)
    with pytest.raises(rvi_fast.training.CheckpointError, match="do not match their checksum"):
        table_in(tmp_path, N + MORE).mean()


def test_a_program_that_ends_while_files_grow_leaves_them_as_they_were(tmp_path, monkeypatch):
    posterior = table_in(tmp_path, N)
    wanted = posterior.rows.detach().clone()

    def ends(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rvi_fast.posteriors.tables.torch.from_file", ends)
    with pytest.raises(KeyboardInterrupt):
        posterior.extend(MORE)
    monkeypatch.undo()
    assert (tmp_path / "rows.bin").stat().st_size > wanted.nbytes
    del posterior
    again = table_in(tmp_path, N)
    with pytest.warns(CheckpointWarning, match=r"has no checksums\.json"):
        again.mean()
    assert torch.equal(again.rows, wanted)
    assert (tmp_path / "rows.bin").stat().st_size == wanted.nbytes


RUNS = {
    "dense": {},
    "row": {"optimizer": "row"},
    "bfloat16": {"moment_dtype": torch.bfloat16},
    "blocks": {"block_rows": 16},
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_goes_on_with_more_rows(tmp_path, kind):
    options = OPTIONS | RUNS[kind] | {"run_dir": tmp_path}
    first = make(N)
    fit(first, X[:N], epochs=2, **options)
    model = make(N + MORE)
    history = fit(model, X, epochs=2, resume=True, **options)
    assert history.epochs == 2
    assert torch.equal(model.posterior.rows[:N], first.posterior.rows)
    # the mean of rows in their own precision, summed in float64
    start = first.posterior.mean_row().expand(MORE, -1)
    torch.testing.assert_close(model.posterior.rows[N:].detach(), start)
    # from there on it is a run of so many rows like any other
    whole = make(N + MORE)
    one = fit(whole, X, epochs=4, resume=True, **options)
    two = load(tmp_path)
    assert one.epochs == 4
    assert not torch.equal(whole.posterior.rows[N:], model.posterior.rows[N:])
    assert torch.equal(two.posterior.rows, whole.posterior.rows)
    assert torch.equal(impute(two, X), impute(whole, X))


def test_a_run_that_goes_on_twice_is_one_that_goes_on_once(tmp_path):
    parts = [tmp_path / "one", tmp_path / "two"]
    for run_dir in parts:
        fit(make(N), X[:N], epochs=2, run_dir=run_dir, **OPTIONS)
    fit(make(N + MORE), X, epochs=3, run_dir=parts[0], resume=True, **OPTIONS)
    models_ = [make(N + MORE) for _ in parts]
    for model, run_dir in zip(models_, parts, strict=True):
        fit(model, X, epochs=5, run_dir=run_dir, resume=True, **OPTIONS)
    assert torch.equal(models_[0].posterior.rows, models_[1].posterior.rows)


def test_a_vae_goes_on_with_more_rows(tmp_path):
    fit(make(N, models.vae), X[:N], epochs=1, run_dir=tmp_path, **OPTIONS)
    model = load(tmp_path)
    model.posterior.extend(MORE)
    assert fit(model, X, epochs=3, run_dir=tmp_path, resume=True, **OPTIONS).epochs == 3
    assert load(tmp_path).num_data == N + MORE


def stopped(model, count):
    """A model that asks for the end of its run within a step."""
    calls = []

    def send(module, *_):
        if module.training:
            calls.append(1)
            if len(calls) == count:
                os.kill(os.getpid(), signal.SIGINT)

    model.decoder.register_forward_hook(send)
    return model


def plain(model):
    model.decoder.append(nn.Identity())
    return model


@pytest.mark.parametrize("kind", ["dense", "blocks"])
def test_an_epoch_that_was_broken_off_begins_anew_with_all_rows(tmp_path, kind):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    options = OPTIONS | RUNS[kind] | {"run_dir": tmp_path}
    try:
        with pytest.raises(Interrupted):
            fit(stopped(plain(make(N)), 6), X[:N], epochs=3, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.metadata["partial"]["steps"] == 2
    lagging, found = checkpoint.tensors["model"]["posterior.rows"], load(tmp_path).posterior
    assert not torch.equal(found.rows, lagging)
    # no epoch more: what it goes on from
    model = plain(make(N + MORE))
    assert fit(model, X, epochs=1, resume=True, **options).epochs == 1
    assert torch.equal(model.posterior.rows[:N], found.rows)
    assert torch.equal(model.posterior.rows[N:], found.mean_row().expand(MORE, -1))
    ends = []
    fit(
        plain(make(N + MORE)),
        X,
        epochs=3,
        resume=True,
        callbacks=[lambda _, history: ends.append(history.epochs)],
        **options,
    )
    assert ends == [2, 3]


@pytest.mark.parametrize("killed", [False, True])
def test_tables_in_files_go_on_with_more_rows_as_those_in_memory(tmp_path, killed):
    # rows lag behind at the end of an epoch without an evaluation
    options = OPTIONS | {"block_rows": 16, "eval_every": 0}
    files, memory = tmp_path / "files", tmp_path / "memory"
    storage = tmp_path / "tables"
    fit(make(N, storage=storage), X[:N], epochs=2, run_dir=files, **options)
    fit(make(N), X[:N], epochs=2, run_dir=memory, **options)
    make(N, storage=storage).posterior.extend(MORE)
    if killed:  # after some steps of the first epoch with all rows: its checkpoint is that of fewer

        class Killed(Exception):
            pass

        def kill(*_):
            raise Killed

        with pytest.raises(Killed):
            fit(
                make(N + MORE, storage=storage),
                X,
                epochs=4,
                run_dir=files,
                resume=True,
                callbacks=[kill],
                **options,
            )
    one, other = make(N + MORE, storage=storage), make(N + MORE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        fit(one, X, epochs=4, run_dir=files, resume=True, **options)
    fit(other, X, epochs=4, run_dir=memory, resume=True, **options)
    assert torch.equal(one.posterior.rows, other.posterior.rows)
    assert torch.equal(load(files).posterior.rows, other.posterior.rows)


def test_rows_that_are_not_those_of_the_run_are_refused(tmp_path):
    fit(make(N), X[:N], epochs=1, run_dir=tmp_path, **OPTIONS)
    wrong = {
        "others": (X.flip(0), N + MORE),
        "fewer": (X[:40], 40),
        "one changed": (torch.cat((X[:3], X[3:4] + 1, X[4:])), N + MORE),
    }
    for x, count in wrong.values():
        with pytest.raises(ValueError, match="data: expected those of"):
            fit(make(count), x, epochs=2, run_dir=tmp_path, resume=True, **OPTIONS)
    assert load(tmp_path).num_data == N


def test_entries_that_were_shown_are_not_held_out(tmp_path):
    options = OPTIONS | {"held_out": 0.1, "run_dir": tmp_path}
    fit(make(N), X[:N], epochs=1, **options)
    with pytest.raises(ValueError, match="held_out: expected 0 for a run that goes on with more"):
        fit(make(N + MORE), X, epochs=2, resume=True, **options)
