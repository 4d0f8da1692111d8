"""Files that outlive a process: whole or not at all, on disk, and never somewhere else."""

import errno
import multiprocessing
import os
import signal
import stat
import time

import numpy as np
import pytest
import torch
from common import files_up_to

from rvi_fast import RelayPosterior, data, files, infer, models
from rvi_fast.training.runs.journal import Journal

# the name in the package is that of the function
_FORK = multiprocessing.get_context("fork")


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "before")
    with files_up_to(1000), pytest.raises(OSError, match=r"a\.txt") as caught:
        files.write_bytes(path, b"x" * 100_000)
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(ZeroDivisionError), files.replacing(path) as file:
        file.write(b"half" * (1 // len(path.read_text()[6:])))
    assert os.listdir(tmp_path) == ["a.txt"]
    files.write_text(path, "after")
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()


def test_files_that_are_written_together_are_there_all_or_none(tmp_path):
    one, other = tmp_path / "a.txt", tmp_path / "b.txt"
    one.write_text("before")
    with files_up_to(1000), pytest.raises(OSError, match=r"b\.txt"):
        files.write_together({one: b"after", other: b"x" * 100_000})
    assert os.listdir(tmp_path) == ["a.txt"]
    assert one.read_text() == "before"
    files.write_together({one: b"after", other: b"new"})
    assert (one.read_text(), other.read_text()) == ("after", "new")


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("number", [0, 1])
def test_file_and_directory_are_synced_in_this_order(tmp_path, monkeypatch, number):
    """The name may be on disk only when the content is, and the call returns when both are."""
    synced, sync, path = [], os.fsync, tmp_path / "a.txt"

    def look(descriptor):
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((is_directory, path.exists()))
        if len(synced) > number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    with pytest.raises(OSError, match=f"Input/output error: .*{tmp_path.name}"):
        files.write_text(path, "new")
    assert synced == [(False, False), (True, True)][: number + 1]


def hold_partial(path, ready):
    with files.replacing(path) as file:
        file.write(b"half")
        file.flush()
        ready.set()
        time.sleep(60)


def test_what_a_killed_process_has_left_goes_and_what_one_at_work_writes_stays(tmp_path):
    path, ready = tmp_path / "a.txt", _FORK.Event()
    child = _FORK.Process(target=hold_partial, args=(path, ready))
    child.start()
    assert ready.wait(30)
    (tmp_path / ".b.txt.01234567.partial").write_text("that of another file")
    files.write_text(path, "mine")
    at_work = [name for name in os.listdir(tmp_path) if name.startswith(".a.txt.")]
    assert len(at_work) == 1
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    files.write_text(path, "mine")
    assert sorted(os.listdir(tmp_path)) == [".b.txt.01234567.partial", "a.txt"]


WRITERS = {
    "write_text": lambda path: files.write_text(path, "new"),
    "append_line": lambda path: files.append_line(path, {"epoch": 1}),
    "rewrite_lines": lambda path: files.rewrite_lines(path, [{"epoch": 1}]),
}


@pytest.mark.parametrize("link", ["symbolic", "hard"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_link_is_replaced_and_its_victim_untouched(tmp_path, write, link):
    victim, path = tmp_path / "victim", tmp_path / "a.txt"
    victim.write_bytes(b'{"epoch": 0}\n')
    (os.symlink if link == "symbolic" else os.link)(victim, path)
    write(path)
    assert victim.read_bytes() == b'{"epoch": 0}\n'
    assert path.read_bytes() != victim.read_bytes()
    assert not path.is_symlink()


@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "file"])
def test_a_new_file_is_created_and_never_opened(tmp_path, kind):
    path, victim = tmp_path / "a", tmp_path / "victim"
    victim.write_text("kept")
    match kind:
        case "symlink":
            path.symlink_to(victim)
        case "dangling":
            path.symlink_to(tmp_path / "nowhere")
        case "fifo":
            os.mkfifo(path)
        case "file":
            path.write_text("kept")
    with pytest.raises(FileExistsError, match=str(path)), files.durable(path):
        pass
    assert victim.read_text() == "kept"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("kind", ["symlink", "hard", "fifo"])
def test_what_is_not_a_file_of_its_own_is_not_opened_for_writing(tmp_path, kind):
    path, victim = tmp_path / "a", tmp_path / "victim"
    victim.write_text("kept")
    {
        "symlink": lambda: path.symlink_to(victim),
        "hard": lambda: path.hardlink_to(victim),
        "fifo": lambda: os.mkfifo(path),
    }[kind]()
    with pytest.raises(OSError, match="expected a plain file of one name") as caught:
        files.open_own(path, create=True, append=True)
    assert caught.value.filename == str(path)


def test_reading_has_a_bound_and_does_not_wait_for_a_pipe(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert files.read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="at most 4 bytes"):
        files.read_bytes(tmp_path / "a", 4)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="expected a plain file"):
        files.read_bytes(tmp_path / "pipe")


def test_any_byte_of_a_sealed_text_that_changes_is_noticed():
    content = files.sealed({"a": 1.5, "b": [float("inf"), None, "x"]})
    assert files.unsealed(content) == {"a": 1.5, "b": [float("inf"), None, "x"]}
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            with pytest.raises(ValueError, match="does not match its own SHA-256"):
                files.unsealed(bytes(damaged))
        with pytest.raises(ValueError, match="SHA-256"):
            files.unsealed(content[:position])


def test_lines_on_a_file_system_without_locks_are_written(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files, "lock", refuse)
    files.rewrite_lines(tmp_path / "a", [{"epoch": 1}])
    files.append_line(tmp_path / "a", {"epoch": 2, "loss": float("nan")})
    assert files.read_lines(tmp_path / "a") == [{"epoch": 1}, {"epoch": 2, "loss": None}]


def test_a_saved_table_has_its_name_on_disk_when_the_call_returns(tmp_path, monkeypatch):
    synced, sync = [], os.fsync

    def look(descriptor):
        is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((is_directory, (tmp_path / "x.npy").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    data.save_table(tmp_path / "x.npy", np.zeros((2, 2)))
    assert synced == [(False, False), (True, True)]


def test_a_block_of_a_journal_has_its_name_on_disk_before_it_counts_as_kept(tmp_path, monkeypatch):
    journal = Journal(tmp_path, {"rows": torch.zeros(4, 2)}, 2)
    journal.begin("0-start")
    sync = os.fsync

    def refuse_directories(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    with pytest.raises(OSError, match="Input/output error"):
        journal.keep(0)
    assert not journal._open[0][1].any()


def test_a_new_journal_has_its_name_on_disk_before_the_one_before_goes(tmp_path, monkeypatch):
    journal, synced = Journal(tmp_path, {"rows": torch.zeros(4, 2)}, 2), []
    journal.begin("0-start")
    sync = os.fsync

    def look(descriptor):
        assert stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append(sorted(os.listdir(tmp_path)))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    journal.begin("1-later")
    assert synced == [["undo-0-start", "undo-1-later"]]


def test_a_block_is_kept_again_after_each_checkpoint(tmp_path):
    rows = torch.zeros(4, 2)
    journal = Journal(tmp_path, {"rows": rows}, 2)
    for number, token in enumerate(["0-start", "1-later"]):
        journal.begin(token)
        journal.before_write(torch.tensor([1]))
        rows[1] = number + 1
    again = Journal(tmp_path, {"rows": rows}, 2)
    again.go_on_from(tmp_path, "1-later", "0-start")
    again.roll_back()
    assert rows.tolist() == [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(("length", "refused"), [(10_000, False), (10_001, True)])
def test_the_header_of_an_npy_file_has_a_bound(tmp_path, length, refused):
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }"
    header = text + b" " * (length - len(text) - 1) + b"\n"
    path = tmp_path / "x.npy"
    path.write_bytes(
        b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + header + np.ones(2, "<f4").tobytes()
    )
    if refused:
        with pytest.raises(ValueError, match="an npy header of 10001 bytes"):
            data.load_data(path)
    else:
        assert data.load_data(path).train.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(("steps", "means"), [(4, 3), (5, 4), (100, 75), (1, 1), (7, 6)])
def test_three_quarters_of_the_steps_of_infer_decode_the_mean(monkeypatch, steps, means):
    """Steps 0 to ceil(3/4 steps) - 1 pass zeros for the noise, the others none."""
    torch.manual_seed(0)
    model, seen = models.vad(5, 3, latent_dim=2, hidden=()), []
    draw = RelayPosterior.draw

    def look(self, *arguments, noise=None, **options):
        seen.append(noise is not None)
        return draw(self, *arguments, noise=noise, **options)

    monkeypatch.setattr(RelayPosterior, "draw", look)
    infer(model, torch.zeros(4, 3), steps=steps)
    assert seen == [True] * means + [False] * (steps - means)
