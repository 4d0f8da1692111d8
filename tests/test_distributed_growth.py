"""Runs of several processes that go on with more rows, which are shared out anew."""

from dataclasses import replace

import distributed_worker as worker
import pytest
import torch
from distributed_worker import BATCH, N, assert_close, assert_equal, together

import rvi_fast
from rvi_fast.optim import RowAdam
from rvi_fast.training import load_checkpoint
from rvi_fast.training.distributed.ranks import Alone
from rvi_fast.training.runs.growth import grown
from rvi_fast.training.runs.sharded import is_row_table
from rvi_fast.training.runs.state import lags

BLOCK = 4
SMALL, MORE = {"num_data": N}, {"num_data": N + 11}
PLACES = {"memory": {}, "blocks": {"block_rows": BLOCK}, "files": {"block_rows": BLOCK}}


@pytest.fixture
def of_two(monkeypatch):
    """A single process takes the order that two have begun."""
    monkeypatch.setattr(Alone, "size", 2)


def by(size, folder, run_dir, place, *, files=None, num_data=N, **changes):
    """The state of all rows after training in so many processes that goes on from what is there."""
    changes = {**PLACES[place], "run_dir": str(run_dir), "resume": True, **changes}
    # the whole table and a part of it are the same rows
    x = worker.table(MORE["num_data"])[:num_data]
    storage = {"storage": str(files)} if place == "files" else {}
    if size:
        keywords = {"num_data": num_data, "x": x, **storage}
        return together(worker.run(size, worker.train, folder, **keywords, **changes))
    model = worker.make(num_data=num_data, **storage)
    history = rvi_fast.fit(model, x, **worker.options(**changes))
    return {**model.state_dict(), "history": dict(history)}


@pytest.fixture(scope="module")
def grown_in_files(tmp_path_factory):
    """The state after an epoch of fewer rows and two of all, and where they lie."""
    folder = tmp_path_factory.mktemp("grown")
    run, files = folder / "run", folder / "files"
    by(2, folder / "1", run, "files", files=files, epochs=1, **SMALL)
    return by(2, folder / "2", run, "files", files=files, epochs=3, **MORE), files


def alone(folder, place):
    by(0, None, folder, place, epochs=1, **SMALL)
    return by(0, None, folder, place, epochs=3, **MORE)


def test_processes_go_on_with_more_rows_as_one_does(tmp_path, of_two):
    by(2, tmp_path / "1", tmp_path / "run", "memory", epochs=1, **SMALL)
    got = by(2, tmp_path / "2", tmp_path / "run", "memory", epochs=3, **MORE)
    assert_close(got, alone(tmp_path / "alone", "memory"))


def test_rows_in_files_are_shared_out_anew(tmp_path, of_two, grown_in_files):
    got, files = grown_in_files
    assert_close(got, alone(tmp_path, "blocks"))
    assert {path.name for path in files.iterdir()} == {"rows-0-24", "rows-24-48"}


@pytest.mark.parametrize(
    ("sizes", "count", "place"),
    [((2, 3), 20, "files"), ((3, 2), N, "memory"), ((1, 2), N, "files")],
)
def test_any_number_of_processes_goes_on_with_more_rows(tmp_path, sizes, count, place):
    """New rows start at the mean of all, wherever those lie; of 20 rows a third process had none."""
    run, files = tmp_path / "run", tmp_path / "files"
    before = by(sizes[0], tmp_path / "1", run, place, files=files, epochs=2, num_data=count)
    got = by(sizes[1], tmp_path / "2", run, place, files=files, epochs=2, **MORE)
    rows = got["posterior.rows"]
    torch.testing.assert_close(rows[:count], before["posterior.rows"], rtol=0, atol=1e-7)
    start = before["posterior.rows"].double().mean(0).float()
    torch.testing.assert_close(rows[count:], start.expand(48 - count, -1), rtol=0, atol=1e-7)
    if place == "files":
        assert len(list(files.iterdir())) == sizes[1]


def test_parts_of_a_checkpoint_get_the_rows_that_the_whole_gets(tmp_path):
    """Moments of bfloat16 are rounded by the numbers of rows in the whole table."""
    options = {"block_rows": BLOCK, "moment_dtype": torch.bfloat16, "eval_every": 0}
    rvi_fast.fit(worker.make(), worker.table(), run_dir=tmp_path, **worker.options(**options))
    checkpoint = load_checkpoint(tmp_path)
    assert lags(checkpoint)
    posterior = worker.make(num_data=48).posterior
    optimizer = RowAdam(posterior, lr=2e-2, moment_dtype=torch.bfloat16)
    sums = []
    whole = grown(checkpoint, optimizer, range(48), 48, lambda own: sums.append(own) or own)

    def cut(rows):
        tensors = {
            stem: {n: t[rows.start : rows.stop] if is_row_table(n) else t for n, t in named.items()}
            for stem, named in checkpoint.tensors.items()
        }
        part = replace(checkpoint, tensors=tensors)
        return grown(part, optimizer, rows, 48, lambda _: sums[0])

    parts = [cut(rows) for rows in (range(20), range(20, 40), range(40, 48))]
    for stem, named in whole.tensors.items():
        for name, tensor in named.items():
            held = [part.tensors[stem][name] for part in parts]
            assert torch.equal(torch.cat(held) if is_row_table(name) else held[0], tensor), name


def test_a_shard_of_a_table_that_has_got_more_rows_is_opened(tmp_path):
    """20 rows in two processes and 30 in three: the first ten lie where they lay."""
    run, files = tmp_path / "run", tmp_path / "files"
    before = by(2, tmp_path / "1", run, "files", files=files, epochs=2, num_data=20)
    inode = (files / "rows-0-10" / "rows.bin").stat().st_ino
    got = by(3, tmp_path / "2", run, "files", files=files, epochs=2, num_data=30)
    assert (files / "rows-0-10" / "rows.bin").stat().st_ino == inode
    torch.testing.assert_close(
        got["posterior.rows"][:20], before["posterior.rows"], rtol=0, atol=1e-7
    )
    options = {"groups": (3, 5), "shard": range(10)}
    with pytest.raises(ValueError, match="holds the tables of another posterior"):
        rvi_fast.RelayPosterior(19, 4, storage=files, **options)


def killed(rank, size, **changes):
    """Training that the second process leaves in the first step with all rows."""

    def end(*_):
        raise ZeroDivisionError

    return worker.train(rank, size, callbacks=[end], **changes)


def test_what_ends_before_a_checkpoint_with_all_rows_goes_on(tmp_path, grown_in_files):
    run, files = tmp_path / "run", tmp_path / "files"
    by(2, tmp_path / "1", run, "files", files=files, epochs=1, **SMALL)
    x = worker.table(MORE["num_data"])
    changes = {**PLACES["files"], "run_dir": str(run), "resume": True, "storage": str(files)}
    for process in worker.start(2, killed, tmp_path / "2", x=x, epochs=3, **MORE, **changes):
        process.join(60)
        assert process.exitcode
    got = by(2, tmp_path / "3", run, "files", files=files, epochs=3, **MORE)
    assert_equal(got, grown_in_files[0])


def test_rows_that_are_not_those_of_the_run_are_refused_in_all(tmp_path):
    run = tmp_path / "run"
    by(2, tmp_path / "1", run, "memory", epochs=1, **SMALL)
    wrong = worker.table(MORE["num_data"]).flip(0)
    options = {"run_dir": str(run), "resume": True, "epochs": 2, "batch_size": BATCH}
    for process in worker.start(2, worker.train, tmp_path / "2", x=wrong, **MORE, **options):
        process.join(60)
        assert process.exitcode
    said = [(tmp_path / "2" / f"{rank}.txt").read_text() for rank in range(2)]
    assert all("data: expected those of" in text for text in said)
