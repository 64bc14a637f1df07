"""CUDA graphs behind a model's call. What needs a GPU is marked; which calls are recorded is decided without one."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from small_models import pictures, randomise, relative_difference, small_config
from torch import nn

from mobilevitv2 import MobileViTV2ForImageClassification
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.inference import fold, optimize_for_inference
from mobilevitv2.inference.graphs import MOST_SHAPES, GraphedForward, record_calls

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def recorded() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = fold(randomise(MobileViTV2ForImageClassification(small_config())))
    graphed = copy.deepcopy(model)
    record_calls(graphed)
    return model, graphed


def test_other_devices_run_as_they_are() -> None:
    model, graphed = recorded()
    x = pictures(2)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(graphed(x).logits, model(x).logits)
    assert isinstance(graphed.forward, GraphedForward)
    assert not graphed.forward._recordings


def test_signature_copies_and_pickles_stay() -> None:
    model, graphed = recorded()
    x = pictures(2)
    assert inspect.signature(graphed.forward) == inspect.signature(model.forward)
    again = copy.deepcopy(graphed)
    with torch.no_grad():
        assert torch.equal(again(x).logits, model(x).logits)
        again.classifier.bias += 1  # a copy calls its own weights
        assert not torch.equal(again(x).logits, model(x).logits)
        assert torch.equal(pickle.loads(pickle.dumps(graphed))(x).logits, model(x).logits)


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"device": "cpu", "compile": True}])
def test_graphs_need_cuda(options: dict[str, object]) -> None:
    model = MobileViTV2ForImageClassification(small_config()).eval()
    with pytest.raises(ConfigurationError, match="cuda_graphs=True needs"):
        optimize_for_inference(model, cuda_graphs=True, **options)


@pytest.mark.gpu
@needs_gpu
def test_a_shape_is_recorded_when_it_comes_again() -> None:
    model, graphed = (model.cuda() for model in recorded())
    forward = graphed.forward
    assert isinstance(forward, GraphedForward)
    with torch.no_grad():
        first, second = pictures(2).cuda(), pictures(2).cuda() + 0.5
        answers = [graphed(x).logits for x in (first, second, first)]
        assert len(forward._recordings) == 1
        for answer, x in zip(answers, (first, second, first), strict=True):
            assert relative_difference(answer, model(x).logits) < 1e-5
        for count in range(3, 5 + MOST_SHAPES):
            x = pictures(count).cuda()
            for _ in range(3):
                assert relative_difference(graphed(x).logits, model(x).logits) < 1e-5
        assert len(forward._recordings) == MOST_SHAPES
