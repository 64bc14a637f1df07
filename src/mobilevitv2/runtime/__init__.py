"""Exported files as models: numpy in, answers out, with no torch and no transformers behind it.

    from mobilevitv2.runtime import open_model

    model = open_model("cat.onnx")
    print(model.predict("cat.jpg").labels)
"""

from __future__ import annotations
