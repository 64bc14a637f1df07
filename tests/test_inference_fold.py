from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from small_models import WIDTHS, pictures, randomise, relative_difference, small_config
from torch import Tensor, nn

from mobilevitv2 import (
    MobileViTV2Backbone,
    MobileViTV2ForImageClassification,
    MobileViTV2ForSemanticSegmentation,
    MobileViTV2Model,
)
from mobilevitv2.attention import context_score_maps
from mobilevitv2.complexity import count_operations, count_parameters
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.inference import Folding, fold

TRAINED = "mobilevitv2-0.75-objects112"


def classifier(**options: Any) -> MobileViTV2ForImageClassification:
    torch.manual_seed(0)
    return randomise(MobileViTV2ForImageClassification(small_config(**options)))


def segmenter(**options: Any) -> MobileViTV2ForSemanticSegmentation:
    torch.manual_seed(0)
    return randomise(MobileViTV2ForSemanticSegmentation(small_config(**options)))


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).logits


# ---- equal answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_equal_at_every_width(width: float) -> None:
    model = classifier(width_multiplier=width)
    assert relative_difference(logits(fold(model), pictures()), logits(model, pictures())) < 1e-5


@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 47), (100, 64), (65, 129)])
def test_equal_at_odd_sizes(height: int, width: int) -> None:
    model, x = classifier(), pictures(2, height=height, width=width)
    assert relative_difference(logits(fold(model), x), logits(model, x)) < 1e-5


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
def test_segmentation_is_equal_with_labels_too(head: str, output_stride: int) -> None:
    model, x = segmenter(segmentation_head=head, output_stride=output_stride), pictures(2, height=64, width=96)
    labels = torch.randint(0, 10, (2, 64, 96), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, plain = fold(model)(x, labels=labels, output_hidden_states=True), model(x, labels=labels, output_hidden_states=True)
    assert relative_difference(ours.logits, plain.logits) < 1e-5
    assert ours.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)
    assert len(ours.hidden_states) == len(plain.hidden_states) == 5
    for mine, other in zip(ours.hidden_states, plain.hidden_states, strict=True):
        assert relative_difference(mine, other) < 1e-5


@pytest.mark.parametrize("kind", [MobileViTV2Model, MobileViTV2Backbone])
def test_trunks_are_equal(kind: type[nn.Module]) -> None:
    model = randomise(kind(small_config()))
    with torch.no_grad():
        ours, plain = fold(model)(pictures(), return_dict=False), model(pictures(), return_dict=False)
    assert type(fold(model)) is kind
    flat = lambda output: [x for part in output for x in (part if isinstance(part, tuple) else (part,))]  # noqa: E731
    for mine, other in zip(flat(ours), flat(plain), strict=True):
        assert relative_difference(mine, other) < 1e-5


def test_detection_is_equal() -> None:
    detection = pytest.importorskip("mobilevitv2.detection", reason="the detector is not part of the package yet")
    torch.manual_seed(0)
    model = randomise(detection.MobileViTV2ForObjectDetection(small_config()))
    folded, x = fold(model), pictures(2, height=96, width=128)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        ours, plain = folded(x), model(x)
    assert relative_difference(ours.logits, plain.logits) < 1e-5
    assert relative_difference(ours.pred_boxes, plain.pred_boxes) < 1e-5


def test_the_trained_classifier_is_equal() -> None:
    model = MobileViTV2ForImageClassification.from_pretrained(TRAINED).eval()
    x = pictures(2, height=128, width=160)
    assert relative_difference(logits(fold(model), x), logits(model, x)) < 1e-5


@pytest.mark.parametrize("make", [classifier, segmenter])
def test_half_precision_is_no_further_from_float32_than_the_plain_model(make: Any) -> None:
    model, folded = make(), fold(make())
    ours = plain = 0.0
    for seed in range(4):
        x = pictures(2, height=96, seed=seed)
        exact = logits(model, x)
        ours += (logits(copy.deepcopy(folded).bfloat16(), x.bfloat16()) - exact).square().sum().item()
        plain += (logits(copy.deepcopy(model).bfloat16(), x.bfloat16()) - exact).square().sum().item()
    assert ours <= 1.05 * plain


def test_other_norms_and_patches_are_folded_too() -> None:
    model = classifier(layer_norm_eps=1e-3, patch_size=4, conv_kernel_size=5, expand_ratio=3.0, num_channels=1, hidden_act="relu")
    assert relative_difference(logits(fold(model), pictures(channels=1)), logits(model, pictures(channels=1))) < 1e-5


# ---- what it is made of -----------------------------------------------------------------------------------------------------


def test_no_norms_with_weights_and_no_dropouts_are_left() -> None:
    folded = fold(segmenter(hidden_dropout_prob=0.1, attn_dropout=0.1))
    for module in folded.modules():
        assert not isinstance(module, nn.BatchNorm2d | nn.Dropout | nn.Dropout2d)
        assert not isinstance(module, nn.GroupNorm) or not module.affine
    assert not any("auxiliary" in name for name, _ in folded.named_modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_it_says_what_was_done() -> None:
    model = classifier()
    folded = fold(model)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert folded.folding == Folding(batch_norms=norms, group_norms=9, attentions=3, dropouts=13)
    assert not hasattr(model, "folding")


def test_it_has_fewer_numbers_and_operations() -> None:
    model = classifier()
    folded = fold(model)
    assert count_parameters(folded) < count_parameters(model)
    ours, plain = count_operations(folded), count_operations(model)
    assert ours.published == plain.published
    assert ours.executed < plain.executed


def test_the_model_itself_is_left_alone() -> None:
    model = classifier()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold(model)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.classifier.weight.requires_grad


# ---- still a model ----------------------------------------------------------------------------------------------------------


def test_it_copies_pickles_and_folds_again() -> None:
    folded = fold(classifier())
    expected = logits(folded, pictures())
    for other in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded)), fold(folded)):
        assert torch.equal(logits(other, pictures()), expected)
        assert other.folding == folded.folding
        assert type(other) is MobileViTV2ForImageClassification
    file = io.BytesIO()
    torch.save(folded, file)


def test_context_scores_are_those_of_the_plain_model() -> None:
    model = classifier()
    for (name, mine), (other_name, other) in zip(
        context_score_maps(fold(model), pictures()), context_score_maps(model, pictures()), strict=True
    ):
        assert name == other_name
        assert relative_difference(mine, other) < 1e-5


def test_it_exports_with_sizes_left_open() -> None:
    folded = fold(classifier())
    side = torch.export.Dim("side", min=1, max=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on its way through transformers' outputs
        program = torch.export.export(
            folded,
            (pictures(2, height=128),),
            dynamic_shapes={"pixel_values": {0: torch.export.Dim.DYNAMIC, 2: 64 * side, 3: 64 * side}},
            strict=False,
        )
    x = pictures(3, height=192)
    assert relative_difference(program.module()(x).logits, logits(folded, x)) < 1e-5


# ---- refusals ---------------------------------------------------------------------------------------------------------------


def test_a_model_in_training_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="eval"):
        fold(classifier().train())


def test_another_module_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"torch\.nn\.modules\.linear\.Linear"):
        fold(nn.Linear(1, 1))  # type: ignore[type-var]


def test_it_cannot_be_saved_as_a_checkpoint(tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match="save the model it was made from"):
        fold(classifier()).save_pretrained(tmp_path / "folded")
    assert not (tmp_path / "folded").exists()
