"""The fast form on an NVIDIA GPU, for all tasks. `pytest -m gpu` runs these and the other tests that need one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_models import pictures, randomise, small_config
from torch import Tensor

from mobilevitv2 import MobileViTV2ForImageClassification, MobileViTV2ForObjectDetection, MobileViTV2ForSemanticSegmentation
from mobilevitv2.inference import optimize_for_inference
from mobilevitv2.kernels import kernels_enabled

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

TASKS: dict[str, Any] = {
    "classify": MobileViTV2ForImageClassification,
    "segment": MobileViTV2ForSemanticSegmentation,
    "detect": MobileViTV2ForObjectDetection,
}


def model_of(task: str) -> Any:
    torch.manual_seed(0)
    return randomise(TASKS[task](small_config())).cuda()


def answers(model: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x).logits.float().clone()


def error(found: Tensor, exact: Tensor) -> float:
    """Root of the mean square of the difference, over that of the answer."""
    return ((found - exact).square().mean() / exact.square().mean()).sqrt().item()


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (40, 64, 96)])
@pytest.mark.parametrize("task", TASKS)
def test_bfloat16_is_no_further_from_float32_than_the_plain_model(task: str, batch: int, height: int, width: int) -> None:
    model, x = model_of(task), pictures(batch, height=height, width=width).cuda()
    fast = optimize_for_inference(model, device="cuda", dtype="bfloat16")
    assert fast.optimization.kernels > 0 or not kernels_enabled()
    assert fast.optimization.cuda_graphs
    exact = answers(model, x)
    plain = error(answers(copy.deepcopy(model).bfloat16(), x.bfloat16()), exact)
    for _ in range(3):  # as it is, recorded, replayed
        assert error(answers(fast, x.bfloat16()), exact) <= 1.1 * plain


@pytest.mark.parametrize("task", TASKS)
def test_float32_is_equal(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # convolutions would be rounded to 11 bits
    model, x = model_of(task), pictures(2).cuda()
    fast = optimize_for_inference(model, device="cuda")
    exact = answers(model, x)
    for _ in range(3):
        assert (answers(fast, x) - exact).abs().max() < 2e-5 * exact.abs().max()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_gpu_than_the_current_one() -> None:
    model, x = model_of("classify").cuda(1), pictures(2).cuda(1)
    assert torch.cuda.current_device() == 0
    fast = optimize_for_inference(model, device="cuda:1", dtype="bfloat16")
    exact = answers(model, x)
    plain = error(answers(copy.deepcopy(model).bfloat16(), x.bfloat16()), exact)
    for _ in range(3):
        assert error(answers(fast, x.bfloat16()), exact) <= 1.1 * plain
    assert torch.cuda.current_device() == 0
