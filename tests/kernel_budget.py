"""Compiles every launch of `kernel_cases` without a GPU, and measures the machine code.

`python tests/kernel_budget.py` writes kernel_budget.json; test_kernel_budget.py holds the kernels to it,
and under another version of Triton to bounds that do not depend on it.

The launchers themselves run, on tensors without memory and with a driver that only names a GPU: what is
compiled is what a launch on that GPU would compile. A launcher that waited for the device would fail,
because there is nothing to read back.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")
README = FILE.parent.parent / "kernels" / "README.md"
MARK = "<!-- make budget -->"
# rows of the batch that a program takes, where it takes nothing else
ROWS = {
    "_relay_sample_fwd_kernel": 16,
    "_relay_sample_bwd_kernel": 16,
    "_row_adam_catch_up_kernel": 1,
    "_row_adam_step_kernel": 1,
    "_catch_up_and_select_kernel": 1,
    "_relay_decode_kernel": 16,
}
TARGETS = (80, 90, 100, 120)
# instructions that read and write what did not fit into the registers; bytes of any instruction
SPILLS = ("LDL", "STL")
INSTRUCTION = 16
# bytes a block may have, by target
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


class _Driver:
    """As much of a driver as the launch of a kernel asks for before it is compiled."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch  # compiled code is kept apart by device

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)


@contextmanager
def recorded(arch: int) -> Iterator[list[Any]]:
    """Within it a launch compiles its kernel for `arch` and adds it to the list instead of running."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    kernels: list[Any] = []
    run, before = JITFunction.run, driver._active

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))
        return kernels[-1]

    JITFunction.run = record
    driver.set_active(_Driver(arch))
    try:
        yield kernels
    finally:
        JITFunction.run = run
        driver._active = before


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def measure(kernel: Any) -> dict[str, int]:
    """What the machine code of a compiled kernel takes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", cubin.name)
        code = _tool("nvdisasm", "--no-dataflow", "--print-code", cubin.name)
    names, looped = _instructions(code)
    registers, stack = (int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
    return {
        "registers": registers,
        "stack": stack,
        "spills": sum(names.count(name) for name in SPILLS),
        "looped": sum(looped.count(name) for name in SPILLS),
        "shared": kernel.metadata.shared,
        "instructions": len(names) - names.count("NOP"),
        "bytes": INSTRUCTION * len(names),
        "warps": kernel.metadata.num_warps,
    }


def _instructions(code: str) -> tuple[list[str], list[str]]:
    """Names of all instructions, and of those within a loop, from the listing of one kernel."""
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in code.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(names)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z]\w*)", line):
            if target := re.search(r"\bBRA\b.*`\((\.L\w+)\)", line):
                jumps.append((len(names), target[1]))
            names.append(found[1])
    # what lies behind the last exit is what threads that have parted run, and jumps back from there
    end = max((at for at, name in enumerate(names) if name == "EXIT"), default=0)
    loops = [range(labels[to], at) for at, to in jumps if labels[to] < at < end]
    return names, [name for at, name in enumerate(names) if any(at in loop for loop in loops)]


def without_memory(value: Any) -> Any:
    """A tensor as its shape, strides and dtype alone, in a list too; anything else as it is."""
    import torch

    if isinstance(value, list):
        return [*map(without_memory, value)]
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def targets_of(place: int, every: bool) -> tuple[int, ...]:
    """Those that the case at that place of a contract is compiled for.

    The first is compiled for all; of the others, unless `every` is asked for, each for two in turn: each
    target has half of the cases.
    """
    return TARGETS if every or place == 0 else TARGETS[place % 2 :: 2]


def _compile(job: tuple[int, str, Any, str, bool]) -> dict[str, dict[str, Any]]:
    """ "<function>/<case>/<kernel>/sm_<target>" -> measurements and TTIR, for one launch.

    In another precision the case is called "<case>-<precision>", and has the kernels that differ.
    """
    import torch
    from kernel_cases import LAUNCHES, PRECISIONS

    from rvi_fast import kernels

    number, function, place, cache, every = job
    os.environ["TRITON_CACHE_DIR"] = cache
    torch.set_num_threads(1)
    contract = [*LAUNCHES][number]
    case = LAUNCHES[contract][place]
    arguments = [without_memory(value) for value in contract().arguments(function, case)]
    results: dict[str, dict[str, Any]] = {}
    known = set()
    others = PRECISIONS.get(contract, ()) if place < 2 else ()
    for precision in ("highest", *others):
        torch.set_float32_matmul_precision(precision)
        name_of_case = str(case) if precision == "highest" else f"{case}-{precision}"
        for target in targets_of(place, every):
            with recorded(target) as compiled:
                answer = getattr(kernels, function)(*arguments)
            assert answer is not NotImplemented, f"{function} {case}: left to the reference"
            assert compiled, f"{function} {case}: nothing was launched"
            for kernel in compiled:
                key = f"{function}/{name_of_case}/{kernel.src.fn.__name__}/sm_{target}"
                if kernel.hash not in known:
                    results[key] = measure(kernel) | {"target": target, "ttir": kernel.asm["ttir"]}
            known |= {kernel.hash for kernel in compiled}
    return results


def compile_all(cache: Path, every: bool = True) -> dict[str, dict[str, Any]]:
    """Every kernel of every launch for the targets of `targets_of`; `cache` keeps the compiled code."""
    from kernel_cases import LAUNCHES

    jobs = [
        (number, function, place, str(cache), every)
        for number, (contract, cases) in enumerate(LAUNCHES.items())
        for function in contract.functions
        for place in range(len(cases))
    ]
    results: dict[str, dict[str, Any]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        for found in pool.map(_compile, jobs):
            results |= found
    return results


def of_these_targets(key: str, every: bool) -> bool:
    """Whether `compile_all` compiles what kernel_budget.json has under that key."""
    from kernel_cases import LAUNCHES

    function, name, _, target = key.split("/")
    cases = next(cases for contract, cases in LAUNCHES.items() if function in contract.functions)
    name = re.sub("-(high|medium)$", "", name)
    place = [*map(str, cases)].index(name)
    return int(target.removeprefix("sm_")) in targets_of(place, every)


def budget(compiled: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What kernel_budget.json holds."""
    import triton

    rows = {
        key: {name: row[name] for name in row if name not in ("target", "ttir", "looped")}
        for key, row in compiled.items()
    }
    return {"triton": triton.__version__, "kernels": rows}


def table(written: dict[str, Any]) -> str:
    """The lines of kernels/README.md: each kernel in the first case of its function."""
    lines = [
        f"Triton {written['triton']}; registers / bytes of shared memory / instructions.",
        "",
        "| kernel | case | " + " | ".join(f"sm_{target}" for target in TARGETS) + " | per row |",
        "|---|---|" + "---|" * (len(TARGETS) + 1),
    ]
    seen = set()
    for key, row in written["kernels"].items():
        _, case, kernel, _ = key.split("/")
        if kernel in seen:
            continue
        seen.add(kernel)
        rows = [written["kernels"][f"{key.rpartition('_')[0]}_{target}"] for target in TARGETS]
        cells = [f"{r['registers']} / {r['shared']} / {r['instructions']}" for r in rows]
        per_row = round(row["instructions"] * row["warps"] / ROWS[kernel]) if kernel in ROWS else ""
        name = kernel.removeprefix("_").removesuffix("_kernel")
        lines.append(f"| `{name}` | {case} | {' | '.join(cells)} | {per_row} |")
    return "\n".join(lines)


def main() -> None:
    """Writes kernel_budget.json, a line for each kernel, and the table in kernels/README.md."""
    cache = FILE.parent.parent / ".pytest_cache" / "d" / "triton"
    written = budget(compile_all(cache))
    rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in written["kernels"].items())
    FILE.write_text(f'{{"triton": "{written["triton"]}", "kernels": {{\n{rows}\n}}}}\n')
    before, _, rest = README.read_text().partition(MARK)
    README.write_text(f"{before}{MARK}\n{table(written)}\n{MARK}{rest.partition(MARK)[2]}")
    print(f"{FILE}: {len(written['kernels'])} kernels")


if __name__ == "__main__":
    sys.path.insert(0, str(FILE.parent.parent))
    main()
