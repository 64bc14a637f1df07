"""The compiled form for a CPU. Compiling takes 10 seconds or more, so one small model a dtype is compiled, once, for all tests."""

from __future__ import annotations

import copy
import pickle
import shutil
from typing import Any

import pytest
import torch
from small_models import pictures, randomise, relative_difference, small_config
from torch import nn

from mobilevitv2 import MobileViTV2ForImageClassification
from mobilevitv2.errors import MissingDependency
from mobilevitv2.inference import compiled, optimize_for_inference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Inductor's own code
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))) or not torch._C._has_mkldnn, reason="no C++ compiler or no oneDNN"
)


def classifier() -> MobileViTV2ForImageClassification:
    torch.manual_seed(0)
    return randomise(MobileViTV2ForImageClassification(small_config()))


@pytest.fixture(scope="module")
def model() -> MobileViTV2ForImageClassification:
    return classifier()


@pytest.fixture(scope="module")
def fast(model: MobileViTV2ForImageClassification) -> MobileViTV2ForImageClassification:
    return optimize_for_inference(model, device="cpu", compile=True)


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(x).logits.clone()


@needs_compiler
def test_equal_and_compiled_once(fast: MobileViTV2ForImageClassification, model: nn.Module) -> None:
    x = pictures()
    before = torch._inductor.config.freezing
    assert relative_difference(logits(fast, x), logits(model, x)) < 1e-5
    assert torch._inductor.config.freezing is before
    again = pictures(seed=1)
    calls: list[Any] = [lambda: logits(fast, again), lambda: fast(again).logits, lambda: fast(pixel_values=x).logits]
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = [call() for call in calls[:2]]
        with torch.inference_mode():
            found.append(fast(again * 1).logits)  # a tensor of inference mode
    for each in found:
        assert not each.requires_grad
        assert relative_difference(each, logits(model, again)) < 1e-5


@needs_compiler
def test_more_shapes_than_are_compiled_run_uncompiled(
    fast: MobileViTV2ForImageClassification,
    model: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logits(fast, pictures())
    monkeypatch.setattr(compiled, "MOST_SHAPES", 1)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for height, width in ((96, 64), (33, 47)):
            x = pictures(2, height=height, width=width)
            assert relative_difference(logits(fast, x), logits(model, x)) < 1e-5
    assert caplog.text.count("run uncompiled") == 1


@needs_compiler
def test_pictures_that_ask_for_gradients_run_uncompiled(fast: nn.Module, model: nn.Module) -> None:
    x = pictures().requires_grad_()
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        assert relative_difference(fast(x).logits, model(x).logits) < 1e-5


@needs_compiler
def test_half_precision_is_no_further_from_float32_than_the_plain_model(model: nn.Module) -> None:
    fast = optimize_for_inference(model, device="cpu", dtype="bfloat16", compile="default")  # type: ignore[type-var]
    half = copy.deepcopy(model).bfloat16()
    ours = plain = 0.0
    for seed in range(6):
        x = pictures(seed=seed)
        exact = logits(model, x)
        ours += (logits(fast, x.bfloat16()) - exact).square().sum().item()
        plain += (logits(half, x.bfloat16()) - exact).square().sum().item()
    assert ours <= 1.05 * plain


@needs_compiler
def test_it_says_what_it_is_copies_and_pickles(fast: MobileViTV2ForImageClassification, model: nn.Module) -> None:
    assert fast.optimization.compile == "default"
    assert fast.optimization.packed
    assert type(fast) is MobileViTV2ForImageClassification
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.forward is not fast.forward
        assert other.forward._forward.__self__ is other
        assert other.optimization == fast.optimization


def test_without_a_compiler_the_message_names_the_remedy(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    def missing() -> str:
        raise RuntimeError("none was found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(MissingDependency, match=r"none was found.*g\+\+"):
        optimize_for_inference(model, device="cpu", compile=True)  # type: ignore[type-var]
