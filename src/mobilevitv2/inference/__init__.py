"""Equal, faster forms of a trained model.

`fold` rewrites a model into fewer operations, in plain torch; exports and the fast forms start from it. `optimize_for_inference`
makes the fastest form for the device at hand.
"""

from __future__ import annotations

from mobilevitv2.inference.fold import Folding, fold, is_folded
from mobilevitv2.inference.optimize import Optimization, optimize_for_inference

__all__ = ["Folding", "Optimization", "fold", "is_folded", "optimize_for_inference"]
