from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import checkpoint_activations, pictures, randomise, small_config
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from mobilevitv2.anchors import grid_anchors
from mobilevitv2.boxes import decode, encode, to_corners
from mobilevitv2.detection import MobileViTV2ForObjectDetection, hard_negatives
from mobilevitv2.errors import ConfigurationError, ImageError

Labels = list[dict[str, Tensor]]
FEW_LEVELS = {
    "detection_strides": [16, 32, -1],
    "detection_extra_channels": [24],
    "detection_level_channels": [32, 48, 24],
    "detection_anchor_ratios": [[2], [2, 3], []],
}


def detector(**options: Any) -> MobileViTV2ForObjectDetection:
    torch.manual_seed(0)
    return randomise(MobileViTV2ForObjectDetection(small_config(**{"num_labels": 4, **options})))


def target(classes: list[int], boxes: list[list[float]]) -> dict[str, Tensor]:
    return {"class_labels": torch.tensor(classes, dtype=torch.int64), "boxes": torch.tensor(boxes).reshape(-1, 4)}


def two_targets() -> Labels:
    return [
        target([0, 3, 3], [[0.5, 0.5, 0.3, 0.4], [0.2, 0.3, 0.1, 0.1], [0.7, 0.7, 0.5, 0.5]]),
        target([1], [[0.4, 0.4, 0.8, 0.8]]),
    ]


# ---- what forward gives -----------------------------------------------------------------------------------------------------


def test_scores_boxes_and_offsets_for_every_anchor() -> None:
    model = detector()
    output = model(pictures(2, height=320))
    assert output.logits.shape == (2, 3232, 5)
    assert output.pred_boxes.shape == output.box_offsets.shape == (2, 3232, 4)
    assert output.loss is None and output.loss_dict is None
    grids = [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    anchors = grid_anchors(grids, model._shapes)
    assert torch.allclose(output.pred_boxes, decode(output.box_offsets, anchors, (0.1, 0.2)))


@pytest.mark.parametrize(("height", "width"), [(1, 64), (1, 1), (33, 47), (96, 200)])
def test_any_size_goes_through(height: int, width: int) -> None:
    output = detector()(pictures(height=height, width=width))
    assert output.logits.shape[1] == output.pred_boxes.shape[1] > 0
    assert output.logits.isfinite().all() and output.pred_boxes.isfinite().all()


def test_tuple_leaves_out_what_is_none() -> None:
    model = detector()
    assert len(model(pictures(), return_dict=False)) == 3
    loss, parts, logits, boxes, offsets, hidden = model(pictures(2), two_targets(), True, False)
    assert (loss.shape, set(parts), logits.shape[-1]) == ((), {"loss_classification", "loss_localization"}, 5)
    assert boxes.shape == offsets.shape
    assert [x.shape[1] for x in hidden] == model.config.stage_channels[1:]


def test_configuration_shapes_the_head() -> None:
    model = detector(**FEW_LEVELS)
    assert [len(model.extra_layers), len(model.detection_head.levels)] == [1, 3]
    assert model(pictures(height=64)).logits.shape == (1, 4 * 4 * 4 + 2 * 2 * 6 + 2, 5)


def test_finer_maps_and_deeper_ones() -> None:
    model = detector(
        detection_strides=[8, 16, 32, 64],
        detection_extra_channels=[32],
        detection_level_channels=[128, 64, 64, 32],
        detection_anchor_ratios=[[2]] * 4,
    )
    assert model(pictures(height=128)).logits.shape[1] == 4 * (16 * 16 + 8 * 8 + 4 * 4 + 2 * 2)
    assert [level.projection is None for level in model.detection_head.levels] == [True, False, False, True]
    assert model.extra_layers[0].pointwise.convolution.in_channels == 256


def test_bad_pictures_and_options_are_named() -> None:
    with pytest.raises(ImageError, match="You have to specify pixel_values"):
        detector()()
    with pytest.raises(ConfigurationError, match="num_labels=0"):
        detector(num_labels=0)
    with pytest.raises(ConfigurationError, match="output_stride=16"):
        detector(output_stride=16)


# ---- loss -------------------------------------------------------------------------------------------------------------------


def plain_loss(
    model: MobileViTV2ForObjectDetection, logits: Tensor, offsets: Tensor, anchors: Tensor, labels: Labels
) -> list[float]:
    """The official rule, picture by picture and anchor by anchor."""
    corners = to_corners(anchors)
    classification = localization = positives = 0.0
    for scores, found, label in zip(logits.double(), offsets.double(), labels, strict=True):
        classes = [0] * len(anchors)
        owner: list[int] = [0] * len(anchors)
        true = to_corners(label["boxes"])
        table = [[_iou(t, a) for t in true.tolist()] for a in corners.tolist()]
        for a, row in enumerate(table):
            if row and max(row) >= 0.5:
                owner[a] = row.index(max(row))
                classes[a] = int(label["class_labels"][owner[a]]) + 1
        for t in range(len(true)):
            best = max(range(len(anchors)), key=lambda a: table[a][t])
            owner[best], classes[best] = t, int(label["class_labels"][t]) + 1
        log = scores.log_softmax(-1)
        positive = [a for a, c in enumerate(classes) if c]
        background = sorted((a for a, c in enumerate(classes) if not c), key=lambda a: log[a, 0].item())
        for a in positive + background[: 3 * len(positive)]:
            classification -= log[a, classes[a]].item()
        for a in positive:
            wanted = encode(label["boxes"][owner[a]].double(), anchors[a].double(), (0.1, 0.2))
            for distance in (found[a] - wanted).abs().tolist():
                localization += distance - 0.5 if distance > 1 else distance**2 / 2
        positives += len(positive)
    return [classification / max(1, positives), localization / max(1, positives)]


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height + 1e-5)


@pytest.mark.parametrize("second", [[target([1], [[0.4, 0.4, 0.8, 0.8]])], [target([], [])]])
def test_loss_is_that_of_the_plain_rule(second: Labels) -> None:
    model, labels = detector(), [two_targets()[0], *second]
    output = model(pictures(2, height=96, width=128), labels=labels)
    anchors = model.anchors([(6, 8), (4, 4), (2, 2), (1, 1), (1, 1), (1, 1)], torch.device("cpu"))
    assert anchors.shape[0] == output.logits.shape[1]
    expected = plain_loss(model, output.logits, output.box_offsets, anchors, labels)
    found = [output.loss_dict["loss_classification"].item(), output.loss_dict["loss_localization"].item()]
    assert found == pytest.approx(expected, rel=1e-4)
    assert output.loss.item() == pytest.approx(sum(expected), rel=1e-4)


def test_hard_negatives_by_hand() -> None:
    difficulty = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    positive = torch.tensor([[True, False, False, False, False], [False] * 5])
    assert hard_negatives(difficulty, positive, ratio=3).tolist() == [[False, True, True, True, False], [False] * 5]
    assert hard_negatives(difficulty, positive, ratio=9).tolist() == [[False, True, True, True, True], [False] * 5]
    assert hard_negatives(difficulty, positive, ratio=2).tolist()[0] == [False, True, True, False, False]


@pytest.mark.parametrize("empty", [target([], []), {"class_labels": torch.zeros(0), "boxes": torch.zeros(0)}])
def test_pictures_without_boxes_cost_nothing_and_break_nothing(empty: dict[str, Tensor]) -> None:
    model = detector().train()
    loss = model(pictures(2, height=320), labels=[empty, empty]).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_many_boxes_and_boxes_of_one_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    many = {
        "class_labels": torch.randint(0, 4, (500,), generator=generator),
        "boxes": torch.rand(500, 4, generator=generator) / 2 + 0.01,
    }
    tiny = target([0, 1], [[0.001, 0.001, 1e-6, 1e-6], [1.0, 1.0, 1 / 320, 1 / 320]])
    model = detector().train()
    loss = model(pictures(2, height=320), labels=[many, tiny]).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_is_float32_under_autocast(dtype: torch.dtype) -> None:
    model = detector()
    plain = model(pictures(2, height=96), labels=two_targets())
    with torch.autocast("cpu", dtype=dtype):
        output = model(pictures(2, height=96), labels=two_targets())
    assert output.logits.dtype == dtype
    assert output.loss.dtype == output.pred_boxes.dtype == torch.float32
    assert output.loss.item() == pytest.approx(plain.loss.item(), rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_model_of_another_type(dtype: torch.dtype) -> None:
    output = detector().to(dtype)(pictures(2, height=96).to(dtype), labels=two_targets())
    assert output.logits.dtype == dtype
    assert output.loss.isfinite() and output.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_targets_on_another_device_are_moved() -> None:
    model = detector().to("meta")
    output = model(pictures(2, height=96).to("meta"), labels=two_targets())
    assert output.loss.device.type == "meta"


def test_every_parameter_learns_and_a_few_steps_help() -> None:
    model = detector(**FEW_LEVELS).train()
    x, labels = pictures(2, height=64), two_targets()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = model(x, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    plain, kept = detector(**FEW_LEVELS).train(), detector(**FEW_LEVELS).train()
    kept.load_state_dict(plain.state_dict())
    checkpoint_activations(kept)
    for model in (plain, kept):
        model(pictures(2), labels=two_targets()).loss.backward()
    for mine, other in zip(plain.parameters(), kept.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-5)


# ---- bad targets ------------------------------------------------------------------------------------------------------------

GOOD = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([GOOD], "1 labels came with 2 pictures"),
        (GOOD, "labels is a dict; give a list"),
        (torch.zeros(2), "labels is a Tensor"),
        ([GOOD, None], r"labels\[1\] is a NoneType"),
        ([GOOD, {"boxes": GOOD["boxes"]}], r"labels\[1\] has no class_labels \(it has boxes\)"),
        ([GOOD, {}], r"labels\[1\] has no class_labels and no boxes \(it has nothing\)"),
        ([GOOD, {**GOOD, "boxes": [[0.5, 0.5, 0.2, 0.2]]}], r"labels\[1\]\['boxes'\] is a list"),
        ([GOOD, {**GOOD, "boxes": torch.zeros(1, 5)}], r"shape \(1, 5\)"),
        ([GOOD, {**GOOD, "boxes": torch.ones(1, 4, dtype=torch.long)}], "torch.int64; give floats"),
        ([GOOD, {**GOOD, "class_labels": torch.tensor([0, 1])}], r"shape \(2,\).*one for each of the boxes"),
        ([GOOD, {**GOOD, "class_labels": torch.tensor([0.0])}], "torch.float32; give whole numbers"),
        ([GOOD, {**GOOD, "class_labels": torch.tensor([4])}], r"labels\[1\]\['class_labels'\]\[0\] is 4, outside 0\.\.3"),
        ([GOOD, {**GOOD, "class_labels": torch.tensor([-1])}], "is -1, outside"),
        ([GOOD, target([0], [[math.nan, 0.5, 0.2, 0.2]])], r"labels\[1\]\['boxes'\]\[0\] is \[nan.*no box"),
        ([GOOD, target([0, 0], [[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.2]])], r"labels\[1\]\['boxes'\]\[1\].*without area"),
        ([target([], []), target([0], [[0.5, 0.5, 0.2, -0.2]])], r"labels\[1\]\['boxes'\]\[0\].*without area"),
        ([GOOD, target([0], [[100.0, 120.0, 30.0, 20.0]])], "divide pixels"),
        ([GOOD, target([0], [[0.5, 0.5, math.inf, 0.2]])], "no box"),
    ],
)
def test_bad_targets_are_named(labels: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        detector(**FEW_LEVELS)(pictures(2), labels=labels)


# ---- head -------------------------------------------------------------------------------------------------------------------


def test_second_level_has_a_projection_except_at_width_one_half() -> None:
    for width, without in ((0.5, [1, 2, 3, 4, 5]), (0.75, [2, 3, 4, 5])):
        with torch.device("meta"):
            model = MobileViTV2ForObjectDetection(small_config(width_multiplier=width))
        # Levels 2, 3 and 4 have their channels from the layers before; the last map is one pixel.
        assert [i for i, level in enumerate(model.detection_head.levels) if level.projection is None] == without
        assert model.detection_head.levels[5].depthwise is None


def test_initialisation_of_the_head_is_the_official_one() -> None:
    torch.manual_seed(0)
    model = MobileViTV2ForObjectDetection(small_config())
    for part in (model.extra_layers, model.detection_head):
        for name, module in part.named_modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
                area = module.kernel_size[0] ** 2
                bound = (6 / (module.in_channels // module.groups * area + module.out_channels * area)) ** 0.5  # Xavier uniform
                assert 0.95 * bound < module.weight.abs().max() <= bound * (1 + 1e-6), name
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                assert not module.bias.any()
    trunk = model.mobilevitv2.encoder.layer[4].conv_1x1.convolution
    assert trunk.weight.std().item() == pytest.approx((2 / trunk.out_channels) ** 0.5, rel=0.05)


# ---- compilers --------------------------------------------------------------------------------------------------------------


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    model = detector(**FEW_LEVELS)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        found, expected = compiled(pictures(2)), model(pictures(2))
        assert torch.allclose(found.logits, expected.logits, atol=1e-5)
        assert torch.allclose(found.pred_boxes, expected.pred_boxes, atol=1e-5)


def test_loss_compiles_once_for_any_number_of_boxes() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    model = detector(**FEW_LEVELS)
    output = model(pictures(2, height=96))
    logits, offsets = output.logits.detach(), output.box_offsets.detach()
    anchors = model.anchors([(6, 6), (4, 4), (1, 1)], torch.device("cpu"))
    compiled = torch.compile(model.losses, backend=counter)
    box = [0.4, 0.4, 0.3, 0.3]
    frames = []
    for first, second in ((5, 8), (6, 7), (8, 3), (5, 5)):
        labels = [target([1] * first, [box] * first), target([2] * second, [box] * second)]
        found, expected = compiled(logits, offsets, labels, anchors), model.losses(logits, offsets, labels, anchors)
        assert all(torch.allclose(found[name], expected[name], rtol=1e-4) for name in expected)
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1]  # between 5 and 8 boxes nothing is compiled again


def test_exports() -> None:
    model = detector(**FEW_LEVELS)
    program = torch.export.export(model, (pictures(2),), kwargs={"return_dict": False})
    with torch.no_grad():
        for mine, other in zip(
            program.module()(pictures(2), return_dict=False), model(pictures(2), return_dict=False), strict=True
        ):
            assert torch.allclose(mine, other, atol=1e-5)


def test_head_exports_with_any_batch_height_and_width() -> None:
    """The trunk's export is tested with the classifier."""

    class Head(nn.Module):
        def __init__(self, model: MobileViTV2ForObjectDetection) -> None:
            super().__init__()
            self.head, self.model = model.detection_head.levels[0], model

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            answers = self.head(x)
            anchors = self.model.anchors([(x.shape[-2], x.shape[-1]), (1, 1), (1, 1)], x.device)[:-8]
            return answers, decode(answers[..., :4], anchors, (0.1, 0.2))

    module = Head(detector(**FEW_LEVELS))
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    program = torch.export.export(module, (torch.rand(2, 192, 4, 6),), dynamic_shapes=({0: batch, 2: height, 3: width},))
    for size in ((3, 6, 4), (2, 5, 9)):
        x = torch.rand(size[0], 192, *size[1:])
        with torch.no_grad():
            for mine, other in zip(program.module()(x), module(x), strict=True):
                assert torch.allclose(mine, other, atol=1e-5)


def test_inference_mode_does_not_spoil_training() -> None:
    model = detector(**FEW_LEVELS)
    with torch.inference_mode():
        model(pictures(2, height=72))
    model.train()(pictures(2, height=72), labels=two_targets()).loss.backward()
