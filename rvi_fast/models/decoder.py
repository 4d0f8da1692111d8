"""What the layers of a decoder say without being called."""

from __future__ import annotations

import math

from torch import nn

from .convolutional import ConvDecoder
from .skip import Skip

# layers whose output is as wide as their input
_ELEMENTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
    nn.Sigmoid,
    nn.Dropout,
)


def plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """The class itself, without hooks: a call of it does what the class says and nothing else.

    A parametrized module has a class of its own.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return type(module) is kind and "forward" not in vars(module) and not any(hooks)


def width_after(module: nn.Module, width: int | None) -> int | None:
    """Features after a decoder, or a part of one, that is given `width`; None where it does not say.

    Raises:
        ValueError: a linear layer takes another number.
    """
    if plain(module, nn.Sequential):
        for layer in module.children():
            width = width_after(layer, width)
        return width
    if plain(module, nn.Linear):
        if width not in (None, module.in_features):
            raise ValueError(f"decoder: expected a layer of {width} inputs, got {module}")
        return int(module.out_features)  # type: ignore[arg-type]
    if plain(module, Skip):
        inner = width_after(module.inner, width)  # type: ignore[arg-type]
        return None if width is None or inner is None else inner + width
    if plain(module, ConvDecoder):
        return math.prod(module.image_shape)  # type: ignore[arg-type]
    return width if any(plain(module, kind) for kind in _ELEMENTWISE) else None


def split_last(decoder: nn.Module) -> tuple[list[nn.Module], nn.Linear | None]:
    """The layers of a sequence that ends in a linear one, and that one; no layers and None else."""
    layers = list(decoder) if isinstance(decoder, nn.Sequential) else []
    last = layers[-1] if layers else None
    if isinstance(last, nn.Linear) and plain(last, nn.Linear) and plain(decoder, nn.Sequential):
        return layers[:-1], last
    return [], None


def last_bias(decoder: nn.Module) -> nn.Parameter | None:
    """The bias [K] that a decoder adds at the end, where its layers say so and it has one."""
    if plain(decoder, ConvDecoder):
        return decoder.bias  # type: ignore[return-value]
    last = split_last(decoder)[1]
    return None if last is None else last.bias
