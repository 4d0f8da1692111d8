"""Steps of the rows of new datapoints, under a model that stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from ...optim import RowAdam
from ...posteriors.relay import RelayPosterior
from .capture import CapturedStep, graphs_on
from .compilation import compile_kernels
from .step import BoundStep, DecoderStep, LinearChain


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


class InferenceStep(BoundStep):
    """A step of all rows of a batch, which makes the evidence lower bound of each larger.

    Args:
        posterior: of the batch alone.
        rows: drives its rows.
        decoder: leaves all but z as it is.
        data: x [B, D], and the mask.
        keys: row numbers [B] that key the noise.
    """

    def __init__(
        self,
        posterior: RelayPosterior,
        rows: RowAdam,
        decoder: DecoderStep,
        data: tuple[Tensor, Tensor | None],
        keys: Tensor,
    ) -> None:
        like = posterior.relays
        super().__init__(like.device, like.dtype)
        self.posterior, self.rows, self.decoder = posterior, rows, decoder
        self.data, self.keys = data, keys
        self._zeros = like.new_zeros((1, len(keys), posterior.latent_dim), requires_grad=False)
        self._grad_log_prob = self._zeros.new_full((1, len(keys)), -1.0)
        self._grad_kl = self._zeros.new_ones(len(keys))

    @property
    def changes_by_kernels_alone(self) -> bool:
        """See `BoundStep`."""
        return isinstance(self.decoder, LinearChain)

    def launch(self, index: Tensor, kind: int) -> Tensor:
        """Steps from the gradient of a sample where `kind` is 1, of the mean where it is 0.

        Args:
            index: all rows of the batch, [B].
            kind: the decoded mean says nothing about the standard deviation, which then stays.
        """
        noise = None if kind else self._zeros
        z, _, pullback = self.posterior.draw(index, self.seed, self.keys, noise=noise, learn=False)
        _, grad_z = self.decoder(z, *self.data, self._grad_log_prob)
        grad: Tensor = pullback(grad_z, self._grad_kl)
        if not kind:
            grad[:, self.posterior.layout.log_std_slice] = 0.0
        self.rows.step_batch(index, grad)
        return grad

    def fixed(self, index: Tensor) -> Tensor:
        """See `BoundStep.fixed`: all steps have the same rows."""
        return index

    def replay(
        self, graph: torch.cuda.CUDAGraph, rows: Tensor, result: Tensor, index: Tensor
    ) -> Tensor:
        """See `BoundStep.replay`: the gradient of the rows, until the next step."""
        graph.replay()
        return result
