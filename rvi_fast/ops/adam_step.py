"""`adam_step`: schema and fake; it writes to its arguments."""

from __future__ import annotations

from .table import defined


@defined(
    "adam_step",
    "(Tensor(a!) params, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor grads, "
    "Tensor(d!) step, Tensor lr, float beta1, float beta2, float eps, float weight_decay) -> ()",
)
def _(*args):
    return None
