"""`python -m rvi_fast.info`: the table of `rvi_fast.info()`, printed."""

import sys

from ._info import main

if __name__ == "__main__":
    sys.exit(main())
