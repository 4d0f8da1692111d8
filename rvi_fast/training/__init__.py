"""Training, inference for new data, imputation, checkpoints."""

from . import callbacks
from .arrays import impute_array, infer_array
from .callbacks import EarlyStopping
from .collapse import CollapseWarning, held_out_error
from .fit import fit
from .fit_many import FitManyError, fit_many
from .impute import impute
from .infer import infer
from .load import load
from .loop.history import History
from .memory import MemoryEstimate, estimate_memory
from .parquet import impute_parquet, infer_parquet
from .pieces import Completed
from .recipes import Recipe, recipe
from .runs.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointWarning,
    load_checkpoint,
)
from .runs.directory import RunDirectoryInUse
from .runs.export import export
from .serving import RowImputer
from .start_linear import start_linear

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "CollapseWarning",
    "Completed",
    "EarlyStopping",
    "FitManyError",
    "History",
    "MemoryEstimate",
    "Recipe",
    "RowImputer",
    "RunDirectoryInUse",
    "callbacks",
    "estimate_memory",
    "export",
    "fit",
    "fit_many",
    "held_out_error",
    "impute",
    "impute_array",
    "impute_parquet",
    "infer",
    "infer_array",
    "infer_parquet",
    "load",
    "load_checkpoint",
    "recipe",
    "start_linear",
]
