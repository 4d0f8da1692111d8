"""bench/scale.py: its bytes are those of real runs, its terms follow their constants."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import rvi_fast

BENCH = Path(__file__).parents[1] / "bench"
SHAPE = {"latent_dim": 4, "groups": (3, 5), "hidden": (7,)}


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import scale

    return scale


@pytest.fixture
def machine(scale):
    """Round numbers, two whole cores."""
    return scale.Hardware(
        step=1e-3,
        row_byte=1e-9,
        flop=1e-11,
        parameter=1e-9,
        epoch_byte=1e-10,
        order_row=1e-8,
        read=1e-5,
        read_byte=1e-9,
        move_in=1e-9,
        move_out=2e-9,
        bus_byte=0.0,
        journal_byte=1e-9,
        save_byte=1e-9,
        disk_read=1e9,
        disk_write=5e8,
        cached=1e9,
        dirty=1e8,
        cores=2,
        base=3e8,
        exchange={2: (1e-4, 1e-9), 4: (2e-4, 1e-9)},
    )


def test_bytes_of_files_are_those_of_a_run(scale, machine, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (500, 6), np.uint8)
    model = rvi_fast.models.rvi(*x.shape, **SHAPE, storage=str(tmp_path / "tables"))
    rvi_fast.fit(model, x, epochs=1, batch_size=64, progress=False, eval_every=0)
    written = sum(path.stat().st_size for path in (tmp_path / "tables").glob("*.bin"))
    found = scale.predict(500, 6, machine, **SHAPE, batch_size=64, storage="tables")
    assert found.disk == written > 0
    assert scale.predict(500, 6, machine, **SHAPE, batch_size=64).disk == 0


def test_bytes_of_an_exchange_are_those_of_shared_gradients(scale, machine):
    model = rvi_fast.models.rvi(500, 6, **SHAPE)
    shared = [p for name, p in model.named_parameters() if name != "posterior.rows"]
    size = sum(p.numel() * p.element_size() for p in shared)
    assert scale.predict(500, 6, machine, **SHAPE).network == 0
    assert scale.predict(500, 6, machine, **SHAPE, processes=2).network == size
    assert scale.predict(500, 6, machine, **SHAPE, processes=4).network == 1.5 * size


def test_memory_is_the_estimate_and_what_a_process_is_without_it(scale, machine):
    for storage in ("device", "tables"):
        needed = rvi_fast.estimate_memory(
            250_000, 784, storage=storage, data_dtype=torch.uint8, data_in_memory=False
        )
        found = scale.predict(500_000, 784, machine, processes=2, storage=storage)
        rows = 250_000
        if storage == "tables":  # those of the blocks at work
            rows = needed.resident / ((needed.tables + needed.moments) / 250_000)
        # pages of the data, and the order of the other process's rows
        assert found.memory == pytest.approx(needed.device + machine.base + (784 + 8) * rows)


@pytest.mark.parametrize(
    ("constant", "term"),
    [
        ("step", "fixed"),
        ("row_byte", "rows"),
        ("flop", "decoder"),
        ("parameter", "shared"),
        ("read_byte", "read"),
    ],
)
def test_a_part_that_takes_half_halves_its_term_alone(scale, machine, constant, term):
    machine = dataclasses.replace(machine, read=0.0)
    half = dataclasses.replace(machine, **{constant: getattr(machine, constant) / 2})
    before, after = (scale.predict(10**6, 784, each).terms for each in (machine, half))
    parts = ("fixed", "rows", "decoder", "shared", "read")
    for name in parts:
        assert after[name] == pytest.approx(before[name] * (0.5 if name == term else 1.0))
        assert before[name] > 0


def test_the_parts_behind_each_other_add_up_to_a_step(scale, machine):
    for options in ({}, {"processes": 2}, {"storage": "tables"}, {"batch_size": 4096}):
        found = scale.predict(10**6, 784, machine, **options)
        behind = sum(found.terms[n] for n in ("work", "wait", "exchange", "epoch end"))
        assert found.milliseconds == pytest.approx(behind)
        steps = -(-(10**6) // options.get("batch_size", 256))
        assert found.epoch == pytest.approx(found.milliseconds / 1e3 * steps)


def test_twice_the_disk_halves_what_a_step_waits_for_at_any_size_that_is_not_cached(scale, machine):
    quick = dataclasses.replace(machine, step=0.0, row_byte=0.0, flop=0.0, parameter=0.0)
    quick = dataclasses.replace(quick, read=0.0, read_byte=0.0, move_in=0.0, move_out=0.0)
    twice = dataclasses.replace(quick, disk_read=2e9, disk_write=1e9)
    one, two = (
        scale.predict(10**7, 784, each, storage="tables").terms["wait"] for each in (quick, twice)
    )
    # 3,700 bytes of each of 256 rows, read and written
    assert one == pytest.approx(1e3 * 256 * 3700 * (1 / 1e9 + 1 / 5e8), rel=1e-3)
    assert two == pytest.approx(one / 2)
    small = scale.predict(10**4, 784, quick, storage="tables")
    assert small.terms["wait"] == 0


def test_two_threads_of_one_core_take_turns_and_two_cores_do_not(scale, machine):
    shared = dataclasses.replace(machine, capacity={2: 1.0})
    assert scale.at_once(3.0, 1.0, 1, machine) == 3.0
    assert scale.at_once(3.0, 1.0, 1, shared) == 4.0
    # two pairs of threads on two cores, and four
    assert scale.at_once(3.0, 1.0, 2, machine) == 4.0
    assert scale.at_once(3.0, 1.0, 4, machine) == 8.0


def test_an_exchange_takes_its_least_and_what_its_bytes_add(scale, machine):
    model = rvi_fast.models.rvi(500, 6, **SHAPE)
    shared = [p for name, p in model.named_parameters() if name != "posterior.rows"]
    size = sum(p.numel() * p.element_size() for p in shared)
    found = scale.predict(500, 6, machine, **SHAPE, processes=2).terms["exchange"]
    # and the losses of 64 steps in one more
    assert found == pytest.approx(65 / 64 * 1e3 * (1e-4 + 1e-9 * size))
    assert scale.predict(500, 6, machine, **SHAPE).terms["exchange"] == 0


def test_the_largest_share_is_that_of_rows_drawn_for_batches(scale, machine):
    owners = np.random.default_rng(0).multinomial(256, [1 / 2] * 2, 20_000)
    found = scale._share(256, 2, machine)
    assert found == pytest.approx(owners.max(1).mean(), rel=2e-3)
    many = dataclasses.replace(machine, cores=8)
    for processes in (4, 8):
        owners = np.random.default_rng(0).multinomial(256, [1 / processes] * processes, 20_000)
        found = scale._share(256, processes, many)
        assert found == pytest.approx(owners.max(1).mean(), rel=2e-2)
    # cores that four processes share go to whoever has work left
    assert scale._share(256, 4, machine) == 64


def test_a_gpu_takes_what_was_measured_and_refuses_what_has_no_room(scale):
    import scale_plan

    # bench/results/NOTES.md, microseconds
    for batch, low, high in ((256, 50, 70), (4096, 150, 200), (65_536, 2200, 2400)):
        found = scale.predict(10**7, 784, scale_plan.H100, batch_size=batch, mapped=False)
        assert low <= 1e3 * found.terms["work"] <= high
    assert not scale_plan.plan(10**8, 1, "device").fits
    assert scale_plan.plan(10**8, 8, "device").fits
    assert scale_plan.plan(10**9, 1, "tables").fits
    times = [scale_plan.plan(10**8, size, "tables").epoch for size in (1, 8, 64)]
    assert times == sorted(times, reverse=True)


def test_what_was_measured_is_read_back(scale, machine, tmp_path):
    path = tmp_path / "scale.json"
    path.write_text(json.dumps({"hardware": dataclasses.asdict(machine)}))
    found = scale.Hardware.load(path)
    assert scale.predict(10**6, 784, found, processes=2) == scale.predict(
        10**6, 784, machine, processes=2
    )


def test_the_page_shows_the_table_that_plan_prints(scale, capsys):
    scale.main(["plan"])
    page = (BENCH.parent / "docs/scale.md").read_text(encoding="utf-8")
    assert f"```text\n{capsys.readouterr().out}```" in page


def test_steps_with_and_without_a_sum_tell_what_it_adds(scale):
    import scale_measured

    # at least a millisecond, two nanoseconds a byte; a third disturbed
    sums = {
        f"{size} {share}": [1e-3 + 2e-9 * size] * 2 + [0.5]
        for size in (100_000, 500_000)
        for share in (32, 192)
    }
    found = {"alone": [1e-3, 2e-3, 1e-3], "all": [1.25e-3, 2.5e-3, 1e-1], "sums": sums}
    capacity, exchange = scale_measured.of_processes(found, 2)
    assert capacity == pytest.approx(1.6)
    assert exchange == pytest.approx((1e-3, 2e-9))


def test_parts_are_measured_at_other_sizes_than_runs_that_are_checked(scale):
    import scale_checked
    import scale_measured

    assert scale_measured.D not in scale_measured.FEATURES
    shares = {scale_checked.BATCH // processes for processes, _ in scale_checked.RUNS}
    assert not shares & {*scale_measured.SHARES}
    assert scale_checked.BATCH not in scale_measured.BATCHES
    checked = {*scale_checked.SIZES, *scale_checked.LARGE}
    assert not checked & {scale_measured.ROWS, scale_measured.ROWS // 5}


def test_disturbances_of_seconds_do_not_count_and_ends_of_epochs_do(scale):
    import scale_checked

    steps = 2 * scale_checked.PIECE + 1
    gaps = np.full((4, steps), 1e-3)
    gaps[0] = 5e-3  # the first epoch
    gaps[:, 0] = 0.2  # ends of epochs
    gaps[2, steps // 2 :] = 2e-3
    found = scale_checked.seconds_of(list(gaps.cumsum()), steps)
    assert found == pytest.approx((0.2 + (steps - 1) * 1e-3) / steps)


def test_what_is_predicted_from_is_measured_on_tables_of_any_size(scale, tmp_path, monkeypatch):
    import scale_measured

    monkeypatch.setattr(scale_measured, "ROUNDS", 2)
    monkeypatch.setattr(scale_measured, "STEPS", 2)
    found = scale_measured.alone(3000, tmp_path)
    assert {"step 64", "decoder 64", "read 64", "shared", "epoch_byte", "loop"} <= {*found}
    for name, times in found.items():
        assert name == "base" or min(times) > 0, name
