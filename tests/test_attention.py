"""Context-score maps: the model's own scores, laid out over the picture."""

from __future__ import annotations

import pytest
import torch

from mobilevitv2 import MobileViTV2Config, MobileViTV2ForImageClassification, MobileViTV2ForSemanticSegmentation
from mobilevitv2.attention import answer_with_maps, context_score_maps
from mobilevitv2.blocks import unfold_patches


@pytest.fixture(scope="module")
def model() -> MobileViTV2ForImageClassification:
    torch.manual_seed(0)
    return MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=0.5, num_labels=5)).eval()


def test_nine_layers_at_the_size_of_their_stage(model: MobileViTV2ForImageClassification) -> None:
    maps = context_score_maps(model, torch.rand(2, 3, 128, 192))
    assert [name for name, _ in maps] == [
        *("stage3.layer1", "stage3.layer2"),
        *("stage4.layer1", "stage4.layer2", "stage4.layer3", "stage4.layer4"),
        *("stage5.layer1", "stage5.layer2", "stage5.layer3"),
    ]
    strides = {"stage3": 8, "stage4": 16, "stage5": 32}
    for name, scores in maps:
        stride = strides[name.split(".")[0]]
        assert scores.shape == (2, 128 // stride, 192 // stride)


def test_each_pixel_position_sums_to_one(model: MobileViTV2ForImageClassification) -> None:
    for _, scores in context_score_maps(model, torch.rand(2, 3, 100, 70)):  # odd maps on the way
        for row in (0, 1):
            for column in (0, 1):
                sums = scores[:, row::2, column::2].sum(dim=(1, 2))
                torch.testing.assert_close(sums, torch.ones(2))


def test_maps_hold_the_scores_that_the_layer_uses(model: MobileViTV2ForImageClassification) -> None:
    pixel_values = torch.rand(1, 3, 64, 64)
    attention = model.mobilevitv2.encoder.layer[3].transformer.layer[1].attention
    used = []
    handle = attention.attn_dropout.register_forward_pre_hook(lambda module, inputs: used.append(inputs[0]))
    maps = dict(context_score_maps(model, pixel_values))
    handle.remove()
    unfolded = unfold_patches(maps["stage4.layer2"].unsqueeze(1), 2)
    torch.testing.assert_close(unfolded, used[0].detach(), rtol=0, atol=0)


def test_a_bright_spot_moves_its_map(model: MobileViTV2ForImageClassification) -> None:
    left, right = torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128)
    left[..., 40:80, 16:40] = 1.0
    right[..., 40:80, 88:112] = 1.0
    left_map, right_map = (context_score_maps(model, picture)[0][1][0] for picture in (left, right))
    assert (left_map - right_map).abs().max() > 1e-6
    difference = (left_map - right_map).abs().sum(dim=0)
    assert difference[2:5].sum() + difference[11:14].sum() > difference[6:10].sum()


def test_the_model_is_left_as_it_is_and_answers_the_same(model: MobileViTV2ForImageClassification) -> None:
    pixel_values = torch.rand(1, 3, 64, 64)
    before = model(pixel_values).logits
    maps, answer = answer_with_maps(model, pixel_values)
    assert len(maps) == 9
    torch.testing.assert_close(answer.logits, before, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_hooks_are_gone_after_an_error(model: MobileViTV2ForImageClassification) -> None:
    with pytest.raises(ValueError, match="pixel_values"):
        context_score_maps(model, torch.rand(1, 4, 64, 64))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_other_patch_sizes_depths_and_tasks() -> None:
    config = MobileViTV2Config(width_multiplier=0.5, patch_size=4, n_attn_blocks=[1, 1, 2], output_stride=16, num_labels=3)
    model = MobileViTV2ForSemanticSegmentation(config).eval()
    maps = context_score_maps(model, torch.rand(1, 3, 64, 64))
    assert [name for name, _ in maps] == ["stage3.layer1", "stage4.layer1", "stage5.layer1", "stage5.layer2"]
    for _, scores in maps:
        torch.testing.assert_close(scores.sum(), torch.tensor(16.0))


def test_half_precision_scores_stay_in_float32() -> None:
    model = MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=0.5)).eval().to(torch.bfloat16)
    maps = context_score_maps(model, torch.rand(1, 3, 64, 64, dtype=torch.bfloat16))
    assert {scores.dtype for _, scores in maps} == {torch.float32}
