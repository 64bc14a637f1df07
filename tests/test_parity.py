"""Equal to the official code, to timm everywhere, and to transformers where transformers is right."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from small_models import WIDTHS, pictures, randomise, relative_difference, small_config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobilevitv2.backbone import MobileViTV2Model
from mobilevitv2.classification import MobileViTV2ForImageClassification
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.segmentation import MobileViTV2ForSemanticSegmentation, upsample


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# ---- the official code ------------------------------------------------------------------------------------------------------


def official(shared_fixtures: Path, name: str, folder: Path) -> tuple[Path, Tensor, dict[str, Tensor]]:
    """The official state dict as a file, the picture that the official code saw, and its answers."""
    path = folder / f"{name}.pt"
    path.write_bytes(lzma.decompress((shared_fixtures / f"{name}.pt.xz").read_bytes()))
    picture = np.array(Image.open(shared_fixtures / f"{name}.png").convert("RGB"))
    answers = {key: torch.from_numpy(value) for key, value in np.load(shared_fixtures / f"{name}.npz").items()}
    return path, torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, answers


def test_official_classifier(shared_fixtures: Path, tmp_path: Path) -> None:
    path, picture, answers = official(shared_fixtures, "cvnets-classification-0.5", tmp_path)
    logits = MobileViTV2ForImageClassification.from_pretrained(path)(picture).logits
    assert relative_difference(logits, answers["logits"]) <= 1e-5
    assert logits.argmax() == answers["logits"].argmax()


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet"])
def test_official_segmentation(head: str, shared_fixtures: Path, tmp_path: Path) -> None:
    path, picture, answers = official(shared_fixtures, f"cvnets-{head}-0.5", tmp_path)
    model = MobileViTV2ForSemanticSegmentation.from_pretrained(path)
    logits = upsample(model(picture).logits, (512, 512))
    assert (model.config.segmentation_head, model.config.output_stride) == (head, 16)
    assert relative_difference(logits[..., ::8, ::8], answers["logits_every_8th_pixel"]) <= 1e-5
    assert (logits.argmax(1) == answers["argmax"]).float().mean() >= 0.9999


# ---- counts -----------------------------------------------------------------------------------------------------------------

CLASSIFIER_PARAMETERS = [1_370_593, 2_866_009, 4_901_841, 7_478_089, 10_594_753, 14_251_833, 18_449_329]
# width: ADE20K (150 classes) PSPNet with and without auxiliary head, DeepLabV3 with and without; VOC (21) PSPNet, DeepLabV3.
SEGMENTER_PARAMETERS = {
    0.5: (3_857_701, 3_616_911, 6_549_285, 6_308_495, 3_550_734, 6_242_318),
    0.75: (6_597_533, 6_246_151, 9_927_837, 9_576_455, 6_179_974, 9_510_278),
    1.0: (9_910_549, 9_448_575, 13_846_805, 13_384_831, 9_382_398, 13_318_654),
    1.25: (13_796_749, 13_224_183, 18_306_189, 17_733_623, 13_158_006, 17_667_446),
    1.5: (18_341_509, 17_572_975, 23_391_365, 22_622_831, 17_506_798, 22_556_654),
    1.75: (23_536_701, 22_494_951, 29_094_205, 28_052_455, 22_428_774, 27_986_278),
    2.0: (29_346_549, 27_990_111, 35_378_933, 34_022_495, 27_923_934, 33_956_318),
}


def count(cls: type[nn.Module], **options: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in cls(MobileViTV2Config(**options)).parameters())


@pytest.mark.parametrize(("width", "expected"), list(zip(WIDTHS, CLASSIFIER_PARAMETERS, strict=True)))
def test_classifier_parameters_are_the_published_ones(width: float, expected: int) -> None:
    assert count(MobileViTV2ForImageClassification, width_multiplier=width, num_labels=1000) == expected


@pytest.mark.parametrize("width", WIDTHS)
def test_segmenter_parameters_are_the_published_ones(width: float) -> None:
    counts = [
        count(
            MobileViTV2ForSemanticSegmentation,
            width_multiplier=width,
            num_labels=labels,
            segmentation_head=head,
            use_auxiliary_head=auxiliary,
        )
        for labels, head, auxiliary in (
            (150, "pspnet", True),
            (150, "pspnet", False),
            (150, "deeplabv3", True),
            (150, "deeplabv3", False),
            (21, "pspnet", False),
            (21, "deeplabv3", False),
        )
    ]
    assert tuple(counts) == SEGMENTER_PARAMETERS[width]


# ---- timm -------------------------------------------------------------------------------------------------------------------


def both(width: float, **options: Any) -> tuple[nn.Module, MobileViTV2ForImageClassification]:
    """timm's model and ours with the same weights: names differ, order and shapes do not."""
    output_stride = options.pop("output_stride", 32)
    ours = randomise(
        MobileViTV2ForImageClassification(
            MobileViTV2Config(width_multiplier=width, num_labels=100, output_stride=output_stride, **options)
        )
    )
    strides = {} if output_stride == 32 else {"output_stride": output_stride}
    theirs = timm.create_model(f"mobilevitv2_{round(width * 100):03d}", num_classes=100, **strides).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    return theirs, ours


@pytest.mark.parametrize("width", WIDTHS)
def test_timm_at_every_width(width: float) -> None:
    theirs, ours = both(width)
    for height, columns in ((65, 33), (64, 96)):
        x = pictures(2, height=height, width=columns)
        assert relative_difference(ours(x).logits, theirs(x)) <= 1e-5


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_timm_at_many_sizes(width: float) -> None:
    theirs, ours = both(width)
    for height, columns in ((256, 256), (224, 224), (250, 270), (33, 47), (160, 200), (1, 1)):
        x = pictures(height=height, width=columns)
        assert relative_difference(ours(x).logits, theirs(x)) <= 1e-5, (height, columns)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_timm_at_smaller_output_strides(output_stride: int) -> None:
    theirs, ours = both(0.5, output_stride=output_stride)
    for height, columns in ((128, 128), (97, 130)):
        x = pictures(height=height, width=columns)
        features = theirs.forward_features(x)
        assert features.shape[-2:] == ours.mobilevitv2(x).last_hidden_state.shape[-2:]
        assert relative_difference(ours.mobilevitv2(x).last_hidden_state, features) <= 1e-5


# ---- transformers -----------------------------------------------------------------------------------------------------------


def twins(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """transformers' model of that name and ours with the same weights under the same names."""
    config = small_config(**options)
    ours = randomise(
        {
            "MobileViTV2Model": MobileViTV2Model,
            "MobileViTV2ForImageClassification": MobileViTV2ForImageClassification,
            "MobileViTV2ForSemanticSegmentation": MobileViTV2ForSemanticSegmentation,
        }[name](config)
    )
    theirs = getattr(transformers, name)(transformers.MobileViTV2Config(**config.to_dict())).eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


@pytest.mark.parametrize("name", ["MobileViTV2Model", "MobileViTV2ForImageClassification", "MobileViTV2ForSemanticSegmentation"])
@pytest.mark.parametrize("size", [(64, 64), (128, 192)])
def test_transformers_on_even_maps(name: str, size: tuple[int, int]) -> None:
    theirs, ours = twins(name)
    x = pictures(2, height=size[0], width=size[1])
    expected, found = theirs(x, output_hidden_states=True), ours(x, output_hidden_states=True)
    assert list(found) == list(expected)
    assert len(found.hidden_states) == len(expected.hidden_states) == 5
    for mine, other in zip(tree_leaves(dict(found)), tree_leaves(dict(expected)), strict=True):
        assert mine.shape == other.shape
        assert relative_difference(mine, other) <= 1e-5


def test_transformers_has_the_same_names_and_shapes() -> None:
    for name in ("MobileViTV2Model", "MobileViTV2ForImageClassification", "MobileViTV2ForSemanticSegmentation"):
        theirs, ours = twins(name)
        assert list(theirs.state_dict()) == list(ours.state_dict())


# ---- one forward path -------------------------------------------------------------------------------------------------------


class Shapes(TorchDispatchMode):
    """Records every operation's name and the shapes of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen += [(str(func), tuple(t.shape)) for t in tree_leaves(out) if isinstance(t, Tensor)]
        return out


@pytest.mark.parametrize("size", [128, 100])
def test_no_tensor_of_more_than_five_axes(size: int) -> None:
    model = randomise(MobileViTV2ForSemanticSegmentation(small_config()))
    with Shapes() as shapes:
        model(pictures(2, height=size))
    assert max(len(shape) for _, shape in shapes.seen) <= 5
    assert not any("im2col" in name or "col2im" in name for name, _ in shapes.seen)


def test_keys_and_the_whole_projection_are_never_formed() -> None:
    model = randomise(MobileViTV2Model(small_config(n_attn_blocks=[1, 1, 1])))
    with Shapes() as shapes:
        model(pictures(height=128))
    # Stage 3: 64 channels inside attention, 16x16 pixels, so 4 pixels by 64 patches.
    token_maps = [shape[1] for name, shape in shapes.seen if "convolution" in name and shape[2:] == (4, 64)]
    query, value, output, feed_forward, padding = 1, 64, 64, 128 + 64, 7
    assert query + value + output + feed_forward <= sum(token_maps) <= query + value + output + feed_forward + padding
    assert 1 + 2 * 64 not in token_maps
    # The keys of the one context token of each pixel.
    assert [shape for name, shape in shapes.seen if "convolution" in name and shape[2:] == (4, 1)].count((1, 64, 4, 1)) == 1
