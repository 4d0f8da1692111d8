"""Cases and contract of `relay_sample`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import reference
from ..layout import RowLayout
from .compare import assert_bit_equal, assert_same_selection
from .contract import Inputs, OpContract
from .inputs import Implementation, make_tables, strided


@dataclass(frozen=True)
class RelaySampleCase:
    """Shapes and kinds of one call of `relay_sample`; letters as in `rvi_fast.reference`."""

    num_data: int
    batch: int
    latent_dim: int
    groups: tuple[int, ...]
    top: float | int = 0.5
    form: str = "linear"
    num_samples: int = 1
    given_noise: bool = False
    ties: bool = False
    # dtype of row numbers of their own that key the noise, beyond the table and of 33 bits
    keyed: torch.dtype | None = None

    def __str__(self) -> str:
        extras = [word for word in ("given_noise", "ties", "keyed") if getattr(self, word)]
        sizes = f"B{self.batch}-T{self.latent_dim}-S{self.num_samples}-K{sum(self.groups)}"
        return "-".join([self.form, sizes, *extras])


class RelaySampleContract(OpContract):
    """What `relay_sample_fwd` and `relay_sample_bwd` have to keep."""

    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "relay_sample_fwd": ("z", "kl", "bits", "mean"),
        "relay_sample_bwd": ("grad_rows", "grad_relays"),
    }
    cases: ClassVar[Sequence[RelaySampleCase]] = (
        RelaySampleCase(1, 1, 1, (1,)),
        RelaySampleCase(7, 63, 7, (25, 7), num_samples=3),
        RelaySampleCase(63, 7, 63, (33, 64, 5), 0.3, given_noise=True),
        RelaySampleCase(63, 63, 64, (7, 40), 1.0, "mixture"),
        RelaySampleCase(63, 63, 7, (7, 40), 0.5, "mixture", 3, ties=True),
        RelaySampleCase(7, 7, 5, (9, 31), form="cluster", ties=True),
        RelaySampleCase(1000, 63, 3, (7, 1000), 0.1, ties=True),
        RelaySampleCase(1000, 63, 63, (), num_samples=2, given_noise=True),
        RelaySampleCase(7, 0, 7, (6, 3)),
        RelaySampleCase(7, 63, 7, (25, 7), num_samples=2, keyed=torch.int64),
        RelaySampleCase(63, 7, 5, (7, 40), 0.5, "mixture", keyed=torch.int32),
        RelaySampleCase(7, 0, 7, (3,), keyed=torch.int64),
    )

    def inputs(self, function: str, case: RelaySampleCase, dtype: torch.dtype) -> Inputs:
        layout = RowLayout.resolve(case.latent_dim, case.groups, case.top, case.form)
        rows, relays = make_tables(layout, case.num_data, dtype, ties=case.ties)
        generator = torch.Generator().manual_seed(case.batch)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        shape = (case.num_samples, case.batch, case.latent_dim)
        forward: Inputs = {
            "rows": rows,
            "relays": relays,
            "index": torch.randint(case.num_data, (case.batch,), generator=generator),
            "seed": torch.tensor([2**40 + 3]),
            "noise": normal(*shape) if case.given_noise else None,
            "groups": layout.groups,
            "kept": layout.kept,
            "form": layout.form,
            "num_samples": case.num_samples,
            "noise_index": None,
        }
        if case.keyed is not None:
            far = 2**33 if case.keyed == torch.int64 else -(2**31)
            forward["noise_index"] = (forward["index"] + far).to(case.keyed)
        _, _, bits, mean = reference.relay_sample_fwd(**forward)
        return forward | {
            "grad_z": normal(*shape),
            "grad_kl": normal(case.batch),
            "bits": bits,
            "mean": mean,
            "need_rows": True,
            "need_relays": True,
        }

    def compare(
        self,
        inputs: Inputs,
        got: dict[str, Tensor],
        exact: dict[str, Tensor],
        yardstick: dict[str, Tensor],
    ) -> None:
        if "bits" in got:
            groups, rows = inputs["groups"], inputs["rows"][inputs["index"]].cpu()
            layout = RowLayout(inputs["relays"].shape[1], groups, inputs["kept"], inputs["form"])
            same = torch.ones(len(rows), dtype=torch.bool)
            starts = itertools.accumulate(layout.word_counts, initial=0)
            for columns, size, start in zip(layout.group_slices, groups, starts, strict=False):
                marks, expected = (
                    reference.unpack_bits(result["bits"][:, start:], size)
                    for result in (got, yardstick)
                )
                same &= assert_same_selection(marks, expected, rows[:, columns].abs())
            got, exact, yardstick = (
                {
                    "z": result["z"][:, same],
                    "kl": result["kl"][same],
                    "mean": result["mean"][same],
                }
                for result in (got, exact, yardstick)
            )
        super().compare(inputs, got, exact, yardstick)

    def test_noise_is_that_of_the_rows_it_is_keyed_by(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        if case.keyed is None:
            return
        part = self.prepared(implementation, function, case, dtype) | {"noise_index": None}
        before, rows = 5, part["rows"]
        keys = part["index"] + before
        whole = torch.cat((rows.new_full((before, rows.shape[1]), torch.nan), rows))
        expected = self.call(implementation, function, part | {"rows": whole, "index": keys})
        keyed = part | {"noise_index": strided(keys.to(case.keyed))}
        assert_bit_equal(self.call(implementation, function, keyed), expected)
        if case.batch:
            name = self.functions[function][0]
            assert not torch.equal(self.call(implementation, function, part)[name], expected[name])
