"""A classifier's merged trunk and the hooks of whoever looks into it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import pictures, randomise, relative_difference, small_config
from torch import Tensor

from mobilevitv2 import MobileViTV2ForImageClassification
from mobilevitv2.inference import fold
from mobilevitv2.inference.cpu import pack_modules
from mobilevitv2.inference.merging import MergedTrunk, merge_stages


def merged() -> tuple[Any, Any]:
    torch.manual_seed(0)
    plain = fold(randomise(MobileViTV2ForImageClassification(small_config())))
    ours = fold(plain)
    assert merge_stages(ours) > 0
    pack_modules(ours)
    assert isinstance(ours.mobilevitv2, MergedTrunk)
    return plain, ours


@pytest.mark.parametrize("index", range(5))
def test_hooks_see_what_the_stages_of_the_plain_model_give(index: int) -> None:
    plain, ours = merged()
    seen: list[Tensor] = []
    handles = [
        model.mobilevitv2.encoder.layer[index].register_forward_hook(lambda module, args, output: seen.append(output))
        for model in (plain, ours)
    ]
    x = pictures(1)
    with torch.no_grad():
        expected, answer = plain(x).logits, ours(x).logits
    assert relative_difference(answer, expected) < 1e-5
    assert len(seen) == 2
    assert relative_difference(seen[1], seen[0]) < 1e-5
    for handle in handles:
        handle.remove()
    assert not ours.mobilevitv2._watched()


def test_hooks_in_front_and_inside_are_called_too() -> None:
    _, ours = merged()
    calls: list[str] = []
    layers = ours.mobilevitv2.encoder.layer
    layers[4].register_forward_pre_hook(lambda *_: calls.append("before"))
    layers[4].conv_projection.register_forward_hook(lambda *_: calls.append("projection"))
    with torch.no_grad():
        ours(pictures(1))
    assert calls == ["before", "projection"]
