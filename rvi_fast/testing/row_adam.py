"""Cases and contract of `row_adam_catch_up` and `row_adam_step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import reference
from .compare import FLOOR_ULPS, YARDSTICK, assert_bit_equal, largest_error
from .contract import Inputs, OpContract, _each_tensor
from .inputs import Implementation


@dataclass(frozen=True)
class RowAdamCase:
    """A table [N, W] after `steps` steps with batches of `batch` rows, and one step more."""

    num_data: int
    batch: int
    width: int
    steps: int = 12
    mode: str = "dense"
    beta1: float = 0.9
    weight_decay: float = 0.0
    bfloat16: bool = False
    repeats: bool = False
    # random bits of row numbers of their own, of 33 bits
    keyed: bool = False

    def __str__(self) -> str:
        sizes = f"N{self.num_data}-B{self.batch}-W{self.width}-after{self.steps}"
        extra = "-bfloat16" * self.bfloat16 + "-repeats" * self.repeats + "-keyed" * self.keyed
        return f"{self.mode}-{sizes}-beta{self.beta1}-decay{self.weight_decay}{extra}"


def assert_rounded(
    name: str,
    found: Tensor,
    before: Tensor,
    exact: Tensor,
    yardstick: Tensor,
    index: Tensor,
    bits: Tensor,
) -> None:
    """Holds bfloat16 moments [N, W] to the right numbers and to the right random bits.

    What is written to rows `index` [B] lies between the numbers that `bits` [B, W] make of the exact
    moment, less and plus the error that is allowed; almost everywhere the two are one. The other rows
    are as `before`.
    """
    assert found.dtype == torch.bfloat16
    rest = torch.ones(len(found), dtype=torch.bool)
    rest[index] = False
    assert torch.equal(found[rest], before[rest]), f"{name}: other rows changed"
    scale = float(exact.abs().max()) if exact.numel() else 0.0
    allowed = YARDSTICK * largest_error(yardstick, exact)
    allowed += FLOOR_ULPS * torch.finfo(torch.float32).eps * scale
    low, near, high = (
        reference.to_bfloat16(bound[index], bits).double()
        for bound in (exact - allowed, exact, exact + allowed)
    )
    written = found[index].double()
    assert bool(((low <= written) & (written <= high)).all()), f"{name}: rounded wrongly"
    others = int((written != near).sum())
    assert others <= 1 + written.numel() // 100, f"{name}: {others} numbers of other bits"


class RowAdamContract(OpContract):
    """`row_adam_catch_up`, where rows may repeat, and `row_adam_step`, where they may if it is told."""

    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "row_adam_catch_up": (),
        "row_adam_step": (),
    }
    cases: ClassVar[Sequence[RowAdamCase]] = (
        RowAdamCase(1, 1, 1),
        RowAdamCase(63, 7, 28, weight_decay=0.1),
        RowAdamCase(63, 7, 4, 63),
        RowAdamCase(63, 1, 28),
        RowAdamCase(63, 7, 28, beta1=0.0),
        RowAdamCase(63, 63, 7, mode="lazy"),
        RowAdamCase(63, 63, 7, mode="row"),
        RowAdamCase(1000, 7, 12),
        RowAdamCase(7, 0, 12),
        RowAdamCase(7, 7, 4, 0),
        RowAdamCase(9, 40, 6, repeats=True),
        RowAdamCase(63, 7, 28, weight_decay=0.1, repeats=True),
        RowAdamCase(5, 63, 7, mode="lazy", repeats=True),
        RowAdamCase(5, 63, 7, mode="row", repeats=True),
        RowAdamCase(1, 1, 1, bfloat16=True),
        RowAdamCase(63, 7, 28, weight_decay=0.1, bfloat16=True),
        RowAdamCase(63, 7, 6, 63, bfloat16=True),
        RowAdamCase(63, 63, 7, mode="lazy", bfloat16=True),
        RowAdamCase(63, 63, 139, mode="row", bfloat16=True),
        RowAdamCase(7, 0, 12, bfloat16=True),
        RowAdamCase(63, 7, 28, bfloat16=True, keyed=True),
        RowAdamCase(63, 63, 139, mode="row", bfloat16=True, keyed=True),
        RowAdamCase(9, 40, 6, bfloat16=True, repeats=True, keyed=True),
    )

    def inputs(self, function: str, case: RowAdamCase, dtype: torch.dtype) -> Inputs:
        generator = torch.Generator().manual_seed(case.num_data)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        # bfloat16 goes with float32 alone
        moments = torch.bfloat16 if case.bfloat16 and dtype == torch.float32 else dtype
        state: Inputs = {
            "rows": normal(case.num_data, case.width),
            "exp_avg": torch.zeros(case.num_data, case.width, dtype=moments),
            "exp_avg_sq": torch.zeros(case.num_data, case.width, dtype=moments),
            "row_step": torch.zeros(case.num_data, dtype=torch.int32),
            "clock": torch.zeros(2, dtype=torch.int64),
            "history": torch.zeros(case.steps + 2, reference.HISTORY_COLUMNS, dtype=torch.float64),
            "lr": torch.tensor(0.01, dtype=torch.float64),
            "beta1": case.beta1,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": case.weight_decay,
            "semantics": case.mode,
            "repeats": case.repeats,
            "key_index": None,
        }
        for _ in range(case.steps + 1):
            chosen = torch.randperm(case.num_data, generator=generator)[: case.batch]
            if case.repeats:
                chosen = torch.randint(case.num_data, (case.batch,), generator=generator)
            state |= {"index": chosen, "grad": normal(case.batch, case.width)}
            if int(state["clock"][0]) < case.steps:
                reference.row_adam_step(**state)
        if function == "row_adam_catch_up":
            size = 2 * case.batch if case.batch > 1 else case.batch
            state["index"] = torch.randint(case.num_data, (size,), generator=generator)
        if case.keyed:
            state["key_index"] = state["index"] + 2**33
        return state

    def check(self, implementation: Implementation, function: str, inputs: Inputs) -> None:
        """bfloat16 moments are held to what `assert_rounded` says."""
        if inputs["exp_avg"].dtype != torch.bfloat16:
            super().check(implementation, function, inputs)
            return
        plain = _each_tensor(inputs, lambda value: value.contiguous().cpu())
        names = ("exp_avg", "exp_avg_sq")
        wide = plain | {name: plain[name].float() for name in names}
        double = _each_tensor(
            wide, lambda value: value.double() if value.is_floating_point() else value
        )
        reference_ = Implementation("reference", reference)
        got = self.call(implementation, function, inputs)
        yardstick = self.call(reference_, function, wide)
        exact = self.call(reference_, function, double)
        clock = exact["clock"] if "clock" in exact else plain["clock"]
        index, width = plain["index"], plain["rows"].shape[1]
        keys = index if plain["key_index"] is None else plain["key_index"]
        words = reference.moment_words(keys, clock[0], width)
        for name, bits in zip(names, (words >> 16, words & 0xFFFF), strict=True):
            own = (plain[name], exact.pop(name), yardstick.pop(name))
            assert_rounded(name, got.pop(name), *own, index, bits)
        self.compare(inputs, got, exact, {name: yardstick[name] for name in exact})

    def check_rounding(self, implementation: Implementation, width: int) -> None:
        """Without momentum the first moment is the gradient: nothing but its rounding is left.

        Among the gradients are infinities, NaN with the upper half of infinity, the ends of the range.
        """
        bits = [0x7F800000, 0xFF800000, 0x7F800001, 0xFF80FFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F7FFFFF]
        bits += [0xFF7F8001, 0x7F7F0000, 0x00800000, 0x007FFFFF, 0x80000001, 0x80000000, 0]
        special = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
        special = torch.cat((special, torch.tensor([1.0, -1.5, 1.001, -255.9, 3e-38])))
        case = RowAdamCase(9, 4, width, mode="lazy", beta1=0.0, bfloat16=True)
        inputs = self.inputs("row_adam_step", case, torch.float32)
        index, count = torch.tensor([6, 0, 3, 8]), 2**31 - 6
        grad = special[torch.arange(4 * width) % len(special)].reshape(4, width)
        moments = torch.zeros(9, width, dtype=torch.bfloat16)
        inputs |= {"index": index, "grad": grad, "exp_avg": moments}
        inputs["clock"] = torch.tensor([count - 1, count - 1])
        written = self.call(implementation, "row_adam_step", inputs)["exp_avg"]
        words = reference.moment_words(index, torch.tensor(count), width)
        normal = torch.where(grad.abs() < 2.0**-126, 0.0, grad)
        expected = moments.index_copy(0, index, reference.to_bfloat16(normal, words >> 16))
        assert_bit_equal({"exp_avg": written}, {"exp_avg": expected})
        assert torch.equal(written[index].isfinite(), grad.isfinite())

    def check_bits_of_the_moments(self, implementation: Implementation) -> None:
        """Two moments of the same value are rounded apart, in a step and in a catch-up.

        With equal betas a first gradient of 1 gives both the same value, half way between two numbers
        or not far from it: about half of the elements must differ.
        """
        case = RowAdamCase(16, 16, 64, steps=0, bfloat16=True)
        inputs = self.inputs("row_adam_step", case, torch.float32)
        inputs |= {"beta1": 0.999, "beta2": 0.999, "grad": torch.ones(16, 64)}
        missed = self.inputs("row_adam_catch_up", case, torch.float32)
        missed |= {"beta1": 0.999, "beta2": 0.999, "clock": torch.tensor([1, 0])}
        missed |= {name: torch.ones_like(missed[name]) for name in ("exp_avg", "exp_avg_sq")}
        missed["index"] = torch.arange(16)
        for function, given in (("row_adam_step", inputs), ("row_adam_catch_up", missed)):
            written = self.call(implementation, function, given)
            first, second = written["exp_avg"], written["exp_avg_sq"]
            assert len(torch.cat((first, second)).unique()) == 2, f"{function}: not two neighbours"
            share = float((first != second).double().mean())
            assert share > 0.1, f"{function}: {share:.3f} of the moments are rounded apart"
