"""Steps of the rows of a batch, under a model that stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...optim import RowAdam
from ...posteriors.relay import RelayPosterior
from .step import BoundStep, DecoderStep, LinearChain

if TYPE_CHECKING:
    from .capture import CapturedStep


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within it the modules are in eval mode and their parameters take no gradient."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for parameter in parameters:
        parameter.requires_grad_(False)
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for part, training in modes:
            part.training = training


def optimise_rows(
    posterior: RelayPosterior,
    step: InferenceStep | CapturedStep,
    seeds: Sequence[Tensor],
    after: Callable[[], object] = lambda: None,
) -> Tensor:
    """Moves the rows of a posterior by a step for each seed, and gives them.

    Three quarters of the steps decode the posterior mean, which finds the means faster than samples do;
    the rest decode samples, which fits the standard deviations.

    Args:
        posterior: of the batch alone.
        step: bound to its data; its `rows` drives the posterior, and lets go of it.
        seeds: int64 [1] for each step.
        after: called after each step.
    """
    place = torch.arange(posterior.num_data, device=posterior.relays.device)
    for number, seed in enumerate(seeds):
        step.seed.copy_(seed)
        step(place, int(4 * number >= 3 * len(seeds)))
        after()
    step.rows.detach()
    return posterior.rows.data


class InferenceStep(BoundStep):
    """A step of all rows of a batch, which makes the evidence lower bound of each larger.

    Args:
        posterior: of the batch alone.
        rows: drives its rows.
        decoder: leaves all but z as it is.
        data: x [B, D], and the mask.
        keys: row numbers [B] that key the noise.

    Attributes:
        grad_kl: [B], the factor of each row's KL divergence; 1 if nobody sets it.
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
        self.grad_kl = self._zeros.new_ones(len(keys))

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
        grad: Tensor = pullback(grad_z, self.grad_kl)
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
