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
FLAGS = [
    "-O3",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]


class BuildKernels(build_ext):
    """Goes on without the kernels where they cannot be built, unless they are required."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # whatever it is, the package works without
            if MODE == "require":
                raise
            print(
                f"rvi_fast: the C++ kernels were NOT built ({type(error).__name__}: {error}). The "
                "package works without them, slowly, on the CPU; RVI_FAST_CPP=require makes this "
                "an error.",
                file=sys.stderr,
            )
            self.extensions = []


def extensions() -> list:
    if MODE == "off":
        return []
    try:
        from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
    except ImportError:
        if MODE == "require":
            raise
        print("rvi_fast: no pybind11, so the C++ kernels are not built", file=sys.stderr)
        return []
    ParallelCompile("RVI_FAST_JOBS", default=os.cpu_count() or 1).install()
    extra = os.environ.get("RVI_FAST_CXXFLAGS", "").split()
    return [
        Pybind11Extension(
            "rvi_fast._C",
            SOURCES,
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=FLAGS + extra,
            extra_link_args=["-fopenmp", *extra],
            depends=HEADERS,
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
