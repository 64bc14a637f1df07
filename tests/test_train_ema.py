"""The running average, by hand."""

from __future__ import annotations

import torch
from torch import nn

from mobilevitv2.train.ema import WeightAverage


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def _set(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)


def test_each_step_takes_the_given_share_of_the_new_weights() -> None:
    model = _model()
    _set(model, 1.0)
    average = WeightAverage(model, momentum=0.1)
    expected = 1.0
    for value in (2.0, 5.0, -3.0):
        _set(model, value)
        average.update()
        expected = 0.9 * expected + 0.1 * value
    state = average.module.state_dict()
    assert average.steps == 3
    for name, tensor in state.items():
        if tensor.is_floating_point():  # norms' running statistics too, as in the official code
            torch.testing.assert_close(tensor, torch.full_like(tensor, expected), msg=name)
    assert state["1.num_batches_tracked"] == -3  # counters are copied


def test_warm_up_forgets_the_start() -> None:
    model = _model()
    _set(model, 0.0)
    average = WeightAverage(model, momentum=0.001, warmup=True)
    expected = 0.0
    for step in range(1, 6):
        _set(model, float(step))
        average.update()
        share = 9 / (10 + step)
        expected = (1 - share) * expected + share * step
    torch.testing.assert_close(average.module[0].weight, torch.full_like(average.module[0].weight, expected))  # type: ignore[index]
    average.steps = 10**6  # long after the start the momentum alone counts
    _set(model, 1000.0)
    average.update()
    expected = 0.999 * expected + 1.0
    torch.testing.assert_close(average.module[0].weight, torch.full_like(average.module[0].weight, expected))  # type: ignore[index]


def test_the_average_is_apart_from_the_model_and_never_trains() -> None:
    model = _model()
    average = WeightAverage(model.train(), momentum=0.5)
    before = average.module[0].weight.clone()  # type: ignore[index]
    _set(model, 7.0)
    assert torch.equal(average.module[0].weight, before)  # type: ignore[index]
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())


def test_memory_that_changed_before_the_first_step_is_followed() -> None:
    # Wrapping a model for several processes does this.
    model = _model()
    average = WeightAverage(model, momentum=1.0)
    for parameter in model.parameters():
        parameter.data = torch.full_like(parameter, 3.0)
    average.update()
    assert all(bool((parameter == 3.0).all()) for parameter in average.module.parameters())
