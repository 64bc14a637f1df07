"""An exported program with integers in it, for XNNPACK under ExecuTorch; torchao inserts them, plan, ranges and scales are ours.

XNNPACK has an integer sigmoid; ExecuTorch's partitioner does not ask for it by itself, which would cost every SiLU two conversions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.generic_node_configs import SigmoidConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from torch import Tensor, nn
from torchao.quantization.pt2e import ObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from mobilevitv2.export.executorch import gate_silu
from mobilevitv2.export.quantise.arithmetic import best_grid, store_weights
from mobilevitv2.export.quantise.executorch_plan import JOIN, MOVES, RECTIFIED, SIGMOID, WEIGHTED, integer_nodes, sources
from mobilevitv2.export.quantise.observing import Observed

LOWEST, HIGHEST = -128, 127


class IntegerSigmoid(SigmoidConfig):  # type: ignore[misc]  # executorch ships no types
    """What the partitioner takes of sigmoids: integer ones too."""

    def supported_precision_types(self) -> list[Any]:
        """See executorch."""
        return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]


PARTITIONER_CONFIGS = [IntegerSigmoid if each is SigmoidConfig else each for each in ALL_PARTITIONER_CONFIGS]


class ValueRange(ObserverBase):  # type: ignore[misc]  # torchao ships no types
    """Looks at a value of each picture; its grid is the one with the least squared error."""

    def __init__(self, **_: Any) -> None:
        super().__init__(dtype=torch.int8)
        self.quant_min, self.quant_max, self.qscheme = LOWEST, HIGHEST, torch.per_tensor_affine
        self.observed, self.generator = Observed(), np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        """The value itself."""
        self.observed.add(x.detach().numpy().reshape(1, 1, -1), self.generator)  # of values that only moved the shape differs
        return x

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scale and zero point."""
        grid = best_grid(min(self.observed.lows), max(self.observed.highs), self.observed.sample)
        return torch.tensor([grid.scale], dtype=torch.float32), torch.tensor([grid.zero + LOWEST])


class WeightScales(ObserverBase):  # type: ignore[misc]
    """The scale of each output channel with the least squared error."""

    def __init__(self, **_: Any) -> None:
        super().__init__(dtype=torch.int8)
        self.quant_min, self.quant_max, self.qscheme, self.ch_axis = -HIGHEST, HIGHEST, torch.per_channel_symmetric, 0
        self.weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The weight itself."""
        self.weight = x.detach()
        return x

    def calculate_qparams(self, **_: Any) -> tuple[Tensor, Tensor]:
        """Scales and zero points, (out,)."""
        scales = torch.from_numpy(store_weights(self.weight.numpy()).scales)
        return scales, torch.zeros(len(scales), dtype=torch.int64)


VALUE = QuantizationSpec(
    dtype=torch.int8, quant_min=LOWEST, quant_max=HIGHEST, qscheme=torch.per_tensor_affine, observer_or_fake_quant_ctr=ValueRange
)
WEIGHT = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-HIGHEST,
    quant_max=HIGHEST,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=WeightScales,
)
# The only grid that XNNPACK's sigmoid writes.
GATE = FixedQParamsQuantizationSpec(
    dtype=torch.int8,
    scale=1 / 256,
    zero_point=LOWEST,
    quant_min=LOWEST,
    quant_max=HIGHEST,
    qscheme=torch.per_tensor_affine,
)


class OurPlan(Quantizer):  # type: ignore[misc]
    """torchao's interface around `integer_nodes`."""

    def __init__(self) -> None:
        super().__init__()
        self.integer = self.weighted = 0

    def transform_for_annotation(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Nothing to prepare."""
        return model

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Nothing to refuse."""

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        """Say of each call what it reads and writes."""
        chosen = integer_nodes(model.graph)
        self.integer = sum(node.target in WEIGHTED for node in chosen)
        self.weighted = sum(node.target in WEIGHTED for node in model.graph.nodes)
        for node in chosen:
            _annotate(node)
        return model


def _annotate(node: torch.fx.Node) -> None:
    reads: dict[torch.fx.Node, Any] = dict.fromkeys(sources(node), VALUE)
    writes: Any = VALUE
    first = sources(node)[0]
    if node.target in WEIGHTED:
        reads = {first: VALUE, sources(node)[1]: WEIGHT}
        behind = list(node.users)
        if len(behind) == 1 and behind[0].target in RECTIFIED:  # one kernel; what is stored is the rectified value
            behind[0].meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=VALUE, _annotated=True)
            writes = None
    elif node.target is SIGMOID:
        writes = GATE
    elif node.target in MOVES or node.target is JOIN:
        writes = SharedQuantizationSpec((first, node))
        reads = {each: VALUE if each is first else writes for each in reads}
    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(input_qspec_map=reads, output_qspec=writes, _annotated=True)


@dataclass(frozen=True)
class QuantisedProgram:
    """A program to lower, and what was done.

    Attributes:
        exported: torch's exported program.
        integer: calls with weights that read integers, and all of them.
    """

    exported: Any
    integer: tuple[int, int]


def quantised_program(module: nn.Module, example: Tensor, images: Iterable[Tensor]) -> QuantisedProgram:
    """The module with 8-bit weights and values.

    Args:
        module: as `token_module` gives it; its SiLUs are replaced.
        example: an input.
        images: inputs of one picture each, to measure ranges on.
    """
    gate_silu(module)
    plan = OurPlan()
    with torch.no_grad():
        prepared = prepare_pt2e(torch.export.export(module, (example,), strict=False).module(), plan)
        for image in images:
            prepared(image)
        converted = convert_pt2e(prepared)
        exported = torch.export.export(converted, (example,), strict=False)
    return QuantisedProgram(exported, (plan.integer, plan.weighted))
