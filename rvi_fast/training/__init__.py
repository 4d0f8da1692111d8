"""Training, inference for new data, imputation, checkpoints."""

from .checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointWarning,
    load_checkpoint,
)
from .collapse import CollapseWarning, held_out_error
from .directory import RunDirectoryInUse
from .export import export
from .fit import EarlyStopping, fit, load
from .history import History
from .impute import impute
from .infer import infer
from .memory import MemoryEstimate, estimate_memory

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "CollapseWarning",
    "EarlyStopping",
    "History",
    "MemoryEstimate",
    "RunDirectoryInUse",
    "estimate_memory",
    "export",
    "fit",
    "held_out_error",
    "impute",
    "infer",
    "load",
    "load_checkpoint",
]
