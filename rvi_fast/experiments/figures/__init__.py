"""The figures, one file each: importing this package registers all of them, see `figure.figure`."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
