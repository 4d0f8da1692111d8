"""Cases and contract of `likelihood_rows` and `likelihood_features`, launches of a step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import reference
from ..reference import fused_step
from ..reference.fused_step import SHARED_BLOCK
from .compare import assert_as_accurate, assert_bit_equal
from .contract import Inputs, OpContract
from .inputs import Implementation, poisoned_memory
from .log_likelihood import OTHER_LAWS


@dataclass(frozen=True)
class LikelihoodRowsCase:
    """A batch of rows of a table of data [N, D], and the last layer from `hidden_dim` inputs.

    `scale` names the shape of log_scale: "scalar" [], "feature" [D], or "none"; `x_dtype` None is the
    dtype of the layer; without a mask NaN marks what is missing. `packed` gives the mask's bits. `room`
    is for how many pieces there is room, `frozen` what has no gradient: 0 the weight, 1 the bias, 2 the
    log_scale.
    """

    num_data: int
    batch: int
    num_features: int
    hidden_dim: int = 16
    scale: str = "scalar"
    masked: bool = False
    x_dtype: torch.dtype | None = None
    packed: bool = False
    bias: bool = True
    law: str = "gaussian"
    room: int = 8
    frozen: tuple[int, ...] = ()

    def __str__(self) -> str:
        sizes = f"N{self.num_data}-B{self.batch}-D{self.num_features}-H{self.hidden_dim}"
        kind = "float" if self.x_dtype is None else str(self.x_dtype).removeprefix("torch.")
        extras = [word for word in ("masked", "packed", "bias") if getattr(self, word)]
        extras += [self.law] * (self.law != "gaussian")
        extras += ["frozen" + "".join(map(str, self.frozen))] * bool(self.frozen)
        return "-".join([sizes, self.scale, kind, *extras, f"n{self.room}"])


class LikelihoodRowsContract:
    """What `likelihood_rows` and `likelihood_features` have to keep, of whatever namespace has them."""

    implementations: ClassVar[Sequence[Implementation]] = (Implementation("reference", fused_step),)
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32,)
    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "likelihood_rows": ("log_prob", "grad_hidden"),
        "likelihood_features": (),
    }
    cases: ClassVar[Sequence[LikelihoodRowsCase]] = (
        LikelihoodRowsCase(1, 1, 1, 1, room=1),
        LikelihoodRowsCase(90, 70, 63, 7, "feature"),
        LikelihoodRowsCase(90, 63, 100, 64, "scalar", True, torch.uint8),
        LikelihoodRowsCase(90, 63, 100, 64, "feature", True, torch.uint8, packed=True, bias=False),
        LikelihoodRowsCase(150, 100, 63, 5, "feature", True, torch.float16),
        LikelihoodRowsCase(90, 70, 130, 33, "scalar", x_dtype=torch.bfloat16, room=3),
        LikelihoodRowsCase(60, 33, 65, 128, "scalar", True, torch.float64),
        *(
            case
            for law, (first, second, _) in OTHER_LAWS.items()
            for case in (
                LikelihoodRowsCase(90, 63, 100, 64, first, True, torch.uint8, True, law=law),
                LikelihoodRowsCase(9, 7, 63, 7, second, law=law),
            )
        ),
        # more programs than numbers fit into a piece
        LikelihoodRowsCase(90, 70, 1100, 3, "scalar", room=2),
        LikelihoodRowsCase(60, 40, 63, 7, "feature", frozen=(0,)),
        LikelihoodRowsCase(60, 40, 63, 7, "scalar", frozen=(0, 1)),
        LikelihoodRowsCase(60, 40, 63, 7, "scalar", frozen=(1, 2)),
        LikelihoodRowsCase(60, 40, 63, 7, "scalar", frozen=(0, 1, 2)),
    )
    pytest_generate_tests = OpContract.pytest_generate_tests

    def inputs(
        self, function: str, case: LikelihoodRowsCase, dtype: torch.dtype = torch.float32
    ) -> Inputs:
        """Every argument of the function by name, on the CPU."""
        generator = torch.Generator().manual_seed(case.num_features)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        table = (case.num_data, case.num_features)
        index = torch.randperm(case.num_data, generator=generator)[: case.batch]
        observed = torch.rand(table, generator=generator) < 0.7
        if case.num_data > 1:  # a row of the batch with nothing observed
            observed[index[0]] = False
        x = normal(*table)
        if case.scale == "none":  # zeros and ones, which are data of every such law
            x = (x > 0).to(dtype)
        if case.x_dtype == torch.uint8:
            x = torch.randint(256, table, generator=generator, dtype=torch.uint8)
        elif case.x_dtype is not None:
            x = x.to(case.x_dtype)
        mask = reference.pack_bits(observed) if case.packed else observed
        shape = {"scalar": (), "feature": table[1:], "none": ()}[case.scale]
        values: Inputs = {
            "hidden": normal(case.batch, case.hidden_dim).relu(),
            "weight": normal(case.num_features, case.hidden_dim) / case.hidden_dim**0.5,
            "bias": normal(case.num_features) if case.bias else None,
            "x": x if case.masked else torch.where(observed, x, torch.nan),
            "index": index,
            "log_scale": None if case.scale == "none" else 0.5 * normal(*shape),
            "mask": mask if case.masked else None,
            "law": case.law,
            "grad": -1.0 / (case.batch + 1),
        }
        tensors = [values[name] for name in ("weight", "bias", "log_scale")]
        places: list[int | None] = []
        start = SHARED_BLOCK
        for number, tensor in enumerate(tensors):
            size = 0 if tensor is None else tensor.numel()
            places.append(start if size and number not in case.frozen else None)
            # a block between them that is nobody's
            start += (-(-size // SHARED_BLOCK) + 1) * SHARED_BLOCK
        values["grads"] = torch.full((case.room, start), torch.nan, dtype=dtype)
        values["places"] = tuple(places)
        names = inspect.signature(getattr(fused_step, function)).parameters
        return {name: values[name] for name in names}

    def arguments(self, function: str, case: LikelihoodRowsCase) -> tuple[Any, ...]:
        """float32 arguments of the function by position."""
        return tuple(self.inputs(function, case).values())

    def call(
        self, implementation: Implementation, function: str, inputs: Inputs
    ) -> dict[str, Tensor]:
        """Sums over the pieces that it returned or wrote, by name, on the CPU.

        Asserts that of `grads` nothing else was written.
        """
        own = {
            name: value.to(implementation.device) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        if function == "likelihood_rows":
            pieces = implementation.namespace.likelihood_rows(*own.values())
            return {
                name: piece.double().sum(0).to(piece.dtype).cpu()
                for name, piece in zip(self.functions[function], pieces, strict=True)
            }
        own["grads"] = own["grads"].clone()
        counts = implementation.namespace.likelihood_features(*own.values())
        grads, results = own["grads"].cpu(), {}
        for name, count, place in zip(
            ("weight", "bias", "log_scale"), counts, inputs["places"], strict=True
        ):
            assert (count == 0) == (place is None), f"{name}: {count} pieces"
            if place is not None:
                # one number in as many parts as fill the blocks
                width = inputs[name].numel() if count > 0 else SHARED_BLOCK
                pieces = grads[: abs(count), place : place + width]
                assert not pieces.isnan().any(), f"{name}: a piece has gaps"
                total = pieces.double().sum(0) if count > 0 else pieces.double().sum()
                results[f"grad_{name}"] = total.to(grads.dtype).reshape(inputs[name].shape)
                pieces.fill_(torch.nan)
        assert bool(grads.isnan().all()), "grads: written beside the pieces"
        return results

    def check(self, implementation: Implementation, function: str, inputs: Inputs) -> None:
        """Compares a call with the reference in float64."""
        double = {
            name: value.double()
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for name, value in inputs.items()
        }
        definition = Implementation("reference", fused_step)
        yardstick, exact = (self.call(definition, function, values) for values in (inputs, double))
        got = self.call(implementation, function, inputs)
        assert got.keys() == exact.keys()
        for name in exact:
            assert_as_accurate(name, got[name], exact[name], yardstick[name])

    def test_results_equal_the_reference(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        self.check(implementation, function, self.inputs(function, case, dtype))

    def test_runs_are_bit_equal_whatever_memory_holds(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.inputs(function, case, dtype)
        expected = self.call(implementation, function, inputs)
        with poisoned_memory():
            assert_bit_equal(self.call(implementation, function, inputs), expected)
