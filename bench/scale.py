"""What training costs at sizes that do not fit here: time, memory, disk, network, checkpoints, on paper.

    python bench/scale.py measure          # the constants of this machine, into bench/results/scale.json
    python bench/scale.py check            # trains, and compares with what is predicted from them
    python bench/scale.py check --large    # the same at 5 x 10^6 rows
    python bench/scale.py files            # two million rows in the files of each of two processes
    python bench/scale.py plan             # 10^7 to 10^9 rows on 1, 8 and 64 GPUs

`predict` is all of the arithmetic, apart from bytes of memory, which are `estimate_memory`'s. The
constants of `measure` are those of parts (bytes moved, products, exchanges), never of a whole run.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scale_hardware import RESULTS, Hardware

import rvi_fast
from rvi_fast.layout import RowLayout

# of each weight of the decoder and each row in a step: a product forward, two backward
FLOPS = 6
# steps between two sums of the losses
LOSSES = 64
# what the largest of so many standard normal numbers is on average
LARGEST = {1: 0.0, 2: 0.564, 4: 1.029, 8: 1.424, 64: 2.372}


@dataclass(frozen=True)
class Prediction:
    """Of one training run.

    Attributes:
        milliseconds: of a step, with its share of what an epoch does at its end.
        terms: of what it is made, in milliseconds: those that lie behind each other add up to it.
        memory: bytes of a process at most, on the device that trains.
        disk: bytes of tables and journals, of all processes.
        network: bytes that a process sends in a step.
        checkpoint: seconds.
        epoch: seconds.
        fits: whether the device has room.
    """

    milliseconds: float
    terms: dict[str, float]
    memory: float
    disk: float
    network: float
    checkpoint: float
    epoch: float
    fits: bool


def predict(
    num_data: int,
    num_features: int,
    hardware: Hardware,
    *,
    latent_dim: int = 64,
    groups: Sequence[int] = (25, 50, 100),
    hidden: Sequence[int] = (64, 64),
    batch_size: int = 256,
    processes: int = 1,
    storage: str = "device",
    mapped: bool = True,
    run_dir: bool = False,
) -> Prediction:
    """What training takes.

    Args:
        num_data, num_features: N, D; entries are uint8.
        hardware: of each process.
        latent_dim, groups, hidden, batch_size: as in `models.rvi` and `fit`; the batch is that of all.
        processes: W, each with N / W rows.
        storage: "device", "host" or a directory, as in `models.rvi`.
        mapped: data are read from a file; else they lie where rows are.
        run_dir: tables in files have a journal.
    """
    own_rows = -(-num_data // processes)
    layout = {"latent_dim": latent_dim, "groups": groups, "hidden": hidden}
    needed = rvi_fast.estimate_memory(
        own_rows,
        num_features,
        **layout,
        batch_size=batch_size,
        storage=storage,
        data_dtype=torch.uint8,
        data_in_memory=not mapped,
        run_dir=run_dir,
        device=hardware.device,
    )
    relays = RowLayout.resolve(latent_dim, groups).num_relays * latent_dim
    sizes = Sizes(
        rows=num_data,
        batch=_share(min(batch_size, num_data), processes, hardware),
        steps=-(-num_data // batch_size),
        row=(needed.tables + needed.moments) / own_rows,
        features=num_features,
        parameters=needed.shared // 16,
        decoder=needed.shared // 16 - relays,
        tables=needed.tables + needed.moments,
        window=_window(needed, hardware),
        processes=processes,
    )
    moved = storage != "device" and (storage != "host" or hardware.device != "cpu")
    in_files = storage not in ("device", "host")
    terms = _terms(sizes, hardware, moved, in_files, mapped, run_dir)
    network = 2 * (processes - 1) / processes * 4 * sizes.parameters
    seconds = sum(terms[name] for name in ("work", "wait", "exchange", "epoch end"))
    held = own_rows if not needed.resident else min(own_rows, needed.resident / sizes.row)
    # each process knows the order of all, and has pages of mapped data
    memory = needed.device + hardware.base + 8 * held * (processes - 1)
    memory += num_features * held if mapped and hardware.device == "cpu" else 0
    if in_files:  # the rows are there already, what is not on disk yet gets there
        saved = min(sizes.tables, max(hardware.dirty, needed.resident)) / hardware.disk_write
    else:
        saved = sizes.tables * (hardware.save_byte + hardware.bus_byte)
    return Prediction(
        milliseconds=1e3 * seconds,
        terms={name: 1e3 * value for name, value in terms.items()},
        memory=memory,
        disk=needed.disk * processes,
        network=network,
        checkpoint=saved + needed.shared * hardware.save_byte,
        epoch=seconds * sizes.steps,
        fits=not hardware.memory or memory <= hardware.memory,
    )


@dataclass(frozen=True)
class Sizes:
    """Of one process: rows of all, its part of a batch, steps of an epoch, bytes of a row with moments,
    features, shared parameters, those of the decoder, bytes of its tables, and of a window of them."""

    rows: int
    batch: float
    steps: int
    row: float
    features: int
    parameters: int
    decoder: int
    tables: float
    window: float
    processes: int


def _terms(
    sizes: Sizes, hardware: Hardware, moved: bool, in_files: bool, mapped: bool, run_dir: bool
) -> dict[str, float]:
    """Seconds per step; "work", "wait", "exchange" and "epoch end" lie behind each other."""
    rows = sizes.batch * sizes.row * hardware.row_byte
    decoder = FLOPS * sizes.batch * sizes.decoder * hardware.flop
    shared = sizes.parameters * hardware.parameter
    main = hardware.step + rows + decoder + shared

    read = hardware.read + sizes.batch * sizes.features * hardware.read_byte if mapped else 0.0
    over_bus = 2 * sizes.row * hardware.bus_byte * moved
    way_in = (hardware.move_in * in_files + hardware.bus_byte * moved) * sizes.tables
    way_out = (hardware.move_out * in_files + hardware.bus_byte * moved) * sizes.tables
    if in_files and run_dir:
        way_in += hardware.journal_byte * sizes.tables
    # the first window comes and the last goes while there are no steps
    alone = min(1.0, sizes.window / sizes.tables) if moved else 0.0
    move = (way_in + way_out) * (1 - alone) / sizes.steps
    fill = (way_in + way_out) * alone / sizes.steps
    work = at_once(main, read + move, sizes.processes, hardware)

    disk = _disk(sizes, hardware, run_dir) if in_files else 0.0
    end = fill if moved else sizes.tables * hardware.epoch_byte / sizes.steps
    end += sizes.rows * hardware.order_row / sizes.steps
    if not moved:
        end *= max(1.0, sizes.processes / _capacity(sizes.processes, hardware))
    exchange = 0.0
    if sizes.processes > 1:
        least, byte = hardware.exchange[sizes.processes]
        exchange = (least + 4 * sizes.parameters * byte) * (1 + 1 / LOSSES)
    return {
        "work": work,
        "wait": max(0.0, disk - work),
        "exchange": exchange,
        "epoch end": end,
        "fixed": hardware.step,
        "rows": rows,
        "decoder": decoder,
        "shared": shared,
        "read": read,
        "move": move,
        "bus": sizes.batch * over_bus,
        "disk": disk,
    }


def _disk(sizes: Sizes, hardware: Hardware, run_dir: bool) -> float:
    """Seconds of a step that the disk is busy: all tables go by it in an epoch, beside the steps."""
    # on the CPU all processes share the disk of a machine, a GPU has one of its own
    sharing = sizes.processes if hardware.device == "cpu" else 1
    tables, seconds = sizes.tables * sharing, 0.0
    if tables > hardware.dirty:
        seconds += (2 if run_dir else 1) * tables / hardware.disk_write
    if tables > hardware.cached:
        seconds += tables / hardware.disk_read
    return seconds / sizes.steps


def at_once(main: float, side: float, processes: int, hardware: Hardware) -> float:
    """Of a step whose threads share the cores with those of the other processes of the machine.

    A pair of threads on two cores that are not whole ones, as two of one core, slow each other down.
    """
    together = processes if hardware.device == "cpu" else 1
    if together == 1 and hardware.cores >= 2:
        short, long = sorted((main, side))
        return long - short + short * 2 / min(2.0, hardware.capacity.get(2, 2.0))
    return max(main, together * (main + side) / _capacity(together, hardware))


def _capacity(processes: int, hardware: Hardware) -> float:
    return hardware.capacity.get(processes, min(processes, hardware.cores))


def _share(batch: int, processes: int, hardware: Hardware) -> float:
    """Rows of a batch that the slowest process has: where each has a core, the one with the most.

    Where cores are fewer, they go to whoever has work left. Shares of a batch add up: the largest is
    further from the mean than of independent numbers, by the root of W / (W - 1).
    """
    mean = batch / processes
    if hardware.device == "cpu" and processes > hardware.cores:
        return mean
    return mean + LARGEST.get(processes, 3.0) * math.sqrt(mean)


def _window(needed: Any, hardware: Hardware) -> float:
    """Bytes of a third of what is resident: windows at work, before and to come."""
    whole = needed.tables + needed.moments
    if needed.resident:
        return min(whole, needed.resident / 3)
    return min(whole, 256 << 20) if hardware.device != "cpu" else whole


def main(arguments: list[str]) -> None:
    """What the command line asks for."""
    match arguments:
        case ["plan"]:
            from scale_plan import table

            print(table())
        case ["measure"]:
            from scale_measured import measure

            RESULTS.write_text(json.dumps(measure(), indent=1) + "\n")
        case ["check"] | ["check", "--large"]:
            from scale_checked import main

            main(large="--large" in arguments)
        case ["files"]:
            from scale_checked import files

            files()
        case _:
            raise SystemExit("python bench/scale.py measure | check [--large] | files | plan")


if __name__ == "__main__":
    main(sys.argv[1:])
