"""Quantisation of graphs: 8-bit weights, and 8-bit values with ranges measured on pictures. numpy and the runtime that is at hand.

    calibration.py   the pictures, from folders, files and data sets
    arithmetic.py    numbers to 8 bits and back
    observing.py     what a graph's values are on pictures
    silu.py          SiLU as a hard swish or GELU, which OpenVINO calculates faster
    matching.py      convolutions that make up for that
    plan.py          what is quantised for which runtime, and what stays float
    rewriting.py     QuantizeLinear and DequantizeLinear in a graph
    quantising.py    from a program and pictures to a graph
    litert_*.py, executorch_*.py   the same lists and ranges for the libraries of these formats

ONNX and OpenVINO need no quantisation library: the graphs are the package's own, and the runtimes read QuantizeLinear.
"""

from __future__ import annotations

from mobilevitv2.export.quantise.calibration import Calibration
from mobilevitv2.export.quantise.quantising import quantised_graph

__all__ = ["Calibration", "quantised_graph"]
