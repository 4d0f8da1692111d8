"""What imputers with defaults take and reach over N and D: a table of rank 8 and noise, 30 % missing.

    OMP_NUM_THREADS=1 python bench/imputer_sizes.py 800x10 100000x100 --imputers relay --write-results

A row of `low_rank_table` has entries around 0 with standard deviation 1; who knows the parameters of the
table is wrong by the floor. CPU seconds are those of one thread and do not count what else the machine
does. With `--write-results` the rows are added to bench/results/imputer_sizes.md.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

RESULTS = Path(__file__).parent / "results" / "imputer_sizes.md"
NOISE, RANK, MISSING = 0.2, 8, 0.3
HEAD = (
    "`OMP_NUM_THREADS=1 python bench/imputer_sizes.py SIZE ... --imputers relay ppca --write-results`: "
    "root mean square error of missing entries, of the true parameters too (floor), CPU seconds of one "
    "thread, and the largest resident memory, imports included.\n\n"
    "| table | imputer | RMSE | floor | fit, CPU s | with transform, CPU s | GB |\n"
    "|---|---|---|---|---|---|---|\n"
)


def made(size):
    """x [N, D], with NaN, the whole of it, and the error of who knows its parameters."""
    from rvi_fast.testing import low_rank_table

    rows, columns = map(int, size.split("x"))
    x, mask = low_rank_table(rows, columns, rank=RANK, noise=NOISE, missing=MISSING)
    seen = (1 - MISSING) * columns
    # an expansion for many more observed entries than factors
    floor = f"{NOISE * (1 + RANK / seen) ** 0.5:.3f}" if seen > 4 * RANK else ""
    return torch.where(mask, x, torch.nan).numpy(), x.numpy(), floor


def measured(size, imputer):
    """A row of the table."""
    from rvi_fast.models import ppca
    from rvi_fast.sklearn import RelayImputer

    torch.set_num_threads(1)
    x, truth, floor = made(size)
    began = time.process_time()
    if imputer == "relay":
        model = RelayImputer(random_state=0).fit(x)
        fitted = time.process_time()
        filled = model.transform(x)
    else:
        model = ppca(x.shape[1]).fit(x)
        fitted = time.process_time()
        filled = model.impute(x).numpy()
    ended = time.process_time()
    error = np.sqrt(np.mean((filled - truth)[np.isnan(x)] ** 2, dtype=np.float64))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    times = f"{fitted - began:.1f} | {ended - began:.1f} | {peak:.2f}"
    return f"| {size} | {imputer} | {error:.3f} | {floor} | {times} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="+", metavar="NxD")
    parser.add_argument("--imputers", nargs="+", choices=("relay", "ppca"), default=["relay"])
    parser.add_argument("--write-results", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(measured(options.sizes[0], options.imputers[0]))
        return
    for size in options.sizes:
        for imputer in options.imputers:
            # a process each, whose memory is its own
            call = [sys.executable, __file__, size, "--imputers", imputer, "--here"]
            row = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
            print(row, end="", flush=True)
            if options.write_results:
                before = RESULTS.read_text() if RESULTS.exists() else HEAD
                RESULTS.write_text(before + row)


if __name__ == "__main__":
    main()
