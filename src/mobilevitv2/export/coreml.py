"""Core ML: an .mlpackage with an ML program, written anywhere and run on Apple's systems only.

With preprocessing inside the input is a picture (`ImageType`), and a classifier's file names the classes. Nothing here can run such
a file on Linux. What can be checked is: that it holds only operators of the chosen target, of at most five axes, and that its
graph, evaluated operator by operator (`coreml_evaluation`), answers as PyTorch does.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilevitv2.errors import ConfigurationError, WeightsError
from mobilevitv2.export.evaluating import MOST_SIZES, held_against_pytorch, one_by_one
from mobilevitv2.export.executorch import quiet
from mobilevitv2.export.formats import COREML, Written
from mobilevitv2.export.program import Answering
from mobilevitv2.export.request import SIDE_STEP, SMALLEST_FREE_SIDE
from mobilevitv2.runtime.metadata import METADATA_KEY
from mobilevitv2.runtime.preprocessing import as_input

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.export.program import Program
    from mobilevitv2.export.quantise.calibration import Calibrated
    from mobilevitv2.export.report import Checked

Array = np.ndarray[Any, Any]
TARGET = "iOS16"
MOST_AXES = 5
MOST_STEPS = 128
FACTORS = (0.5, 0.75, 1.25, 1.5, 2.0)
"""Of the usual size, where sizes are free."""
NOT_OPERATORS = ("const",)
# Sums over thousands of values and what depends on them; the rest calculates in 16 bits.
WIDE = frozenset({"reduce_mean", "reduce_sum", "rsqrt", "softmax", "square", "exp"})
WEIGHTED = ("conv", "linear")
FEWEST_WEIGHTS = 1024
"""Smaller tensors stay as they are: their scales would take as much room."""
NOT_RUN = "not run: Core ML exists on Apple's systems only"


class PictureProgram(nn.Module):
    """The module behind an `ImageType`, which gives values of 0..255 with the channels first."""

    def __init__(self, module: Answering, *, picture: bool) -> None:
        super().__init__()
        self.picture, self.module = picture, module

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(batch, 3, height, width) -> the outputs in order."""
        if self.picture:
            scale, shift = self.module.scale, self.module.shift
            image = image * scale if shift is None else image * scale + shift
        return self.module(image)  # type: ignore[no-any-return]  # nn.Module's call is untyped


def write(program: Program, path: Path) -> Written:
    """Convert the program and write it.

    Raises:
        ConfigurationError: axes that cannot be free.
    """
    with quiet():
        model = convert(program)
        model.save(str(path))
    return _written(program, path, model)


def quantise(program: Program, path: Path, calibration: Calibrated | None) -> Written:
    """The program with 8-bit weights, by channel and symmetric; it calculates in 16 bits.

    Raises:
        ConfigurationError: axes that cannot be free.
    """
    from coremltools.optimize import coreml as optimize

    settings = optimize.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=FEWEST_WEIGHTS
    )
    with quiet():
        model = optimize.linear_quantize_weights(convert(program), optimize.OptimizationConfig(global_config=settings))
        _describe(model, program)
        model.save(str(path))
    written = _written(program, path, model)
    convolutions = sum(written.operators.get(name, 0) for name in WEIGHTED)
    told = {
        "weights": f"int8 by channel, in {written.operators.get('constexpr_affine_dequantize', 0)} tensors",
        "values": "float16",
        "integer_convolutions": 0,
        "convolutions": convolutions,
    }
    return replace(written, quantisation=told)


def _written(program: Program, path: Path, model: Any) -> Written:
    operators = Counter(each.op_type for each in model._mil_program.functions["main"].operations)
    for name in NOT_OPERATORS:
        operators.pop(name, None)
    notes = [NOT_RUN]
    if not program.metadata.picture.inside:
        notes.append("the input is an array; export with preprocessing inside for a picture (ImageType)")
    versions = {name: version(name) for name in ("coremltools", "torch")}
    return Written(files=(path,), operators=dict(operators), versions=versions, notes=tuple(notes))


def convert(program: Program) -> Any:
    """The program as coremltools' model."""
    import coremltools

    shapes = [(1, 3, *size) for size in sizes(program)]
    module = picture_module(program)
    example = torch.rand(1, 3, *program.size)
    with torch.no_grad():
        exported = torch.export.export(module, (example,), dynamic_shapes=_free_sides(program), strict=False).run_decompositions({})
    metadata = program.metadata
    swapped = metadata.picture.inside and metadata.picture.channel_order == "BGR"
    shape = coremltools.EnumeratedShapes(shapes=shapes, default=shapes[0]) if len(shapes) > 1 else shapes[0]
    image = (
        coremltools.ImageType(
            name="image",
            shape=shape,
            color_layout=coremltools.colorlayout.BGR if swapped else coremltools.colorlayout.RGB,
        )
        if metadata.picture.inside
        else coremltools.TensorType(name="image", shape=shape)
    )
    classifier = metadata.task == "classify" and metadata.postprocessing == "softmax"
    model = coremltools.convert(
        exported,
        convert_to="mlprogram",
        inputs=[image],
        outputs=[coremltools.TensorType(name=name) for name in program.outputs],
        classifier_config=coremltools.ClassifierConfig(list(metadata.labels)) if classifier else None,
        minimum_deployment_target=getattr(coremltools.target, TARGET),
        compute_precision=_precision(program.precision),
        skip_model_load=True,
    )
    _describe(model, program)
    return model


def sizes(program: Program) -> list[tuple[int, int]]:
    """The sizes (height, width) that the file takes, the usual one first.

    With free sides they are a list, not a range: a program of enumerated shapes can stay on the Neural Engine.

    Raises:
        ConfigurationError: a free batch, or free sides of a detector, whose anchors belong to one size.
    """
    if not program.dynamic:
        return [program.size]
    if set(program.dynamic) != {"height", "width"}:
        raise ConfigurationError(f"{' and '.join(program.dynamic)} cannot be free in Core ML; height and width together can.")
    if program.task == "detect":
        raise ConfigurationError("a detector's anchors belong to one size; leave dynamic out, and export one file for each size.")
    scaled = [tuple(round(side * factor) for side in program.size) for factor in FACTORS]
    return [program.size] + [
        (height, width)
        for height, width in scaled
        if min(height, width) >= SMALLEST_FREE_SIDE and height % SIDE_STEP == 0 and width % SIDE_STEP == 0
    ]


def _free_sides(program: Program) -> dict[str, Any] | None:
    if not program.dynamic:
        return None
    from torch.export import Dim

    least = SMALLEST_FREE_SIDE // SIDE_STEP
    height, width = Dim("height_steps", min=least, max=MOST_STEPS), Dim("width_steps", min=least, max=MOST_STEPS)
    return {"image": {2: SIDE_STEP * height, 3: SIDE_STEP * width}}


def picture_module(program: Program) -> PictureProgram:
    """The module that is converted: in float32 (Core ML halves by itself), channels first, scaling before it where it is inside."""
    module = copy.deepcopy(program.module).float()
    assert isinstance(module, Answering)
    module.dtype = torch.float32
    module.inside, module.layout = False, "NCHW"
    return PictureProgram(module, picture=program.metadata.picture.inside).eval()


def _precision(name: str) -> Any:
    import coremltools

    if name == "fp32":
        return coremltools.precision.FLOAT32
    return coremltools.transform.FP16ComputePrecision(op_selector=lambda operation: operation.op_type not in WIDE)


def _describe(model: Any, program: Program) -> None:
    metadata = program.metadata
    model.short_description = f"MobileViTV2, {metadata.task}; weights: {metadata.source}"
    model.license = metadata.licence
    model.user_defined_metadata[METADATA_KEY] = metadata.to_json()
    for port in metadata.outputs:
        if port.name in {output.name for output in model.get_spec().description.output}:
            model.output_description[port.name] = port.meaning
    model.input_description["image"] = metadata.inputs[0].meaning


def check(program: Program, path: Path, pictures: Sequence[Image.Image] = ()) -> Checked:
    """What can be said of a file that cannot be run here.

    Args:
        program: that was written.
        path: of the package.
        pictures: to compare on, a few of which are taken.

    Raises:
        WeightsError: an operator that the target has not, too many axes, or a graph that does not answer as PyTorch does.
    """
    with quiet():
        mil = loaded(path)
    line, taken = looked_through(mil), sizes(program)
    return held_against_pytorch(
        program,
        COREML,
        lambda pixels: _evaluated(program, mil, pixels),
        pictures,
        run=_run,
        what="the package, read back",
        sizes=taken[1:MOST_SIZES],
        lines=(f"sizes: {', '.join(f'{height} x {width}' for height, width in taken)}", line),
    )


def _run(program: Program, path: Path, pixels: Array) -> dict[str, Array]:
    with quiet():
        mil = loaded(path)
    return _evaluated(program, mil, pixels)


def _evaluated(program: Program, mil: Any, pixels: Array) -> dict[str, Array]:
    from mobilevitv2.export.coreml_evaluation import evaluate

    found = one_by_one(lambda image: evaluate(mil, image), [_input(program, each) for each in pixels])
    return {name: found[name] for name in program.outputs}


def _input(program: Program, pixels: Array) -> Array:
    """A picture, uint8 (height, width, 3), as the program has its input; an `ImageType` gives values of 0..255, channels first."""
    picture = program.metadata.picture
    if not picture.inside:
        return as_input(pixels[None], picture, "NCHW")
    channels = pixels[..., ::-1] if picture.channel_order == "BGR" else pixels
    return np.ascontiguousarray(channels.transpose(2, 0, 1)[None], dtype=np.float32)


def loaded(path: Path) -> Any:
    """The MIL program of an .mlpackage.

    Raises:
        WeightsError: coremltools cannot read it, as where an operator is newer than what the package says it needs.
    """
    import coremltools

    load = coremltools.converters.mil.frontend.milproto.load.load
    try:
        spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
        return load(spec, spec.specificationVersion, str(path / "Data/com.apple.CoreML/weights"))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise WeightsError(f"the Core ML program in {path.name} cannot be read back ({reason}); it was removed.") from error


def looked_through(mil: Any) -> str:
    """The operators of a MIL program, as a line for the report.

    Raises:
        WeightsError: too many axes, or an operator that coremltools' tables have not for the target.
    """
    function = mil.functions["main"]
    operations = [each for each in function.operations if each.op_type not in NOT_OPERATORS]
    _check_target(function, operations)
    deepest = max((output.rank for each in operations for output in each.outputs if hasattr(output, "rank")), default=0)
    if deepest > MOST_AXES:
        raise WeightsError(f"the program has a tensor of {deepest} axes; Core ML takes {MOST_AXES}.")
    kinds = sorted({each.op_type for each in operations})
    return (
        f"{len(operations)} operators of {len(kinds)} kinds, each in coremltools' tables for {TARGET} in the version used here, at "
        f"most {deepest} axes: {', '.join(kinds)}"
    )


def _check_target(function: Any, operations: Sequence[Any]) -> None:
    """Refuse a program, or operators in it, that are newer than the target."""
    import coremltools
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    target = getattr(coremltools.target, TARGET)
    if function.opset_version is None or function.opset_version > target:
        raise WeightsError(f"the program wants {getattr(function.opset_version, 'name', None)}, where {TARGET} was meant.")
    for each in operations:
        known = SSAOpRegistry.core_ops.get(each.op_type, {}).get(target)
        if known is None or each.opset_version > target:
            raise WeightsError(
                f"operator {each.op_type!r} ({each.name}) of the program is none of {TARGET}'s, by coremltools' tables; report the "
                "model's configuration."
            )
