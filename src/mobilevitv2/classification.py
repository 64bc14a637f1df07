"""Image classification: one linear layer on the pooled features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from mobilevitv2.backbone import MobileViTV2Model, MobileViTV2PreTrainedModel, wants
from mobilevitv2.checks import check_class_indices
from mobilevitv2.configuration import MobileViTV2Config
from mobilevitv2.errors import ConfigurationError


class MobileViTV2ForImageClassification(MobileViTV2PreTrainedModel):
    """MobileViTV2 with a linear classifier. `num_labels=0` leaves the classifier out: the logits are the pooled features."""

    task = "classify"

    def __init__(self, config: MobileViTV2Config) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.mobilevitv2 = MobileViTV2Model(config)
        self.dropout = nn.Dropout(config.classifier_dropout_prob)
        self.classifier = nn.Linear(config.stage_channels[-1], config.num_labels) if config.num_labels else nn.Identity()
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor | None = None,
        output_hidden_states: bool | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention | tuple[Any, ...]:
        """Scores of each class, and the loss where labels are given.

        Args:
            pixel_values: (batch, num_channels, height, width).
            output_hidden_states: give the output of each of the five stages.
            labels: class indices (batch,) for one class a picture; 0/1 (batch, num_labels), floats or bool, for several; numbers
                for regression. `config.problem_type` chooses the loss; without it the labels' type and `num_labels` do.
            return_dict: False gives a tuple of the values that are not None.

        Returns:
            loss where labels are given, logits (batch, num_labels), hidden_states on request.

        Raises:
            ConfigurationError: labels of another shape, or outside 0..num_labels - 1.
        """
        outputs = self.mobilevitv2(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        output = ImageClassifierOutputWithNoAttention(
            loss=None if labels is None else self.loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
        )
        return output if wants(return_dict, self.config.return_dict) else output.to_tuple()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error, cross-entropy or binary cross-entropy, as `problem_type` says; a scalar."""
        # Not kept on the configuration: what one batch's labels look like says nothing about the next model's.
        problem_type = self.config.problem_type or _problem_type(self.num_labels, labels)
        labels = labels.to(logits.device)
        if problem_type == "regression":
            _check_count(logits, labels)
            return F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype))
        if problem_type == "single_label_classification":
            labels = _one_a_picture(logits, labels)
            check_class_indices(labels, self.num_labels)
            return F.cross_entropy(logits, labels)
        if problem_type == "multi_label_classification":
            _check_count(logits, labels)
            return F.binary_cross_entropy_with_logits(logits, labels.reshape(logits.shape).to(logits.dtype))
        raise ConfigurationError(
            f"problem_type={problem_type!r} is unknown; use 'regression', 'single_label_classification' or "
            "'multi_label_classification'."
        )


def _problem_type(num_labels: int, labels: Tensor) -> str:
    if num_labels == 1:
        return "regression"
    several = labels.is_floating_point() or labels.dtype == torch.bool
    return "multi_label_classification" if several else "single_label_classification"


def _one_a_picture(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.numel() != logits.shape[0]:
        raise ConfigurationError(
            f"labels of shape {tuple(labels.shape)} do not fit {logits.shape[0]} pictures; give one class index a picture, or "
            f"floats (batch, {logits.shape[1]}) where a picture has several classes."
        )
    return labels.reshape(-1).long()


def _check_count(logits: Tensor, labels: Tensor) -> None:
    if labels.numel() != logits.numel():
        raise ConfigurationError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}; give one number a logit."
        )
