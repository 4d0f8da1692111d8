"""Training steps from CUDA graphs: a step of a small batch is launches and little else."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...drawing import Drawing
from ...models import LatentModel, Objective
from ...optim import RowAdam
from ...optim.shared_adam import SharedAdam
from ...posteriors.base import as_posterior
from ..distributed.ranks import Alone
from ..inputs.feed import HostInputs, Visit
from ..inputs.prepare import Inputs
from ..inputs.sources import Batch
from ..places.base import NoRows, Place
from ..settings import Settings
from .callback import Callbacks
from .compilation import compile_kernels
from .fused_step import fused_step
from .refined_step import RefinedStep
from .step import (
    AutogradStep,
    BoundStep,
    DecoderByAutograd,
    DirectStep,
    LinearChain,
    draws,
    make_step,
)


class BatchStep(BoundStep):
    """A step bound to its data: from row numbers to loss, KL divergence and log-likelihood [3].

    Args:
        step: from a batch to its objective.
        inputs: gives the batches.
        device: where the steps run.
        dtype: of the model.
        stand_in: data of one row, for steps of a process that has no row of the batch. Its modules are
            called all the same, and what comes of it counts nothing: not every module takes a batch of
            no rows, and what a module counts of its calls stays the same in all processes.
    """

    def __init__(
        self,
        step: Callable[..., Objective],
        inputs: Inputs | HostInputs,
        device: torch.device,
        dtype: torch.dtype,
        stand_in: Batch | None = None,
    ) -> None:
        super().__init__(device, dtype)
        self.step, self.inputs, self.stand_in = step, inputs, stand_in

    def load(self, index: Tensor) -> None:
        self.inputs.load(index)

    @property
    def place(self) -> int:
        return self.inputs.place

    @property
    def changes_by_kernels_alone(self) -> bool:
        """See `BoundStep`: nothing is asked of modules of the user's own or of an optimiser of torch."""
        step = self.step
        if not (isinstance(step, DirectStep) and isinstance(step.decoder, LinearChain)):
            return False
        return isinstance(step.shared, SharedAdam) and step.shared.reduce is None

    def launch(self, index: Tensor, full_size: int) -> Tensor:
        """The step; `full_size` rows are what the summed loss of a batch is divided by."""
        batch = self.inputs.loaded(index)
        if not len(index) and self.stand_in is not None:
            batch = self.stand_in
        return torch.stack(self.step(index, *batch, self.seed, self.kl_weight, full_size))


def bound_step(
    model: LatentModel,
    inputs: Inputs | HostInputs,
    ranks: Alone,
    place: Place,
    shared: torch.optim.Optimizer,
    drawing: Drawing,
    settings: Settings,
) -> BoundStep | CapturedStep:
    """The step of a run: of six launches where they do for it, from CUDA graphs where they hold it.

    Args:
        model: what is trained.
        inputs: its data.
        ranks: who trains it: of several processes, graphs hold steps of six launches alone, which all
            make for as many rows.
        place: where its rows lie, open.
        shared: drives all else.
        drawing: what the model's modules draw from.
        settings: whether to capture.
    """
    make = RefinedStep if as_posterior(model.posterior).refine_steps else make_step
    step = make(place.stepped, place.rows, shared, drawing)
    like = next(model.posterior.parameters())
    batch_size = min(settings.batch_size, ranks.num_data)
    inputs.reserve(batch_size)
    fused = fused_step(step, inputs, batch_size, place.slots_of, ranks.first_row)
    stand_in = None
    if ranks.size > 1 and _calls_modules(step):
        stand_in = inputs.batch(torch.zeros(1, dtype=torch.int64, device=like.device))
    bound = fused or BatchStep(place.bind(step), inputs, like.device, like.dtype, stand_in)
    told = settings.progress and ranks.leads
    compile_kernels(bound, batch_size, [batch_size], progress=told)
    captured = settings.capture and inputs.tables is not None
    captured &= ranks.alone or fused is not None
    # a graph of torch's optimiser would keep the learning rate of its capture
    captured &= isinstance(shared, SharedAdam) or not Callbacks(settings.callbacks).set_lr
    captured &= graphs_on(like.device)
    # what processes exchange is within graphs in all of them or in none
    ways = set(ranks.gather((captured, type(inputs).__name__)))
    if ways != {(True, type(inputs).__name__)} or not isinstance(step, DirectStep):
        return bound
    drawn = drawing if draws(model, training=True) else None
    lag = place.epochs_behind * -(-ranks.num_data // settings.batch_size)
    return CapturedStep(bound, step.rows, lag, drawn, ranks.any)


def _calls_modules(step: Callable[..., Objective]) -> bool:
    """Whether a step calls modules that a row without weight may pass through."""
    if isinstance(step, DirectStep):
        return isinstance(step.decoder, DecoderByAutograd)
    # one that autograd has seen would count as visited, where datapoints own rows
    return isinstance(step, AutogradStep) and isinstance(step.rows, NoRows)


def graphs_on(device: torch.device) -> bool:
    """Whether steps on a device can be captured."""
    return device.type == "cuda"


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    rows: Tensor
    result: Tensor


class CapturedStep:
    """A step on CUDA, replayed from a graph for each size of batch and each place that batches land in.

    The first of those batches runs as it is, on a side stream, which sets up what is set up once; the
    second is captured. What cannot be captured runs as it is, after one warning; of several processes in
    all then.

    Args:
        step: what is captured.
        rows: the optimiser that it steps rows with.
        lag: steps that rows can be behind.
        drawing: what the step draws from beside its noise.
        any_of: whether something is so in one of the processes at least.
    """

    def __init__(
        self,
        step: BoundStep,
        rows: RowAdam,
        lag: int,
        drawing: Drawing | None = None,
        any_of: Callable[[bool], bool] = bool,
    ) -> None:
        self.step, self.rows, self.drawing, self._any_of = step, rows, drawing, any_of
        self.seed, self.kl_weight = step.seed, step.kl_weight
        rows.reserve(lag)
        self._side = torch.cuda.Stream(step.seed.device)
        self._graphs: dict[tuple[int, int, int], _Graph | None] = {}
        self._refused = False

    def __call__(self, index: Tensor, full_size: int) -> Tensor:
        self.step.load(index)
        size = (self.step.size_of(index), full_size, self.step.place)
        if self._refused:
            return self.step.run(index, full_size)
        if size not in self._graphs:
            self._graphs[size] = None
            # as when it is captured: kernels are compiled for the alignment of their tensors
            return self._on_the_side(self.step.fixed(index), full_size)
        captured = self._graphs[size] or self._capture(index, full_size)
        if captured is None:
            return self.step.run(index, full_size)
        self._graphs[size] = captured
        self.rows.before_replay()
        return self.step.replay(*captured, index)

    def ahead(self, visits: Iterator[Visit]) -> Iterator[Visit]:
        """See `BoundStep.ahead`."""
        return self.step.ahead(visits)

    def close(self) -> None:
        """See `BoundStep.close`: a process group does not end before graphs that hold its exchanges."""
        self._graphs.clear()

    def _on_the_side(self, index: Tensor, full_size: int) -> Tensor:
        current = torch.cuda.current_stream(index.device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            result = self.step.run(index, full_size)
        current.wait_stream(self._side)
        result.record_stream(current)
        return result

    def _capture(self, index: Tensor, full_size: int) -> _Graph | None:
        graph, own = torch.cuda.CUDAGraph(), self.step.fixed(index)
        if self.drawing is not None:  # each replay draws on from where the last one has stopped
            graph.register_generator_state(self.drawing.generator(index.device))
        result: Tensor | None = None
        reason = "another process cannot capture them"
        try:
            # other threads move blocks meanwhile, and wait for what they have moved
            with torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"):
                result = self.step.launch(own, full_size)
        except RuntimeError as error:
            result, reason = None, str(error)
        self._refused = self._any_of(result is None)
        if self._refused or result is None:
            warnings.warn(
                f"steps are not captured in CUDA graphs, which is slower: {reason}", stacklevel=2
            )
            return None
        return _Graph(graph, own, result)
