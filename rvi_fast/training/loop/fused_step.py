"""A training step of six launches, for what is usual; `step` has the steps of all else.

The launches are those of `reference.fused_step`. Between them the host computes nothing and the device
runs nothing else: row numbers come from `Ahead`, seed, KL weight and learning rates lie on the device,
and each launch writes its gradients to the buffer that the last one adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..._devices import rehearsing
from ..._op_checks.log_likelihood import SCALED
from ...ops.table import implementation
from ...optim.row_state import Stepped
from ...optim.shared_adam import SharedAdam
from ...reference.fused_step import SHARED_BLOCK
from ..inputs.feed import HostInputs, Visit
from ..inputs.prepare import Inputs
from .ahead import Ahead, Batch
from .step import BoundStep, DirectStep, LinearChain

LAUNCHES = (
    "catch_up_and_select",
    "relay_decode",
    "likelihood_rows",
    "likelihood_features",
    "backward_to_rows",
    "finish_step",
)
# the functions that say how many pieces of the gradient two of them want to write
ROOM = ("pieces_for", "pieces_of_features")
# what several processes launch before the last one, to sum gradients
SUM = "sum_gradients"
# what the launches have room for
MAX_WIDTH, MAX_HIDDEN, MAX_GROUP = 128, 3, 1024
FORMS = ("linear", "cluster")
# row numbers to slots
SlotsOf = Callable[[Tensor], Tensor]


def launches_on(device: torch.device) -> Any:
    """The namespace with the six launches for tensors on a device; None where there is none."""
    if device.type != "cuda":
        return None
    serving = implementation(device.type)
    return serving if all(hasattr(serving, name) for name in (*LAUNCHES, *ROOM, SUM)) else None


def most_pieces(
    launches: Any, batch_size: int, weight: Tensor, log_scale: Tensor | None, mask: Tensor | None
) -> int:
    """Pieces of the gradient that launches write for batches of so many rows at most.

    Args:
        launches: has the functions of `reference.fused_step`.
        batch_size: rows of the largest batch.
        weight: of the decoder's last layer [K, H]; it and the others may be on the device "meta".
        log_scale: of the likelihood, None where the law has none.
        mask: of the data, None where NaN says what is missing.
    """
    # a smaller batch may have more
    pieces = max(map(launches.pieces_for, range(1, batch_size + 1)))
    hidden = torch.empty((batch_size, weight.shape[1]), device="meta")
    return max(pieces, launches.pieces_of_features(hidden, weight, log_scale, mask))


def fits(
    step: Any, inputs: Inputs | HostInputs, slots_of: SlotsOf | None = None, first_row: int = 0
) -> bool:
    """Whether the six launches do what `step` does: the one place that decides it.

    Args:
        step: from `make_step`.
        inputs: the data.
        slots_of, first_row: see `FusedStep`.
    """
    if not (isinstance(step, DirectStep) and isinstance(step.decoder, LinearChain)):
        return False
    posterior, rows, shared, decoder = step.posterior, step.rows, step.shared, step.decoder
    tables = inputs.tables
    if not isinstance(shared, SharedAdam) or tables is None:
        return False
    layout, like, hidden = posterior.layout, posterior.relays, decoder.hidden
    options = [(group["betas"], group["eps"]) for group in shared.param_groups]
    data = [tensor for tensor in tables if tensor is not None]
    widths = [layout.latent_dim, *(layer.out_features for layer in hidden)]
    return (
        layout.form in FORMS
        and max(layout.groups, default=0) <= MAX_GROUP
        and max(widths) <= MAX_WIDTH
        and len(hidden) <= MAX_HIDDEN
        and decoder.learn
        and not decoder.skip
        and like.requires_grad
        and posterior.learn_std
        and like.dtype == torch.float32
        # rows on the device, which draw the noise of their own numbers
        and not posterior.staged
        and (posterior.row_numbers is None) == (slots_of is None)
        and (slots_of is not None or posterior.first_row == first_row)
        and rows.before_write is None
        and rows.mode == "dense"
        # `finish_step` has Adam alone
        and not any(shared.scales)
        and all(given == options[0] for given in options)
        and decoder.likelihood.law in SCALED
        and all(tensor.is_contiguous() and tensor.device == like.device for tensor in data)
        and tables[0].dtype in (torch.float32, torch.uint8)
    )


def fused_step(
    step: Any,
    inputs: Inputs | HostInputs,
    batch_size: int,
    slots_of: SlotsOf | None = None,
    first_row: int = 0,
) -> FusedStep | None:
    """What does the same as `step` in six launches; None where it does not fit, or there are none.

    Args:
        step: from `make_step`.
        inputs: the data.
        batch_size: rows of the largest batch.
        slots_of, first_row: see `FusedStep`.
    """
    if not fits(step, inputs, slots_of, first_row):
        return None
    launches = launches_on(inputs.device)
    if launches is None:
        return None
    return FusedStep(step, inputs, batch_size, launches, slots_of, first_row)


class FusedStep(BoundStep):
    """Six launches, bound to their data: from row numbers to loss, KL divergence and log-likelihood [3].

    What it returns is good for as long as 64 steps. Where several processes share relays and decoder, a
    launch more adds up the pieces of their gradients, which they sum before the last launch; those whose
    first row is not 0 make one more for the row numbers that key the noise.

    Args:
        step: what is done, where it `fits`.
        inputs: the data.
        batch_size: rows of the largest batch.
        launches: has the functions of `reference.fused_step`.
        slots_of: from row numbers to the rows that are stepped, where those lie in slots of a table;
            to gather the row numbers is a launch more.
        first_row: number of the first row in the whole table.
    """

    def __init__(
        self,
        step: DirectStep,
        inputs: Inputs | HostInputs,
        batch_size: int,
        launches: Any,
        slots_of: SlotsOf | None = None,
        first_row: int = 0,
    ) -> None:
        assert isinstance(step.decoder, LinearChain)
        assert isinstance(step.shared, SharedAdam)
        self.posterior, self.rows, self.shared = step.posterior, step.rows, step.shared
        self.inputs, likelihood = inputs, step.decoder.likelihood
        like = self.posterior.relays
        super().__init__(like.device, like.dtype)
        self._launches, self._slots_of = launches, slots_of
        self._ahead = Ahead(batch_size, like.device, like.dtype, slots_of, first_row)
        # rows that were loaded
        self._taken = batch_size
        self._hidden = step.decoder.hidden
        self._law = str(likelihood.law)
        log_scale: Any = likelihood.log_scale if SCALED[self._law] else None
        # those whose gradients the launches write, and where they begin among what is shared
        layers = [tensor for layer in self._hidden for tensor in (layer.weight, layer.bias)]
        self._last = (step.decoder.last.weight, step.decoder.last.bias, log_scale)
        self._owners = (like, *layers, *self._last)
        self._places = [None if t is None else self.shared.place(t) for t in self._owners]
        tables = inputs.tables
        assert tables is not None
        pieces = most_pieces(launches, batch_size, self._last[0], log_scale, tables[1])
        self._grads = self.shared.values.new_zeros((pieces, len(self.shared.values)))
        # a piece of each block, where processes have summed them
        self._whole = torch.ones_like(self.shared.group)
        # pieces of each block of the gradient, by what the launches have said
        self._parts: dict[tuple[int, ...], Tensor] = {}

    def ahead(self, visits: Iterable[Visit]) -> Iterator[Visit]:
        """The same visits, whose row numbers are on the device before they are asked for."""
        return self._ahead.feed(visits)

    def load(self, index: Tensor) -> None:
        """See `BoundStep.load`."""
        self.inputs.load(index)
        self._ahead.load(index)
        self._taken = len(index)
        self.shared.set_lr()

    @property
    def place(self) -> int:
        """See `BoundStep.place`."""
        return self.inputs.place

    @property
    def changes_by_kernels_alone(self) -> bool:
        """See `BoundStep`; rows that lie in slots do so within an epoch only."""
        return self._slots_of is None

    def run(self, index: Tensor, full_size: int) -> Tensor:
        """See `BoundStep.run`."""
        self.launch(self._ahead.places(), full_size)
        return self._result()

    def size_of(self, index: Tensor) -> int:
        """See `BoundStep.size_of`."""
        return self._ahead.size

    def fixed(self, index: Tensor) -> Tensor:
        """See `BoundStep.fixed`: row numbers are where `ahead` has put them."""
        return self._ahead.places()

    def replay(
        self, graph: torch.cuda.CUDAGraph, rows: Tensor, result: Tensor, index: Tensor
    ) -> Tensor:
        """See `BoundStep.replay`: there is nothing to copy."""
        graph.replay()
        return self._result()

    def _result(self) -> Tensor:
        """What the step gave: means over the rows that were loaded, where it was launched for more."""
        found = self._ahead.result()
        if self._taken in (0, self._ahead.size):
            return found
        return found * (self._ahead.size / self._taken)

    @torch.no_grad()
    def launch(self, index: Tensor, full_size: int) -> Tensor:
        """The launches alone, for as many rows as `index` has."""
        # a kernel is launched on the device that is current
        here: Any = torch.cuda.device(index.device) if index.is_cuda else nullcontext()
        with here, self.rows.stepping() as state:
            batch = self._ahead.batch(len(index))
            bits, drawn = self._forward(batch, state)
            last = (drawn[3] or drawn[:1])[-1]
            log_prob, grad_hidden, counts = self._likelihood(batch, last, -1.0 / full_size)
            before = self._backward(batch, state, bits, drawn, grad_hidden, full_size)
            parts = self._pieces((*before, *counts))
            grads = self._grads if self.shared.reduce is None else self._summed(parts)
            self._finish(state, grads, parts, log_prob, drawn[1])
        return self._ahead.results

    def _forward(self, batch: Batch, state: Stepped) -> tuple[Tensor, Any]:
        """The kept bits of the batch's rows, and z, kl, mean and what the hidden layers give."""
        layout, ahead, (index, _, keys) = self.posterior.layout, self._ahead, batch
        groups, kept = [*layout.groups], [*layout.kept]
        bits = self._launches.catch_up_and_select(
            *state.tables,
            index,
            state.clock,
            state.history,
            *state.options,
            layout.latent_dim,
            groups,
            kept,
            ahead.order,
            ahead.position,
            None if keys is index else keys,
        )
        drawn = self._launches.relay_decode(
            state.tables[0],
            self.posterior.relays.data,
            index,
            self.seed,
            None if keys is index else keys,
            bits,
            [layer.weight.data for layer in self._hidden],
            [None if layer.bias is None else layer.bias.data for layer in self._hidden],
            groups,
            kept,
            layout.form,
        )
        return bits, drawn

    def _likelihood(
        self, batch: Batch, hidden: Tensor, grad: float
    ) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Pieces of log-likelihood and of the gradient of `hidden`, and how many of all others."""
        weight, bias, log_scale = (None if t is None else t.data for t in self._last)
        x, mask, rows = self.inputs.located(batch.rows)
        if self.shared.reduce is not None and rows is not batch.rows:
            # of a place that batches land in, which holds others behind them
            rows = rows.where(batch.places >= 0, -1)
        layer = (hidden, weight, bias, x, rows, log_scale, mask)
        log_prob, grad_hidden = self._launches.likelihood_rows(*layer, self._law, grad)
        places = tuple(self._places[-3:])
        counts = self._launches.likelihood_features(*layer, self._law, grad, self._grads, places)
        return log_prob, grad_hidden, counts

    def _backward(
        self,
        batch: Batch,
        state: Stepped,
        bits: Tensor,
        drawn: Any,
        grad_hidden: Tensor,
        full_size: int,
    ) -> list[int]:
        """How many pieces there are of the gradients of relays and hidden layers; steps the rows."""
        layout, (index, _, keys) = self.posterior.layout, batch
        z, _, mean, hidden = drawn
        counts: list[int] = self._launches.backward_to_rows(
            grad_hidden,
            hidden,
            z,
            mean,
            bits,
            *state.tables,
            self.posterior.relays.data,
            index,
            self.seed,
            None if keys is index else keys,
            [layer.weight.data for layer in self._hidden],
            self.kl_weight,
            full_size,
            state.clock,
            state.lr,
            *state.options,
            state.weight_decay,
            [*layout.groups],
            [*layout.kept],
            layout.form,
            self._grads,
            self._places[:-3],
        )
        return counts

    def _pieces(self, counts: tuple[int, ...]) -> Tensor:
        """How many pieces the gradient of each block of what is shared has, for `finish_step`."""
        if counts not in self._parts:
            parts = torch.zeros(len(self.shared.group), dtype=torch.int32, device="cpu")
            for owner, place, count in zip(self._owners, self._places, counts, strict=True):
                if owner is not None and place is not None:
                    end = -(-(place + owner.numel()) // SHARED_BLOCK)
                    parts[place // SHARED_BLOCK : end] = count
            self._parts[counts] = parts.to(self._grads.device)
        return self._parts[counts]

    def _summed(self, parts: Tensor) -> Tensor:
        """The gradient of what is shared, the sum over all processes, in one piece [1, P]."""
        assert self.shared.reduce is not None
        self._launches.sum_gradients(self._grads, parts)
        if not rehearsing():
            self.shared.reduce(self._grads[0])()
        return self._grads[:1]

    def _finish(
        self, state: Stepped, grads: Tensor, parts: Tensor, log_prob: Tensor, kl: Tensor
    ) -> None:
        shared, ahead = self.shared, self._ahead
        group = shared.param_groups[0]
        self._launches.finish_step(
            shared.values,
            shared.exp_avg,
            shared.exp_avg_sq,
            grads,
            parts if grads is self._grads else self._whole,
            shared.group,
            shared.steps,
            shared.lr,
            *group["betas"],
            group["eps"],
            state.clock,
            state.history,
            state.lr,
            *state.options[:2],
            state.weight_decay,
            log_prob,
            kl,
            self.kl_weight,
            ahead.results,
            ahead.position,
            shared.weight_decay,
        )
