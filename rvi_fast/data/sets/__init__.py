"""Data sets by name, a module each: importing this package registers all of them."""

import importlib
import pkgutil

from .registry import LOADERS, Dataset

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

DATASETS = tuple(LOADERS)

__all__ = ["DATASETS", "Dataset"]
