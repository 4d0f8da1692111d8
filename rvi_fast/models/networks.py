"""The networks of the builders, by name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from .. import _checks
from ..drawing import drawing_from
from ..memory.room import check_memory
from .convolutional import ConvDecoder, checked_shape, square
from .skip import Skip

# hidden widths of each kind of decoder where nobody says
_HIDDEN = {"dense": (64, 64), "conv": (32, 16)}


class Network(NamedTuple):
    """A decoder before it is made.

    Attributes:
        kind: "dense" or "conv".
        hidden: widths of its hidden layers, or channels.
        image_shape: as it was given; None for a dense one, and for squares.
        shape: (channels, height, width) of what it makes; None for a dense one.
        skip: the last layer of a dense one sees the latents beside what the hidden layers give.
    """

    kind: str
    hidden: list[int]
    image_shape: list[int] | None
    shape: tuple[int, int, int] | None
    skip: bool

    @classmethod
    def of(
        cls,
        kind: str,
        hidden: Sequence[int] | None,
        image_shape: Sequence[int] | None,
        num_features: int,
        skip: bool = False,
    ) -> Self:
        """Checks the arguments of the builders.

        Raises:
            ValueError, TypeError: the kind is unknown, or the image has not `num_features` pixels.
        """
        skip = _checks.check_bool("skip", skip)
        if kind not in _HIDDEN:
            raise ValueError(f"decoder: expected one of {', '.join(_HIDDEN)}, got {kind!r}")
        widths = list(_HIDDEN[kind] if hidden is None else hidden)
        if kind == "dense":
            if image_shape is not None:
                raise ValueError(
                    f"image_shape: expected None for a dense decoder, got {image_shape!r}"
                )
            return cls(kind, widths, None, None, skip)
        if skip:
            raise ValueError("skip: expected False for a convolutional decoder, got True")
        _checks.check_positive_int("num_features", num_features)
        shape = square(num_features) if image_shape is None else checked_shape(image_shape)
        if math.prod(shape) != num_features:
            raise ValueError(
                f"image_shape: expected one of {num_features} features, got {image_shape!r}"
            )
        return cls(kind, widths, None if image_shape is None else list(image_shape), shape, skip)

    def config(self) -> dict[str, Any]:
        """What `LatentModel.config` says of it; nothing of what is as usual but the widths."""
        found: dict[str, Any] = {"hidden": self.hidden}
        if self.kind != "dense":
            found["decoder"] = self.kind
        if self.image_shape is not None:
            found["image_shape"] = self.image_shape
        if self.skip:
            found["skip"] = True
        return found

    def make(self, latent_dim: int, outputs: int, generator: torch.Generator | None) -> nn.Module:
        """From latents [..., T] to outputs [..., K]; first values are drawn from the generator.

        Raises:
            ValueError: a convolutional one is to make more outputs than an image has pixels.
            MemoryError: there is no room for it.
        """
        if self.shape is None:
            return dense(latent_dim, self.hidden, outputs, generator, skip=self.skip)
        if outputs != math.prod(self.shape):
            raise ValueError(
                f"decoder: expected 'dense' for a likelihood that takes {outputs} outputs for images "
                f"of {math.prod(self.shape)} pixels, got {self.kind!r}"
            )
        with drawing_from(generator):
            return ConvDecoder(latent_dim, self.shape, self.hidden)


def dense(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    generator: torch.Generator | None,
    *,
    skip: bool = False,
) -> nn.Sequential:
    """Linear layers with ReLU between them; first values are drawn from the generator.

    With `skip` the last one sees what the hidden ones give, and beside it the inputs.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        _checks.check_positive_int("hidden", width)
    widths = [inputs, *map(int, hidden), outputs]
    weights = sum(fan_in * fan_out for fan_in, fan_out in itertools.pairwise(widths))
    beside = inputs if skip and hidden else 0
    size = (weights + beside * outputs) * torch.get_default_dtype().itemsize
    advice = "lower latent_dim, hidden or num_features"
    check_memory(torch.get_default_device(), "network", size, advice)
    with drawing_from(generator):
        for width in widths[1:-1]:
            layers += [nn.Linear(inputs, width), nn.ReLU()]
            inputs = width
        before = [Skip(nn.Sequential(*layers))] if beside else layers
        return nn.Sequential(*before, nn.Linear(inputs + beside, outputs))
