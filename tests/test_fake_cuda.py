"""The package on tensors of a GPU where there is none: autograd, compile, export under fake tensors.

A build of torch with CUDA refuses to go through autograd on CUDA tensors, fake ones too, unless a CUDA
runtime answers. A library of a few functions stands in its place; it is built here, for the process
that runs `fake_cuda.py` alone.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# functions of the runtime and of the driver that torch calls on its way, and what they write to
# their arguments: the rest of them only says that all is well
ANSWERS = {
    "cudaGetDeviceCount(int *n)": "*n = 1;",
    "cudaGetDevice(int *device)": "*device = 0;",
    "cudaDriverGetVersion(int *version)": "*version = 13000;",
    "cudaRuntimeGetVersion(int *version)": "*version = 13000;",
    "cudaDeviceGetStreamPriorityRange(int *least, int *most)": "*least = 0; *most = -1;",
    "cudaStreamIsCapturing(void *stream, int *status)": "*status = 0;",
    "cudaStreamGetCaptureInfo(void *stream, int *status)": "*status = 0;",
    "cudaStreamCreateWithPriority(void **stream, unsigned flags, int p)": "*stream = (void *)16;",
    "cudaEventCreateWithFlags(void **event, unsigned flags)": "*event = (void *)16;",
    # compute capability 9.0, and 1 for all else
    "cudaDeviceGetAttribute(int *value, int name, int device)": "*value = name == 75 ? 9 : name != 76;",
    "cudaGetDeviceProperties(char *text, int device)": (
        "for (int i = 0; i < 1008; i++) text[i] = 0; text[0] = 'G';"
    ),
    "cudaGetDeviceProperties_v2(char *text, int device)": "cudaGetDeviceProperties(text, device);",
    "cudaMemGetInfo(unsigned long *left, unsigned long *all)": "*left = *all = 80ul << 30;",
    "cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *on)": "*flags = 0; *on = 1;",
    "cuDeviceGetCount(int *n)": "*n = 1;",
    "cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, "
    "unsigned long flags, int *status)": "*function = (void *)all_is_well; if (status) *status = 0;",
}
SILENT = (
    "cudaSetDevice",
    "cudaGetLastError",
    "cudaPeekAtLastError",
    "cudaDeviceSynchronize",
    "cudaStreamSynchronize",
    "cudaStreamQuery",
    "cudaStreamWaitEvent",
    "cudaEventRecord",
    "cudaEventRecordWithFlags",
    "cudaEventQuery",
    "cudaEventSynchronize",
    "cudaEventDestroy",
    "cuInit",
)


def source():
    functions = [
        "static int all_is_well(void) { return 0; }",
        *(f"int {name}(void) {{ return 0; }}" for name in SILENT),
        *(f"int {signature} {{ {body} return 0; }}" for signature, body in ANSWERS.items()),
    ]
    return "\n".join(functions)


def test_every_way_to_call_the_package_runs_on_fake_cuda_tensors(tmp_path):
    if torch.version.cuda is None:
        pytest.skip("a build of torch with CUDA is missing")
    if torch.cuda.is_available():
        pytest.skip("a machine without a GPU: tests/test_gpu.py shows it on one")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is missing")
    (tmp_path / "cuda.c").write_text(source())
    library = tmp_path / "libcuda.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", "-o", library, tmp_path / "cuda.c"], check=True
    )
    here = Path(__file__).parent
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(tmp_path),
        "PYTHONPATH": str(here.parent),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(here / "fake_cuda.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
