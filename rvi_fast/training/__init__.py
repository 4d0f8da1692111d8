"""Training, inference for new data, imputation, checkpoints."""

from .checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointWarning,
    RunDirectoryInUse,
    load_checkpoint,
)
from .fit import EarlyStopping, History, fit, load
from .impute import impute
from .infer import infer

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "EarlyStopping",
    "History",
    "RunDirectoryInUse",
    "fit",
    "impute",
    "infer",
    "load",
    "load_checkpoint",
]
