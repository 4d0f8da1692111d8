"""What `fit` calls while it trains: the protocol of callbacks, and how a run speaks to all of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...models import LatentModel
from ..runs.checkpoints import CheckpointError
from .history import History

AfterEpoch = Callable[[LatentModel, History], bool | None]


class Callback:
    """Base of what `fit(callbacks=[...])` calls; a plain function counts as one with `__call__` alone.

    The order of calls is `load_state_dict` where a run goes on from a checkpoint, `begin`; before each
    epoch `lr_factor` and after it `__call__`; `end` once all epochs are done or a callback has stopped
    the run; and `close` however it was left. Where several processes train one model, all are called
    in the first one alone.

    What a callback has to remember of the epochs is best read from the history, which is in the
    checkpoints: then a run that is interrupted goes on as if it had not been. All else belongs in
    `state_dict`.

    Attributes:
        shared: whether one object may serve several runs of `fit_many`, which refuses others.

    Example:
        >>> import torch, rvi_fast
        >>> from rvi_fast.training.callbacks import Callback
        >>> class Best(Callback):
        ...     def __call__(self, model, history):
        ...         self.loss = min(history["loss"])
        >>> best, x = Best(), torch.zeros(8, 2)
        >>> model = rvi_fast.models.rvi(8, 2, latent_dim=2, groups=(2,))
        >>> history = rvi_fast.fit(model, x, epochs=3, callbacks=[best], progress=False)
        >>> best.loss == min(history["loss"])
        True
    """

    shared = False

    def begin(self, model: LatentModel, history: History) -> None:
        """Called before the first step, with the history of the epochs before a resume."""

    def __call__(self, model: LatentModel, history: History) -> bool | None:
        """Called after each epoch and its evaluation; a true result stops training."""
        return None

    def lr_factor(self, history: History) -> float:
        """What all learning rates are multiplied by in the epoch after those of the history."""
        return 1.0

    def end(self, model: LatentModel, history: History) -> None:
        """Called when training is over, the model free of optimisers: it may be changed here."""

    def close(self) -> None:
        """Called last, also where the run was interrupted or has failed."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold: by name tensors, or numbers and lists that JSON can hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave when the checkpoint was written.

        Raises:
            ValueError: it is not what this one would have been in after those epochs.
        """
        if state:
            raise ValueError(f"{type(self).__name__} has no state, got {', '.join(state)}")


class _Function(Callback):
    """A plain function as a callback."""

    shared = True

    def __init__(self, function: AfterEpoch) -> None:
        self.function = function

    def __call__(self, model: LatentModel, history: History) -> bool | None:
        return self.function(model, history)


class Callbacks:
    """All callbacks of a run, in their order.

    Args:
        given: as `fit` takes them.
    """

    def __init__(self, given: Sequence[AfterEpoch]) -> None:
        self.all = [one if isinstance(one, Callback) else _Function(one) for one in given]

    def begin(self, model: LatentModel, history: History) -> None:
        """See `Callback.begin`."""
        for callback in self.all:
            callback.begin(model, history)

    def stop(self, model: LatentModel, history: History) -> bool:
        """Calls all of them after an epoch; whether one of them wants training to stop."""
        wishes = [bool(callback(model, history)) for callback in self.all]
        return any(wishes)

    def lr_factor(self, history: History) -> float:
        """The product of all factors.

        Raises:
            ValueError: it is no finite number of at least 0.
        """
        factor = math.prod(float(callback.lr_factor(history)) for callback in self.all)
        if not 0.0 <= factor < math.inf:
            raise ValueError(f"lr_factor: expected a finite number >= 0, got {factor}")
        return factor

    @property
    def set_lr(self) -> bool:
        """Whether learning rates may change from epoch to epoch."""
        return any(type(callback).lr_factor is not Callback.lr_factor for callback in self.all)

    def end(self, model: LatentModel, history: History) -> None:
        """See `Callback.end`."""
        for callback in self.all:
            callback.end(model, history)

    def close(self) -> None:
        """See `Callback.close`."""
        for callback in self.all:
            callback.close()

    def _named(self) -> dict[str, Callback]:
        """Each callback that is more than a function by its class, numbered where there are several."""
        named: dict[str, Callback] = {}
        for callback in self.all:
            kind = type(callback).__name__
            name, number = kind, 1
            while name in named:
                number += 1
                name = f"{kind}-{number}"
            named[name] = callback
        return named

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a checkpoint has to hold of them: values for its metadata, and tensors by their names.

        Raises:
            TypeError: a state holds what neither is a tensor nor can be written as JSON.
        """
        values: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for name, callback in self._named().items():
            own = {}
            for key, value in callback.state_dict().items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value
                    continue
                try:
                    own[key] = json.loads(json.dumps(value, allow_nan=True))
                except (TypeError, ValueError) as error:
                    raise TypeError(f"callbacks: {name}.state_dict()[{key!r}]: {error}") from error
            if own or any(key.startswith(f"{name}/") for key in tensors):
                values[name] = own
        return values, tensors

    def load(
        self, values: Mapping[str, dict[str, Any]], tensors: Mapping[str, Tensor], source: Path
    ) -> None:
        """Takes them back to a checkpoint.

        Args:
            values, tensors: what `state` gave.
            source: the checkpoint, for errors.

        Raises:
            ValueError: there is a state and nobody to take it, or it does not fit.
        """
        named = self._named()
        for name in values.keys() - named.keys():
            raise ValueError(
                f"callbacks: expected a {name} as in {source}, got {', '.join(named) or 'none'}"
            )
        for name, callback in named.items():
            own = {
                key.removeprefix(f"{name}/"): tensor
                for key, tensor in tensors.items()
                if key.startswith(f"{name}/")
            }
            try:
                callback.load_state_dict({**values.get(name, {}), **own})
            except KeyError as error:
                raise CheckpointError(source, f"holds no {error} of {name}") from error
            except ValueError as error:
                raise ValueError(f"callbacks: {name}: {error}, in {source}") from error
