"""Equal, faster forms of a trained model.

`fold` rewrites a model into fewer operations, in plain torch; exports and every fast form below start from it.
"""

from __future__ import annotations

from mobilevitv2.inference.fold import Folding, fold

__all__ = ["Folding", "fold"]
