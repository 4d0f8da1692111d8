"""Damaged tables in files: every flipped bit is noticed when it is read, and what was meant is not."""

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

import rvi_fast
from rvi_fast import RelayPosterior, fit, impute, models
from rvi_fast.files import unsealed
from rvi_fast.memory import pages
from rvi_fast.optim import RowAdam
from rvi_fast.posteriors import checksums
from rvi_fast.posteriors import tables as storage
from rvi_fast.training import CheckpointError, CheckpointWarning

N, D, BLOCK = 61, 4, 3
BLOCKS = 21
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces of five rows: some lie in two blocks."""
    monkeypatch.setattr(checksums, "_PIECE", 400)


@pytest.fixture
def unplugged(monkeypatch):
    """Nothing is lost here that is not on disk, and waiting for it takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        yield


def make(place="device"):
    generator = torch.Generator().manual_seed(7)
    return models.rvi(
        N, D, latent_dim=3, hidden=(5,), groups=(3, 5), storage=place, generator=generator
    )


def run(model, **options):
    options = {"epochs": 3, "batch_size": 8, "block_rows": BLOCK, "eval_every": 0} | options
    return fit(model, X, **{"progress": False} | options)


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def differs(model, history, other, other_history):
    state = other.state_dict()
    same = all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    return history != other_history or not same


# readers


def test_every_bit_of_the_rows_and_of_what_describes_them_is_noticed_by_who_reads_it(
    tmp_path, strict
):
    place = tmp_path / "tables"
    run(make(place), epochs=1)
    width = (place / "rows.bin").stat().st_size // N
    for position in range(0, N * width, 37):
        flip(place / "rows.bin", position, position % 8)
        first = position // width // 5 * 5
        message = rf"rows\.bin: rows {first} to {min(first + 5, N) - 1} do not match their checksum"
        with pytest.raises(CheckpointError, match=message):
            make(place).posterior.mean()
        flip(place / "rows.bin", position, position % 8)
    for name in ("checksums.json", "tables.json"):
        size = (place / name).stat().st_size
        for position in range(0, size, 1 + size // 300):
            flip(place / name, position, position % 8)
            with pytest.raises(CheckpointError, match=name):
                make(place).posterior.mean()
            flip(place / name, position, position % 8)
    make(place).posterior.mean()


READERS = {
    "mean": lambda model: model.posterior.mean(),
    "mean of rows": lambda model: model.posterior.mean(torch.tensor([33])),
    "std": lambda model: model.posterior.std(),
    "selected": lambda model: model.posterior.selected(torch.tensor([33])),
    "mean_row": lambda model: model.posterior.mean_row(),
    "forward": lambda model: model.posterior(torch.tensor([3, 33])),
    "reconstruct": lambda model: model.reconstruct(torch.tensor([33])),
    "impute": lambda model: impute(model, X),
    "state_dict": lambda model: model.state_dict(),
    "deepcopy": copy.deepcopy,
    "fit": run,
    "RowAdam": lambda model: RowAdam(model.posterior).step_batch(
        torch.tensor([33]), torch.zeros(1, model.posterior.layout.width)
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_damaged_rows_is_refused_again_and_again(tmp_path, reader):
    model = make(tmp_path)
    size = model.posterior.rows.nbytes
    flip(tmp_path / "rows.bin", 33 * size // N)
    model.posterior.mean(torch.tensor([3, 60]))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"rows\.bin: rows 30 to 34 do not match"):
            READERS[reader](make(tmp_path))


@pytest.mark.parametrize("table", ["rows", "exp_avg", "exp_avg_sq", "row_step"])
def test_damage_between_two_visits_of_a_block_is_noticed_by_the_second(tmp_path, table):
    model = make(tmp_path)

    def damage(*_):
        path = tmp_path / f"{table}.bin"
        with open(path, "rb+") as file:
            file.seek(40 * path.stat().st_size // N)
            (byte,) = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))

    with pytest.raises(CheckpointError, match=rf"{table}\.bin: rows 40 to 44 do not match"):
        run(model, callbacks=[damage])


# resumes


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What a kill in the second epoch leaves: some blocks are in the journal and some are not."""
    folder = tmp_path_factory.mktemp("killed")
    left, leave = [], storage.MappedTables.leave

    def snapshot(self, start, stop):
        leave(self, start, stop)
        left.append(start)
        if len(left) == BLOCKS + 5:  # nothing enters, and the journal stays, until this returns
            shutil.copytree(folder / "going", folder / "left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksums, "_PIECE", 400)
        patch.setattr(storage.MappedTables, "leave", snapshot)
        model = make(folder / "going" / "tables")
        run(model, run_dir=folder / "going" / "run", checkpoint_every=0)
    return folder / "left"


@pytest.fixture(scope="module")
def expected():
    model = make()
    return model, run(model)


def resumed(folder, **options):
    model = make(folder / "tables")
    history = run(model, run_dir=folder / "run", checkpoint_every=0, resume=True, **options)
    return model, history


def test_no_flipped_bit_of_what_a_killed_run_has_left_leads_to_other_bits(
    tmp_path, killed, expected, unplugged
):
    files = [path.relative_to(killed) for path in killed.glob("tables/**/*") if path.is_file()]
    files = [path for path in files if path.name != ".lock"]
    names = {path.name for path in files}
    assert {"rows.bin", "exp_avg.bin", "exp_avg_sq.bin", "row_step.bin", "tables.json"} < names
    journal = [path for path in files if path.parent.name.startswith("undo-")]
    assert 0 < len(journal) < BLOCKS
    refused = dict.fromkeys(files, 0)
    for path in files:
        size = (killed / path).stat().st_size
        for position in range(0, size, 1 + size // 6):
            folder = tmp_path / "damaged"
            shutil.copytree(killed, folder)
            flip(folder / path, position, position % 8)
            try:
                assert not differs(*resumed(folder), *expected), (path, position)
            except CheckpointError as error:
                refused[path] += path.name in str(error)
            shutil.rmtree(folder)
    # what the journal takes back need not be refused; the journal itself is
    assert all(refused.values()), refused
    assert all(refused[path] == 6 for path in journal), refused


def test_a_block_of_the_journal_that_is_cut_moved_or_foreign_is_named(tmp_path, killed):
    shutil.copytree(killed, tmp_path / "run")
    first, second, *_ = sorted(tmp_path.glob("run/tables/undo-*/*.bin"))
    content, other = first.read_bytes(), second.read_bytes()
    for damaged in (content[:-1], content[:50], b"", content + b"\0", other):
        first.write_bytes(damaged)
        with pytest.raises(
            CheckpointError, match=rf"{first.name}: (has|is damaged|cannot be read)"
        ):
            resumed(tmp_path / "run")
    first.write_bytes(content)
    for name in ("000000021.bin", "x.bin"):
        second.with_name(name).write_bytes(other)
        with pytest.raises(CheckpointError, match=rf"{name}: is of none of the 21 blocks"):
            resumed(tmp_path / "run")
        second.with_name(name).unlink()
    assert not differs(
        *resumed(tmp_path / "run"), *resumed(shutil.copytree(killed, tmp_path / "b"))
    )


def test_what_0_1_0_has_left_is_resumed_with_a_warning(tmp_path, killed, expected):
    folder = shutil.copytree(killed, tmp_path / "old")
    tables = unsealed((folder / "tables" / "tables.json").read_bytes())
    (folder / "tables" / "tables.json").write_text(json.dumps(tables))
    for path in folder.glob("tables/undo-*/*.bin"):
        os.truncate(path, path.stat().st_size - 12)
    load = rvi_fast.training.runs.checkpoints.load_one

    def old(*arguments):
        checkpoint = load(*arguments)
        checkpoint.tensors.pop("checksums", None)
        return checkpoint

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rvi_fast.training.runs.checkpoints, "load_one", old)
        with pytest.warns(CheckpointWarning, match="has no checksums of .* is not noticed"):
            assert not differs(*resumed(folder), *expected)
    assert (folder / "tables" / checksums.NAME).is_file()


# each failing sync, rename, write


def failures():
    """What the disk may refuse, as (module, name)."""
    calls = [(os, name) for name in ("fsync", "replace", "rename", "posix_fallocate", "mkdir")]
    return [*calls, (pages, "call"), (checksums, "sync_directory")]


class Disk:
    """Fails the call of this number, and counts them."""

    def __init__(self, patch, number):
        self.count, self.number = 0, number
        for module, name in failures():
            patch.setattr(module, name, self._counting(getattr(module, name)))

    def _counting(self, function):
        def call(*arguments, **options):
            asked = function is not STORAGE_CALL or arguments[0] == "msync"
            self.count += asked
            if asked and self.count == self.number:
                if function is STORAGE_CALL:
                    return errno.EIO
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return function(*arguments, **options)

        return call


STORAGE_CALL = pages.call


@pytest.mark.filterwarnings("ignore::rvi_fast.training.CheckpointWarning")
def test_no_failing_call_of_the_disk_leads_to_other_bits(tmp_path, unplugged):
    expected, options = make(), {"epochs": 2, "block_rows": 21}
    expected = expected, run(expected, **options)
    number, outcomes = 0, {"went on": 0, "resumed": 0, "refused": 0}
    while True:
        number += 1
        folder = tmp_path / f"{number}"
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, number)
            try:
                assert not differs(*resumed(folder, **options), *expected), number
                outcomes["went on"] += 1
            except (OSError, CheckpointError, MemoryError):
                pass
        if disk.count < number:
            break
        try:
            assert not differs(*resumed(folder, **options), *expected), number
            outcomes["resumed"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
        shutil.rmtree(folder, ignore_errors=True)
    assert number > 100
    assert outcomes["refused"] < number / 10, outcomes


# what is meant


def test_a_file_says_that_nothing_writes_and_is_there_only_then(tmp_path, strict):
    seen = []
    model = make(tmp_path)
    assert (tmp_path / checksums.NAME).is_file()
    run(model, callbacks=[lambda *_: seen.append((tmp_path / checksums.NAME).exists())])
    assert not any(seen)
    assert (tmp_path / checksums.NAME).is_file()
    model.posterior.mean()
    impute(make(tmp_path), X)


def test_tables_that_were_being_written_to_are_opened_with_a_warning(tmp_path):
    model = make(tmp_path)
    optimizer = RowAdam(model.posterior, lr=0.1)
    model.posterior(torch.arange(5)).kl.sum().backward()
    optimizer.step()
    with pytest.warns(CheckpointWarning, match=r"has no checksums\.json"):
        make(tmp_path).posterior.mean()
    optimizer.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        assert torch.equal(make(tmp_path).posterior.mean(), model.posterior.mean())


def test_what_this_process_writes_to_the_rows_itself_is_taken_as_meant(tmp_path, strict):
    model = make(tmp_path)
    with torch.no_grad():
        model.posterior.rows[33] = 0.5
    assert model.posterior.rows[33, 0] == 0.5
    model.posterior.mean()
    plain = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(2):
        plain.zero_grad()
        model.posterior(torch.arange(N)).kl.sum().backward()
        plain.step()
    model.load_state_dict(model.state_dict())
    model.posterior.reset_parameters()
    run(model)
    make(tmp_path).posterior.mean()


def test_two_objects_of_one_directory_see_what_the_other_has_sealed(tmp_path, strict):
    first, second = make(tmp_path), make(tmp_path)
    second.posterior.mean()
    run(first)
    assert torch.equal(first.posterior.std(), second.posterior.std())


def test_a_program_that_ends_after_writing_to_rows_leaves_no_wrong_checksums(tmp_path):
    make(tmp_path)
    program = (
        "import torch, rvi_fast\n"
        f"posterior = rvi_fast.RelayPosterior({N}, 3, groups=(3, 5), storage={str(tmp_path)!r})\n"
        "with torch.no_grad(): posterior.rows[33] = 0.5\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ})
    with pytest.warns(CheckpointWarning, match=r"has no checksums\.json"):
        RelayPosterior(N, 3, groups=(3, 5), storage=tmp_path).mean()


def test_tables_of_0_1_0_get_their_checksums_in_the_next_fit(tmp_path):
    rows = make(tmp_path).posterior.rows.clone()
    tables = unsealed((tmp_path / "tables.json").read_bytes())
    (tmp_path / "tables.json").write_text(json.dumps(tables))
    (tmp_path / checksums.NAME).unlink()
    model = make(tmp_path)
    assert torch.equal(model.posterior.rows, rows)
    with pytest.warns(CheckpointWarning, match=r"damage up to now is not noticed"):
        run(model)
    flip(tmp_path / "rows.bin", 100)
    with pytest.raises(CheckpointError, match=r"rows\.bin"):
        make(tmp_path).posterior.mean()


def test_a_table_that_is_gone_is_not_replaced_by_zeros(tmp_path):
    make(tmp_path)
    (tmp_path / "rows.bin").unlink()
    with pytest.raises(CheckpointError, match=r"rows\.bin: is missing"):
        make(tmp_path)
