"""`python -m rvi_fast.cli`: the command line, for `torchrun -m` as well."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
