"""Laws by name, and in words that a file can hold."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from torch import nn

from .base import LAWS, Likelihood


def make(spec: Any, num_features: int) -> nn.Module:
    """A likelihood from its name, from what `described` says of one, or as it is.

    Args:
        spec: a name in `LAWS`; ("categorical", k), a name and what it is given; a list of one of these,
            or of a likelihood of one feature, for each column, see `Mixed`; a dict from `described`; or
            a module.
        num_features: D, which the likelihood must have.

    Raises:
        ValueError: the name is none, or the likelihood has another number of features.

    Example:
        >>> from rvi_fast import likelihoods
        >>> likelihoods.make("gaussian", 3)
        GaussianLikelihood(num_features=3, scale='scalar')
    """
    if isinstance(spec, nn.Module):
        made: nn.Module = spec
    elif isinstance(spec, str):
        made = _law(spec).made(num_features, {})
    elif isinstance(spec, dict):
        arguments = dict(spec)
        made = _law(arguments.pop("law", None)).made(num_features, arguments)
    elif is_named(spec):
        made = _law(spec[0]).made(num_features, {"num_classes": spec[1]})
    elif isinstance(spec, list | tuple):
        made = _law("mixed").made(num_features, {"columns": spec})
    else:
        raise TypeError(
            f"likelihood: expected a name, a module, or one of them for each column, got {spec!r}"
        )
    if getattr(made, "num_features", None) != num_features:
        raise ValueError(
            f"likelihood: expected one of {num_features} features, got "
            f"{getattr(made, 'num_features', None)}"
        )
    return made


def is_named(spec: Any) -> bool:
    """Whether it is ("categorical", k): the law whose name alone does not say all."""
    pair = isinstance(spec, list | tuple) and len(spec) == 2 and spec[0] == "categorical"
    return pair and isinstance(spec[1], Integral)


def described(likelihood: nn.Module) -> dict[str, Any] | None:
    """What `make` makes the same law of, without its parameters' values; None where it has no name."""
    law = getattr(type(likelihood), "law", None)
    if (
        not isinstance(likelihood, Likelihood)
        or law is None
        or LAWS.get(law) is not type(likelihood)
    ):
        return None
    arguments = likelihood.arguments()
    return None if arguments is None else {"law": law, **arguments}


def _law(name: Any) -> type[Likelihood]:
    if not isinstance(name, str) or name not in LAWS:
        raise ValueError(f"likelihood: expected one of {', '.join(LAWS)}, got {name!r}")
    return LAWS[name]
