"""Laws by which entries go missing. Masks are bool, True = observed."""

from __future__ import annotations

import math

import numpy as np

_CHUNK = 1 << 20  # draws held at a time
_BOX_CHUNK = 4096  # images whose boxes are laid at a time


def mcar(shape: int | tuple[int, ...], rate: float, *, seed: int = 0) -> np.ndarray:
    """Draws a mask under which entries are missing completely at random.

    Each entry is missing with probability `rate`, independently of every other entry and of the
    data: observed = (u >= rate), u uniform on [0, 1) from numpy's Philox generator in C order.

    Args:
        shape: shape of the mask.
        rate: probability that an entry is missing, 0 <= rate < 1.
        seed: the same seed gives the same mask.

    Returns:
        bool array of `shape`, True = observed.

    Raises:
        ValueError: `rate` is outside [0, 1).

    >>> mcar((2, 4), 0.5, seed=1)
    array([[False, False, False,  True],
           [False, False, False, False]])
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate: expected 0 <= rate < 1, got {rate!r}")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    generator = np.random.Generator(np.random.Philox(seed))
    observed = np.empty(math.prod(shape), np.bool_)
    for start in range(0, observed.size, _CHUNK):
        part = observed[start : start + _CHUNK]
        np.greater_equal(generator.random(part.size), rate, out=part)
    return observed.reshape(shape)


def missing_boxes(
    num_images: int, image_shape: tuple[int, int], count: int, *, size: int = 4, seed: int = 0
) -> np.ndarray:
    """Draws a mask under which square boxes are missing from images (paper Figure 11).

    Each image misses `count` boxes of size x size pixels. A box lies within its image, every
    position equally likely, independently of the other boxes and images: boxes may overlap, so that
    fewer than count * size^2 pixels are missing. Positions come from numpy's Philox generator, those
    of an image do not depend on the number of images, and more boxes only add to those before.

    Args:
        num_images: N.
        image_shape: height and width.
        count: boxes in each image, 0 or more.
        size: side of a box in pixels, at most the smaller side of the image.
        seed: the same seed gives the same mask.

    Returns:
        bool [N, height * width], True = observed.

    Raises:
        ValueError: an argument is out of its range.

    >>> missing_boxes(1, (3, 4), 1, size=2, seed=2).reshape(3, 4)
    array([[ True,  True,  True,  True],
           [ True,  True, False, False],
           [ True,  True, False, False]])
    """
    height, width = image_shape
    for name, value, least in (
        ("num_images", num_images, 0),
        ("count", count, 0),
        ("size", size, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    if size > min(height, width):
        raise ValueError(f"size: expected at most {min(height, width)}, got {size}")
    observed = np.ones((num_images, height, width), np.bool_)
    # one stream for each box of an image: neither the images nor the boxes before move a box
    streams = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, box))))
        for box in range(count)
    ]
    offsets = np.arange(size)
    for start in range(0, num_images, _BOX_CHUNK):
        part = observed[start : start + _BOX_CHUNK]
        image = np.arange(len(part))[:, None, None]
        for stream in streams:
            places = stream.random((len(part), 2)) * (height - size + 1, width - size + 1)
            top, left = places.astype(np.int64).T
            rows, columns = top[:, None] + offsets, left[:, None] + offsets
            part[image, rows[:, :, None], columns[:, None, :]] = False
    return observed.reshape(num_images, height * width)
