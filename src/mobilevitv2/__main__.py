"""`python -m mobilevitv2` is the command `mobilevitv2`."""

from __future__ import annotations

import sys

from mobilevitv2.cli import main

if __name__ == "__main__":
    sys.exit(main())
