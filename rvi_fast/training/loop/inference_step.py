"""Steps of the rows of new datapoints, under a model that stays as it is."""

from __future__ import annotations

from torch import Tensor

from ...optim import RowAdam
from ...posteriors.relay import RelayPosterior
from .capture import CapturedStep, graphs_on
from .compilation import compile_kernels
from .row_steps import InferenceStep
from .step import DecoderStep, LinearChain


def inference_step(
    posterior: RelayPosterior,
    rows: RowAdam,
    decoder: DecoderStep,
    data: tuple[Tensor, Tensor | None],
    keys: Tensor,
    *,
    progress: bool = False,
) -> InferenceStep | CapturedStep:
    """A `InferenceStep`, from CUDA graphs where they hold it and nothing in it could object.

    Args:
        posterior, rows, decoder, data, keys: as there.
        progress: say so where kernels have to be compiled first.
    """
    step = InferenceStep(posterior, rows, decoder, data, keys)
    compile_kernels(step, len(keys), (0, 1), progress=progress)
    captured = graphs_on(keys.device) and isinstance(decoder, LinearChain)
    return CapturedStep(step, rows, 0) if captured else step
