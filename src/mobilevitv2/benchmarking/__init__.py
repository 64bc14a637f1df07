"""Speed, measured side by side: this package's forms, exported files and the peers, in one process and in turn.

`request` says what is asked for and refuses what cannot be; `running` makes the rows, a batch size at a time; `timing` times them
in turn; `report` is what comes out. The rows come from `torch_forms` and `files`, the peers' models from `peers`.
"""

from __future__ import annotations
