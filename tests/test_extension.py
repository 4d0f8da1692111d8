"""`rvi_fast._C` as Python calls it: by keyword, as the stub says, and recognised by its signatures."""

import ast
import hashlib
import importlib
import inspect
import sys
from pathlib import Path

import pytest
import torch
from common import run_python

import rvi_fast
from rvi_fast._op_checks import log_likelihood
from rvi_fast.ops import table

cpp = pytest.importorskip("rvi_fast.cpp", reason="the C++ part is not built")

STUB = Path(rvi_fast.__file__).parent / "_C.pyi"


def signatures_of_the_stub():
    """The stub in the words of `_C.SIGNATURES`."""
    lines = []
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            lines.append(signature(node.name, node, ast.unparse(node.returns)))
        elif isinstance(node, ast.ClassDef):
            inner = node.body
            if isinstance(inner[0], ast.FunctionDef):
                lines.append(signature(node.name, inner[0], node.name))
            else:
                assert {ast.unparse(part.annotation) for part in inner} == {
                    f"ClassVar[{node.name}]"
                }
                lines.append(f"class {node.name}: {' '.join(part.target.id for part in inner)}")
    return "".join(line + "\n" for line in lines)


def signature(name, function, result):
    arguments = [f"{a.arg}: {ast.unparse(a.annotation)}" for a in function.args.kwonlyargs]
    return f"{name}({', '.join(['*', *arguments] if arguments else [])}) -> {result}"


def zeros(function, **changes):
    """Arguments for a call that computes nothing."""
    made = {
        "is_double": False,
        "beta1": 0.5,
        "x_type": cpp._C.DataType.float32,
        "law": "gaussian",
    }
    made |= {"scale_kind": cpp._C.ScaleKind.feature, "mask_kind": cpp._C.MaskKind.none}
    return {name: made.get(name, 0) for name in inspect.signature(function).parameters} | changes


def test_stub_and_module_say_the_same():
    assert signatures_of_the_stub().splitlines() == cpp._C.SIGNATURES.splitlines()


def test_digest_is_that_of_the_stub():
    digest = hashlib.sha256(signatures_of_the_stub().encode()).hexdigest()[:16]
    assert digest == cpp.extension.DIGEST


def test_everything_bound_is_in_the_signatures_and_has_a_docstring():
    listed = {
        line.removeprefix("class ").partition("(")[0] for line in cpp._C.SIGNATURES.splitlines()
    }
    listed = {name.partition(":")[0] for name in listed}
    bound = {
        name
        for name in dir(cpp._C)
        if not name.startswith("_") and name not in ("SIGNATURES", "LAWS")
    }
    assert bound == listed
    for name in bound:
        assert inspect.getdoc(getattr(cpp._C, name)), name
    for name in ("relay_sample_fwd", "row_adam_step"):
        signature = inspect.signature(getattr(cpp._C, name))
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        assert kinds == {inspect.Parameter.KEYWORD_ONLY}


def test_order_of_keywords_does_not_matter_and_names_need_not_be_interned():
    function = cpp._C.log_likelihood_fwd
    arguments = zeros(function)
    function(**arguments)
    function(**{"".join(list(name)): arguments[name] for name in reversed(arguments)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_type": 0}, "^x_type: expected DataType, got 0$"),
        (
            {"scale_kind": cpp._C.MaskKind.none},
            "^scale_kind: expected ScaleKind, got <MaskKind.none",
        ),
        ({"mask_kind": "bits"}, "^mask_kind: expected MaskKind, got 'bits'$"),
        ({"x": 0.0}, r"^x: expected int, got 0\.0$"),
        ({"x": None}, "^x: expected int, got None$"),
        ({"x": -1}, "^x: expected int, got -1$"),
        ({"batch": 2**63}, "^batch: expected int, got 9223372036854775808$"),
        ({"law": 0}, "^law: expected str, got 0$"),
        ({"form": 0}, "^log_likelihood_fwd: expected the arguments that .*, got 'form'$"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(changes, message):
    function = cpp._C.log_likelihood_fwd
    with pytest.raises(TypeError, match=message):
        function(**zeros(function, **changes))


def test_an_unknown_law_is_refused_with_the_names_of_all():
    names = ", ".join(cpp._C.LAWS)
    with pytest.raises(ValueError, match=f"^law: expected one of {names}, got 'beta'$"):
        cpp._C.log_likelihood_fwd(**zeros(cpp._C.log_likelihood_fwd, law="beta"))


def test_an_extension_without_a_law_is_refused_at_import(monkeypatch):
    monkeypatch.setitem(log_likelihood.SCALED, "beta", False)
    with pytest.raises(ImportError, match=r"expected the laws .*, beta, got .* built again"):
        importlib.reload(cpp.extension)


def test_a_missing_argument_and_one_by_position_are_refused():
    function = cpp._C.log_likelihood_fwd
    arguments = zeros(function)
    for name in arguments:
        rest = {other: value for other, value in arguments.items() if other != name}
        with pytest.raises(TypeError, match=f"expected the argument '{name}', got none"):
            function(**rest)
    with pytest.raises(TypeError, match="expected arguments by keyword, got 1 by position"):
        function(False, **arguments)


def test_an_int_is_no_bool():
    with pytest.raises(TypeError, match=r"^is_double: expected bool, got 0$"):
        cpp._C.adam_step(**zeros(cpp._C.adam_step, is_double=0))


def test_a_float_may_be_given_as_an_int():
    values = torch.ones(5, 1, dtype=torch.float64)
    params, exp_avg, exp_avg_sq, grads, lr = (value.data_ptr() for value in values)
    step = torch.zeros(1, dtype=torch.int64)
    cpp._C.adam_step(
        is_double=True,
        threads=1,
        size=1,
        num_parts=1,
        params=params,
        exp_avg=exp_avg,
        exp_avg_sq=exp_avg_sq,
        grads=grads,
        step=step.data_ptr(),
        lr=lr,
        beta1=0,
        beta2=0,
        eps=1,
        weight_decay=0,
    )
    assert values[0].item() == 0.5
    assert step.item() == 1


def test_row_numbers_and_forms_are_of_their_own_types():
    function = cpp._C.row_adam_catch_up
    with pytest.raises(
        TypeError, match=r"^index: expected tuple\[int, bool, int\], got \(0, 1, 0\)$"
    ):
        function(**zeros(function, types=cpp._C.RowTypes.float32, index=(0, 1, 0)))
    with pytest.raises(TypeError, match="incompatible constructor arguments"):
        cpp._C.RowLayout(
            latent_dim=1,
            groups=[4],
            kept=[2],
            form="linear",
            group_offsets=[0],
            deviation_offset=4,
            log_std_offset=8,
            width=12,
        )


STALE = """
import warnings
import torch
{change}
from rvi_fast import info, ops, relay_sample
from rvi_fast.layout import RowLayout
layout = RowLayout.resolve(2, (3,))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        relay_sample(torch.ones(2, layout.width), torch.ones(3, 2), torch.tensor([1]), layout=layout)
print(ops.implementation("cpu").__name__, len(caught), caught[0].category.__name__)
print(info()["devices"]["cpu"]["unused"])
"""


def test_a_stale_extension_is_noticed():
    result = run_python(
        STALE.format(change="import rvi_fast._C; rvi_fast._C.SIGNATURES += 'f() -> None\\n'")
    )
    assert "rvi_fast.reference 1 FallbackWarning" in result.stdout, result.stderr
    assert "must be built again" in result.stdout


def test_a_missing_extension_is_noticed_and_what_it_costs_is_said():
    result = run_python(STALE.format(change="import sys; sys.modules['rvi_fast._C'] = None"))
    assert "rvi_fast.reference 1 FallbackWarning" in result.stdout, result.stderr
    assert "a training step takes four to seven times as long" in result.stdout
    assert "pip install" in result.stdout


def test_kernels_for_a_gpu_that_lack_triton_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rvi_fast.kernels", None)
    table._serving.cache_clear()
    with pytest.warns(table.FallbackWarning, match=r"cuda tensors, slowly: .*rvi-fast\[gpu\]"):
        table.implementation("cuda")
    assert "pip install 'rvi-fast[gpu]'" in table.unused("cuda")["Triton"]
    table._serving.cache_clear()
