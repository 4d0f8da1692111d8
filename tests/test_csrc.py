"""The C++ sources as files: every header stands alone, and no path takes code of another."""

import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed")

CSRC = Path(__file__).parent.parent / "csrc"
HEADERS = sorted(CSRC.glob("**/*.h"))
INCLUDES = [CSRC, sysconfig.get_path("include"), pybind11.get_include()]
# set of instructions -> the machine that has it, and what the compiler is told in place of the
# target that cpu/<path>.cpp sets; every other header has to do with what any machine has
SETS = {
    "sse2": ("x86_64", ""),
    "avx2": ("x86_64", "-mavx2 -mfma -mf16c"),
    "avx512": ("x86_64", "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c"),
    "neon": ("aarch64", ""),
}
COMMON = [header for header in HEADERS if header.stem not in SETS]
# of each op, a function that makes the compiler look at all that its header uses
USES = {
    "adam_step": "adam_step<float>",
    "linear_log_likelihood": "linear_log_likelihood<float>",
    "log_likelihood": "log_likelihood<float>",
    "relay_sample_bwd": "relay_sample_bwd<double>",
    "relay_sample_fwd": "relay_sample_fwd<double>",
    "row_adam": "row_adam_step<float, float>",
}


def compile_alone(path, source, *files):
    """What the compiler says of sources that are checked and not written: for a path, or for any."""
    machine, flags = SETS.get(path, (platform.machine(), ""))
    compiler = "g++" if machine == platform.machine() else f"{machine}-linux-gnu-g++"
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is missing")
    defines = [f"-DRVI_PATH={path}"]
    if (CSRC / "simd" / f"{path}.h").is_file():
        defines.append(f'-DRVI_SIMD="simd/{path}.h"')
    command = [compiler, "-std=c++17", "-fsyntax-only", "-Wall", "-Wno-psabi"]
    command += [*(f"-I{folder}" for folder in INCLUDES), *defines, *flags.split()]
    command += ["-x", "c++", *map(str, files or ["-"])]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    # each is the file that is compiled, and not included by one
    said = [line for line in done.stderr.splitlines() if "pragma once in main file" not in line]
    return done.returncode, "\n".join(said)


def test_every_header_compiles_alone():
    assert len(COMMON) > 15
    status, said = compile_alone("portable", "", *COMMON)
    assert status == 0, said


@pytest.mark.parametrize("path", SETS)
def test_the_vectors_of_every_instruction_set_compile_alone(path):
    simd = CSRC / "simd"
    vectors = [header for header in COMMON if header.parent == simd and header.stem != "portable"]
    status, said = compile_alone(path, "", *vectors, simd / f"{path}.h")
    assert status == 0, said


@pytest.mark.parametrize("name", USES)
def test_all_that_an_op_uses_comes_with_its_header(name):
    source = f'#include "{name}.h"\nauto* used = &rvi::portable::{USES[name]};\n'
    status, said = compile_alone("portable", source)
    assert status == 0, said


def test_standard_headers_come_before_the_target_of_a_path():
    # included after it, their functions would be compiled for one path and could be linked into another
    before = (CSRC / "cpu" / "kernels.inc").read_text().partition("#if defined(RVI_TARGET)")[0]
    known = set(re.findall("#include <(.*)>", before))
    for header in HEADERS:
        if header.parent.name == "bindings":
            continue
        for name in re.findall("#include <(.*)>", header.read_text()):
            assert name in known, f"{header.name}: <{name}> is not in kernels.inc"
