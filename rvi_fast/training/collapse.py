"""Models that have learned no more than the means of columns."""

from __future__ import annotations

import math
import warnings
from typing import Any

from .. import _checks
from ..models import LatentModel
from ..posteriors.relay import RelayPosterior
from .held_out import TooFewEntries, find_held_out
from .infer import infer
from .inputs.prepare import Inputs, prepare
from .loop.checks import CollapseWarning

# of the error of the means: what is gained beyond would not be noticed
_COLLAPSED = 0.98
# what the estimators make at least
_FEW_STEPS = 2000
# up to here a training of few steps was better with a larger one
_USUAL_LR = 0.01


def held_out_error(
    model: LatentModel,
    x: Any,
    *,
    mask: Any = None,
    steps: int = 100,
    lr: float = 0.01,
    seed: int = 0,
) -> float:
    """How well a trained model finds entries of x that are hidden from it, beside columns' means.

    A tenth of the observed entries of up to 1,024 rows is hidden, the rows are inferred from what is
    left, and what is decoded is compared with what was hidden. Of rows that the model was trained on the
    result is too low, as its decoder has seen the entries; it still tells a training that has
    collapsed.

    Args:
        model: a trained model.
        x: data [N, D] as in `fit`.
        mask: bool [N, D], true = observed.
        steps: Adam steps for each row, as in `infer`.
        lr: learning rate, as in `infer`.
        seed: of rows, entries and noise.

    Returns:
        Root mean square error over the hidden entries, each divided by the standard deviation of its
        column, relative to that of the columns' means. About 1, or more: the model has learned
        nothing that helps to fill in entries. NaN where less than 100 entries could be hidden. The
        error of a class is what the probability of the one that was observed lacks to 1; the share of
        that class in its column is what it is compared with.

    Raises:
        ValueError, TypeError: as `infer`.

    Example:
        >>> import torch, rvi_fast
        >>> x = torch.linspace(-1, 1, 400)[:, None] * torch.tensor([1.0, -2.0, 3.0])
        >>> model = rvi_fast.models.rvi(400, 3, latent_dim=2, groups=(8,))
        >>> history = rvi_fast.fit(model, x, epochs=100, lr=0.01, progress=False)
        >>> rvi_fast.training.held_out_error(model, x) < 0.5
        True
    """
    seed = _checks.check_seed(seed)
    inputs = prepare(model, x, mask)

    def inferred(shown: Inputs, factor: float) -> RelayPosterior:
        data = model.to_data(shown.x)
        options: dict[str, Any] = {"steps": steps, "lr": lr, "seed": seed}
        return infer(model, data, mask=shown.mask, scale_factor=factor, **options)

    try:
        return find_held_out(model, inputs, seed, inferred, factors=(1.0,)).error
    except TooFewEntries:
        return math.nan


def warn_of_collapse(error: float, lr: float, steps: int) -> None:
    """Warns where a model's `held_out_error` says that it has learned nothing, and says what may help.

    After few steps a smaller learning rate makes it worse: of a table of 400 rows and 20 columns, 500
    steps at 0.001 left an error of 0.53, at 0.0001 one of 0.70, and four times as many steps one
    of 0.44.

    Args:
        error: what `held_out_error` gives.
        lr: learning rate of the training.
        steps: how many it made.
    """
    if error >= _COLLAPSED:
        advice = f"Try a smaller lr, which is {lr}, or more epochs"
        if steps < _FEW_STEPS and lr <= _USUAL_LR:
            advice = (
                f"Try more epochs or a smaller batch_size: training made {steps} steps, and small "
                f"tables need {_FEW_STEPS} or more; a smaller lr would need still more of them"
            )
        warnings.warn(
            f"the model finds held-out entries no better than the means of their columns (root mean "
            f"square error {error:.3f} of that of the means): training was too short or has collapsed, "
            f"or the columns say nothing about each other. {advice}",
            CollapseWarning,
            stacklevel=3,
        )
