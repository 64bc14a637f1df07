"""Parameters and operations: equal to the published table and to what torch counts on transformers' own model."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from mobilevitv2 import (
    MobileViTV2Config,
    MobileViTV2ForImageClassification,
    MobileViTV2ForObjectDetection,
    MobileViTV2ForSemanticSegmentation,
    create,
)
from mobilevitv2.complexity import OperationCount, count_operations, count_parameters
from mobilevitv2.errors import ConfigurationError
from mobilevitv2.weights import WeightRecord, list_records

# width, parameters, thousand million multiply-adds at 256 and at 384 pixels, as published
TABLE = [
    (0.5, 1_370_593, 0.465, 1.045),
    (0.75, 2_866_009, 1.028, 2.312),
    (1.0, 4_901_841, 1.812, 4.077),
    (1.25, 7_478_089, 2.817, 6.337),
    (1.5, 10_594_753, 4.042, 9.095),
    (1.75, 14_251_833, 5.489, 12.349),
    (2.0, 18_449_329, 7.156, 16.099),
]


def classifier(width: float, **options: object) -> MobileViTV2ForImageClassification:
    with torch.device("meta"):
        return MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=width, num_labels=1000, **options))


@pytest.mark.parametrize(("width", "parameters", "at_256", "at_384"), TABLE)
def test_published_table(width: float, parameters: int, at_256: float, at_384: float) -> None:
    model = classifier(width)
    assert count_parameters(model) == parameters
    assert round(count_operations(model).published / 1e9, 3) == at_256
    assert round(count_operations(model, height=384, width=384).published / 1e9, 3) == at_384


@pytest.mark.parametrize("size", [256, 320])
def test_published_is_what_the_key_tensor_costs_in_transformers(size: int) -> None:
    config = transformers.MobileViTV2Config(width_multiplier=0.5, num_labels=1000)
    with torch.device("meta"):
        theirs = transformers.MobileViTV2ForImageClassification(config).eval()
    with FlopCounterMode(display=False) as counter:
        theirs(torch.empty(1, 3, size, size, device="meta"))
    ours = count_operations(classifier(0.5), height=size, width=size)
    assert ours.published == counter.get_total_flops() // 2
    assert ours.executed < ours.published


def test_executed_is_what_torch_counts_on_our_model() -> None:
    model = MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=0.5, num_labels=10)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, 50, 70))
    assert count_operations(model, height=50, width=70).executed == counter.get_total_flops() // 2


def test_default_size_is_the_configured_one() -> None:
    wide = classifier(0.5, image_size=(64, 128))
    assert count_operations(wide) == count_operations(classifier(0.5), height=64, width=128)


def test_counting_leaves_the_model_as_it_is() -> None:
    model = MobileViTV2ForImageClassification(MobileViTV2Config(width_multiplier=0.5)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_operations(model, height=64, width=64)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_segmenter_counts_no_training_only_head() -> None:
    options = {"width_multiplier": 0.5, "num_labels": 21, "output_stride": 16, "image_size": 512}
    with torch.device("meta"):
        model = MobileViTV2ForSemanticSegmentation(MobileViTV2Config(**options)).train()
        helped = MobileViTV2ForSemanticSegmentation(MobileViTV2Config(use_auxiliary_head=True, **options)).train()
    assert count_parameters(model) == 6_242_318
    assert round(count_operations(model).published / 1e9, 2) == 7.36
    assert count_operations(helped) == count_operations(model)


@pytest.mark.parametrize("record", list_records(task="detect", bundled=False), ids=lambda record: record.name)
def test_published_detectors(record: WeightRecord) -> None:
    with torch.device("meta"):
        model = create(record.name, pretrained=False)
    assert type(model) is MobileViTV2ForObjectDetection
    assert count_parameters(model) == record.parameters
    assert round(count_operations(model).published / 1e9, 3) == record.gmacs


def test_impossible_size_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="height=0"):
        count_operations(classifier(0.5), height=0)


def test_count_is_a_plain_value() -> None:
    assert OperationCount(published=2, executed=1) == OperationCount(published=2, executed=1)
