"""Figure 7: what each group of relay vectors adds to a reconstruction; of the runs of Figure 9."""

from __future__ import annotations

from dataclasses import replace

from ..experiment import Experiment
from ..figure import figure
from ..scales import Scale
from . import fig9


@figure(
    "fig7",
    "Reconstruction by relay group",
    ("stages",),
    over="stage",
    curves=("groups",),
    extra=fig9.images,
    caption=fig9.CAPTION,
)
def runs(scale: Scale) -> list[Experiment]:
    found = fig9.runs(replace(scale, seeds=1))
    return [experiment for experiment in found if experiment.groups == (25, 50, 100)]
