"""`python -m rvi_fast.info`: the table of `rvi_fast.info()`, printed.

Importing this module puts it in the place of the function of the same name, so it can be called too.
"""

import sys
from types import ModuleType
from typing import Any

from ._info import info, main


class _CallableModule(ModuleType):
    __doc__ = info.__doc__

    def __call__(self) -> dict[str, Any]:
        return info()


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    sys.exit(main())
