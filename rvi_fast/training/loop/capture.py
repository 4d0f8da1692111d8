"""Training steps from CUDA graphs: a step of a small batch is launches and little else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...drawing import Drawing
from ...models import LatentModel, Objective
from ...optim import RowAdam
from ..distributed.ranks import Alone
from ..inputs.feed import HostInputs
from ..inputs.prepare import Inputs
from ..places.base import Place
from ..settings import Settings
from .step import DirectStep, draws, make_step


class BatchStep:
    """A step bound to its data: from row numbers to loss, KL divergence and log-likelihood [3].

    Seed and KL weight lie in tensors of the device, so that they can change from epoch to epoch
    under a graph that has been captured.
    """

    def __init__(
        self,
        step: Callable[..., Objective],
        inputs: Inputs | HostInputs,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.step, self.inputs = step, inputs
        self.seed = torch.zeros(1, dtype=torch.int64, device=device)
        self.kl_weight = torch.ones(
            (), dtype=torch.promote_types(dtype, torch.float32), device=device
        )

    def __call__(self, index: Tensor, full_size: int) -> Tensor:
        batch = self.inputs.batch(index)
        return torch.stack(self.step(index, *batch, self.seed, self.kl_weight, full_size))


def bound_step(
    model: LatentModel,
    inputs: Inputs | HostInputs,
    ranks: Alone,
    place: Place,
    shared: torch.optim.Optimizer,
    drawing: Drawing,
    settings: Settings,
) -> BatchStep | CapturedStep:
    """The step of a run: from CUDA graphs where they can hold it.

    Args:
        model: what is trained.
        inputs: its data.
        ranks: who trains it: a graph cannot hold an exchange between processes.
        place: where its rows lie, open.
        shared: drives all else.
        drawing: what the model's modules draw from.
        settings: whether to capture.
    """
    step = make_step(place.stepped, place.rows, shared, drawing)
    like = next(model.posterior.parameters())
    bound = BatchStep(place.bind(step), inputs, like.device, like.dtype)
    captured = settings.capture and ranks.alone and isinstance(inputs, Inputs)
    if not (captured and like.device.type == "cuda" and isinstance(step, DirectStep)):
        return bound
    drawn = drawing if draws(model, training=True) else None
    lag = place.epochs_behind * -(-ranks.num_data // settings.batch_size)
    return CapturedStep(bound, step.rows, lag, drawn)


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    rows: Tensor
    result: Tensor


class CapturedStep:
    """The same on CUDA, replayed from a graph for each size of batch.

    The first batch of a size runs as it is, on a side stream, which sets up what is set up once; the
    second is captured. What cannot be captured runs as it is, after one warning.
    """

    def __init__(
        self,
        step: BatchStep,
        rows: RowAdam,
        lag: int,
        drawing: Drawing | None = None,
    ) -> None:
        self.step, self.rows, self.drawing = step, rows, drawing
        self.seed, self.kl_weight = step.seed, step.kl_weight
        # steps that rows can be behind
        rows.reserve(lag)
        self._side = torch.cuda.Stream(step.seed.device)
        self._graphs: dict[tuple[int, int], _Graph | None] = {}
        self._refused = False

    def __call__(self, index: Tensor, full_size: int) -> Tensor:
        size = (len(index), full_size)
        if self._refused:
            return self.step(index, full_size)
        if size not in self._graphs:
            self._graphs[size] = None
            # a copy, as when it is captured: kernels are compiled for the alignment of their tensors
            return self._on_the_side(index.clone(), full_size)
        captured = self._graphs[size] or self._capture(index, full_size)
        if captured is None:
            return self.step(index, full_size)
        self._graphs[size] = captured
        self.rows.before_replay()
        captured.rows.copy_(index)
        captured.graph.replay()
        return captured.result.clone()

    def _on_the_side(self, index: Tensor, full_size: int) -> Tensor:
        current = torch.cuda.current_stream(index.device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            result = self.step(index, full_size)
        current.wait_stream(self._side)
        result.record_stream(current)
        return result

    def _capture(self, index: Tensor, full_size: int) -> _Graph | None:
        graph, own = torch.cuda.CUDAGraph(), index.clone()
        if self.drawing is not None:  # each replay draws on from where the last one has stopped
            graph.register_generator_state(self.drawing.generator(index.device))
        try:
            # other threads move blocks meanwhile, and wait for what they have moved
            with torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"):
                result = self.step(own, full_size)
        except RuntimeError as error:
            self._refused = True
            warnings.warn(
                f"fit: steps are not captured in CUDA graphs, which is slower: {error}",
                stacklevel=2,
            )
            return None
        return _Graph(graph, own, result)
