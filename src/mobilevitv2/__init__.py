"""MobileViTV2 for pictures: classification, segmentation and detection, from training to the device.

Names are imported on first use, so `import mobilevitv2` itself costs milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilevitv2.answers import Prediction, coco_results, to_supervision
    from mobilevitv2.auto import create, register
    from mobilevitv2.backbone import MobileViTV2Backbone, MobileViTV2Model, MobileViTV2PreTrainedModel
    from mobilevitv2.classification import MobileViTV2ForImageClassification
    from mobilevitv2.configuration import MobileViTV2Config
    from mobilevitv2.detection import MobileViTV2ForObjectDetection
    from mobilevitv2.errors import MobileViTV2Error
    from mobilevitv2.image_processing import MobileViTV2ImageProcessor
    from mobilevitv2.inference import optimize_for_inference
    from mobilevitv2.pictures import read_picture
    from mobilevitv2.prediction import iter_predictions, predict
    from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation
    from mobilevitv2.video import read_video
    from mobilevitv2.weights.records import list_records

__version__ = "0.1.0"

_HOMES = {
    "MobileViTV2Backbone": "backbone",
    "MobileViTV2Config": "configuration",
    "MobileViTV2Error": "errors",
    "MobileViTV2ForImageClassification": "classification",
    "MobileViTV2ForObjectDetection": "detection",
    "MobileViTV2ForSemanticSegmentation": "segmentation",
    "MobileViTV2ImageProcessor": "image_processing",
    "MobileViTV2Model": "backbone",
    "MobileViTV2PreTrainedModel": "backbone",
    "Prediction": "answers",
    "coco_results": "answers",
    "create": "auto",
    "iter_predictions": "prediction",
    "list_records": "weights.records",
    "optimize_for_inference": "inference",
    "predict": "prediction",
    "read_picture": "pictures",
    "read_video": "video",
    "register": "auto",
    "to_supervision": "answers",
}

__all__ = [
    "MobileViTV2Backbone",
    "MobileViTV2Config",
    "MobileViTV2Error",
    "MobileViTV2ForImageClassification",
    "MobileViTV2ForObjectDetection",
    "MobileViTV2ForSemanticSegmentation",
    "MobileViTV2ImageProcessor",
    "MobileViTV2Model",
    "MobileViTV2PreTrainedModel",
    "Prediction",
    "__version__",
    "coco_results",
    "create",
    "iter_predictions",
    "list_records",
    "optimize_for_inference",
    "predict",
    "read_picture",
    "read_video",
    "register",
    "to_supervision",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
