"""A program as an ONNX graph: what `mobilevitv2.graph` needs to know of a model, read off its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mobilevitv2
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.graph.build import Graph, GraphSpec, build_graph
from mobilevitv2.graph.heads import DetectionOptions, SegmentationOptions, SuppressionOptions
from mobilevitv2.graph.network import Trunk
from mobilevitv2.option_checks import POOLED

if TYPE_CHECKING:
    from mobilevitv2.configuration import MobileViTV2Config
    from mobilevitv2.export.program import Program


def graph_of(program: Program, *, norms: str = "instance", merged: bool = False) -> Graph:
    """The program as a graph; `norms` and `merged` as in `mobilevitv2.graph.build.GraphSpec`.

    Raises:
        ConfigurationError: an option of the model that has no graph.
    """
    tensors = {name: tensor.detach().cpu().float().numpy() for name, tensor in program.model.state_dict().items()}
    return build_graph(_spec(program, norms, merged), tensors, version=mobilevitv2.__version__)


def _spec(program: Program, norms: str, merged: bool) -> GraphSpec:
    config, limits = program.model.config, program.suppression
    return GraphSpec(
        metadata=program.metadata,
        trunk=_trunk(config),
        segmentation=_segmentation(config) if program.task == "segment" else None,
        detection=_detection(config) if program.task == "detect" else None,
        suppression=None
        if limits is None
        else SuppressionOptions(limits.threshold, limits.iou, limits.candidates, limits.detections),
        stages=program.stages,
        norms=norms,
        merged=merged,
    )


def _trunk(config: MobileViTV2Config) -> Trunk:
    if not isinstance(config.hidden_act, str):
        raise ConfigurationError("hidden_act is a function, which has no graph; use a name such as 'swish' in the configuration.")
    assert isinstance(config.patch_size, int)  # the configuration makes it so
    return Trunk(
        strides=tuple(config.stage_strides),
        dilations=tuple(config.stage_dilations),
        activation=config.hidden_act.removeprefix("torch.nn.functional."),
        patch_size=config.patch_size,
        norm_eps=config.layer_norm_eps,
    )


def _segmentation(config: MobileViTV2Config) -> SegmentationOptions:
    return SegmentationOptions(config.segmentation_head, tuple(config.atrous_rates), tuple(config.psp_pool_sizes))


def _detection(config: MobileViTV2Config) -> DetectionOptions:
    from mobilevitv2.anchors import cell_shapes

    return DetectionOptions(
        strides=tuple(config.detection_strides),
        pooled=POOLED,
        cells=cell_shapes(config.detection_anchor_scales, config.detection_anchor_ratios),
        variances=(config.detection_coder_variances[0], config.detection_coder_variances[1]),
    )
