"""The path of AArch64 machines, compiled here for one and run in an emulator."""

import math
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rvi_fast import reference
from rvi_fast.layout import RowLayout
from rvi_fast.testing import (
    AdamStepContract,
    Implementation,
    LinearLogLikelihoodCase,
    LinearLogLikelihoodContract,
    LogLikelihoodContract,
    RelaySampleContract,
    RowAdamContract,
    _arguments,
)
from rvi_fast.testing.contract import _written

ROOT = Path(__file__).parent.parent
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# as setup.py has it, but for the level and for threads
FLAGS = ["-O1", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi"]
SOURCES = ["csrc/cpu/neon.cpp", "csrc/dispatch.cpp", "csrc/parallel.cpp", "tests/neon_driver.cpp"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    for program in (COMPILER, EMULATOR):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing")
    built = tmp_path_factory.mktemp("neon") / "driver"
    command = [COMPILER, "-std=c++17", "-static", *FLAGS, "-Icsrc", *SOURCES, "-o", str(built)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return built


def bytes_of(value):
    """The header of an argument, as the driver reads it, and its bytes."""
    if isinstance(value, str):
        kind, shape, data = "text", (len(value),), value.encode()
    else:
        if not isinstance(value, Tensor):
            whole = torch.int32 if isinstance(value, list | tuple) else torch.int64
            value = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else whole)
        kind, shape = str(value.dtype).removeprefix("torch."), value.shape
        data = bytes(value.contiguous().flatten().view(torch.uint8).numpy())
    return " ".join(map(str, (kind, len(data), *shape))), data


def given_to(arguments):
    """What the driver needs beside the arguments, in types that the kernels take."""
    given = {name: value for name, value in arguments.items() if value is not None}
    if "x" in given:  # float64 goes with float64 alone
        x, dtype = given["x"], given["output" if "output" in given else "hidden"].dtype
        if torch.float64 in (x.dtype, dtype) and x.dtype != dtype:
            pixels = reference.PIXEL_SCALE if x.dtype == torch.uint8 else 1.0
            given["x"] = x.to(dtype) * pixels
    if "groups" in given:
        form = (given[name] for name in ("groups", "kept", "form"))
        layout = RowLayout(given["relays"].shape[1], *form)
        for name in ("group_offsets", "deviation_offset", "log_std_offset"):
            given[name] = getattr(layout, name)
    return given


def results_of(contract, function, arguments):
    """Room for what the function returns, as the reference does, with nothing of it left in it."""
    copies = (v.clone() if isinstance(v, Tensor) else v for v in arguments.values())
    returned = getattr(reference, function)(*copies)
    returned = (returned,) if isinstance(returned, Tensor) else returned or ()
    rooms = [
        torch.full_like(each, math.nan if each.is_floating_point() else -1) for each in returned
    ]
    return dict(zip(contract.functions[function], rooms, strict=True))


def run(driver, contract, function, *values):
    """What one run of the driver returns and writes in place."""
    arguments = dict(zip(_arguments(function), values, strict=True))
    results = results_of(contract, function, arguments)
    given = given_to(arguments) | results
    sent = {name: bytes_of(value) for name, value in given.items()}
    before, after = driver.with_name("before"), driver.with_name("after")
    with before.open("wb") as file:
        for name, (header, data) in sent.items():
            file.write(f"{name} {header}\n".encode() + data)
    command = [EMULATOR, str(driver), function, str(before), str(after)]
    # the best of the machine, whatever is asked of this one
    environment = os.environ | {"RVI_FAST_CPU": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{function}: {done.returncode} {done.stderr}"
    found = after.read_bytes()
    assert len(found) == sum(len(data) for _, data in sent.values())
    for name, (_, data) in sent.items():
        got, found = found[: len(data)], found[len(data) :]
        if name not in results and name not in _written(function):
            assert got == data, f"{name}: an input changed"
        elif data:
            value = torch.frombuffer(bytearray(got), dtype=given[name].dtype)
            given[name].copy_(value.view(given[name].shape))
    return tuple(results.values()) or None


class LinearWithBits(LinearLogLikelihoodContract):
    cases = (
        *LinearLogLikelihoodContract.cases,
        LinearLogLikelihoodCase(33, 65, 2, "feature", True, packed=True, hidden_dim=7),
    )


CONTRACTS = (
    RelaySampleContract,
    LogLikelihoodContract,
    LinearWithBits,
    RowAdamContract,
    AdamStepContract,
)
CALLS = [
    pytest.param(contract(), function, case, dtype, id=f"{function}-{case}-{dtype}")
    for contract in CONTRACTS
    for function in contract.functions
    for case in contract.cases
    for dtype in contract.dtypes
    # rows that repeat are added up before the path is chosen
    if not getattr(case, "repeats", False)
]


@pytest.mark.parametrize(("contract", "function", "case", "dtype"), CALLS)
def test_results_on_neon_equal_the_reference(driver, contract, function, case, dtype):
    namespace = SimpleNamespace(**{function: partial(run, driver, contract, function)})
    neon = Implementation("neon", namespace)
    contract.check(neon, function, contract.inputs(function, case, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8], ids=str)
def test_every_narrow_number_is_read_exactly_on_neon(driver, dtype):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(1024, 64)
    x = every.to(torch.uint8) if dtype == torch.uint8 else every.view(dtype)
    one = torch.ones(1, 1024)
    arguments = (one, x, torch.zeros(1, 1024, 64), torch.ones(()), None, "gaussian", True, False)
    grad_output, _ = run(driver, LogLikelihoodContract, "log_likelihood_bwd", *arguments)
    expected = x.float() * reference.PIXEL_SCALE if dtype == torch.uint8 else x.float()
    torch.testing.assert_close(
        grad_output[0], expected.nan_to_num(0.0, torch.inf, -torch.inf), rtol=0, atol=0
    )
