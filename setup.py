"""Build script: the C++ kernels; the metadata is in pyproject.toml.

`RVI_FAST_CPP` at build time: "auto" (default) builds them where that is possible and says so where
it is not; "require" fails instead; "off" leaves them out.
"""

import os
import sys
from glob import glob

from setuptools import setup
from setuptools.command.build_ext import build_ext

MODE = os.environ.get("RVI_FAST_CPP", "auto")
if MODE not in ("auto", "require", "off"):
    sys.exit(f"RVI_FAST_CPP: expected auto, require or off, got {MODE!r}")
SOURCES = sorted(glob("csrc/**/*.cpp", recursive=True))
HEADERS = glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.inc", recursive=True)
# not -ffast-math: NaN marks what is missing
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi"]
# Apple's clang has no OpenMP: there the kernels run in one thread
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]
if sys.platform != "darwin":
    FLAGS.append("-Wno-maybe-uninitialized")
# what the kernels need of a compiler, vectors and attributes of GCC, Microsoft's has not
UNSUPPORTED = "Microsoft's compiler cannot build them" if sys.platform == "win32" else ""
COST = (
    "The package works without them: on a CPU a training step takes four to seven times as long. "
    "Install g++ or clang++ and this package again, or a wheel that has them; RVI_FAST_CPP=require "
    "makes this an error. `rvi-fast info` shows what is used."
)


def not_built(reason: str) -> None:
    """Says so where a build can say it: pip shows it with --verbose, and `rvi-fast info` always."""
    print(f"rvi_fast: the C++ kernels were NOT built ({reason}). {COST}", file=sys.stderr)


class BuildKernels(build_ext):
    """Goes on without the kernels where they cannot be built, unless they are required."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # whatever it is, the package works without
            if MODE == "require":
                raise
            not_built(f"{type(error).__name__}: {error}")
            self.extensions = []


def extensions() -> list:
    if MODE == "off":
        return []
    if UNSUPPORTED and MODE == "auto":
        not_built(UNSUPPORTED)
        return []
    try:
        from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
    except ImportError:
        if MODE == "require":
            raise
        not_built("no pybind11")
        return []
    ParallelCompile("RVI_FAST_JOBS", default=os.cpu_count() or 1).install()
    extra = os.environ.get("RVI_FAST_CXXFLAGS", "").split()
    return [
        Pybind11Extension(
            "rvi_fast._C",
            SOURCES,
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=[*FLAGS, *OPENMP, *extra],
            extra_link_args=[*OPENMP, *extra],
            depends=HEADERS,
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
