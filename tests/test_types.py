"""What a type checker knows of the package: a user's script, and misuse that it finds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import user_script

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "user_script.py"
MISUSE = {
    "optimizer": 'rvi_fast.fit(model, x, optimizer="sgd")',
    "scale_update": 'rvi_fast.fit(model, x, scale_update="none")',
    "estimate": 'rvi_fast.impute(model, x, estimate="median")',
    "draws and estimate": 'rvi_fast.impute(model, x, num_draws=3, estimate="mean")',
    "scale_factor": 'rvi_fast.infer(model, x, scale_factor="held out")',
    "form": 'rvi_fast.models.rvi(9, 3, form="tree")',
    "decoder": 'rvi_fast.models.vad(9, 3, decoder="deep")',
    "mode": 'rvi_fast.optim.RowAdam(posterior, mode="sparse")',
    "quantity": 'rvi_fast.EarlyStopping(quantity="kl")',
    "call of a model": "model(index=1)",
    "call of a posterior": "posterior(x, samples=3)",
    "result of a model": "model(x, x).loss.losses",
    "result of a posterior": "posterior(x).zz",
}
HEADER = """import rvi_fast
from torch import Tensor
def misuse(
    model: rvi_fast.models.LatentModel, posterior: rvi_fast.RelayPosterior, x: Tensor
) -> None:
"""


def test_the_script_of_a_user_runs(tmp_path, capsys):
    filled = user_script.main(tmp_path)
    assert filled.isfinite().all()
    assert len(SCRIPT.read_text().splitlines()) < 65


def mypy(*arguments):
    pytest.importorskip("mypy", reason="mypy is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-pretty"]
    result = subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout + result.stderr


def misuse(directory):
    path = directory / "misuse.py"
    path.write_text(HEADER + "".join(f"    {line}\n" for line in MISUSE.values()))
    return path


def lines_found(text, path):
    first = HEADER.count("\n") + 1
    numbers = {
        int(line.split(f"{path.name}:", 1)[1].split(":")[0])
        for line in text.splitlines()
        if f"{path.name}:" in line and "error" in line
    }
    return {name for number, name in enumerate(MISUSE, first) if number in numbers}


def test_mypy_strict_understands_the_script_of_a_user():
    code, said = mypy(SCRIPT)
    assert code == 0, said


def test_mypy_finds_misuse(tmp_path):
    path = misuse(tmp_path)
    assert lines_found(mypy(path)[1], path) == set(MISUSE)


def pyright(directory, path):
    """Runs pyright on a file, without asking anybody for a newer one."""
    found = shutil.which(
        "pyright", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if found is None:
        pytest.skip("pyright is not installed")
    settings = {"include": [str(path)], "typeCheckingMode": "strict", "pythonVersion": "3.11"}
    settings["extraPaths"] = [str(ROOT)]
    (directory / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [found, "--pythonpath", sys.executable, "--project", str(directory), "--outputjson"]
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    result = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=False, env=environment
    )
    try:
        diagnostics = json.loads(result.stdout)["generalDiagnostics"]
    except json.JSONDecodeError:
        pytest.skip(f"pyright does not start: {(result.stderr or result.stdout)[-200:]}")
    return diagnostics


def test_pyright_strict_understands_the_script_of_a_user(tmp_path):
    copy = tmp_path / SCRIPT.name
    copy.write_text(SCRIPT.read_text())
    found = pyright(tmp_path, copy)
    assert [diagnostic["message"] for diagnostic in found] == []


def test_pyright_finds_misuse(tmp_path):
    path = misuse(tmp_path)
    first = HEADER.count("\n")
    lines = {diagnostic["range"]["start"]["line"] for diagnostic in pyright(tmp_path, path)}
    assert {name for number, name in enumerate(MISUSE, first) if number in lines} == set(MISUSE)
