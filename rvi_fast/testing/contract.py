"""What the functions of every op are held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import ops, reference
from .compare import assert_as_accurate, assert_bit_equal
from .inputs import Implementation, expanded, poisoned_memory, strided

Inputs = dict[str, Any]


class OpContract:
    """What each function of an op must do, as test methods for pytest to find.

    A subclass gives `functions`, `cases` and `inputs`; a test class gives `implementations`, and may
    cut `cases` or `dtypes` where an implementation is slow or narrow.
    """

    implementations: ClassVar[Sequence[Implementation]] = (Implementation("reference", reference),)
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32, torch.float64)
    # function -> names of what it returns; what it writes in place has the argument's name
    functions: ClassVar[Mapping[str, tuple[str, ...]]]
    cases: ClassVar[Sequence[Any]]
    # need_<name> -> what it is about, where that is not grad_<name>
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def inputs(self, function: str, case: Any, dtype: torch.dtype) -> Inputs:
        """Every argument of the function by name, on the CPU; others may lie among them."""
        raise NotImplementedError

    def arguments(
        self, function: str, case: Any, transform: Callable[[Tensor], Tensor] = torch.clone
    ) -> tuple[Any, ...]:
        """float32 arguments by position, as `torch.library.opcheck` takes them."""
        inputs = self._each_read(self.inputs(function, case, torch.float32), transform)
        return tuple(inputs[name] for name in _arguments(function))

    def compare(
        self,
        inputs: Inputs,
        got: dict[str, Tensor],
        exact: dict[str, Tensor],
        yardstick: dict[str, Tensor],
    ) -> None:
        """Holds every output to the accuracy that `assert_as_accurate` asks for."""
        for name in exact:
            assert_as_accurate(name, got[name], exact[name], yardstick[name])

    def call(
        self, implementation: Implementation, function: str, inputs: Inputs
    ) -> dict[str, Tensor]:
        """Runs it on copies: what it returned and what it wrote in place, by name, on the CPU."""
        arguments = {}
        written = _written(function)
        for name in _arguments(function):
            value = inputs[name]
            if isinstance(value, Tensor):
                value = value.to(implementation.device)
            arguments[name] = value.clone() if name in written else value
        returned = getattr(implementation.namespace, function)(*arguments.values())
        if returned is NotImplemented:
            import pytest

            pytest.skip(f"{implementation.name} leaves it to the reference")
        returned = (returned,) if isinstance(returned, Tensor) else returned or ()
        results = dict(zip(self.functions[function], returned, strict=True))
        results.update((name, arguments[name]) for name in written)
        return {name: result.cpu() for name, result in results.items()}

    def prepared(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> Inputs:
        """The inputs on the implementation's device: a copy to it would lose odd strides."""
        inputs = self.inputs(function, case, dtype)
        return _each_tensor(inputs, lambda value: value.to(implementation.device))

    def _each_read(self, inputs: Inputs, transform: Callable[[Tensor], Tensor]) -> Inputs:
        # what one function of the op writes is the op's own table, and lies as the op made it
        owned = {name for function in self.functions for name in _written(function)}
        return _each_tensor(inputs, transform) | {
            name: value for name, value in inputs.items() if name in owned
        }

    def check(self, implementation: Implementation, function: str, inputs: Inputs) -> None:
        """Compares a call with the reference on contiguous copies of the inputs."""
        plain = _each_tensor(inputs, Tensor.contiguous)
        double = _each_tensor(
            plain, lambda value: value.double() if value.is_floating_point() else value
        )
        reference_ = Implementation("reference", reference)
        yardstick = self.call(reference_, function, plain)
        exact = self.call(reference_, function, double)
        self.compare(inputs, self.call(implementation, function, inputs), exact, yardstick)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """pytest's hook: one test per implementation, function, case and dtype."""
        import pytest

        def parameter(implementation: Implementation) -> Any:
            marks = [pytest.mark.gpu] if implementation.device == "cuda" else []
            name = f"{implementation.name}-{implementation.device}"
            return pytest.param(implementation, marks=marks, id=name)

        if "implementation" in metafunc.fixturenames:
            metafunc.parametrize("implementation", [*map(parameter, self.implementations)])
            metafunc.parametrize("function", [*self.functions])
            metafunc.parametrize("case", self.cases, ids=str)
            metafunc.parametrize("dtype", self.dtypes, ids=str)

    def test_results_equal_the_reference(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.prepared(implementation, function, case, dtype)
        self.check(implementation, function, inputs)

    def test_strides_change_nothing(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.prepared(implementation, function, case, dtype)
        self.check(implementation, function, self._each_read(inputs, strided))

    def test_expanded_tensors_are_read_as_such(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        def transform(value: Tensor) -> Tensor:
            wide = value.dim() and (value.is_floating_point() or value.dtype == torch.bool)
            return expanded(value) if wide and len(value) else value

        inputs = self.prepared(implementation, function, case, dtype)
        self.check(implementation, function, self._each_read(inputs, transform))

    def test_runs_are_bit_equal_whatever_memory_holds(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        # NaN shows in elements that are not written; the index in int32 is the same index
        inputs = self.prepared(implementation, function, case, dtype)
        expected = self.call(implementation, function, inputs)
        if "index" in _arguments(function):
            inputs["index"] = inputs["index"].to(torch.int32)
        with poisoned_memory():
            assert_bit_equal(self.call(implementation, function, inputs), expected)

    def test_what_is_not_needed_has_no_elements(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.prepared(implementation, function, case, dtype)
        needs = [name for name in _arguments(function) if name.startswith("need_")]
        if not needs:
            return
        expected = self.call(implementation, function, inputs)
        for need in needs:
            got = self.call(implementation, function, inputs | {need: False})
            for skipped in self.needs.get(need, (need.replace("need_", "grad_"),)):
                assert got.pop(skipped).numel() == 0
            if implementation.device == "cpu":
                assert_bit_equal(got, {name: expected[name] for name in got})
            else:
                # a kernel is compiled for each need, and its products may be rounded before a sum or not
                self.check(implementation, function, inputs | {need: False})


def _schema(function: str) -> Any:
    return getattr(ops.ops, function).default._schema


def _arguments(function: str) -> list[str]:
    return [argument.name for argument in _schema(function).arguments]


def _written(function: str) -> list[str]:
    return [
        argument.name
        for argument in _schema(function).arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _each_tensor(inputs: Inputs, transform: Callable[[Tensor], Tensor]) -> Inputs:
    return {
        name: transform(value) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }
