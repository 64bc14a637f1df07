"""The form for the runtimes of phones gives the same numbers as the model it was made from."""

from __future__ import annotations

import pytest
import torch
from small_models import pictures, randomise, relative_difference, small_config

from mobilevitv2.backbone import MobileViTV2PreTrainedModel
from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.detection import MobileViTV2ForObjectDetection
from mobilevitv2.export.forms import group_pixels, pooling_matrices, token_form, ungroup_pixels
from mobilevitv2.export.program import exported_model
from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation, upsample

TOLERANCE = 1e-5


def equal_model(model: MobileViTV2PreTrainedModel, *, free_mean: bool = False) -> MobileViTV2PreTrainedModel:
    return token_form(exported_model(model, torch.float32), free_mean=free_mean)


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (96, 72), (65, 99), (112, 112)])
@pytest.mark.parametrize(("batch", "free_mean"), [(1, False), (3, False), (2, True)])
def test_classifier_is_equal_at_any_size(size: tuple[int, int], batch: int, free_mean: bool) -> None:
    torch.manual_seed(0)
    model = randomise(MobileViTV2ForImageClassification(small_config(n_attn_blocks=[2, 1, 1])))
    x = pictures(batch, height=size[0], width=size[1])
    with torch.no_grad():
        assert relative_difference(equal_model(model, free_mean=free_mean)(x, return_dict=True).logits, model(x).logits) < TOLERANCE


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (80, 112)])
def test_segmenter_is_equal_at_any_size(head: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = randomise(MobileViTV2ForSemanticSegmentation(small_config(segmentation_head=head, output_stride=8)))
    x = pictures(2, height=size[0], width=size[1])
    with torch.no_grad():
        assert relative_difference(equal_model(model)(x, return_dict=True).logits, model(x).logits) < TOLERANCE


def test_detector_is_equal() -> None:
    torch.manual_seed(0)
    model = randomise(MobileViTV2ForObjectDetection(small_config()))
    x = pictures(2, height=96, width=128)
    with torch.no_grad():
        ours, plain = equal_model(model)(x, return_dict=True), model(x)
    assert relative_difference(ours.logits, plain.logits) < TOLERANCE
    assert relative_difference(ours.pred_boxes, plain.pred_boxes) < TOLERANCE


def test_pixels_of_a_patch_are_grouped_and_ungrouped() -> None:
    height, width, patch = 6, 9, 3
    x = torch.arange(2 * height * width * 2).float().reshape(2, height * width, 2)
    grouped = group_pixels(x, patch, width)
    first = x.reshape(2, height, width, 2)[:, 0::patch, 0::patch].reshape(2, -1, 2)
    assert torch.equal(grouped[:, : first.shape[1]], first)
    assert torch.equal(ungroup_pixels(grouped, patch, width), x)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_matrices_pool_and_spread_as_torch_does(size: int) -> None:
    x = pictures(1, 4, 8, 13)
    pooling, spreading = pooling_matrices(size, 8, 13)
    pooled = (x.flatten(2) @ pooling.T).reshape(1, 4, size, size)
    torch.testing.assert_close(pooled, torch.nn.functional.adaptive_avg_pool2d(x, size))
    torch.testing.assert_close((pooled.flatten(2) @ spreading.T).reshape(x.shape), upsample(pooled, (8, 13)))
