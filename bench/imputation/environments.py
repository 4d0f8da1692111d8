"""Makes an environment for each package that is compared: `python -m imputation.environments DIR`.

From within `bench`. The packages pin contradicting versions, so that each gets a virtual environment
of its own, `DIR/<package>`, with nothing of the one that makes it. Prints for each whether it can be
imported. Those that cannot be had for Python 3.11 are named in `NOT_TO_BE_HAD`.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """How a package is installed.

    Args:
        requires: what pip is given.
        module: what is imported to see whether it works.
        alone: packages to install without what they require.
    """

    requires: tuple[str, ...]
    module: str
    alone: tuple[str, ...] = ()


PACKAGES = {
    "miceforest": Package(("miceforest==6.0.5", "lightgbm<4.6"), "miceforest"),
    "gcimpute": Package(
        ("gcimpute==0.0.4", "numpy<2", "scipy<1.14", "pandas<2.3"), "gcimpute.gaussian_copula"
    ),
    "hyperimpute": Package(
        (
            *("numpy<2", "scipy<1.12", "pandas<2.1", "scikit-learn<1.4", "torch", "lightgbm"),
            *("xgboost<2", "catboost", "optuna<4", "loguru==0.6.0", "redis", "pydantic<2"),
            *("cloudpickle", "joblib", "tqdm", "psutil"),
        ),
        "hyperimpute.plugins.imputers",
        # it requires notebooks and, for a plugin that is not compared, TensorFlow
        alone=("hyperimpute==0.1.17", "geomloss"),
    ),
    "missforest": Package(("missforest==4.2.3", "pandas", "lightgbm", "tqdm"), "missforest"),
    "fancyimpute": Package(("fancyimpute==0.7.0", "scikit-learn<1.6"), "fancyimpute"),
    "datafiller": Package(("datafiller==0.4.0",), "datafiller"),
}
NOT_TO_BE_HAD = {
    "missingpy": "imports sklearn.neighbors.base, which no scikit-learn for Python 3.11 has",
    "remasker": "not on PyPI",
    "softimpute": "not on PyPI",
}


def make(folder: Path, name: str) -> str:
    """Makes one environment; "" where its package can be imported, and else what went wrong."""
    package, place = PACKAGES[name], folder / name
    venv.create(place, with_pip=True)
    commands = [["-m", "pip", "install", "--quiet", *package.requires]]
    if package.alone:
        commands.append(["-m", "pip", "install", "--quiet", "--no-deps", *package.alone])
    commands.append(["-c", f"import {package.module}"])
    for command in commands:
        done = subprocess.run(
            [str(place / "bin" / "python"), *command], capture_output=True, text=True
        )
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return ""


def main(arguments: Sequence[str]) -> None:
    """The command line: a folder, and packages if not all of them."""
    folder, *names = arguments
    for name in names or PACKAGES:
        print(f"{name}: {make(Path(folder), name) or 'works'}", flush=True)
    for name, reason in NOT_TO_BE_HAD.items():
        print(f"{name}: {reason}")


if __name__ == "__main__":
    main(sys.argv[1:])
