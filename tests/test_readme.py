"""Every Python block of README.md runs as it is printed, alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def test_there_are_blocks_to_run():
    assert len(BLOCKS) >= 7


@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
def test_a_block_of_the_readme_runs_as_printed(block, tmp_path):
    (tmp_path / "block.py").write_text(block, encoding="utf-8")
    paths = [str(README.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
    done = subprocess.run(
        [sys.executable, *(torchrun if "torchrun" in block else ()), "block.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
