"""MobileViTV2 as an ONNX graph, built from its weights with numpy alone: no torch, no exporter, no protobuf library.

Tracing the model takes a minute and three heavy packages; writing the same operators down takes a tenth of a second, so that the
classifier inside the package is a graph in memory before torch would be imported. `torch` stays the definition: every exported file
is compared with it.

    protobuf.py   bytes of ONNX's messages
    builder.py    nodes, constants, names
    weights.py    tensors by name, with the norms folded into convolutions
    network.py    the trunk
    heads.py      classifier, segmentation and detection heads, post-processing
    build.py      from a `GraphSpec` and tensors to the bytes of a file
"""

from __future__ import annotations
