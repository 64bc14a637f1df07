"""A model's forms in PyTorch: ours as it is and optimised, a peer as it is shipped and in channels_last; compiled by choice."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from mobilevitv2.backbone import MobileViTV2PreTrainedModel

Array = np.ndarray[Any, Any]
Answers = dict[str, Array]


@dataclass(frozen=True)
class TorchForm:
    """How to make one.

    Attributes:
        name: of the row.
        build: the module on its device, in its dtype.
        channels_last: the layout of its pictures.
        compiled: whether its first call compiles.
    """

    name: str
    build: Callable[[], nn.Module]
    channels_last: bool
    compiled: bool = False


def our_forms(model: MobileViTV2PreTrainedModel, *, device: torch.device, dtype: torch.dtype, compiled: bool) -> list[TorchForm]:
    """ "plain" is the definition, "optimised" what `optimize_for_inference` gives."""
    from mobilevitv2.inference import optimize_for_inference

    def optimised(compile: bool) -> nn.Module:
        return cast(nn.Module, optimize_for_inference(model, device=device, dtype=dtype, compile=compile))

    forms = [
        TorchForm("plain", lambda: _copied(model, device, dtype), False),
        TorchForm("optimised", lambda: optimised(False), True),
    ]
    if compiled:
        forms.append(TorchForm("plain, compiled", lambda: _compiled(_copied(model, device, dtype, last=True)), True, True))
        forms.append(TorchForm("optimised, compiled", lambda: optimised(True), True, True))
    return forms


def peer_forms(peer: Callable[[], nn.Module], *, device: torch.device, dtype: torch.dtype, compiled: bool) -> list[TorchForm]:
    """`peer` gives the module in float32, or raises."""
    forms = [
        TorchForm("as shipped", lambda: _copied(peer(), device, dtype), False),
        TorchForm("channels_last", lambda: _copied(peer(), device, dtype, last=True), True),
    ]
    if compiled:
        forms.append(TorchForm("channels_last, compiled", lambda: _compiled(_copied(peer(), device, dtype, last=True)), True, True))
    return forms


class TorchRun:
    """One form, ready: calling it answers the pictures and waits until the device is done.

    Attributes:
        megabytes: of GPU memory that the weights and one call take at most; None elsewhere.
        note: what a reader of the row should know.
    """

    def __init__(self, form: TorchForm, pixels: Tensor, *, dtype: torch.dtype) -> None:
        self.device, self.note = pixels.device, ""
        layout = torch.channels_last if form.channels_last else torch.contiguous_format
        self.pixels = pixels.to(dtype).contiguous(memory_format=layout)
        if form.compiled:
            torch._dynamo.reset()  # a second size would otherwise compile for any size
        before = _allocated(self.device)
        self.model = form.build().eval()
        peak = self._peak(before)
        for _ in range(2):  # the second one records CUDA graphs where there are any
            self()
        # Compiling takes memory of its own.
        highest = self._peak(before) if form.compiled else max(peak or 0, self._peak(before) or 0)
        self.megabytes = None if peak is None or highest is None else highest / 1e6

    def __call__(self) -> Any:
        """The output, on the device, complete."""
        with torch.inference_mode():
            output = self.model(self.pixels)
        wait(self.device)
        return output

    def answers(self, task: str) -> Answers:
        """As `answers_of` gives them."""
        return answers_of(self(), task)

    def _peak(self, before: int) -> int | None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self()
        return torch.cuda.max_memory_allocated(self.device) - before if self.device.type == "cuda" else None


def answers_of(output: Any, task: str) -> Answers:
    """ "logits" in float32; of a detector "scores" (batch, anchors, classes) and "boxes" (batch, anchors, 4)."""
    if task == "detect":
        from mobilevitv2.boxes import to_corners

        scores = torch.softmax(output.logits.float(), dim=-1)[..., 1:]
        return {"scores": scores.cpu().numpy(), "boxes": to_corners(output.pred_boxes.float()).cpu().numpy()}
    logits = output if isinstance(output, Tensor) else output.logits
    return {"logits": logits.float().cpu().numpy()}


def exact_answers(model: MobileViTV2PreTrainedModel, pixels: Tensor) -> Answers:
    """What every row of the same weights is held against: the plain model's answers in float32, in every form that files give.

    Besides those of `answers_of`: "probabilities", and a segmenter's "mask".
    """
    with exact_convolutions(), torch.inference_mode():
        output = _copied(model, pixels.device, torch.float32)(pixels)
        answers = answers_of(output, model.task)
        if model.task == "classify":
            several = model.config.problem_type == "multi_label_classification" or model.config.num_labels == 1
            logits = output.logits.float()
            answers["probabilities"] = (logits.sigmoid() if several else logits.softmax(-1)).cpu().numpy()
        if model.task == "segment":
            from mobilevitv2.segmentation import upsample

            height, width = pixels.shape[-2:]
            answers["mask"] = np.stack(
                [upsample(each[None], (height, width)).argmax(dim=1)[0].cpu().numpy() for each in output.logits.float()]
            )
    return answers


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Inside, cuDNN's float32 convolutions multiply all bits, not ten of them as they do by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _copied(model: nn.Module, device: torch.device, dtype: torch.dtype, *, last: bool = False) -> nn.Module:
    moved = copy.deepcopy(model).to(device, dtype)
    return moved.to(memory_format=torch.channels_last) if last else moved


def _compiled(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
