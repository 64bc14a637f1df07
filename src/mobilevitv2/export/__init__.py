"""Export to the formats of devices; every file is run and compared before it is handed over."""

from __future__ import annotations
