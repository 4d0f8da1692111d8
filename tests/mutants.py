"""Seeds faults, one at a time, in a copy of the checkout, and runs the test that must fail.

`python tests/mutants.py WORD ...` seeds those whose file or fault holds one of the words. What is in
`MUTANTS` is written to `tests/MUTANTS.md` by a run of all in which each is caught. A fault in `csrc/`
builds the extension, which takes about a minute.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy  # noqa: F401  for the forks
import pytest
import torch
from mutant_table import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "tests" / "MUTANTS.md"
# exit status of pytest where a test has failed; others say that it could not run
FAILED = 1
FORK = multiprocessing.get_context("fork")
# times of changed files, later than all others and from one another
CLOCK = itertools.count(2 * 10**18, 10**9)
LIMIT = 3600  # seconds: a fault may make a test hang, which is noticed too


def copy_checkout(copy: Path) -> None:
    """Every file that git knows or would add, and the built extension."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    shutil.rmtree(copy, ignore_errors=True)
    built = [path.relative_to(ROOT) for path in (ROOT / "rvi_fast").glob("_C*.so")]
    for name in {*filter(None, listed.stdout.split("\0")), *map(str, built)}:
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)


def run_tests(copy: Path, tests: list[str]) -> tuple[int, str, str]:
    """Exit status of pytest, the first test that failed or "", and the end of what was printed.

    The process is a fork of this one, which has imported what takes long and nothing of the package.
    """
    output = copy / "output.txt"
    process = FORK.Process(target=_run_forked, args=(copy, tests, output))
    process.start()
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
        return FAILED, "hangs", ""
    status = process.exitcode or 0
    if status < 0:
        return FAILED, f"dies of signal {-status}", ""
    said = output.read_text(errors="replace")
    failed = re.search(r"^FAILED (\S+)", said, re.MULTILINE)
    return status, failed[1] if failed else "", said[-3000:]


def _run_forked(copy: Path, tests: list[str], output: Path) -> None:
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    if all(test.startswith("tests/interpreted") for test in tests):
        os.environ["TRITON_INTERPRET"] = "1"
    sys.path[0] = str(copy)
    status = pytest.main(["-q", "-x", *tests])
    sys.stdout.flush()
    os._exit(int(status))


def build(copy: Path) -> None:
    """The C++ part of the copy, with little optimisation, which takes less time."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=copy,
        env={**os.environ, "RVI_FAST_CPP": "require", "RVI_FAST_CXXFLAGS": "-O1"},
        check=True,
        capture_output=True,
    )


def seed(copy: Path, mutant: Mutant) -> str | None:
    """The first test that fails with the fault; None where the one named does not."""
    path = copy / mutant.path
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.path}: expected once, found {text.count(mutant.old)}: {mutant.old}"
        )
    before = {so: so.read_bytes() for so in (copy / "rvi_fast").glob("_C*.so")}
    path.write_text(text.replace(mutant.old, mutant.new))
    # Python takes what it has compiled of a text of the same second and size
    os.utime(path, ns=(0, next(CLOCK)))
    try:
        if mutant.path.startswith("csrc/"):
            build(copy)
        status, failed, said = run_tests(copy, mutant.test.split())
    finally:
        path.write_text(text)
        os.utime(path, ns=(0, next(CLOCK)))
        for so, content in before.items():
            if so.read_bytes() != content:
                so.write_bytes(content)
    # an error before or after a test says nothing of the fault
    if status and not (status == FAILED and failed):
        raise SystemExit(f"{mutant.path}: {mutant.fault}: the tests cannot be run\n{said}")
    return failed or None


def document() -> str:
    """The table of all faults."""
    lines = [
        "# Seeded faults and the tests that catch them",
        "",
        "`make mutants` seeds each in a copy of the checkout (the texts are in `mutant_table.py`),",
        "runs the test beside it, and writes this file once every one of them fails.",
        "",
        "| file | fault | caught by |",
        "|---|---|---|",
    ]
    for mutant in sorted(MUTANTS):
        test = mutant.test.removeprefix("tests/")
        lines.append(f"| `{mutant.path}` | {mutant.fault} | `{test}` |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Exit status 1 where a fault survives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="seed those whose file or fault holds one of them")
    parser.add_argument("--copy", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("--unchecked", action="store_true", help="without a run before any fault")
    args = parser.parse_args()
    wanted = [
        m for m in MUTANTS if not args.words or any(w in m.path + m.fault for w in args.words)
    ]
    copy = args.copy.absolute()
    torch.set_num_threads(1)
    copy_checkout(copy)
    if any(mutant.path.startswith("csrc/") for mutant in wanted):
        build(copy)
    # a test that fails by itself catches nothing
    tests = sorted({test for mutant in wanted for test in mutant.test.split()})
    for interpreted in (False, True):
        part = [t for t in tests if t.startswith("tests/interpreted") == interpreted]
        if part and not args.unchecked:
            status, failed, said = run_tests(copy, part)
            if status:
                raise SystemExit(f"without a fault: {failed or said}")
    survivors = 0
    for mutant in wanted:
        caught = seed(copy, mutant)
        survivors += caught is None
        print(f"{caught or 'SURVIVES':<90} {mutant.path}: {mutant.fault}", flush=True)
    print(f"{len(wanted) - survivors} of {len(wanted)} caught")
    if survivors:
        raise SystemExit(1)
    if not args.words:
        DOCUMENT.write_text(document())


if __name__ == "__main__":
    main()
