from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from small_models import checkpoint_activations, pictures, randomise, small_config
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevitv2.errors import ConfigurationError, ImageError
from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation, upsample

HEADS = ["deeplabv3", "pspnet"]


def segmenter(**options: Any) -> MobileViTV2ForSemanticSegmentation:
    torch.manual_seed(0)
    return randomise(MobileViTV2ForSemanticSegmentation(small_config(**options)))


def masks(batch: int = 2, height: int = 64, width: int = 64, *, classes: int = 10) -> Tensor:
    return torch.randint(0, classes, (batch, height, width), generator=torch.Generator().manual_seed(0))


# ---- what forward gives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_logits_have_the_output_stride(head: str, output_stride: int) -> None:
    model = segmenter(segmentation_head=head, output_stride=output_stride)
    logits = model(pictures(2, height=128, width=192)).logits
    assert logits.shape == (2, 10, 128 // output_stride, 192 // output_stride)


@pytest.mark.parametrize("head", HEADS)
def test_any_size_goes_through(head: str) -> None:
    model = segmenter(segmentation_head=head, output_stride=16)
    for height, width in ((33, 47), (1, 1), (100, 64)):
        assert model(pictures(height=height, width=width)).logits.isfinite().all()


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("with_labels", [True, False])
def test_tuples_are_laid_out_as_transformers_has_them(hidden: bool, with_labels: bool) -> None:
    ours = segmenter()
    theirs = transformers.MobileViTV2ForSemanticSegmentation(transformers.MobileViTV2Config(**ours.config.to_dict())).eval()
    arguments = {"output_hidden_states": hidden, "labels": masks() if with_labels else None, "return_dict": False}
    found, expected = ours(pictures(2), **arguments), theirs(pictures(2), **arguments)
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert type(mine) is type(other)
        if isinstance(mine, Tensor):
            assert mine.shape == other.shape
        else:
            assert [x.shape for x in mine] == [x.shape for x in other]


def test_configuration_sets_what_forward_gives() -> None:
    model = segmenter(output_hidden_states=True, return_dict=False)
    logits, hidden_states = model(pictures())
    assert (logits.shape[1], len(hidden_states)) == (10, 5)
    assert model(pictures(), output_hidden_states=False, return_dict=True).hidden_states is None


def test_documented_order_of_arguments() -> None:
    loss, logits, hidden_states = segmenter()(pictures(2), masks(), True, False)
    assert (loss.shape, logits.shape[:2], len(hidden_states)) == ((), (2, 10), 5)


# ---- loss -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore", [255, -1, 3])
def test_loss_is_cross_entropy_at_the_labels_size(ignore: int) -> None:
    model = segmenter(semantic_loss_ignore_index=ignore)
    labels = masks()
    labels[:, :20] = ignore
    output = model(pictures(2), labels=labels)
    expected = F.cross_entropy(upsample(output.logits, (64, 64)), labels, ignore_index=ignore)
    assert torch.allclose(output.loss, expected)


def test_loss_weighs_classes() -> None:
    weights = [0.5, 2.0, *(1.0 for _ in range(8))]
    model = segmenter(semantic_loss_class_weights=weights)
    labels = masks()
    labels[:, :20] = 255
    output = model(pictures(2), labels=labels)
    expected = F.cross_entropy(upsample(output.logits, (64, 64)), labels, weight=torch.tensor(weights), ignore_index=255)
    assert torch.allclose(output.loss, expected)
    assert model(pictures(2), labels=torch.full((2, 64, 64), 255)).loss == 0
    model.config.semantic_loss_class_weights = [1.0, 2.0]
    with pytest.raises(ConfigurationError, match="has 2 numbers for num_labels=10"):
        model(pictures(2), labels=labels)


def test_loss_is_that_of_transformers_but_for_the_corners() -> None:
    ours = segmenter(output_stride=32)
    theirs = transformers.MobileViTV2ForSemanticSegmentation(transformers.MobileViTV2Config(**ours.config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    logits = ours(pictures(2)).logits
    labels = masks(height=logits.shape[-2], width=logits.shape[-1])  # at their own size there is nothing to upsample
    assert torch.allclose(ours(pictures(2), labels=labels).loss, theirs(pictures(2), labels=labels).loss, atol=1e-5)


def test_nothing_but_ignored_pixels_is_a_loss_of_zero() -> None:
    model = segmenter(use_auxiliary_head=True).train()
    loss = model(pictures(2), labels=torch.full((2, 64, 64), 255)).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_auxiliary_head_adds_to_the_loss_in_training_alone() -> None:
    model = segmenter(use_auxiliary_head=True, classifier_dropout_prob=0.0, aspp_dropout_prob=0.0)
    calls = []
    model.segmentation_head.auxiliary_head.register_forward_hook(lambda *_: calls.append(1))
    model(pictures(2), labels=masks())
    assert calls == []
    model.train()
    output = model(pictures(2), labels=masks())
    stage4 = model.mobilevitv2.features(pictures(2))[-2]
    auxiliary = F.cross_entropy(upsample(model.segmentation_head.auxiliary_head(stage4), (64, 64)), masks())
    main = F.cross_entropy(upsample(output.logits, (64, 64)), masks())
    assert torch.allclose(output.loss, main + 0.4 * auxiliary, atol=1e-5)
    calls.clear()
    model(pictures(2))
    assert calls == []  # without labels there is nothing for it to do


def test_without_auxiliary_head_training_has_one_loss() -> None:
    model = segmenter(aspp_dropout_prob=0.0).train()
    output = model(pictures(2), labels=masks())
    assert torch.allclose(output.loss, F.cross_entropy(upsample(output.logits, (64, 64)), masks()))


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_learns(head: str) -> None:
    model = segmenter(segmentation_head=head, use_auxiliary_head=True).train()
    model(pictures(2, height=128), labels=masks(height=128, width=128)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_masks_of_any_whole_number_type(dtype: torch.dtype) -> None:
    model = segmenter()
    assert torch.equal(model(pictures(2), labels=masks().to(dtype)).loss, model(pictures(2), labels=masks()).loss)


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (torch.full((2, 64, 64), 10), r"label 10 is outside 0\.\.9"),
        (torch.full((2, 64, 64), -1), "label -1 is outside"),
        (masks(3), r"shape \(3, 64, 64\)"),
        (masks()[0], r"shape \(64, 64\)"),
        (masks()[:, None], r"shape \(2, 1, 64, 64\)"),
        (masks().float(), "float32"),
        (torch.zeros(2, 0, 64, dtype=torch.long), r"shape \(2, 0, 64\)"),
    ],
)
def test_bad_masks_are_named(labels: Tensor, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        segmenter()(pictures(2), labels=labels)


def test_one_class_has_no_loss_and_none_no_model() -> None:
    with pytest.raises(ConfigurationError, match="num_labels=1"):
        segmenter(num_labels=1)(pictures(2), labels=torch.zeros(2, 64, 64, dtype=torch.long))
    with pytest.raises(ConfigurationError, match="num_labels=0"):
        segmenter(num_labels=0)


def test_bad_pictures_are_named() -> None:
    with pytest.raises(ImageError, match="You have to specify pixel_values"):
        segmenter()()
    with pytest.raises(ImageError, match=r"shape \(1, 4, 64, 64\)"):
        segmenter()(pictures(channels=4))


# ---- heads ------------------------------------------------------------------------------------------------------------------


def test_heads_have_rectifiers_whatever_the_trunk_has() -> None:
    for head in HEADS:
        model = segmenter(segmentation_head=head, hidden_act="gelu", use_auxiliary_head=True)
        acts = [m.activation for m in model.segmentation_head.modules() if getattr(m, "activation", None) is not None]
        assert acts and all(act is F.relu for act in acts)


def test_initialisation_of_the_heads_is_the_official_one() -> None:
    torch.manual_seed(0)
    model = MobileViTV2ForSemanticSegmentation(small_config(use_auxiliary_head=True, aspp_out_channels=128))
    for name, module in model.segmentation_head.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            bound = (6 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5  # Kaiming uniform, fan out
            assert 0.95 * bound < module.weight.abs().max() <= bound, name
    trunk = model.mobilevitv2.encoder.layer[4].conv_1x1.convolution
    assert trunk.weight.std().item() == pytest.approx((2 / trunk.out_channels) ** 0.5, rel=0.05)
    assert trunk.weight.abs().max() > 3 * trunk.weight.std()  # normal, not uniform


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    plain, kept = segmenter(aspp_dropout_prob=0.0).train(), segmenter(aspp_dropout_prob=0.0).train()
    kept.load_state_dict(plain.state_dict())
    checkpoint_activations(kept)
    for model in (plain, kept):
        model(pictures(2), labels=masks()).loss.backward()
    for mine, other in zip(plain.parameters(), kept.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_compiles_whole(head: str) -> None:
    torch._dynamo.reset()
    model = segmenter(
        segmentation_head=head, use_auxiliary_head=True, classifier_dropout_prob=0.0, aspp_dropout_prob=0.0, psp_dropout_prob=0.0
    )
    compiled = torch.compile(model.train(), fullgraph=True, backend="eager")
    assert torch.allclose(compiled(pictures(2), labels=masks()).loss, model(pictures(2), labels=masks()).loss, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_head_exports_with_any_batch_height_and_width(head: str) -> None:
    """The trunk's export is tested with the classifier."""
    module = segmenter(segmentation_head=head).segmentation_head
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    program = torch.export.export(module, (torch.rand(2, 256, 4, 6),), dynamic_shapes=({0: batch, 2: height, 3: width},))
    for size in ((3, 6, 4), (2, 2, 16), (5, 9, 7)):
        x = torch.rand(size[0], 256, *size[1:])
        with torch.no_grad():
            assert torch.allclose(program.module()(x), module(x), atol=1e-5), size


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_model_in_half_precision_stays_close(head: str, dtype: torch.dtype) -> None:
    model = segmenter(segmentation_head=head)
    with torch.no_grad():
        expected = model(pictures(2)).logits
        with torch.autocast("cpu", dtype=dtype):
            mixed = model(pictures(2)).logits
        half = model.to(dtype)(pictures(2).to(dtype)).logits
    for found in (mixed, half):
        assert ((found.float() - expected).abs().max() / expected.abs().max()).item() <= 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [None, [0.3] * 9 + [3.0]])
def test_loss_in_half_precision_is_that_of_the_same_logits(dtype: torch.dtype, weights: list[float] | None) -> None:
    model = segmenter(semantic_loss_class_weights=weights)
    labels = masks(2, 256, 256)  # the sum over so many pixels overflows float16
    with torch.no_grad():
        logits = model(pictures(2)).logits.to(dtype)
        stage4 = torch.zeros(0)
        expected, found = model.loss(logits.float(), labels, stage4), model.loss(logits, labels, stage4)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.0)
