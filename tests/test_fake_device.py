"""Devices without kernels of the package: the reference serves them, with float64 or without.

A device of torch's kind for vendors is built here, in host memory, for the process that runs
`fake_device.py` alone.
"""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from rvi_fast import _devices, ops, reference, testing

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("a C++ compiler is missing")
    package = Path(torch.__file__).parent
    if not (package / "include" / "torch" / "library.h").is_file():
        pytest.skip("the headers of torch are missing")
    built = tmp_path_factory.mktemp("device") / "libfake.so"
    command = [compiler, "-shared", "-fPIC", "-w", "-O0", "-std=c++20", f"-I{package / 'include'}"]
    command += [HERE / "fake_device.cpp", "-o", built]
    subprocess.run([*command, f"-L{package / 'lib'}", "-lc10", "-ltorch_cpu"], check=True)
    return built


@pytest.mark.parametrize("float64", ["1", "0"])
def test_every_way_to_call_the_package_runs_on_a_device_without_kernels(library, float64):
    environment = os.environ | {
        "FAKE_FLOAT64": float64,
        "PYTHONPATH": str(HERE.parent),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "fake_device.py"), str(library), float64],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


@pytest.mark.parametrize("name", ops.SCHEMAS)
@pytest.mark.parametrize("key", ["CPU", "CUDA", "XPU", "MPS", "PrivateUse1", "HPU", "Meta"])
def test_every_op_is_registered_for_every_device(name, key):
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"rvi_fast::{name}", key)


@pytest.mark.parametrize("kind", ["xpu", "mps", "a device of tomorrow"])
def test_devices_without_kernels_have_the_reference_and_say_nothing(kind, recwarn):
    assert ops.implementation(kind) is reference
    assert ops.unused(kind) == {}
    assert not recwarn.list


def test_an_op_that_a_wing_lacks_is_that_of_the_reference_and_said_once(monkeypatch):
    cpp = pytest.importorskip("rvi_fast.cpp", reason="the C++ part is not built")
    contract = testing.AdamStepContract()
    inputs = contract.inputs("adam_step", contract.cases[1], torch.float32)
    served = testing.Implementation("", ops.ops)
    monkeypatch.delattr(cpp, "adam_step")
    ops.table._kernel.cache_clear()
    try:
        with pytest.warns(
            ops.FallbackWarning, match=r"adam_step on cpu .* the C\+\+ kernels"
        ) as said:
            results = [contract.call(served, "adam_step", inputs) for _ in range(2)]
        assert len(said) == 1
    finally:
        ops.table._kernel.cache_clear()
    wanted = contract.call(testing.Implementation("", reference), "adam_step", inputs)
    for result in results:
        testing.assert_bit_equal(result, wanted)


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    set_to = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda device: set_to.append(device) or nullcontext())
    for device in (torch.device("cuda", 1), torch.device("cuda", 0)):
        with ops.table._current(device):
            pass
    assert set_to == [torch.device("cuda", 0)]


def test_sparse_tensors_are_refused_by_name():
    contract = testing.LogLikelihoodContract()
    arguments = contract.arguments("log_likelihood_fwd", contract.cases[1])
    with pytest.raises(TypeError, match=r"output: expected a dense tensor, got torch\.sparse_coo"):
        ops.ops.log_likelihood_fwd(arguments[0], arguments[1].to_sparse(), *arguments[2:])


def test_float64_state_lies_where_the_device_has_float64():
    for kind in ("cpu", "cuda:1", "xpu:0"):
        assert _devices.beside(torch.device(kind)) == torch.device(kind)
    assert _devices.beside(torch.device("mps")) == torch.device("cpu")
    values = torch.tensor([1.5, torch.nan])
    assert _devices.to_float64(values).dtype == torch.float64
