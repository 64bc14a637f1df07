"""Quantisation of graphs: 8-bit weights, and 8-bit values with ranges measured on pictures. numpy and the runtime that is at hand.

    calibration.py   the pictures, from folders, files and data sets
    arithmetic.py    numbers to 8 bits and back
    observing.py     what a graph's values are on pictures
    silu.py          SiLU as a scaled GELU, which OpenVINO calculates in half the time
    plan.py          what is quantised for which runtime, and what stays float
    rewriting.py     QuantizeLinear and DequantizeLinear in a graph
    quantising.py    from a program and pictures to a graph
    loss.py          what it costs, on pictures that were not used for the ranges

Nothing here needs a quantisation library: the graphs are the package's own, and the runtimes read QuantizeLinear.
"""

from __future__ import annotations

from mobilevitv2.export.quantise.calibration import Calibration
from mobilevitv2.export.quantise.quantising import quantised_graph

__all__ = ["Calibration", "quantised_graph"]
