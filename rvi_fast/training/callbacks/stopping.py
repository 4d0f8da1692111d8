"""Training that ends when it gets no better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ... import _checks
from ...models import LatentModel
from ...posteriors.base import as_posterior
from ..loop.callback import Callback
from ..loop.history import History
from ..places import directory_of
from .minimum import Minimum, Quantity, check_quantity, is_new, values_of


class EarlyStopping(Callback):
    """Stops when a quantity has not fallen for `patience` of its values.

    The loss falls on while a model begins to repeat its training data. `fit(held_out=0.1)` keeps a share
    of the observed entries from the likelihood, and "held_out" is the error over these.

    Args:
        patience: values without a new minimum after which training stops.
        quantity: "loss", one value an epoch; "elastic" or "held_out", one an evaluation.
        min_delta: by how much a value must fall below the minimum to count.
        restore_best: when training is over, the model goes back to what it was at the minimum. That
            state is kept in memory, a second copy of all rows, and in each checkpoint, so that a resume
            knows it; `rvi_fast.load(run_dir)` gives the last epoch, see `Checkpoint` for the best one.
            Not where several processes train, nor for tables in files.

    Raises:
        ValueError: an argument is out of its range; by `fit`, if it was told to hold nothing out.

    Example:
        >>> import torch, rvi_fast
        >>> x = torch.linspace(-1, 1, 60)[:, None] * torch.tensor([1.0, -2.0, 3.0])
        >>> model = rvi_fast.models.rvi(60, 3, latent_dim=2, groups=(4,))
        >>> stop = rvi_fast.EarlyStopping(2, quantity="held_out", restore_best=True)
        >>> history = rvi_fast.fit(
        ...     model, x, epochs=500, lr=0.1, held_out=0.2, callbacks=[stop], progress=False
        ... )
        >>> history["held_out"][-1] > min(history["held_out"])
        True
    """

    def __init__(
        self,
        patience: int = 10,
        *,
        quantity: Quantity = "loss",
        min_delta: float = 0.0,
        restore_best: bool = False,
    ) -> None:
        self.patience = _checks.check_positive_int("patience", patience)
        self.min_delta = _checks.check_non_negative("min_delta", min_delta)
        self.quantity = check_quantity("quantity", quantity)
        self.restore_best = _checks.check_bool("restore_best", restore_best)
        # without a state that is kept nothing of a run stays here
        self.shared = not self.restore_best
        self._best: dict[str, Tensor] = {}

    def begin(self, model: LatentModel, history: History) -> None:
        """Refuses models whose best state cannot be kept."""
        if not self.restore_best:
            return
        if as_posterior(model.posterior).sharded:
            raise ValueError("restore_best: expected False where several processes train, got True")
        if (tables := directory_of(model)) is not None:
            raise ValueError(f"restore_best: expected False for tables in files, got {tables}")
        if not history.epochs:
            self._best = {}

    def __call__(self, model: LatentModel, history: History) -> bool:
        """True when it is time to stop. Looks at nothing but the history, so it survives a resume."""
        values = values_of(history, self.quantity)
        if self.restore_best and is_new(history, self.quantity, self.min_delta):
            state = model.state_dict()
            self._best = {name: tensor.detach().clone() for name, tensor in state.items()}
        return Minimum.of(values, self.min_delta).since >= self.patience

    def end(self, model: LatentModel, history: History) -> None:
        """Takes the model back to its best state."""
        if self._best:
            model.load_state_dict(self._best)

    def close(self) -> None:
        """Lets go of the copy that was kept."""
        self._best = {}

    def state_dict(self) -> dict[str, Any]:
        """The best state, and what makes one the best; nothing where none is kept."""
        if not self.restore_best:
            return {}
        return {"quantity": self.quantity, "min_delta": self.min_delta, **self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave.

        Raises:
            ValueError: the run had no best state to keep, or that of another quantity.
        """
        state = dict(state)
        kept = {"quantity": state.pop("quantity", None), "min_delta": state.pop("min_delta", None)}
        own: dict[str, Any] = {"quantity": self.quantity, "min_delta": self.min_delta}
        if not self.restore_best:
            own = dict.fromkeys(own)
        for name, value in own.items():
            if kept[name] != value:
                raise ValueError(
                    f"{name} with restore_best: expected {kept[name]!r}, got {value!r}"
                )
        self._best = state
