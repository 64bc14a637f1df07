"""Where the model looks: the context scores of each attention layer, as maps over the picture.

Separable self-attention gives every token one score; their softmax says how much each token adds to the context vector that all
tokens share (paper, section 3.2). Laid out over the picture, the scores are a saliency map that costs nothing but one more 1x1
convolution a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mobilevitv2.blocks import MobileViTV2Block, SeparableSelfAttention, fold_patches

if TYPE_CHECKING:
    from mobilevitv2.backbone import MobileViTV2PreTrainedModel

FIRST_ATTENTION_STAGE = 3


def context_score_maps(model: MobileViTV2PreTrainedModel, pixel_values: Tensor) -> list[tuple[str, Tensor]]:
    """The context scores of every attention layer for a batch of pictures.

    The pixels of a patch attend apart from each other: with patches of 2x2 pixels a map holds four softmax distributions,
    interleaved (every second row and column belongs to one of them), each of which sums to one. So a whole map sums to patch_size
    squared, and the mean over each patch is the score of its place in the picture.

    Args:
        model: any model of this package, in evaluation mode; it is left as it is.
        pixel_values: (B, num_channels, height, width), prepared as for the model.

    Returns:
        ("stage3.layer1", scores) and so on, first layer first: 9 with the default configuration. Scores are float32 or wider,
        (B, height / stride, width / stride) with the stage's stride, sides rounded up to whole patches.
    """
    maps, _ = answer_with_maps(model, pixel_values)
    return maps


def answer_with_maps(model: MobileViTV2PreTrainedModel, pixel_values: Tensor) -> tuple[list[tuple[str, Tensor]], Any]:
    """`context_score_maps`, and what the model itself answers in the same pass."""
    maps: list[tuple[str, Tensor]] = []
    blocks = [module for module in model.modules() if isinstance(module, MobileViTV2Block)]
    with ExitStack() as hooks, torch.no_grad():
        for stage, block in enumerate(blocks, FIRST_ATTENTION_STAGE):
            for handle in _watch(block, f"stage{stage}", maps):
                hooks.callback(handle.remove)
        answer = model(pixel_values)
    return maps, answer


def _watch(block: MobileViTV2Block, stage: str, maps: list[tuple[str, Tensor]]) -> list[Any]:
    """Hooks that write the block's maps into `maps` when the model runs."""
    size = [0, 0]

    def note_size(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        size[:] = output.shape[-2:]

    def note_scores(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            assert isinstance(module, SeparableSelfAttention)
            scores = module.context_scores(inputs[0])  # (B, 1, P, N)
            maps.append((name, fold_patches(scores, block.patch_size, *size).squeeze(1)))  # (B, H, W)

        return hook

    layers = [module for module in block.transformer.modules() if isinstance(module, SeparableSelfAttention)]
    handles = [block.conv_1x1.register_forward_hook(note_size)]  # the last place where the map still has two sides
    for index, layer in enumerate(layers, 1):
        handles.append(layer.register_forward_pre_hook(note_scores(f"{stage}.layer{index}")))
    return handles
