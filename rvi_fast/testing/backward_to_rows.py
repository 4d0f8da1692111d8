"""Cases and contract of `backward_to_rows`, a launch of the step of a small batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import reference
from ..layout import RowLayout
from ..reference import fused_step
from .compare import assert_as_accurate, assert_bit_equal
from .contract import Inputs, OpContract
from .inputs import Implementation, poisoned_memory
from .row_adam import assert_rounded

# what it writes in place
WRITTEN = ("rows", "exp_avg", "exp_avg_sq", "row_step", "grads")
ARGUMENTS = tuple(inspect.signature(fused_step.backward_to_rows).parameters)


@dataclass(frozen=True)
class BackwardToRowsCase:
    """A batch of a model with hidden layers and some steps of Adam behind it."""

    num_data: int
    batch: int
    latent_dim: int
    groups: tuple[int, ...]
    hidden: tuple[int, ...] = ()
    form: str = "linear"
    pieces: int = 2
    weight_decay: float = 0.0
    bfloat16: bool = False
    bias: bool = True
    # noise and random bits of row numbers of their own, of 33 bits
    keyed: bool = False
    # what has no gradient: 0 the relays, 1 and 2 weight and bias of the first layer, ...
    frozen: tuple[int, ...] = ()

    def __str__(self) -> str:
        sizes = f"B{self.batch}-T{self.latent_dim}-K{sum(self.groups)}-p{self.pieces}"
        layers = "-".join(f"H{width}" for width in self.hidden)
        extras = [word for word in ("bfloat16", "keyed", "frozen") if getattr(self, word)]
        return "-".join(filter(None, [self.form, sizes, layers, *extras]))


class BackwardToRowsContract:
    """What `backward_to_rows` has to keep, of whatever namespace has it."""

    implementations: ClassVar[Sequence[Implementation]] = (Implementation("reference", fused_step),)
    dtypes: ClassVar[Sequence[torch.dtype]] = (torch.float32,)
    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {"backward_to_rows": ()}
    cases: ClassVar[Sequence[BackwardToRowsCase]] = (
        BackwardToRowsCase(1, 1, 1, (1,), (1,)),
        BackwardToRowsCase(63, 16, 7, (25, 7), (20, 7), pieces=9),
        BackwardToRowsCase(63, 37, 20, (33, 64, 5), (7, 1, 20), weight_decay=0.1),
        BackwardToRowsCase(63, 7, 7, (9, 31), (20,), "cluster", bias=False, keyed=True),
        BackwardToRowsCase(63, 31, 5, (), (3, 4), pieces=1),
        BackwardToRowsCase(63, 17, 6, (7, 40), (), pieces=3),
        BackwardToRowsCase(63, 33, 7, (6, 3), (5, 8), bfloat16=True, weight_decay=0.1),
        BackwardToRowsCase(63, 33, 7, (6, 30), (5, 8), bfloat16=True, keyed=True),
        BackwardToRowsCase(63, 17, 6, (40,), (5, 8, 3), frozen=(0, 3, 6)),
        BackwardToRowsCase(63, 17, 6, (7, 4), (5, 8), frozen=(0, 1, 2, 3, 4)),
    )
    pytest_generate_tests = OpContract.pytest_generate_tests

    def inputs(self, case: BackwardToRowsCase, dtype: torch.dtype = torch.float32) -> Inputs:
        """Every argument by name, on the CPU, as `relay_decode` and what follows it leave them."""
        layout = RowLayout.resolve(case.latent_dim, case.groups, 0.5, case.form)
        generator = torch.Generator().manual_seed(case.batch)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        # padding too: it is stepped like the rest
        table = (case.num_data, layout.width)
        rows, relays = normal(*table), normal(layout.num_relays, case.latent_dim)
        index = torch.randperm(case.num_data, generator=generator)[: case.batch]
        widths = (case.latent_dim, *case.hidden)
        pairs = zip(widths[1:], widths, strict=False)
        weights = [normal(outputs, inputs) / inputs**0.5 for outputs, inputs in pairs]
        biases = [normal(width) if case.bias else None for width in case.hidden]
        marks = reference.selected(rows[index], layout)
        words = [reference.pack_bits(mark) for mark in marks]
        bits = torch.cat([*words, index.new_empty((case.batch, 0), dtype=torch.int32)], -1)
        drawn: Inputs = {
            "rows": rows,
            "relays": relays,
            "index": index,
            "seed": torch.tensor([2**40 + 3]),
            "noise_index": index + 2**33 if case.keyed else None,
            "bits": bits,
            "weights": weights,
            "groups": list(layout.groups),
            "kept": list(layout.kept),
            "form": layout.form,
        }
        z, _, mean, hidden = fused_step.relay_decode(**drawn, biases=biases)
        # bfloat16 goes with float32 alone
        moments = torch.bfloat16 if case.bfloat16 and dtype == torch.float32 else dtype
        # the batch's rows are up to date, the others lag behind
        row_step = torch.randint(12, (case.num_data,), generator=generator, dtype=torch.int32)
        row_step[index] = 12
        places, size = self._places(case, relays, weights)
        inputs = drawn | {
            "grad_hidden": normal(case.pieces, case.batch, widths[-1]),
            "hidden": hidden,
            "z": z,
            "mean": mean,
            "exp_avg": (0.1 * normal(*table)).to(moments),
            "exp_avg_sq": (0.1 * normal(*table).square()).to(moments),
            "row_step": row_step,
            "kl_weight": torch.tensor(0.3, dtype=dtype),
            "full_size": case.batch + 1,
            "clock": torch.tensor([12, 0]),
            "lr": torch.tensor(0.01, dtype=torch.float64),
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": case.weight_decay,
            # as many pieces as any walk over blocks of 16 rows can give
            "grads": torch.full((-(-case.batch // 16), size), torch.nan, dtype=dtype),
            "places": places,
        }
        return {name: inputs[name] for name in ARGUMENTS}

    def arguments(self, function: str, case: BackwardToRowsCase) -> tuple[Any, ...]:
        """float32 arguments of `function`, which is `backward_to_rows`, by position."""
        return tuple(self.inputs(case).values())

    def call(self, implementation: Implementation, inputs: Inputs) -> dict[str, Tensor]:
        """Runs it on copies: tables by name, and the sum of the pieces of each gradient, on the CPU.

        Asserts that of `grads` nothing else was written.
        """
        own = {name: _moved(value, implementation.device) for name, value in inputs.items()}
        own |= {name: own[name].clone() for name in WRITTEN}
        written = implementation.namespace.backward_to_rows(*own.values())
        results = {name: own[name].cpu() for name in WRITTEN}
        grads = results.pop("grads")
        results["clock"] = own["clock"].cpu()
        shapes = [inputs["relays"].shape]
        for weight in inputs["weights"]:
            shapes += [weight.shape, weight.shape[:1]]
        for number, (place, count, shape) in enumerate(
            zip(inputs["places"], written, shapes, strict=True)
        ):
            assert (place is None) == (count == 0), f"part {number}: {count} pieces"
            if place is not None:
                pieces = grads[:count, place : place + shape.numel()]
                assert not pieces.isnan().any(), f"part {number}: a piece has gaps"
                total = pieces.double().sum(0).to(grads.dtype)
                results[f"grad_{number}"] = total.reshape(shape)
                pieces.fill_(torch.nan)
        assert bool(grads.isnan().all()), "grads: written beside the pieces"
        return results

    def check(self, implementation: Implementation, inputs: Inputs) -> None:
        """Compares a call with the reference in float64."""
        moments = ("exp_avg", "exp_avg_sq")
        rounded = inputs["exp_avg"].dtype == torch.bfloat16
        wide = inputs | {name: inputs[name].to(inputs["rows"].dtype) for name in moments}
        definition = Implementation("reference", fused_step)
        yardstick = self.call(definition, wide)
        exact = self.call(definition, {name: _double(value) for name, value in wide.items()})
        got, index = self.call(implementation, inputs), inputs["index"]
        rest = torch.ones(len(inputs["rows"]), dtype=torch.bool)
        rest[index] = False
        for name in ("rows", *moments, "row_step"):
            assert torch.equal(got[name][rest], inputs[name][rest]), f"{name}: other rows changed"
        if rounded:
            count, width = inputs["clock"][0] + 1, inputs["rows"].shape[1]
            keys = index if inputs["noise_index"] is None else inputs["noise_index"]
            words = reference.moment_words(keys, count, width)
            for name, bits in zip(moments, (words >> 16, words & 0xFFFF), strict=True):
                others = (exact.pop(name), yardstick.pop(name))
                assert_rounded(name, got.pop(name), inputs[name], *others, index, bits)
        assert got.keys() == exact.keys()
        for name in exact:
            assert_as_accurate(name, got[name], exact[name], yardstick[name])

    def test_results_equal_the_reference(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        self.check(implementation, self.inputs(case, dtype))

    def test_runs_are_bit_equal_whatever_memory_holds(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.inputs(case, dtype)
        expected = self.call(implementation, inputs)
        with poisoned_memory():
            assert_bit_equal(self.call(implementation, inputs), expected)

    def _places(
        self, case: BackwardToRowsCase, relays: Tensor, weights: Sequence[Tensor]
    ) -> tuple[list[int | None], int]:
        """Where gradients begin, None for what has none, and P; there are gaps between them."""
        sizes = [relays.numel()]
        for weight in weights:
            sizes += [weight.numel(), len(weight) if case.bias else 0]
        places: list[int | None] = []
        block = start = fused_step.SHARED_BLOCK
        for number, size in enumerate(sizes):
            present = number not in case.frozen and (case.bias or number == 0 or number % 2)
            places.append(start if present else None)
            start += (-(-size // block) + 1) * block
        return places, start


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, list):
        return [_moved(entry, device) for entry in value]
    return value.to(device) if isinstance(value, Tensor) else value


def _double(value: Any) -> Any:
    if isinstance(value, list):
        return [_double(entry) for entry in value]
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floating else value
