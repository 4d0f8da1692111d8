"""10^7 to 10^9 rows on H100s and NVMe: a step as measured on one, all else from data sheets."""

from __future__ import annotations

from functools import cache

from scale import Prediction, predict
from scale_hardware import Hardware

FEATURES, BATCH = 784, 65_536
SIZES, PROCESSES = (10**7, 10**8, 10**9), (1, 8, 64)
# of a CPU core, measured here: `measure`, rounded, so that the table does not change with each of them
CPU_READ_BYTE, CPU_MOVE_BYTE, CPU_HASH_BYTE = 0.3e-9, 0.5e-9, 0.6e-9

H100 = Hardware(
    # bench/results/NOTES.md: 55 us at B = 256, 175 at 4,096, 2,294 at 65,536
    step=55e-6,
    # a copy of 2.96 TB/s, once each way; what is left of 65,536 rows is the decoder's
    row_byte=2 / 2.96e12,
    flop=1 / 11e12,
    parameter=0.0,
    # read twice, written once
    epoch_byte=3 / 2.96e12,
    # sorted by random keys of 8 bytes, in eight passes
    order_row=128 / 2.96e12,
    read=0.0,
    read_byte=CPU_READ_BYTE,
    move_in=CPU_MOVE_BYTE,
    move_out=CPU_MOVE_BYTE,
    # PCIe 5.0 x16, 64 GB/s each way
    bus_byte=1 / 64e9,
    # PM1743, PCIe 5.0 x4, one for each GPU: 13 GB/s read, 6.6 GB/s written
    journal_byte=1 / 6.6e9,
    save_byte=CPU_HASH_BYTE + 1 / 6.6e9,
    disk_read=13e9,
    disk_write=6.6e9,
    cached=0.0,
    dirty=0.0,
    cores=16,
    # NVLink 900 GB/s both ways; between machines 400 Gb/s for each GPU; latencies are assumed
    exchange={8: (20e-6, 2 * 7 / 8 / 450e9), 64: (40e-6, 2 * 63 / 64 / 50e9)},
    # a CUDA context, assumed
    base=0.5e9,
    device="cuda",
    memory=80e9,
)


@cache
def plan(num_data: int, processes: int, storage: str) -> Prediction:
    """Of a cell of the table; data lie where the rows lie."""
    return predict(
        num_data,
        FEATURES,
        H100,
        batch_size=BATCH,
        processes=processes,
        storage=storage,
        mapped=storage != "device",
        run_dir=True,
    )


def table() -> str:
    """All sizes, numbers of GPUs and places, one a line."""
    lines = [f"{'rows':>5} GPUs {'rows lie':8} {'step':>9} {'epoch':>9} {'GPU':>7} "]
    lines[0] += f"{'disk':>8} {'network':>8} {'checkpoint':>10}"
    for num_data in SIZES:
        for storage in ("device", "tables"):
            for processes in PROCESSES:
                found = plan(num_data, processes, storage)
                place = "on GPU" if storage == "device" else "on NVMe"
                start = f"{num_data:5.0e} {processes:4} {place:8}".replace("e+0", "e")
                if not found.fits:
                    lines.append(f"{start} does not fit: {found.memory / 1e9:.0f} GB on each GPU")
                    continue
                lines.append(
                    f"{start} {found.milliseconds:6.2f} ms {found.epoch:7.1f} s "
                    f"{found.memory / 1e9:4.1f} GB {found.disk / 1e12:5.2f} TB "
                    f"{found.network / 1e3:5.0f} KB {found.checkpoint:8.1f} s"
                )
    return "\n".join(lines)
