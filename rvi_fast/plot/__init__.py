"""Pictures of tables, models and what models say, as matplotlib Figures (extra `plot`).

    figure = rvi_fast.plot.imputations(x, rvi_fast.impute(model, x))
    figure.savefig("imputations.svg")

Each function takes a model or arrays and returns a `matplotlib.figure.Figure` that belongs to the caller
alone: pyplot is neither used nor changed. Where one pair of axes is enough, `ax=` draws into axes of
yours, and their figure is returned. Tables may be arrays, tensors or pandas DataFrames, whose columns
give the names. Colours are those of Okabe and Ito, which people with any colour vision tell apart.
"""

from .models import latents, reconstructions, relays
from .tables import coverage, imputations, missingness

__all__ = [
    "coverage",
    "imputations",
    "latents",
    "missingness",
    "reconstructions",
    "relays",
]
