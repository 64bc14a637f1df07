from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from small_models import WIDTHS, pictures, randomise, relative_difference, small_config
from torch import nn

from mobilevitv2 import MobileViTV2ForImageClassification, MobileViTV2ForSemanticSegmentation
from mobilevitv2.attention import context_score_maps
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.inference import optimize_for_inference
from mobilevitv2.inference.cpu import PackedBlock, PackedConvolution


def classifier(**options: Any) -> MobileViTV2ForImageClassification:
    torch.manual_seed(0)
    return randomise(MobileViTV2ForImageClassification(small_config(**options)))


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(x).logits.clone()


@pytest.mark.parametrize("width", WIDTHS)
def test_equal_at_every_width_on_a_cpu(width: float) -> None:
    model, x = classifier(width_multiplier=width), pictures()
    fast = optimize_for_inference(model, device="cpu")
    assert fast.optimization.packed
    assert relative_difference(logits(fast, x), logits(model, x)) < 1e-5


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 47), (160, 64), (300, 260)])
def test_equal_at_changing_sizes_and_layouts(batch: int, height: int, width: int) -> None:
    model, x = classifier(), pictures(batch, height=height, width=width)
    fast = optimize_for_inference(model, device="cpu")
    logits(fast, pictures())  # weights are packed for another size
    for layout in (torch.contiguous_format, torch.channels_last):
        assert relative_difference(logits(fast, x.contiguous(memory_format=layout)), logits(model, x)) < 1e-5


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
def test_segmentation_is_equal(head: str, output_stride: int) -> None:
    torch.manual_seed(0)
    model = randomise(MobileViTV2ForSemanticSegmentation(small_config(segmentation_head=head, output_stride=output_stride)))
    fast = optimize_for_inference(model, device="cpu")
    assert relative_difference(logits(fast, pictures()), logits(model, pictures())) < 1e-5


@pytest.mark.parametrize("options", [{"hidden_act": "relu"}, {"hidden_act": "gelu"}, {"patch_size": 4, "conv_kernel_size": 5}])
def test_other_configurations_are_equal(options: dict[str, Any]) -> None:
    model = classifier(**options)
    assert relative_difference(logits(optimize_for_inference(model, device="cpu"), pictures()), logits(model, pictures())) < 1e-5


def test_projections_are_merged_with_the_expansions_behind_them() -> None:
    fast = optimize_for_inference(classifier(width_multiplier=1.0), device="cpu")
    shapes = {name: tuple(unit.convolution.weight.shape[:2]) for name, unit in fast.mobilevitv2.merged.items()}
    assert shapes == {"0": (128, 64), "2": (512, 128), "3": (768, 192)}


def test_hidden_states_are_those_of_the_plain_model() -> None:
    model, x = classifier(), pictures(2, height=96)
    fast = optimize_for_inference(model, device="cpu")
    with torch.inference_mode():
        ours, plain = (each(x, output_hidden_states=True) for each in (fast, model))
    assert relative_difference(ours.logits, plain.logits) < 1e-5
    for mine, other in zip(ours.hidden_states, plain.hidden_states, strict=True):
        assert relative_difference(mine, other) < 1e-5


@pytest.mark.parametrize("output_stride", [8, 16])
def test_classifiers_of_other_strides_are_equal(output_stride: int) -> None:
    model = classifier(output_stride=output_stride)
    assert relative_difference(logits(optimize_for_inference(model, device="cpu"), pictures()), logits(model, pictures())) < 1e-5


def test_half_precision_is_no_further_from_float32_than_the_plain_model() -> None:
    model = classifier()
    fast = optimize_for_inference(model, device="cpu", dtype="bfloat16")
    half = copy.deepcopy(model).bfloat16()
    ours = plain = 0.0
    for seed in range(4):
        x = pictures(2, height=96, seed=seed)
        exact = logits(model, x)
        ours += (logits(fast, x.bfloat16()) - exact).square().sum().item()
        plain += (logits(half, x.bfloat16()) - exact).square().sum().item()
    assert ours <= 1.05 * plain


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout_can_be_chosen(channels_last: bool) -> None:
    model = classifier()
    fast = optimize_for_inference(model, device="cpu", channels_last=channels_last)
    assert fast.optimization.packed is fast.optimization.channels_last is channels_last
    assert relative_difference(logits(fast, pictures()), logits(model, pictures())) < 1e-5


def test_a_layout_that_is_not_packed_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobilevitv2.inference.optimize._packing_available", lambda: False)
    model = classifier()
    fast = optimize_for_inference(model, device="cpu")
    assert not fast.optimization.packed
    assert relative_difference(logits(fast, pictures()), logits(model, pictures())) < 1e-5


def test_it_copies_and_pickles_after_a_call() -> None:
    fast = optimize_for_inference(classifier(), device="cpu")
    expected = logits(fast, pictures())
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(logits(other, pictures()), expected)
        assert other.optimization == fast.optimization


def test_weights_that_change_their_type_are_packed_anew() -> None:
    model = classifier()
    fast = optimize_for_inference(model, device="cpu")
    logits(fast, pictures())
    assert logits(fast.bfloat16(), pictures().bfloat16()).dtype == torch.bfloat16
    assert relative_difference(logits(fast.double(), pictures().double()), logits(model.double(), pictures().double())) < 1e-2


def test_context_scores_are_those_of_the_plain_model() -> None:
    model, x = classifier(), pictures(2, height=96)
    ours, plain = context_score_maps(optimize_for_inference(model, device="cpu"), x), context_score_maps(model, x)
    for (name, mine), (other_name, other) in zip(ours, plain, strict=True):
        assert name == other_name
        assert relative_difference(mine, other) < 1e-5


def test_every_block_is_replaced_and_the_class_is_kept() -> None:
    fast = optimize_for_inference(classifier(), device="cpu")
    assert type(fast) is MobileViTV2ForImageClassification
    assert sum(isinstance(module, PackedBlock) for module in fast.modules()) == 3
    assert sum(isinstance(module, nn.Conv2d) for module in fast.modules()) == sum(
        isinstance(module, PackedConvolution) for module in fast.modules()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"dtype": torch.int8}, r"torch\.int8"),
        ({"dtype": "float16"}, "bfloat16"),
        ({"compile": "fast"}, "'fast' is no mode"),
        ({"device": "tpu"}, "'tpu' cannot be used"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        optimize_for_inference(classifier(), **{"device": "cpu", **options})


def test_wrong_models_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="eval"):
        optimize_for_inference(classifier().train())
    with pytest.raises(ConfigurationError, match="Linear"):
        optimize_for_inference(nn.Linear(1, 1))  # type: ignore[type-var]
    with pytest.raises(ConfigurationError, match="already"):
        optimize_for_inference(optimize_for_inference(classifier(), device="cpu"))
