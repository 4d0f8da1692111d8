"""Rules of the tree, see CONTRIBUTING: who imports whom, every op's rooms, names, docstrings."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Literal, get_origin

import pytest
from torch.utils._device import _device_constructors

import rvi_fast
from rvi_fast import cli, data, ops, reference, testing
from rvi_fast.data.formats.registry import readable
from rvi_fast.experiments import registry

ROOT = Path(__file__).parent.parent
# what a module may import of the package, and by way of it whatever that may import
BELOW = {
    "_version": "",
    "layout": "",
    "_checks": "",
    "_devices": "",
    "data": "files _devices progress",
    "_figures": "",
    "progress": "",
    "plot": "models _figures",
    "_op_checks": "layout _checks _devices",
    "kernels": "_op_checks",
    "reference": "_op_checks",
    "cpp": "_op_checks _C",
    "memory": "",
    "files": "",
    "frames": "",
    "ops": "reference kernels cpp",
    "functional": "ops _checks",
    "likelihoods": "functional",
    "posteriors": "functional memory files",
    "optim": "functional posteriors memory",
    "posterior": "posteriors",
    "likelihood": "likelihoods",
    "encoder": "posteriors",
    "drawing": "",
    "scaler": "data _devices",
    "models": "posteriors likelihoods memory scaler data drawing",
    "training": "models optim data memory files _version _figures progress",
    "testing": "posteriors",
    "_info": "optim _version",
    "info": "_info",
    "experiments": "training _figures",
    "sklearn": "training frames",
    "cli": "training experiments info",
    "__main__": "cli",
    "__init__": "training info plot",
}
# what a room of training may import of the others
ROOMS = {
    "settings": "",
    "recipes": "",
    "inputs": "",
    "runs": "settings",
    "distributed": "inputs runs",
    "places": "inputs runs settings",
    "loop": "places distributed inputs runs settings",
    "memory": "loop places inputs settings",
    "held_out": "inputs loop",
    "opening": "loop",
    "fit": "opening",
    "callbacks": "loop",
    "start_linear": "opening",
    "workers": "loop",
    "many": "opening workers",
    "fit_many": "fit many",
    "load": "places",
    "infer": "loop held_out",
    "impute": "infer",
    "serving": "loop",
    "collapse": "infer",
    "pieces": "impute workers",
    "parquet": "pieces",
    "arrays": "pieces",
    "__init__": "arrays callbacks fit_many load parquet serving collapse memory recipes start_linear",
}
# longer than a sitting: CONTRIBUTING says why
LONG = {
    "kernels/relay_sample.py",
    "kernels/row_adam.py",
    "rvi_fast/cli/tables.py",
    "rvi_fast/optim/row_adam.py",
}
# the functions of torch that make a tensor on its default device unless they are told another
CONSTRUCTORS = {f"torch.{function.__name__}" for function in _device_constructors()}
# words of a mode of training, which the loop does not know
MODE = (
    "block_rows|blocks|journal|staging|staged|amortized|owns_rows|isinstance|storage|tables|sharded"
)
# the ops alone choose an implementation
ONLY = {"kernels": "ops", "cpp": "ops", "_C": "cpp"}
THIRD_PARTY = {
    "data": {"torch", "numpy"},
    "frames": {"numpy", "pandas"},
    "_figures": {"numpy", "matplotlib"},
    "plot": {"torch", "numpy"},
    "kernels": {"torch", "triton"},
    "scaler": {"torch", "numpy"},
    "progress": {"tqdm"},
    "training": {"torch", "numpy", "safetensors"},
    "testing": {"torch", "pytest"},
}
# at the top: they may take whatever the package and its extras have
FREE = {"cli", "sklearn", "experiments", "_info"}
OPTIONAL = (
    "triton",
    "matplotlib",
    "sklearn",
    "pandas",
    "pyarrow",
    "h5py",
    "zarr",
    "tensorboard",
    "pytest",
)
FILES = sorted({*ROOT.glob("rvi_fast/**/*.py"), *ROOT.glob("kernels/*.py")})
FILES = [path.relative_to(ROOT) for path in FILES if "kernels" not in path.parts[1:]]
FUNCTIONS = "_(fwd|bwd|catch_up)$|(?<=row_adam)_step$"
STEMS = sorted({re.sub(FUNCTIONS, "", name) for name in ops.SCHEMAS})
CONTRACTS = [getattr(testing, name) for name in testing.__all__ if name.endswith("Contract")]
TESTED = {name for contract in CONTRACTS for name in getattr(contract, "functions", ())}


def unit(path):
    """The name in `BELOW` that a file of the package stands under."""
    return "kernels" if path.parts[0] == "kernels" else path.parts[1].removesuffix(".py")


def below(name):
    direct = BELOW[name].split()
    return set(direct).union(*(below(other) for other in direct if other in BELOW))


def imported(path):
    """Absolute names of everything that a file imports, at any depth."""
    package = ["rvi_fast", *path.parts[1:-1]] if path.parts[0] == "rvi_fast" else ["kernels"]
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_downwards(path):
    own = unit(path)
    allowed = {own, *(name for name in below(own) if ONLY.get(name, own) == own)}
    outside = THIRD_PARTY.get(own, {"torch"}) | sys.stdlib_module_names
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top in ("rvi_fast", "kernels"):
            inner = "kernels" if top == "kernels" else rest.split(".")[0]
            assert inner in allowed or own in FREE, f"{path} imports {name}"
        else:
            assert top in outside or own in FREE, f"{path} imports {name}"


def reached(name, rooms):
    direct = rooms[name].split()
    return set(direct).union(*(reached(other, rooms) for other in direct))


def test_rooms_of_training_import_downwards():
    for path in (path for path in FILES if path.parts[:2] == ("rvi_fast", "training")):
        own = path.parts[2].removesuffix(".py")
        for name in imported(path):
            match name.split("."):
                case ["rvi_fast", "training", room, *_] if room in ROOMS:
                    assert room in {own, *reached(own, ROOMS)}, f"{path} imports {name}"


def test_files_are_read_in_one_sitting():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    sources = [path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.*")]
    for path in (*FILES, *sources):
        name = path.as_posix()
        length = len((ROOT / path).read_text().splitlines())
        assert length <= 400 or name in LONG, f"{name}: {length} lines"
        assert name not in LONG or f"`{name.removeprefix('rvi_fast/')}`" in text, name


def length_of(function):
    """Lines of code of a function, its docstring left out."""
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", [p for p in FILES if p.parts[0] == "rvi_fast"], ids=str)
def test_no_function_is_longer_than_a_page(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert length_of(node) <= 60, f"{path}: {node.name}: {length_of(node)} lines"


def test_the_loop_of_a_run_asks_for_no_mode():
    source = (ROOT / "rvi_fast/training/loop/run.py").read_text()
    assert len(source.splitlines()) <= 200
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Match):
            condition = ast.unparse(node.subject if isinstance(node, ast.Match) else node.test)
            assert not re.search(MODE, condition), f"line {node.lineno}: {condition}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_law_is_asked_and_not_recognised(path):
    laws = {cls.__name__ for cls in rvi_fast.likelihoods.LAWS.values()} | {"Gaussian"}
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        known = isinstance(node, ast.Name | ast.Attribute | ast.alias)
        named = known and {
            getattr(node, "id", ""),
            getattr(node, "attr", ""),
            getattr(node, "name", ""),
        }
        doors = ("rvi_fast/__init__.py", "rvi_fast/likelihood.py")
        inside = path.parts[1] == "likelihoods" or path.as_posix() in doors
        assert inside or not (named and named & laws), f"{path}: {named & laws}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_files_py_says_how_a_file_is_written(path):
    allowed = path.as_posix() == "rvi_fast/files.py"
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            wrong = (node.value.id, node.attr) in {("os", "replace"), ("os", "fsync")}
            assert allowed or not wrong, f"{path}:{node.lineno}"
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            modes = [a.value for a in node.args[:2] if isinstance(a, ast.Constant)]
            writes = name == "open" and any(re.fullmatch("[wax]b?[+]?", str(m)) for m in modes)
            writes |= name in ("write_text", "write_bytes") and isinstance(node.func, ast.Attribute)
            module = getattr(getattr(node.func, "value", None), "id", "")
            assert allowed or not writes or module == "files", f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_tensor_is_made_on_a_device_that_is_named(path):
    """A module's own parameters and buffers lie on torch's default device, as those of torch do."""
    if "testing" in path.parts:
        return
    tree = ast.parse((ROOT / path).read_text())
    of_modules = {
        id(node)
        for cls in ast.walk(tree)
        if isinstance(cls, ast.ClassDef) and path.parts[1] in ("likelihoods", "models")
        for function in cls.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node) not in of_modules:
            makes = ast.unparse(node.func) in CONSTRUCTORS
            named = any(keyword.arg in ("device", None) for keyword in node.keywords)
            assert named or not makes, f"{path}:{node.lineno}: {ast.unparse(node)}"


def test_importing_needs_and_loads_nothing_optional():
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL} or name == "rvi_fast._C":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import rvi_fast, rvi_fast.testing
z, kl = rvi_fast.RelayPosterior(9, 2)(__import__("torch").tensor([1]))
assert kl.isfinite().all()
print([name for name in {OPTIONAL} if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.parametrize("name", ops.SCHEMAS)
def test_op_has_a_reference_of_the_same_signature(name):
    schema = getattr(ops.ops, name).default._schema
    parameters = list(inspect.signature(getattr(reference, name)).parameters)
    assert parameters == [argument.name for argument in schema.arguments]
    assert getattr(reference, name).__doc__


@pytest.mark.parametrize("name", ops.SCHEMAS)
def test_function_of_an_op_stands_once_in_every_wing(name):
    for wing in ("rvi_fast/reference", "rvi_fast/cpp", "kernels"):
        found = [
            path.name
            for path in (ROOT / wing).glob("*.py")
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name == name
        ]
        assert len(found) == 1, f"{wing}: {found}"


@pytest.mark.parametrize("stem", STEMS)
def test_op_has_all_its_rooms(stem):
    for room in (f"csrc/{stem}.h", f"tests/test_{stem}.py", f"bench/bench_{stem}.py"):
        assert (ROOT / room).is_file(), room
    assert any(name.startswith(stem) for name in TESTED)


def test_every_package_of_the_tree_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {".".join(path.parts[:-1]) for path in FILES if path.name == "__init__.py"}
    assert sorted(listed) == sorted(packages - {"kernels"} | {"rvi_fast.kernels"})


def test_modules_are_named_after_what_they_hold():
    folders = [ROOT / name for name in ("kernels", "csrc", "tests", "bench")]
    paths = [*(ROOT / path for path in FILES), *(p for f in folders for p in f.glob("**/*.*"))]
    for path in paths:
        words = set(path.stem.split("_"))
        assert not words & {"util", "utils", "helper", "helpers", "misc", "v2", "old", "new"}, path


def test_names_of_tests_are_claims():
    for path in (ROOT / "tests").glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                assert len(node.name.split("_")) >= 4, f"{path.name}: {node.name}"


def test_everything_public_has_a_docstring():
    for name in rvi_fast.__all__:
        value = getattr(rvi_fast, name)
        assert name == "__version__" or inspect.getdoc(value), name
        if inspect.ismodule(value):
            for inner in getattr(value, "__all__", ()):
                found = getattr(value, inner)  # the words that an argument may be have no docstring
                assert get_origin(found) is Literal or inspect.getdoc(found), f"{name}.{inner}"


def public_members():
    """Name and object of everything public: of the package, and of the modules that users import."""
    modules = [rvi_fast, *(getattr(rvi_fast, name) for name in rvi_fast.__all__)]
    for name in ("functional", "sklearn", "testing", "data", "models", "optim", "plot", "training"):
        try:
            modules.append(importlib.import_module(f"rvi_fast.{name}"))
        except ImportError:  # an extra is missing
            continue
    for module in filter(inspect.ismodule, modules):
        for name in getattr(module, "__all__", [n for n in vars(module) if n[0] != "_"]):
            value = getattr(module, name)
            if getattr(value, "__module__", "").startswith("rvi_fast"):
                yield f"{module.__name__}.{name}", value
                for inner, member in vars(value).items() if inspect.isclass(value) else ():
                    member = getattr(member, "fget", getattr(member, "__func__", member))
                    if inner[0] != "_" and not inner.startswith("test_") and callable(member):
                        yield f"{module.__name__}.{name}.{inner}", member


def test_docstrings_say_something_without_their_context():
    for name, value in public_members():
        words = (inspect.getdoc(value) or "").split("\n\n")[0].split()
        assert len(words) >= 4, f"{name}: {' '.join(words)!r}"


@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.walk_packages(rvi_fast.__path__, "rvi_fast.")]
)
def test_examples_in_docstrings_hold(name, tmp_path, monkeypatch):
    if name.endswith("__main__"):
        pytest.skip("runs the command line")
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"not installed or not built: {error}")
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def files_of_the_project():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def test_no_path_of_one_machine_is_written_down():
    pattern = re.compile(r"""(?<![\w.*}])/(work|root|tmp)/""")
    for path in files_of_the_project():
        found = pattern.search(path.read_bytes().decode("utf-8", "replace"))
        assert path == Path(__file__) or not found, f"{path}: {found[0]}"


def test_version_is_that_of_the_changelog():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    attribute = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "rvi_fast._version.__version__"
    changelog = ROOT / "CHANGELOG.md"
    if changelog.is_file():
        top = re.search(r"^## \[?v?(\d[\w.]*)", changelog.read_text(), re.MULTILINE)
        assert top[1] == rvi_fast.__version__


def words_of_help(capsys, *command):
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_every_figure_format_and_data_set_is_in_the_help_of_the_command_line(capsys):
    figures, table = (words_of_help(capsys, command) for command in ("reproduce", "train"))
    assert len(registry.FIGURES) >= 15
    for name in registry.FIGURES:
        assert re.search(rf"\b{name}\b", figures), name
    for name in (*data.DATASETS, *readable()):
        assert name in table, name
    for command in ("infer", "impute"):
        shown = words_of_help(capsys, command)
        assert all(ending in shown for ending in data.SUFFIXES)


# what commands write, and names in examples
MADE = {"report.md", "page.md", "FILE.md", "run_dir/run.json"}
SOURCES = (".md", ".py", ".h", ".cpp", ".toml", "")
NAMED = r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|cpp|h|json|toml|txt))(?:::\w+)?`"
PAGE = r"(?<![\w/.{}-])[\w-]+\.md\b"
LINK = r"\]\((?!https?:|#|<)([^)#\s{}]+)\)"


def test_pages_and_docstrings_name_files_that_are_in_the_tree():
    paths = [path.relative_to(ROOT) for path in files_of_the_project()]
    known = {"/".join(path.parts[start:]) for path in paths for start in range(len(path.parts))}
    for path in paths:
        if path.suffix in SOURCES and "fixtures" not in path.parts:
            text = (ROOT / path).read_text()
            found = {*re.findall(NAMED, text), *re.findall(PAGE, text)} - known - MADE
            found = {name for name in found if "/NAME." not in name}  # of one to be added
            assert not found, f"{path}: {sorted(found)}"
            for link in re.findall(LINK, text) if path.suffix == ".md" else ():
                assert (ROOT / path.parent / link).exists(), f"{path}: {link}"
