"""Figure 4: how well missing entries of test rows are filled in; the runs of Figure 3."""

from __future__ import annotations

from ..experiment import Experiment
from ..figure import figure
from ..scales import Scale
from . import fig3


@figure("fig4", "Imputation by missing rate", ("test_missing",), over="missing")
def runs(scale: Scale) -> list[Experiment]:
    return [experiment for experiment in fig3.runs(scale) if experiment.missing > 0]
