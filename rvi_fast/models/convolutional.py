"""Decoders of images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks


class ConvDecoder(nn.Module):
    """From latents to images by transposed convolutions, each of which doubles height and width.

        o = offset + convolve(ReLU(... ReLU(reshape(W z + b))))

    The offset is one number for each pixel, so that the convolutions have to know only how an image
    differs from it.

    Args:
        latent_dim: T.
        image_shape: (height, width), or (channels, height, width).
        hidden: channels of the images before each transposed convolution, the smallest image first.

    Attributes:
        bias: parameter [D], the offset, D = channels x height x width.

    Example:
        >>> import torch
        >>> from rvi_fast.models.convolutional import ConvDecoder
        >>> ConvDecoder(16, (28, 28))(torch.zeros(5, 3, 16)).shape
        torch.Size([5, 3, 784])
    """

    def __init__(
        self, latent_dim: int, image_shape: Sequence[int], hidden: Sequence[int] = (32, 16)
    ) -> None:
        super().__init__()
        shape = checked_shape(image_shape)
        for width in hidden:
            _checks.check_positive_int("hidden", width)
        if not hidden:
            raise ValueError("hidden: expected one or more numbers of channels, got none")
        self.image_shape = shape
        times = 2 ** len(hidden)
        small = [-(-side // times) for side in shape[1:]]
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, hidden[0] * math.prod(small)),
            nn.Unflatten(1, (hidden[0], *small)),
        ]
        for before, after in itertools.pairwise((*hidden, shape[0])):
            layers += [nn.ReLU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.bias = nn.Parameter(torch.zeros(math.prod(shape)))

    def forward(self, z: Tensor) -> Tensor:
        """Outputs [..., D] of latents [..., T]; a channel's rows of pixels lie one after another."""
        _, height, width = self.image_shape
        images = self.layers(z.reshape(-1, z.shape[-1]))[..., :height, :width]
        return images.reshape(*z.shape[:-1], -1) + self.bias

    def extra_repr(self) -> str:
        return f"image_shape={self.image_shape}"


def checked_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of a shape with or without channels.

    Raises:
        ValueError, TypeError: it has not two or three sides, or one that is no positive integer.
    """
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else ()
    if len(shape) not in (2, 3):
        raise ValueError(
            f"image_shape: expected (height, width) or (channels, height, width), got {image_shape!r}"
        )
    channels, height, width = (
        _checks.check_positive_int("image_shape", side) for side in (1, *shape)[-3:]
    )
    return channels, height, width


def square(num_features: int) -> tuple[int, int, int]:
    """The image that so many features are: a square with one channel, or else one with three.

    Raises:
        ValueError: they are neither.
    """
    for channels in (1, 3):
        side = math.isqrt(num_features // channels)
        if channels * side * side == num_features:
            return channels, side, side
    raise ValueError(
        f"image_shape: expected the height and width of images of {num_features} features, which are "
        "no square, got None"
    )
