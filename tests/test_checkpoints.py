"""A run directory survives kills, full disks, flipped bits and hostile manifests."""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from helpers import files_up_to

from rvi_fast.training.runs.checkpoints import (
    CheckpointError,
    CheckpointWarning,
    latest_epoch,
    load_checkpoint,
    save_checkpoint,
)
from rvi_fast.training.runs.directory import RunDirectory, RunDirectoryInUse
from rvi_fast.training.runs.metrics import append_metrics, read_metrics, rewrite_metrics

FILES = ("model.safetensors", "optimizer.safetensors", "random.safetensors", "manifest.json")
FLOATS = ("float64", "float32", "float16", "bfloat16", "complex64", "float8_e4m3fn", "float8_e5m2")
FLOATS += ("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
INTEGERS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")


def save(run_dir, epoch, size=50, **options):
    tensors = {
        "model": {"rows": torch.full((size, 4), float(epoch)), "empty": torch.zeros(0, 64)},
        "optimizer": {"step": torch.tensor(epoch)},
        "random": {"state": torch.full((16,), epoch % 256, dtype=torch.uint8)},
    }
    return save_checkpoint(run_dir, epoch, tensors, {"loss": epoch / 7}, **options)


def assert_whole(checkpoint):
    """Every tensor and the metadata are of the epoch that the checkpoint claims."""
    epoch, tensors = checkpoint.epoch, checkpoint.tensors
    assert set(tensors) == {"model", "optimizer", "random"}
    assert (tensors["model"]["rows"] == epoch).all()
    assert tensors["model"]["empty"].shape == (0, 64)
    assert tensors["optimizer"]["step"].item() == epoch
    assert (tensors["random"]["state"] == epoch % 256).all()
    assert checkpoint.metadata == {"loss": epoch / 7}


def names(run_dir):
    return sorted(os.listdir(run_dir / "checkpoints"))


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def reseal(path, content):
    """Writes a manifest whose own SHA-256 is right, as an attacker would."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    body = b'",' + text[1:]
    path.write_bytes(b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + body)


def manifest_of(path):
    content = json.loads((path / "manifest.json").read_bytes())
    del content["sha256"]
    return content


@pytest.fixture
def two(tmp_path):
    """A run directory with the checkpoints of epochs 1 and 2, and the path of the newer."""
    save(tmp_path, 1)
    return tmp_path, save(tmp_path, 2)


@pytest.fixture
def fork():
    """Runs a function in a forked process, which then sleeps until it is killed."""
    children = []

    def start(function):
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # the threads of the parent are not there to be waited for
            try:
                os.write(writable, str(function()).encode() + b"\n")
                time.sleep(60)
            except BaseException as error:
                os.write(writable, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(0)
        children.append(child)
        os.close(writable)
        return child, os.fdopen(readable)

    yield start
    for child in children:
        kill(child)


def kill(child):
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # the test has done it


# what is saved is what is loaded


def test_every_dtype_shape_and_stride_comes_back_bit_for_bit(tmp_path):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (7, 64), dtype=torch.uint8, generator=generator)
    saved = {name: noise.view(getattr(torch, name)) for name in FLOATS + INTEGERS}
    table = torch.randn(6, 5, generator=generator)
    saved |= {
        "bool": noise > 100,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 64, dtype=torch.float16),
        "transposed": table.t(),
        "sliced": table[1::2, ::3],
        "expanded": torch.arange(3).expand(4, 3),
        "tied": table,
        "conjugate": torch.complex(table, table).conj(),
        "parameter": torch.nn.Parameter(table * 2),
        "Ω weird/../name": table[0],
    }
    save_checkpoint(tmp_path, 3, {"model": saved, "optimizer": {}}, {})
    loaded = load_checkpoint(tmp_path).tensors
    assert loaded["optimizer"] == {}
    assert loaded["model"].keys() == saved.keys()
    for name, tensor in loaded["model"].items():
        expected = saved[name].detach().resolve_conj()
        assert tensor.dtype == expected.dtype, name
        assert tensor.shape == expected.shape, name
        assert raw(tensor) == raw(expected), name
        assert tensor.data_ptr() % tensor.element_size() == 0, name


def test_files_are_ordinary_safetensors_and_json(two):
    _, path = two
    assert sorted(os.listdir(path)) == sorted(FILES)
    from safetensors.torch import load

    assert (load((path / "model.safetensors").read_bytes())["rows"] == 2).all()
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["epoch"] == 2
    assert manifest["files"]["model"]["size"] == (path / "model.safetensors").stat().st_size
    digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["files"]["model"]["sha256"] == digest


def test_metadata_comes_back_non_finite_floats_included(tmp_path):
    metadata = {"best": float("inf"), "groups": [25, 50], "name": "é\ud800\n", "none": None}
    save_checkpoint(tmp_path, 0, {}, metadata)
    assert load_checkpoint(tmp_path).metadata == metadata


def test_writing_to_loaded_tensors_changes_no_file_and_removal_no_tensor(two):
    run_dir, path = two
    rows = load_checkpoint(run_dir).tensors["model"]["rows"]
    rows.add_(1)
    assert_whole(load_checkpoint(run_dir))
    shutil.rmtree(path)
    assert (rows == 3).all()


def test_several_blocks_are_hashed_and_loaded(tmp_path):
    save(tmp_path, 5, size=300_000)  # 4.8 MB
    assert_whole(load_checkpoint(tmp_path))


def test_only_the_newest_are_kept_and_later_epochs_are_left_alone(tmp_path):
    for epoch in (1, 2, 9, 3, 4):
        save(tmp_path, epoch, keep=2)
    assert names(tmp_path) == ["epoch-000003", "epoch-000004", "epoch-000009"]
    save(tmp_path, 10, keep=1)
    assert names(tmp_path) == ["epoch-000010"]


def test_a_million_epochs_sort_as_numbers(tmp_path):
    save(tmp_path, 999_999)
    save(tmp_path, 1_000_000)
    assert latest_epoch(tmp_path) == 1_000_000
    assert_whole(load_checkpoint(tmp_path))


def test_latest_epoch_reads_names_only(two, tmp_path):
    run_dir, path = two
    (path / "manifest.json").unlink()
    (run_dir / "checkpoints" / ".writing-epoch-000007").mkdir()
    (run_dir / "checkpoints" / "epoch-7").mkdir()
    assert latest_epoch(run_dir) == 2
    assert latest_epoch(run_dir / "nowhere") is None


def test_an_existing_epoch_is_replaced(two):
    run_dir, path = two
    save_checkpoint(run_dir, 2, {"model": {"rows": torch.ones(3)}}, {"second": True})
    assert load_checkpoint(run_dir).metadata == {"second": True}
    assert names(run_dir) == ["epoch-000001", "epoch-000002"]
    assert sorted(os.listdir(path)) == ["manifest.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((-1, {}, {}), ValueError, "epoch"),
        ((1.0, {}, {}), ValueError, "epoch"),
        ((1, {"../model": {}}, {}), ValueError, "'../model'"),
        ((1, {"model": {"__metadata__": torch.ones(1)}}, {}), ValueError, "__metadata__"),
        ((1, {"model": {"a": [1.0]}}, {}), TypeError, "list"),
        ((1, {"model": {"a": torch.eye(2).to_sparse()}}, {}), TypeError, "sparse"),
        ((1, {"model": {"a": torch.ones(1, dtype=torch.complex128)}}, {}), TypeError, "complex128"),
        ((1, {"model": {}}, {"loss": torch.ones(1)}), TypeError, "Tensor"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(
    tmp_path, arguments, error, words
):
    with pytest.raises(error, match=re.escape(words)):
        save_checkpoint(tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


# damage


def assert_falls_back(run_dir, file, match=""):
    with pytest.warns(CheckpointWarning, match=re.escape(str(file)) + ".*" + match):
        checkpoint = load_checkpoint(run_dir)
    assert checkpoint.epoch == 1
    assert_whole(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_falls_back_to_the_checkpoint_before(two, name):
    run_dir, path = two
    good = (path / name).read_bytes()
    chance = random.Random(name)
    for position in {0, 1, 7, 8, 9, len(good) - 1, *chance.sample(range(len(good)), 40)}:
        bad = bytearray(good)
        bad[position] ^= 1 << chance.randrange(8)
        (path / name).write_bytes(bad)
        assert_falls_back(run_dir, path / name)
    (path / name).write_bytes(good)
    assert_whole(load_checkpoint(run_dir))


@pytest.mark.parametrize("name", FILES)
def test_truncation_growth_and_absence_fall_back(two, name):
    run_dir, path = two
    good = (path / name).read_bytes()
    for bad in (b"", good[:1], good[: len(good) // 2], good[:-1], good + b"\n"):
        (path / name).write_bytes(bad)
        reason = "SHA-256" if name == "manifest.json" else f"{len(bad)} bytes"
        assert_falls_back(run_dir, path / name, reason)
    (path / name).unlink()
    assert_falls_back(run_dir, path / name, "missing")
    os.mkfifo(path / name)  # opening a pipe would wait for ever
    assert_falls_back(run_dir, path / name, "missing")


def test_every_bad_file_is_named_when_none_is_good(two):
    run_dir, path = two
    (path / "random.safetensors").unlink()
    (path.with_name("epoch-000001") / "manifest.json").write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(run_dir)
    assert str(path / "random.safetensors") in str(caught.value)
    assert str(path.with_name("epoch-000001") / "manifest.json") in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("make", [lambda _: None, Path.mkdir])
def test_no_checkpoint_at_all_is_said_with_the_directory(tmp_path, make):
    make(tmp_path / "run")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / "run"))):
        load_checkpoint(tmp_path / "run")


def test_mutated_manifests_give_a_fallback_and_nothing_else(two):
    run_dir, path = two
    content = json.dumps(manifest_of(path)).encode()
    chance = random.Random(1)
    tokens = [
        b"null",
        b"-1",
        b"1e999",
        b"NaN",
        b"[]",
        b"{}",
        b'""',
        b'"../x"',
        b"[" * 5000,
        b"\xff",
    ]
    tokens += [b"9" * 5000, b"true", b",", b":", b'"', b"}", b"\\u0000", b"2"]
    fell_back = 0
    for _ in range(300):
        start = chance.randrange(1, len(content))
        stop = min(len(content), start + chance.choice([0, 1, 1, 2, 10, 60]))
        bad = content[:start] + chance.choice(tokens) + content[stop:]
        reseal(path / "manifest.json", bad)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checkpoint = load_checkpoint(run_dir)
        # a sealed change of the metadata or the version cannot be told from the truth
        assert checkpoint.epoch == 2 - len(caught)
        assert {warning.category for warning in caught} <= {CheckpointWarning}
        fell_back += len(caught)
    assert 150 < fell_back < 300


HOSTILE = {
    "list": lambda m: m | {"files": list(m["files"])},
    "no files": lambda m: {key: m[key] for key in m if key != "files"},
    "other epoch": lambda m: m | {"epoch": 3},
    "text epoch": lambda m: m | {"epoch": "2"},
    "newer format": lambda m: m | {"format": 3},
    "parts not said": lambda m: m | {"format": 2},
    "metadata": lambda m: m | {"metadata": "x"},
    "entry": lambda m: m | {"files": {"model": 7}},
    "size": lambda m: m | {"files": {"model": m["files"]["model"] | {"size": "8"}}},
    "absent": lambda m: m | {"files": {"other": m["files"]["model"]}},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_sealed_manifest_of_the_wrong_shape_falls_back(two, change):
    run_dir, path = two
    reseal(path / "manifest.json", change(manifest_of(path)))
    assert_falls_back(run_dir, path)


@pytest.mark.parametrize("stem", ["../x", "../epoch-000001/model", "/x", "a/b", "", "model\0"])
def test_a_manifest_never_leads_outside_its_directory(two, stem):
    run_dir, path = two
    manifest = manifest_of(path)
    manifest["files"][stem] = manifest["files"]["model"]
    # the file is there and matches: only its place is wrong
    shutil.copy(path / "model.safetensors", run_dir / "checkpoints" / "x.safetensors")
    reseal(path / "manifest.json", manifest)
    assert_falls_back(run_dir, path / "manifest.json", "outside")


def test_a_file_with_the_right_hash_and_the_wrong_format_falls_back(two):
    run_dir, path = two
    for content in (b"", b"\x80\x04N.", b"\x08" + bytes(7) + b'{"a": 1}', b"\xff" * 64):
        (path / "model.safetensors").write_bytes(content)
        manifest = manifest_of(path)
        entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        reseal(path / "manifest.json", manifest | {"files": {"model": entry}})
        assert_falls_back(run_dir, path / "model.safetensors", "cannot be read")


def test_a_wrong_device_is_not_taken_for_damage(two):
    with pytest.raises(RuntimeError, match="toaster"):
        load_checkpoint(two[0], device="toaster")


# kills and full disks


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, fork):
    chance = random.Random(0)
    save(tmp_path, 1)
    left_over = 0

    def save_for_ever():
        for epoch in range(latest_epoch(tmp_path) + 1, 10**6):
            save(tmp_path, epoch, size=20_000)

    before = 1
    for _ in range(10):
        child, _ = fork(save_for_ever)
        time.sleep(chance.uniform(0.02, 0.3))
        kill(child)
        left_over += any(name.startswith(".") for name in names(tmp_path))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # not even a fallback is needed
            checkpoint = load_checkpoint(tmp_path)
        assert_whole(checkpoint)
        assert checkpoint.epoch == latest_epoch(tmp_path) >= before
        before = checkpoint.epoch
    assert before > 1
    assert left_over
    save(tmp_path, before + 1)
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_kill_between_any_two_system_calls_leaves_the_old_or_the_new(tmp_path, fork, epoch):
    """Audit events stand for all calls (open, mkdir, rename, ..., also in rmtree) but fsync."""

    def save_until(count):
        def die(event, arguments):
            nonlocal count
            if event.partition(".")[0] in ("open", "os", "shutil"):
                count -= 1
                if count < 0:
                    os._exit(9)

        sys.addaudithook(die)
        sync = os.fsync
        os.fsync = lambda descriptor: (die("os.fsync", ()), sync(descriptor))
        save_checkpoint(run_dir, epoch, {"model": {"rows": torch.ones(9)}}, {"new": True})
        return "done"

    seen = []
    for count in range(200):
        run_dir = tmp_path / str(count)
        save(run_dir, 1)
        save(run_dir, 2)
        child, output = fork(lambda count=count: save_until(count))
        finished = output.readline() == "done\n"
        kill(child)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            checkpoint = load_checkpoint(run_dir)
        new = checkpoint.metadata == {"new": True}
        if not new:
            assert checkpoint.epoch == 2
            assert_whole(checkpoint)
        seen.append(new)
        for path in (run_dir / "checkpoints").glob("epoch-*"):
            assert {f"{stem}.safetensors" for stem in manifest_of(path)["files"]} < {
                *os.listdir(path)
            }
        save(run_dir, epoch)
        assert_whole(load_checkpoint(run_dir))
        assert names(run_dir) == [f"epoch-{epoch - 1:06d}", f"epoch-{epoch:06d}"]
        if finished:
            break
    assert finished
    assert seen == sorted(seen)  # old up to one call, new from there on
    assert 8 < sum(not new for new in seen) < len(seen) - 8


def assert_untouched(run_dir):
    assert names(run_dir) == ["epoch-000001", "epoch-000002"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_whole(load_checkpoint(run_dir))


def test_a_file_that_may_not_grow_leaves_the_checkpoint_before(two):
    run_dir, _ = two
    with files_up_to(1 << 16), pytest.raises(OSError, match=r"model\.safetensors") as caught:
        save(run_dir, 3, size=100_000)
    assert caught.value.errno == errno.EFBIG
    assert_untouched(run_dir)


def test_a_full_disk_is_named_by_the_lock_and_the_metrics_and_leaves_both_usable(tmp_path):
    append_metrics(tmp_path, {"epoch": 1})
    with files_up_to(16), pytest.raises(OSError, match=re.escape(str(tmp_path / "metrics.jsonl"))):
        append_metrics(tmp_path, {"epoch": 2})
    with files_up_to(0), pytest.raises(OSError, match=re.escape(str(tmp_path / ".lock"))):
        RunDirectory(tmp_path).__enter__()
    with RunDirectory(tmp_path):
        append_metrics(tmp_path, {"epoch": 3})
    assert read_metrics(tmp_path) == [{"epoch": 1}, {"epoch": 3}]


def test_a_disk_that_fills_at_any_sync_leaves_a_whole_checkpoint(two, monkeypatch):
    run_dir, _ = two
    sync = os.fsync

    def full(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    # three files, the manifest, their directory: none has its name yet
    for syncs in range(5):
        left = syncs
        with pytest.raises(OSError, match=r"No space left on device: '.*writing-epoch") as caught:
            save(run_dir, 3)
        assert caught.value.errno == errno.ENOSPC
        assert_untouched(run_dir)
    for syncs in (5, 6):
        left = syncs
        with pytest.raises(OSError, match=f"No space left on device: '{run_dir}"):
            save(run_dir, 3)
        assert load_checkpoint(run_dir).epoch == 3


def test_an_interrupt_while_writing_leaves_nothing_behind(two, monkeypatch):
    run_dir, _ = two

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(run_dir, 3)
    assert_untouched(run_dir)


def test_left_over_directories_go_at_the_next_save(two):
    run_dir, path = two
    for name in (".writing-epoch-000002", ".deleting-epoch-000001", "epoch-000002.replaced"):
        shutil.copytree(path, run_dir / "checkpoints" / name)
    save(run_dir, 3)
    assert names(run_dir) == ["epoch-000002", "epoch-000003"]


def test_an_old_checkpoint_that_cannot_be_removed_only_warns(two, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(errno.EACCES, "held open", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.warns(CheckpointWarning, match="epoch-000001 could not be removed"):
        save(two[0], 3)
    assert_whole(load_checkpoint(two[0]))
    assert latest_epoch(two[0]) == 3


# one process at a time


def test_a_second_process_is_refused_at_once_and_told_who_holds(tmp_path, fork):
    run_dir = tmp_path / "deep" / "run"

    def enter():
        start = time.monotonic()
        try:
            with RunDirectory(run_dir):
                return "entered"
        except RunDirectoryInUse as error:
            return f"{time.monotonic() - start:.3f} {error}"

    with RunDirectory(run_dir) as held:
        _, output = fork(enter)
        seconds, _, message = output.readline().partition(" ")
        assert float(seconds) < 1
        assert str(run_dir) in message
        assert f"pid {os.getpid()} on {os.uname().nodename} since 20" in message
        save(held, 1)
        append_metrics(held, {"epoch": 1})
    assert (run_dir / ".lock").read_text() == ""
    _, output = fork(enter)
    assert output.readline() == "entered\n"


def test_a_second_holder_in_the_same_process_is_refused(tmp_path):
    with RunDirectory(tmp_path) as held:
        for other in (held, RunDirectory(str(tmp_path))):
            with pytest.raises(RunDirectoryInUse, match=f"pid {os.getpid()} "):
                other.__enter__()
    with held, pytest.raises(RunDirectoryInUse), RunDirectory(tmp_path):
        pass


def test_a_killed_holder_frees_the_run_directory(tmp_path, fork):
    child, output = fork(lambda: RunDirectory(tmp_path).__enter__())
    assert "RunDirectory" in output.readline()
    with pytest.raises(RunDirectoryInUse, match=f"pid {child} "), RunDirectory(tmp_path):
        pass
    kill(child)
    with RunDirectory(tmp_path), pytest.raises(RunDirectoryInUse, match=f"pid {os.getpid()} "):
        RunDirectory(tmp_path).__enter__()


def test_a_forked_child_neither_keeps_nor_frees_the_run_directory(tmp_path, fork):
    def leave(held):
        held.__exit__(None, None, None)
        return "left"

    with RunDirectory(tmp_path) as held:
        _, output = fork(lambda: leave(held))
        assert output.readline() == "left\n"
        with pytest.raises(RunDirectoryInUse, match=f"pid {os.getpid()} "):
            RunDirectory(tmp_path).__enter__()
    # the child is alive, and had a copy of the descriptor
    with RunDirectory(tmp_path):
        pass


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_run_directory_that_is_a_file_is_refused_in_words(tmp_path, below):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(ValueError, match="must be a directory"),
        RunDirectory(tmp_path / "file" / below),
    ):
        pass


# metrics


def test_metrics_are_strict_json_one_line_each(tmp_path):
    inf, nan = float("inf"), float("nan")
    append_metrics(tmp_path, {"epoch": 1, "loss": nan, "parts": [1.5, (inf, -inf)]})
    append_metrics(tmp_path, {"epoch": 2, "nested": {"kl": inf}})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.count("\n") == 2
    assert read_metrics(tmp_path) == [
        {"epoch": 1, "loss": None, "parts": [1.5, [None, None]]},
        {"epoch": 2, "nested": {"kl": None}},
    ]
    assert read_metrics(tmp_path / "nowhere") == []


def test_a_torn_last_line_is_ignored_and_does_not_stick_to_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(tmp_path, {"epoch": 1})
    append_metrics(tmp_path, {"epoch": 2, "loss": 0.25})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        before = read_metrics(tmp_path)
        # only the newline is missing: nothing is lost
        assert len(before) == (size >= first - 1) + (size == len(whole) - 1)
        append_metrics(tmp_path, {"epoch": 3})
        assert read_metrics(tmp_path) == [*before, {"epoch": 3}]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"3", b"\xff", b"", b"\x00\x00", b"[" * 100_000])
def test_a_bad_line_is_named_with_its_number(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"epoch": 1}\n' + line + b'\n{"epoch": 3}\n')
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: line 2")):
        read_metrics(tmp_path)


def test_metrics_are_rewritten_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    for epoch in range(5):
        append_metrics(tmp_path, {"epoch": epoch})
    rewrite_metrics(tmp_path, (row for row in read_metrics(tmp_path) if row["epoch"] <= 2))
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 1, 2]

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="metrics"):
        rewrite_metrics(tmp_path, [])
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
