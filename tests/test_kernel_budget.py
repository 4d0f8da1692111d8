"""Kernels as machine code, without a GPU: registers, spills, memory, and 64-bit addresses.

RVI_FAST_TARGETS=all compiles every case for every target; else each but a contract's first for two.
"""

import dataclasses
import inspect
import json
import os
import pkgutil

import pytest

pytest.importorskip("triton", reason="the kernels need triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import kernel_budget
import torch
import triton
import triton.language as tl
from kernel_cases import LAUNCHES
from ttir_addresses import narrow_address_arithmetic

from rvi_fast import kernels

# what Triton 3.8 keeps in memory around the loop, and 3.6 and 3.7 in registers
SPILLS_UNDER_3_8 = "relay_sample_fwd/linear-B256-T64-S1-K175/_relay_sample_fwd_kernel/sm_120"


EVERY = os.environ.get("RVI_FAST_TARGETS") == "all"


@pytest.fixture(scope="module")
def compiled(request):
    return kernel_budget.compile_all(request.config.cache.mkdir("triton"), EVERY)


@pytest.fixture(scope="module")
def pinned():
    """Whether this Triton is the one that the budget was written with."""
    return json.loads(kernel_budget.FILE.read_text())["triton"] == triton.__version__


def test_every_kernel_is_compiled_for_every_target(compiled):
    names = set()
    for module in pkgutil.iter_modules(kernels.__path__, "rvi_fast.kernels."):
        source = inspect.getsource(__import__(module.name, fromlist=["_"]))
        names |= {line[4:].partition("(")[0] for line in source.splitlines() if "_kernel(" in line
                  and line.startswith("def _")}  # fmt: skip
    for target in kernel_budget.TARGETS:
        assert names == {key.split("/")[2] for key in compiled if key.endswith(f"/sm_{target}")}


def test_no_kernel_spills_registers(compiled):
    # a frame that no instruction touches costs nothing: Triton 3.8 leaves some of 8 bytes
    spilling = {key: row for key, row in compiled.items() if row["spills"]}
    if triton.__version__.startswith("3.8."):
        row = spilling.pop(SPILLS_UNDER_3_8, {"spills": 0, "looped": 0})
        assert row["spills"] <= 6
        assert not row["looped"]
    assert not spilling


def test_shared_memory_fits_every_target(compiled):
    for key, row in compiled.items():
        assert row["shared"] <= kernel_budget.SHARED_MEMORY[row["target"]], key


def test_machine_code_keeps_the_written_budget(compiled, pinned):
    written, got = json.loads(kernel_budget.FILE.read_text()), kernel_budget.budget(compiled)
    keys = {key for key in written["kernels"] if kernel_budget.of_these_targets(key, EVERY)}
    assert keys == got["kernels"].keys(), "make budget"
    if pinned:  # another version emits other code
        for key, row in got["kernels"].items():
            assert row == written["kernels"][key], f"{key}: make budget, and look at the difference"


def test_the_table_shows_the_budget():
    written = json.loads(kernel_budget.FILE.read_text())
    assert kernel_budget.table(written) in kernel_budget.README.read_text()


def test_addresses_of_every_kernel_are_64_bit(compiled):
    for key, row in compiled.items():
        assert not narrow_address_arithmetic(row["ttir"]), key


@pytest.mark.parametrize(
    ("contract", "function", "case"),
    [
        (contract, function, cases[0])
        for contract, cases in LAUNCHES.items()
        for function in contract.functions
        if hasattr(cases[0], "batch")
    ],
    ids=str,
)
def test_another_size_of_the_batch_compiles_nothing(contract, function, case, request, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(request.config.cache.mkdir("triton")))
    compiled = []
    for batch in (case.batch, 77, 1):
        inputs = contract().arguments(function, dataclasses.replace(case, batch=batch))
        with kernel_budget.recorded(90) as launched:
            getattr(kernels, function)(*map(kernel_budget.without_memory, inputs))
        compiled.append(launched)
    # a sum made in one piece needs no reduction
    first, *others = compiled
    assert first
    assert all(kernel in first for other in others for kernel in other)


@triton.jit
def _product_of_32_bits(x_ptr, width):
    columns = tl.arange(0, 16)
    tl.store(x_ptr + tl.program_id(0) * width + columns, columns)


@triton.jit
def _row_of_32_bits(x_ptr, index_ptr, width):
    row = tl.load(index_ptr + tl.program_id(0))
    tl.store(x_ptr + (row * width).to(tl.int64) + tl.arange(0, 16), 1)


@triton.jit
def _sum_of_32_bits(x_ptr, index_ptr, start):
    tl.store(x_ptr + (tl.load(index_ptr) + start), 1)


@triton.jit
def _step_of_32_bits(x_ptr, width):
    offset = tl.program_id(0)
    for _ in range(width):
        tl.store(x_ptr + offset, 1)
        offset += width


@triton.jit
def _step_of_32_bits_in_a_while(x_ptr, width):
    offset = tl.program_id(0)
    while offset < width:
        tl.store(x_ptr + offset, 1)
        offset += width


@triton.jit
def _branch_of_32_bits(x_ptr, width):
    offset = tl.program_id(0)
    if width > 7:
        offset = offset * width
    tl.store(x_ptr + offset.to(tl.int64), 1)


@triton.jit
def _address_of_64_bits(x_ptr, index_ptr, width):
    offset = tl.program_id(0).to(tl.int64) * width
    row = tl.load(index_ptr + offset).to(tl.int64)
    for start in range(0, width, 16):
        columns = start + tl.arange(0, 16) * 2
        tl.store(x_ptr + row * width + columns, columns * width)
        row += 1


@triton.jit
def _row_of_a_tile(x_ptr, width):
    first = tl.program_id(0).to(tl.int64) * 16
    tl.store(x_ptr + first * width + tl.arange(0, 16) * width, 1)


@pytest.mark.parametrize(
    ("kernel", "tensors", "culprit"),
    [
        (_product_of_32_bits, 1, "arith.muli"),
        (_row_of_32_bits, 2, "arith.muli"),
        (_sum_of_32_bits, 2, "arith.addi"),
        (_step_of_32_bits, 1, "scf.for"),
        (_step_of_32_bits_in_a_while, 1, "scf.while"),
        (_branch_of_32_bits, 1, "arith.muli"),
        (_address_of_64_bits, 2, None),
        (_row_of_a_tile, 1, None),
    ],
)
def test_a_missing_cast_to_64_bits_is_found(kernel, tensors, culprit, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    table = torch.empty(64, dtype=torch.int32, device="meta")
    with kernel_budget.recorded(90) as launched:
        kernel[(4,)](*[table] * tensors, 28)
    found = narrow_address_arithmetic(launched[0].asm["ttir"])
    assert bool(found) == bool(culprit), launched[0].asm["ttir"]
    assert not culprit or any(culprit in line for line in found)


def test_a_launcher_that_waits_for_the_device_fails():
    def launcher(index):
        return index[: int(index.max())]

    with kernel_budget.recorded(90), pytest.raises(RuntimeError, match="meta"):
        launcher(torch.zeros(3, dtype=torch.int64, device="meta"))


@triton.jit
def _spilling_kernel(x_ptr, turns, SIZE: tl.constexpr, LOOP: tl.constexpr):
    lanes = tl.arange(0, SIZE)
    for _ in range(turns if LOOP else 1):
        x = tl.load(x_ptr + lanes[:, None] * SIZE + lanes[None, :])
        y = tl.load(x_ptr + lanes[:, None] + SIZE * lanes[None, :])
        product = tl.dot(x, y, input_precision="ieee")
        tl.store(x_ptr + lanes[:, None] * SIZE + lanes[None, :], product)


@pytest.mark.parametrize("loop", [False, True])
def test_spills_are_counted_in_machine_code(loop, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with kernel_budget.recorded(90) as launched:
        square = torch.empty(32 * 32, device="meta")
        _spilling_kernel[(1,)](square, 7, 32, loop, num_warps=1, maxnreg=32)
    row = kernel_budget.measure(launched[0])
    assert row["stack"] > 0
    assert row["spills"] > 0
    assert bool(row["looped"]) == loop
