"""Training, inference for new data, imputation, checkpoints."""

from .checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointWarning,
    RunDirectoryInUse,
    load_checkpoint,
)
from .fit import EarlyStopping, fit, load
from .impute import impute
from .infer import infer
from .run import History

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
