"""Contracts of the ops: what every implementation is held to, one of your own included.

An implementation is a namespace with the functions of `rvi_fast.ops`, same names and signatures; one
that answers `NotImplemented` leaves the call to the reference.
Subclass a contract in a test file and pytest does the rest:

    import my_kernels
    from rvi_fast import testing

    class TestMyKernels(testing.RelaySampleContract):
        implementations = (testing.Implementation("mine", my_kernels, device="cuda"),)

Accuracy is judged against `rvi_fast.reference` in float64, with the reference in the same precision
as the yardstick: the largest error may be `YARDSTICK` times the yardstick's, plus `FLOOR_ULPS` units
in the last place of the largest number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import ops, reference
from .layout import RowLayout
from .posterior import RelayPosterior

YARDSTICK = 4.0
FLOOR_ULPS = 16

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Implementation:
    """A namespace with the ops' functions, and the device whose tensors it is given."""

    name: str
    namespace: Any
    device: str = "cpu"


def installed() -> tuple[Implementation, ...]:
    """The reference, and what serves each device of this machine."""
    found = [Implementation("reference", reference)]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        namespace = ops.implementation(device)
        name = namespace.__name__.rpartition(".")[2]
        found.append(Implementation(name, namespace, device))
    return tuple(dict.fromkeys(found))


# Comparison


def largest_error(got: Tensor, exact: Tensor) -> float:
    """The largest |got - exact| over the entries where `exact` is finite; 0 if there are none."""
    error = (got.double() - exact.double()).abs()[exact.isfinite()]
    return float(error.max()) if error.numel() else 0.0


def assert_as_accurate(name: str, got: Tensor, exact: Tensor, yardstick: Tensor) -> None:
    """Holds `got` to the accuracy that the head of this module defines; integers must be equal."""
    assert (got.shape, got.dtype) == (yardstick.shape, yardstick.dtype), (
        f"{name}: expected {yardstick.dtype} {list(yardstick.shape)}, "
        f"got {got.dtype} {list(got.shape)}"
    )
    if not got.is_floating_point():
        assert torch.equal(got, yardstick), f"{name}: integers differ"
        return
    finite = exact.isfinite()
    assert torch.equal(got.isfinite(), yardstick.isfinite()), f"{name}: inf or NaN differ"
    scale = float(exact[finite].abs().max()) if finite.any() else 0.0
    floor = FLOOR_ULPS * torch.finfo(got.dtype).eps * scale
    allowed = YARDSTICK * largest_error(yardstick, exact) + floor
    error = largest_error(got, exact)
    assert error <= allowed, f"{name}: error {error:.3g} against float64, allowed {allowed:.3g}"


def assert_close(got: Sequence[Tensor], expected: Sequence[Tensor], rtol: float = 1e-12) -> None:
    """Each pair equal to `rtol` times the largest number of the expected one."""
    for left, right in zip(got, expected, strict=True):
        scale = float(right.detach().abs().max()) if right.numel() else 0.0
        torch.testing.assert_close(left, right, rtol=0, atol=rtol * scale)


def assert_bit_equal(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Every entry equal, NaN equal to NaN."""
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            got[name], expected[name], rtol=0, atol=0, equal_nan=True, msg=f"{name}: not bit-equal"
        )


def assert_same_selection(got: Tensor, expected: Tensor, magnitudes: Tensor) -> Tensor:
    """Rows [B] where the same entries are marked; elsewhere only near-ties may have changed places.

    Args:
        got, expected: bool [B, K].
        magnitudes: |a| [B, K]. Where the marks differ, the |a| concerned agree within one unit in
            the last place without being equal: equal ones go to the lowest index.
    """
    assert torch.equal(got.sum(-1), expected.sum(-1)), "bits: another number of coefficients kept"
    differ = got != expected
    for row in differ.any(-1).nonzero().flatten():
        low, high = torch.aminmax(magnitudes[row][differ[row]])
        near = low < high <= torch.nextafter(low, torch.full_like(low, torch.inf))
        assert near, f"bits: row {int(row)} keeps |a| = {float(low)} instead of {float(high)}"
    return ~differ.any(-1)


# Inputs


def strided(tensor: Tensor) -> Tensor:
    """The same values, no two neighbours in memory."""
    return torch.stack((tensor, tensor), dim=-1)[..., 0]


def transposed(tensor: Tensor) -> Tensor:
    """The same values, the last dimension with the widest stride."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.clone()


def expanded(tensor: Tensor) -> Tensor:
    """The first entry of the first dimension for all of them, with stride 0."""
    return tensor[:1].expand_as(tensor)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within it `torch.empty` is filled with NaN (integers: the largest), so that gaps show."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def make_tables(
    layout: RowLayout, num_data: int, dtype: torch.dtype = torch.float64, *, ties: bool = False
) -> tuple[Tensor, Tensor]:
    """Random rows [N, W] and relays [K, T]; with `ties` coefficients are in {0, -0, +-1/2, +-1}."""
    generator = torch.Generator().manual_seed(num_data)
    rows = torch.randn(num_data, layout.width, generator=generator, dtype=dtype)
    if ties:
        coefficients = rows[:, : layout.deviation_offset]
        coefficients.copy_((2 * coefficients).round().clamp(-2, 2) / 2)
    used = torch.zeros(layout.width, dtype=torch.bool)
    for columns in (*layout.group_slices, layout.deviation_slice, layout.log_std_slice):
        used[columns] = True
    relays = torch.randn(layout.num_relays, layout.latent_dim, generator=generator, dtype=dtype)
    return torch.where(used, rows, 0.0), relays


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Random gradients of the outputs: a sum would hide what cancels."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(output.shape, generator=generator, dtype=output.dtype) for output in outputs
    ]


def training_step(
    posterior: RelayPosterior,
    optimizer: torch.optim.Optimizer,
    step: int,
    index: Tensor | None = None,
) -> None:
    """A step with random gradients of z and kl; by default a batch where one row stands twice."""
    if index is None:
        index = torch.tensor([step, 3 * step, step]) % posterior.num_data
    sample = posterior(index, seed=step)
    optimizer.zero_grad()
    torch.autograd.backward(sample, cotangents(sample))
    optimizer.step()


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


@dataclass(frozen=True)
class GaussianLogLikelihoodCase:
    """Shapes and kinds of one call of `gaussian_log_likelihood`.

    `scale` names the shape: "scalar", "one" [1], "feature" [D] or "entry" [B, D]; `x_dtype` None is
    the dtype of the mean; without a mask NaN marks what is missing. `packed` gives the mask's bits.
    """

    batch: int
    num_features: int
    num_samples: int = 1
    scale: str = "scalar"
    masked: bool = False
    x_dtype: torch.dtype | None = None
    packed: bool = False

    def __str__(self) -> str:
        sizes = f"B{self.batch}-D{self.num_features}-S{self.num_samples}"
        kind = "mean" if self.x_dtype is None else str(self.x_dtype).removeprefix("torch.")
        extras = [word for word in ("masked", "packed") if getattr(self, word)]
        return "-".join([sizes, self.scale, kind, *extras])


@dataclass(frozen=True)
class LinearGaussianLogLikelihoodCase(GaussianLogLikelihoodCase):
    """The same for `linear_gaussian_log_likelihood`; `x_dtype` None is the dtype of the layer."""

    hidden_dim: int = 16
    bias: bool = True

    def __str__(self) -> str:
        return f"{super().__str__()}-H{self.hidden_dim}{'-bias' * self.bias}"


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

    def __str__(self) -> str:
        sizes = f"N{self.num_data}-B{self.batch}-W{self.width}-after{self.steps}"
        extra = "-bfloat16" * self.bfloat16
        return f"{self.mode}-{sizes}-beta{self.beta1}-decay{self.weight_decay}{extra}"


@dataclass(frozen=True)
class AdamStepCase:
    """Parameters [P] after `steps` steps, and one more with a gradient in `num_parts` parts."""

    size: int
    num_parts: int = 1
    steps: int = 3
    beta1: float = 0.9
    weight_decay: float = 0.0

    def __str__(self) -> str:
        sizes = f"P{self.size}-n{self.num_parts}"
        return f"{sizes}-after{self.steps}-beta{self.beta1}-decay{self.weight_decay}"


# Contracts


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
        """Holds every output to the accuracy that the head of this module defines."""
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

    def test_every_element_is_written(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.prepared(implementation, function, case, dtype)
        expected = self.call(implementation, function, inputs)
        with poisoned_memory():
            assert_bit_equal(self.call(implementation, function, inputs), expected)

    def test_runs_are_bit_equal(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.prepared(implementation, function, case, dtype)
        first, second = (self.call(implementation, function, inputs) for _ in range(2))
        assert_bit_equal(first, second)

    def test_index_may_be_int32(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.prepared(implementation, function, case, dtype)
        if "index" in _arguments(function):
            narrow = inputs | {"index": inputs["index"].to(torch.int32)}
            expected = self.call(implementation, function, inputs)
            assert_bit_equal(self.call(implementation, function, narrow), expected)

    def test_what_is_not_needed_has_no_elements(
        self, implementation: Implementation, function: str, case: Any, dtype: torch.dtype
    ) -> None:
        inputs = self.prepared(implementation, function, case, dtype)
        needs = [name for name in _arguments(function) if name.startswith("need_")]
        expected = self.call(implementation, function, inputs)
        for need in needs:
            got = self.call(implementation, function, inputs | {need: False})
            for skipped in self.needs.get(need, (need.replace("need_", "grad_"),)):
                assert got.pop(skipped).numel() == 0
            assert_bit_equal(got, {name: expected[name] for name in got})


class RelaySampleContract(OpContract):
    """`relay_sample_fwd` and `relay_sample_bwd`."""

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


class GaussianLogLikelihoodContract(OpContract):
    """`gaussian_log_likelihood_fwd` and `gaussian_log_likelihood_bwd`."""

    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "gaussian_log_likelihood_fwd": ("log_prob",),
        "gaussian_log_likelihood_bwd": ("grad_mean", "grad_scale"),
    }
    cases: ClassVar[Sequence[GaussianLogLikelihoodCase]] = (
        GaussianLogLikelihoodCase(1, 1),
        GaussianLogLikelihoodCase(7, 63, 3, "feature"),
        GaussianLogLikelihoodCase(63, 7, 1, "entry", masked=True),
        GaussianLogLikelihoodCase(63, 1000, 2, "one", True, torch.uint8),
        GaussianLogLikelihoodCase(1000, 63, 1, "feature", True, torch.float16),
        GaussianLogLikelihoodCase(7, 1000, 1, "entry", x_dtype=torch.bfloat16),
        GaussianLogLikelihoodCase(63, 63, 2, "scalar", True, torch.float64),
        GaussianLogLikelihoodCase(0, 7, 2, "feature"),
        GaussianLogLikelihoodCase(7, 63, 2, "feature", True, torch.uint8, packed=True),
        GaussianLogLikelihoodCase(63, 1000, 1, "entry", True, packed=True),
        GaussianLogLikelihoodCase(1000, 33, 1, "scalar", True, torch.bfloat16, packed=True),
    )

    def inputs(self, function: str, case: GaussianLogLikelihoodCase, dtype: torch.dtype) -> Inputs:
        generator = torch.Generator().manual_seed(case.num_features)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        batch = (case.batch, case.num_features)
        observed = torch.rand(batch, generator=generator) < 0.7
        if case.batch > 1:
            observed[0] = False
        x = normal(*batch)
        if case.x_dtype == torch.uint8:
            x = torch.randint(256, batch, generator=generator, dtype=torch.uint8)
        elif case.x_dtype is not None:
            x = x.to(case.x_dtype)
        mask = reference.pack_bits(observed) if case.packed else observed
        shapes = {"scalar": (), "one": (1,), "feature": batch[1:], "entry": batch}
        return {
            "x": x if case.masked else torch.where(observed, x, torch.nan),
            "mean": normal(case.num_samples, *batch),
            "scale": normal(*shapes[case.scale]).abs() + 0.3,
            "mask": mask if case.masked else None,
            "grad_log_prob": normal(case.num_samples, case.batch),
            "need_mean": True,
            "need_scale": True,
        }


class LinearGaussianLogLikelihoodContract(GaussianLogLikelihoodContract):
    """`linear_gaussian_log_likelihood_fwd` and `linear_gaussian_log_likelihood_bwd`."""

    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "linear_gaussian_log_likelihood_fwd": ("log_prob",),
        "linear_gaussian_log_likelihood_bwd": (
            "log_prob",
            "grad_hidden",
            "grad_weight",
            "grad_bias",
            "grad_scale",
        ),
    }
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"need_linear": ("grad_weight", "grad_bias")}
    cases: ClassVar[Sequence[LinearGaussianLogLikelihoodCase]] = (
        LinearGaussianLogLikelihoodCase(1, 1, hidden_dim=1),
        LinearGaussianLogLikelihoodCase(7, 63, 3, "feature", hidden_dim=7),
        LinearGaussianLogLikelihoodCase(63, 7, 1, "entry", True, hidden_dim=63, bias=False),
        LinearGaussianLogLikelihoodCase(63, 100, 2, "one", True, torch.uint8, hidden_dim=64),
        LinearGaussianLogLikelihoodCase(1000, 63, 1, "feature", True, torch.float16, hidden_dim=5),
        LinearGaussianLogLikelihoodCase(70, 130, 2, "entry", x_dtype=torch.bfloat16, hidden_dim=33),
        LinearGaussianLogLikelihoodCase(33, 65, 1, "scalar", True, torch.float64, hidden_dim=200),
        LinearGaussianLogLikelihoodCase(300, 40, 1, "scalar", hidden_dim=17, bias=False),
        LinearGaussianLogLikelihoodCase(0, 7, 2, "feature", hidden_dim=4),
    )

    def inputs(self, function: str, case: Any, dtype: torch.dtype) -> Inputs:
        generator = torch.Generator().manual_seed(case.hidden_dim)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        return super().inputs(function, case, dtype) | {
            "hidden": normal(case.num_samples, case.batch, case.hidden_dim),
            "weight": normal(case.num_features, case.hidden_dim) / case.hidden_dim**0.5,
            "bias": normal(case.num_features) if case.bias else None,
            "need_hidden": True,
            "need_linear": True,
        }


class RowAdamContract(OpContract):
    """`row_adam_catch_up` (rows may repeat) and `row_adam_step` (each row once)."""

    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "row_adam_catch_up": (),
        "row_adam_step": (),
    }
    cases: ClassVar[Sequence[RowAdamCase]] = (
        RowAdamCase(1, 1, 1),
        RowAdamCase(63, 7, 28, weight_decay=0.1),
        RowAdamCase(63, 7, 4, 63),
        RowAdamCase(63, 7, 28, beta1=0.0),
        RowAdamCase(63, 63, 7, mode="lazy"),
        RowAdamCase(63, 63, 7, mode="row"),
        RowAdamCase(1000, 7, 12),
        RowAdamCase(7, 0, 12),
        RowAdamCase(7, 7, 4, 0),
        RowAdamCase(1, 1, 1, bfloat16=True),
        RowAdamCase(63, 7, 28, weight_decay=0.1, bfloat16=True),
        RowAdamCase(63, 7, 6, 63, bfloat16=True),
        RowAdamCase(63, 63, 7, mode="lazy", bfloat16=True),
        RowAdamCase(63, 63, 139, mode="row", bfloat16=True),
        RowAdamCase(7, 0, 12, bfloat16=True),
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
            "history": torch.zeros(case.steps + 2, 3, dtype=torch.float64),
            "lr": torch.tensor(0.01, dtype=torch.float64),
            "beta1": case.beta1,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": case.weight_decay,
            _arguments("row_adam_step")[-1]: case.mode,
        }
        for _ in range(case.steps + 1):
            chosen = torch.randperm(case.num_data, generator=generator)[: case.batch]
            state |= {"index": chosen, "grad": normal(case.batch, case.width)}
            if int(state["clock"][0]) < case.steps:
                reference.row_adam_step(**state)
        if function == "row_adam_catch_up":
            state["index"] = torch.randint(case.num_data, (2 * case.batch,), generator=generator)
        return state

    def check(self, implementation: Implementation, function: str, inputs: Inputs) -> None:
        """bfloat16 moments are held to the right numbers and to the right random bits.

        What is written lies between the numbers that the same bits make of the exact moment, less and
        plus the error that is allowed; almost everywhere the two are one.
        """
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
        words = reference.moment_words(index, clock[0], width)
        for name, bits in zip(names, (words >> 16, words & 0xFFFF), strict=True):
            found, value = got.pop(name), exact.pop(name)
            assert found.dtype == torch.bfloat16
            rest = torch.ones(len(found), dtype=torch.bool)
            rest[index] = False
            assert torch.equal(found[rest], plain[name][rest]), f"{name}: other rows changed"
            scale = float(value.abs().max()) if value.numel() else 0.0
            allowed = YARDSTICK * largest_error(yardstick.pop(name), value)
            allowed += FLOOR_ULPS * torch.finfo(torch.float32).eps * scale
            low, near, high = (
                reference.to_bfloat16(bound[index], bits).double()
                for bound in (value - allowed, value, value + allowed)
            )
            written = found[index].double()
            assert bool(((low <= written) & (written <= high)).all()), f"{name}: rounded wrongly"
            others = int((written != near).sum())
            assert others <= 1 + written.numel() // 100, f"{name}: {others} numbers of other bits"
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


class AdamStepContract(OpContract):
    """`adam_step`."""

    functions: ClassVar[Mapping[str, tuple[str, ...]]] = {"adam_step": ()}
    cases: ClassVar[Sequence[AdamStepCase]] = (
        AdamStepCase(1),
        AdamStepCase(63, 7, weight_decay=0.1),
        AdamStepCase(1000, 2, steps=0),
        AdamStepCase(2049, 63, steps=1000),
        AdamStepCase(7, 1, beta1=0.0),
        AdamStepCase(63, 0),
        AdamStepCase(0, 3),
    )

    def inputs(self, function: str, case: AdamStepCase, dtype: torch.dtype) -> Inputs:
        generator = torch.Generator().manual_seed(case.size)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        moments = (0.1 * normal(case.size), 0.01 * normal(case.size).square())
        if case.steps == 0:
            moments = (torch.zeros_like(moments[0]), torch.zeros_like(moments[1]))
        return {
            "params": normal(case.size),
            "exp_avg": moments[0],
            "exp_avg_sq": moments[1],
            "grads": normal(case.num_parts, case.size),
            "step": torch.tensor([case.steps]),
            "lr": torch.tensor(0.01, dtype=torch.float64),
            "beta1": case.beta1,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": case.weight_decay,
        }


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
