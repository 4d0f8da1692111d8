"""Optimisers of the rows of a posterior, and what else a loop needs around sparse gradients."""

from .clip_grad import clip_grad_norm_
from .row_adam import RowAdam
from .row_state import MAX_STEPS, MODES, Mode

__all__ = ["MAX_STEPS", "MODES", "Mode", "RowAdam", "clip_grad_norm_"]
