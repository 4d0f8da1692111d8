"""Makes an environment for each package that is compared: `python -m imputation.environments DIR`.

From within `bench`. The packages pin contradicting versions, so that each gets a virtual environment
of its own, `DIR/<package>`, which falls back on the packages of the environment that makes it (numpy,
scipy, scikit-learn, torch). Prints for each whether it can be imported.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
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
    "miceforest": Package(("miceforest==6.0.5",), "miceforest"),
    "gcimpute": Package(("gcimpute==0.0.4",), "gcimpute.gaussian_copula"),
}


def make(folder: Path, name: str) -> str:
    """Makes one environment; "" where its package can be imported, and else what went wrong."""
    package, place = PACKAGES[name], folder / name
    python = place / "bin" / "python"
    venv.create(place, with_pip=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    fallback = place / "lib" / version / "site-packages" / "fallback.pth"
    fallback.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    commands = [["-m", "pip", "install", "--quiet", *package.requires]]
    if package.alone:
        commands.append(["-m", "pip", "install", "--quiet", "--no-deps", *package.alone])
    commands.append(["-c", f"import {package.module}"])
    for command in commands:
        done = subprocess.run([str(python), *command], capture_output=True, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return ""


def main(arguments: Sequence[str]) -> None:
    """The command line: a folder, and packages if not all of them."""
    folder, *names = arguments
    for name in names or PACKAGES:
        print(f"{name}: {make(Path(folder), name) or 'works'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
