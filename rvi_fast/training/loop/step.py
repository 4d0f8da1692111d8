"""One training step, with autograd only where the derivatives are not known beforehand.

The rows never enter autograd: the relay op's forward and backward are called around the decoder, and
`RowAdam` takes the gradients of the batch as they come, each row once. A decoder of `Linear` and
`ReLU` layers under a likelihood that has its own step for the last layer is differentiated by hand as
well. Nothing in a step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...drawing import Drawing, may_draw
from ...likelihoods.base import LAWS, Likelihood
from ...models import LatentModel, Objective, Skip
from ...optim import RowAdam
from ...optim.shared_adam import SharedAdam
from ...posteriors.encoder import EncoderPosterior
from ...posteriors.relay import RelayPosterior
from ...scaler import Scaler
from ..inputs.feed import Visit
from ..places.base import NoRows

# index [B], x, mask, seed of the noise [1], KL weight [], and the number of rows that the summed
# loss of the batch is divided by
Step = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, int], Objective]


# z [B, T], x, mask and the gradient of log_prob [1, B] -> log_prob [1, B] and the gradient of z;
# leaves the gradients of decoder and scale in .grad
DecoderStep = Callable[[Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]


def draws(model: nn.Module, *, training: bool) -> bool:
    """Whether anything in a model could draw random numbers beside the noise of its posterior."""
    own = (LatentModel, Skip, RelayPosterior, EncoderPosterior, Scaler, *LAWS.values())
    return may_draw(model, training=training, quiet=own)


def drawing_of(model: nn.Module, seed: int) -> AbstractContextManager[Any]:
    """Within it, what the modules of a model in eval mode draw follows the seed."""
    return Drawing(seed) if draws(model, training=False) else nullcontext()


def make_step(
    model: LatentModel,
    rows: RowAdam | NoRows,
    shared: torch.optim.Optimizer,
    drawing: Drawing | None = None,
) -> Step:
    """The fastest step that does for this model what autograd would do, to rounding.

    Args:
        model: what is trained.
        rows: drives the rows.
        shared: drives everything else.
        drawing: what the model's modules draw from, torch's default generators if not given.
    """
    posterior = model.posterior
    plain = type(posterior) is RelayPosterior and all(
        getattr(type(model), name) is getattr(LatentModel, name) for name in ("forward", "log_prob")
    )
    if (
        plain
        and isinstance(rows, RowAdam)
        and posterior.rows.requires_grad
        and not _hooked(model, posterior)
        and _apart(posterior, model.decoder, model.likelihood)
    ):
        return DirectStep(posterior, rows, shared, decoder_step(model, drawing))
    return AutogradStep(model, rows, shared, drawing)


def begin_sums(shared: torch.optim.Optimizer) -> None:
    """To be called once its gradients are there: processes sum them while rows are stepped."""
    if isinstance(shared, SharedAdam):
        shared.begin()


def decoder_step(
    model: LatentModel, drawing: Drawing | None = None, *, learn: bool = True
) -> DecoderStep:
    """What lies between the two halves of a `DirectStep`; without `learn` nothing but z changes."""
    decoder, likelihood = model.decoder, model.likelihood
    layers, skip = _chain(decoder)
    # Linear (ReLU Linear)*
    kinds = [nn.Linear, *[nn.ReLU, nn.Linear] * (len(layers) // 2)]
    parameters = [*decoder.parameters(), *likelihood.parameters()]
    if (
        [type(layer) for layer in layers] == kinds
        and isinstance(likelihood, Likelihood)
        and likelihood.fused
        and all(parameter.requires_grad == learn for parameter in parameters)
        and not _hooked(likelihood, *decoder.modules())
        and _apart(*(layer for layer in layers if isinstance(layer, nn.Linear)), likelihood)
        and not torch.is_autocast_enabled(parameters[0].device.type)
    ):
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        return LinearChain(linear, likelihood, learn, skip=skip)
    return DecoderByAutograd(model, drawing, learn)


def _chain(decoder: nn.Module) -> tuple[list[nn.Module], bool]:
    """The layers of a decoder, and whether a `Skip` leads around all but the last."""
    layers = list(decoder) if type(decoder) is nn.Sequential else [decoder]
    around = layers[0] if len(layers) == 2 else None
    if isinstance(around, Skip) and type(around.inner) is nn.Sequential:
        return [*around.inner, layers[1]], type(around) is Skip
    return layers, False


def _hooked(*modules: nn.Module) -> bool:
    """Whether there is anything that only `Module.__call__` or autograd would call."""
    parameters = [p for module in modules for p in module.parameters(recurse=False)]
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    ) or any(p._backward_hooks or _others(p._post_accumulate_grad_hooks) for p in parameters)


def _apart(*modules: nn.Module) -> bool:
    """Whether no parameter belongs to two of them: each sets its gradient, and one would be lost."""
    parameters = [id(p) for module in modules for p in module.parameters()]
    return len({*parameters}) == len(parameters)


def _others(hooks: dict[int, Callable[..., None]] | None) -> bool:
    """Hooks that are not `RowAdam`'s, which waits for autograd to say what `step_batch` is told."""
    own = RowAdam.after_backward
    return any(getattr(hook, "__func__", None) is not own for hook in (hooks or {}).values())


class BoundStep:
    """A step bound to its data, as a run and `CapturedStep` ask it: of row numbers alone.

    Seed and KL weight lie in tensors of the device: they may change under a CUDA graph.

    Args:
        device: where the steps run.
        dtype: of the model.

    Attributes:
        seed: int64 [1], key of the noise.
        kl_weight: [], float32 at least.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.seed = torch.zeros(1, dtype=torch.int64, device=device)
        wide = torch.promote_types(dtype, torch.float32)
        self.kl_weight = torch.ones((), dtype=wide, device=device)

    def __call__(self, index: Tensor, kind: int) -> Tensor:
        self.load(index)
        return self.run(index, kind)

    def load(self, index: Tensor) -> None:
        """To be called before the step on rows `index` [B], whether it is captured or not."""

    @property
    def place(self) -> int:
        """Where what was loaded lies: graphs that were captured with another one do not find it."""
        return 0

    def size_of(self, index: Tensor) -> int:
        """Rows that a step on rows `index`, which were loaded, is launched for."""
        return len(index)

    def close(self) -> None:
        """Lets go of what is captured."""

    @property
    def changes_by_kernels_alone(self) -> bool:
        """Whether `launch` changes nothing but gradients where no kernel of the package runs."""
        return False

    def run(self, index: Tensor, kind: int) -> Tensor:
        """The step on rows that were loaded; what it gives."""
        return self.launch(index, kind)

    def launch(self, index: Tensor, kind: int) -> Tensor:
        """What a CUDA graph holds of a step on rows `index` [B], which were loaded, and what it gives.

        Args:
            index: [B].
            kind: what sets steps of so many rows apart: each has a graph of its own.
        """
        raise NotImplementedError

    def ahead(self, visits: Iterator[Visit]) -> Iterator[Visit]:
        """The visits of an epoch, told of before the steps: here nothing is done beforehand."""
        return visits

    def fixed(self, index: Tensor) -> Tensor:
        """Row numbers that a graph may be captured with, of which the first are `index`."""
        return index.clone()

    def replay(
        self, graph: torch.cuda.CUDAGraph, rows: Tensor, result: Tensor, index: Tensor
    ) -> Tensor:
        """The step on rows `index`, which were loaded, from a graph.

        Args:
            graph: of `launch`.
            rows: what it was captured with, from `fixed`.
            result: what `launch` gave within it.
            index: [B].
        """
        rows.copy_(index)
        graph.replay()
        return result.clone()


class AutogradStep:
    """A step of any model: what `loss.backward()` and two optimisers do.

    Data of one row beside no row number stand in for a share of no rows, see `BatchStep`.
    """

    def __init__(
        self,
        model: LatentModel,
        rows: RowAdam | NoRows,
        shared: torch.optim.Optimizer,
        drawing: Drawing | None = None,
    ) -> None:
        self.model, self.rows, self.shared = model, rows, shared
        self.drawing = drawing if drawing and draws(model, training=True) else nullcontext()

    def __call__(
        self,
        index: Tensor,
        x: Tensor,
        mask: Tensor | None,
        seed: Tensor,
        kl_weight: Tensor,
        full_size: int,
    ) -> Objective:
        share = len(index) / full_size
        if len(x) > len(index):
            index = index.new_zeros(len(x))
        with self.drawing, self.model.own_units():
            objective = self.objective(index, x, mask, seed, kl_weight)
            self.rows.zero_grad()
            self.shared.zero_grad()
            (objective.loss * share).backward()
        begin_sums(self.shared)
        self.rows.step()
        self.shared.step()
        return Objective(*(value.detach() for value in objective))

    def objective(
        self, index: Tensor, x: Tensor, mask: Tensor | None, seed: Tensor, kl_weight: Tensor
    ) -> Objective:
        """What is differentiated."""
        return self.model(index, x, mask, kl_weight=kl_weight, seed=seed)


class DirectStep:
    """A step around the relay op's forward and backward; `decoder` does what lies between."""

    def __init__(
        self,
        posterior: RelayPosterior,
        rows: RowAdam,
        shared: torch.optim.Optimizer,
        decoder: DecoderStep,
    ) -> None:
        self.posterior, self.rows, self.shared = posterior, rows, shared
        self.decoder = decoder

    @torch.no_grad()
    def __call__(
        self,
        index: Tensor,
        x: Tensor,
        mask: Tensor | None,
        seed: Tensor,
        kl_weight: Tensor,
        full_size: int,
    ) -> Objective:
        z, kl, pullback = self.posterior.draw(index, seed)
        grad_log_prob = z.new_full((1, len(index)), -1.0 / full_size)
        log_prob, grad_z = self.decoder(z, x, mask, grad_log_prob)
        grad_kl = (kl_weight / full_size).to(kl.dtype).expand(len(index))
        grad = pullback(grad_z, grad_kl)
        begin_sums(self.shared)
        self.rows.step_batch(index, grad)
        self.shared.step()
        kl, log_prob = kl.mean(), log_prob.mean()
        return Objective(kl_weight * kl - log_prob, kl, log_prob)


class DecoderByAutograd:
    """Any decoder and any likelihood.

    Data of one row beside latents of none stand in for a share of no rows, see `BatchStep`.
    """

    def __init__(self, model: LatentModel, drawing: Drawing | None, learn: bool) -> None:
        self.model, self.learn = model, learn
        self.drawing = drawing if drawing and draws(model, training=learn) else nullcontext()

    @torch.enable_grad()
    def __call__(
        self, z: Tensor, x: Tensor, mask: Tensor | None, grad_log_prob: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.learn:
            self.model.decoder.zero_grad(set_to_none=True)
            self.model.likelihood.zero_grad(set_to_none=True)
        rows = len(z)
        if len(x) > rows:
            z, grad_log_prob = z.new_zeros(len(x), z.shape[1]), grad_log_prob.new_zeros(1, len(x))
        z = z.detach().requires_grad_()
        with self.drawing, self.model.own_units():
            log_prob = self.model.log_prob(x, z, mask)
            torch.autograd.backward(log_prob, grad_log_prob[0].to(log_prob.dtype))
        # a decoder may ignore z
        grad_z = torch.zeros_like(z) if z.grad is None else z.grad
        return log_prob.detach()[None, :rows], grad_z[:rows]


class LinearChain:
    """Linear layers with ReLU between them, and a likelihood that is fused with the last one.

    Args:
        layers: at least one.
        likelihood: takes what the last one gives.
        learn: whether layers and likelihood get gradients.
        skip: the last layer sees z behind what the one before it gives.
    """

    def __init__(
        self,
        layers: Sequence[nn.Linear],
        likelihood: Likelihood,
        learn: bool,
        *,
        skip: bool = False,
    ) -> None:
        self.hidden, self.last = layers[:-1], layers[-1]
        self.likelihood, self.learn, self.skip = likelihood, learn, skip

    def __call__(
        self, z: Tensor, x: Tensor, mask: Tensor | None, grad_log_prob: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs = [z]
        for layer in self.hidden:
            inputs.append(torch.nn.functional.linear(inputs[-1], layer.weight, layer.bias).relu_())
        seen = torch.cat((inputs[-1], z), 1) if self.skip else inputs[-1]
        log_prob, grad = self.likelihood.step_of_linear(
            grad_log_prob, seen[None], self.last, x, mask, self.learn
        )
        width = inputs[-1].shape[1]
        grad, direct = grad[0][:, :width], grad[0][:, width:]
        for layer, before, after in zip(
            self.hidden[::-1], inputs[-2::-1], inputs[:0:-1], strict=True
        ):
            grad = torch.ops.aten.threshold_backward(grad, after, 0)
            if self.learn:
                layer.weight.grad = grad.mT @ before
                if layer.bias is not None:
                    layer.bias.grad = grad.sum(0)
            grad = grad @ layer.weight
        return log_prob, grad + direct if self.skip else grad
