"""MobileViTV2ImageProcessor: pictures in, `pixel_values` out; and logits back into labels and maps.

What the released weights want: RGB, the short side resized to 288 (bicubic, antialiased), the centre 256 x 256 cut out, values
divided by 255, no mean and no standard deviation. These are the defaults. A file `preprocessor_config.json` keeps its own settings,
those written for transformers' MobileViT classes included; they swap red and blue, which MobileViTV2 weights do not want, and a
warning says so (`InputContractWarning`).
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs

from mobilevitv2.boxes import to_corners
from mobilevitv2.class_maps import class_map, upsampled
from mobilevitv2.errors import ConfigurationError, ImageError
from mobilevitv2.picture_tensors import InputContractWarning, each_tensor, layout, shortened, tensor_of
from mobilevitv2.pictures import read_mask
from mobilevitv2.suppression import check_detection_numbers, detector_answers, suppress
from mobilevitv2.weights.writing import write_whole

IGNORED_LABEL = 255
"""Label of pixels that take no part in the loss: what label reduction makes of 0, and what pads label maps."""

_PREDECESSORS = ("MobileViTImageProcessor", "MobileViTFeatureExtractor")
# What transformers' classes do where their file says nothing, and ours do otherwise.
_PREDECESSORS_DEFAULTS = {"size": {"shortest_edge": 224}, "do_flip_channel_order": True}
# Written into these files by the base class, and never acted upon: MobileViT's processors do not normalise.
_PREDECESSORS_IDLE = ("do_normalize", "image_mean", "image_std")
# Notes of transformers about a file, no settings.
_SERVICE_KEYS = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map")


class MobileViTV2ImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg, misc]  # transformers ships no types for its bases
    """The options of transformers' image processors and the two of the MobileViT family."""

    do_flip_channel_order: bool | None
    do_reduce_labels: bool | None


class MobileViTV2ImageProcessor(TorchvisionBackend):  # type: ignore[misc]  # transformers ships no types for its bases
    """Prepares pictures for MobileViTV2, and reads its outputs.

    Every option is an argument of the class (the default of all calls), of `from_pretrained`, and of a single call.

    Args:
        do_resize, size, resample: resize to {"shortest_edge": 288}, keeping the proportions, or to {"height": h, "width": w};
            with this filter (a number of PIL.Image.Resampling; 3 is bicubic), antialiased.
        do_center_crop, crop_size: cut out the centre; where it is larger than the picture, zeros stand around the picture.
        do_rescale, rescale_factor: multiply by this factor, 1/255. Arrays and tensors of floats are taken as they are, so pass
            do_rescale=False for values that run from 0 to 1 already.
        do_normalize, image_mean, image_std: subtract and divide, per channel of the output; off, and 0 and 1, by default.
        do_pad, pad_size: pad with zeros at the right and the bottom, to this size or to the largest of the batch.
        do_convert_rgb: greyscale becomes three equal channels, alpha is seen over white. With False, arrays and tensors keep the
            channels they have, however many; files and Pillow images become RGB in any case.
        do_flip_channel_order: swap red and blue. MobileViTV2 weights want False.
        do_reduce_labels: segmentation maps only: 0 becomes 255 (ignored), every other label one less; 255 stays.
        input_data_format: "channels_first" or "channels_last", for arrays and tensors whose shape leaves it open. Without it
            tensors are taken as channels first and arrays as channels last where both could be.
        data_format: layout of `pixel_values`, "channels_first" unless told otherwise.
        return_tensors: "pt" stacks to one tensor, "np" to an array; None gives a list of tensors.
        device: where arrays and tensors are processed.

    Raises:
        ConfigurationError: an unknown option, a size below 1, a standard deviation of 0.
    """

    valid_kwargs = MobileViTV2ImageProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012  # transformers' interface

    do_resize = True
    size = {"shortest_edge": 288}  # noqa: RUF012
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    do_center_crop = True
    crop_size = {"height": 256, "width": 256}  # noqa: RUF012
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = False
    image_mean = (0.0, 0.0, 0.0)
    image_std = (1.0, 1.0, 1.0)
    do_convert_rgb = True
    do_flip_channel_order = False
    do_reduce_labels = False

    def __init__(self, **options: Any) -> None:
        options = {name: value for name, value in options.items() if name not in _SERVICE_KEYS}
        self._check_names(options)
        super().__init__(**options)
        self._flip_noted = False

    @classmethod
    def _check_names(cls, options: dict[str, Any], *, near_misses_only: bool = False) -> None:
        known = cls.valid_kwargs.__annotations__
        for name in options:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if name not in known and (near or not near_misses_only):
                remedy = f"did you mean {near[0]}?" if near else f"its options are {', '.join(sorted(known))}"
                raise ConfigurationError(f"the image processor has no option {name}={options[name]!r}: {remedy}")

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from the content of a `preprocessor_config.json`, whose contract is kept; `kwargs` override it.

        Files of MobileViTImageProcessor, MobileViTImageProcessorFast and MobileViTFeatureExtractor mean what they mean to those
        classes, where they leave something out too.
        """
        # transformers passes hub options and others through here, so only what looks like a slip is refused.
        cls._check_names(kwargs, near_misses_only=True)
        known = cls.valid_kwargs.__annotations__
        written_for = str(image_processor_dict.get("image_processor_type") or image_processor_dict.get("feature_extractor_type"))
        contract = {name: value for name, value in image_processor_dict.items() if name in known}
        if written_for.removesuffix("Fast") in _PREDECESSORS:
            contract = {name: value for name, value in contract.items() if name not in _PREDECESSORS_IDLE and value is not None}
            contract = {**_PREDECESSORS_DEFAULTS, **contract}
        return super().from_dict(contract, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings as `preprocessor_config.json` has them.

        The name of the class stands in it only with settings that transformers' class does not act upon. Without it
        AutoImageProcessor goes by the model type, so that those without this package find transformers' class, which does the same.
        """
        settings: dict[str, Any] = super().to_dict()
        settings.pop("_flip_noted", None)
        if not (self.do_normalize or self.do_pad):
            settings.pop("image_processor_type", None)
        return settings

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write the settings; a file that was there stays whole until the new one is complete.

        Raises:
            OSError: as the system gave it.
        """
        write_whole(Path(json_file_path), self.to_json_string().encode())

    def _standardize_kwargs(self, **options: Any) -> dict[str, Any]:
        options = super()._standardize_kwargs(**options)
        for name in ("size", "crop_size", "pad_size"):
            lengths = dict(options[name] or {})
            if any(length is not None and length < 1 for length in lengths.values()):
                raise ConfigurationError(f"{name} is {lengths}: sizes are 1 or more, in pixels")
        std = options["image_std"]
        if std is not None and 0 in (std if isinstance(std, tuple) else (std,)):
            raise ConfigurationError(f"image_std is {std}: pictures are divided by it, so no value may be 0")
        return options

    # -------------------------------------------------------------------------------------------------------- pictures to tensors

    def preprocess(self, images: Any, segmentation_maps: Any = None, **options: Any) -> BatchFeature:
        """Prepare one picture or several.

        Args:
            images: whatever `mobilevitv2.pictures.read_picture` reads, a list of such, or a batch (N, channels, H, W) or
                (N, H, W, channels).
            segmentation_maps: for each picture its class numbers, as `mobilevitv2.pictures.read_mask` reads them; cut and resized
                (nearest) like the picture.
            options: see the class.

        Returns:
            `pixel_values` (N, channels, height, width), float32 unless do_rescale and do_normalize are off; with segmentation maps
            also `labels` (N, height, width), int64.

        Raises:
            ImageError: a picture or map that cannot be used, with its number in the batch.
            ConfigurationError: results of different sizes that are to be stacked.
        """
        self._check_names(options)
        features: BatchFeature = super().preprocess(images, segmentation_maps, **options)
        return features

    def _preprocess_image_like_inputs(self, images: Any, segmentation_maps: Any = None, **options: Any) -> BatchFeature:
        return_tensors = options.pop("return_tensors")
        pictures = each_tensor(images, 3, lambda source: tensor_of(source, options), "picture")
        data = {"pixel_values": self._pixel_values(pictures, options)}
        if segmentation_maps is not None:
            maps = each_tensor(segmentation_maps, 2, lambda source: torch.from_numpy(read_mask(source)), "segmentation map")
            data["labels"] = self._labels(maps, [tuple(picture.shape[-2:]) for picture in pictures], options)
        shapes = sorted({tuple(value.shape) for value in data["pixel_values"]})
        if return_tensors is not None and len(shapes) > 1:
            raise ConfigurationError(
                f"the prepared pictures have different shapes ({', '.join(map(str, shapes))}) and cannot be stacked: use"
                " do_center_crop=True, a size of height and width, or do_pad=True, or leave out return_tensors"
            )
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _pixel_values(self, pictures: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
        pictures = [self._placed(picture, options) for picture in pictures]
        if options["do_flip_channel_order"]:
            self._note_the_flip()
            pictures = [torch.cat([picture[:3].flip(0), picture[3:]]) for picture in pictures]
        values: list[Tensor] = super()._preprocess(pictures, return_tensors=None, **options)["pixel_values"]
        if layout(options["data_format"]) == "channels_last":
            values = [value.movedim(0, -1) for value in values]
        return values

    def _placed(self, picture: Tensor, options: dict[str, Any]) -> Tensor:
        """On the device, and not so long that resizing the short side would fill the memory."""
        if options["device"] is not None:
            picture = picture.to(options["device"])
        crop_size = options["crop_size"] if options["do_center_crop"] else None
        return shortened(picture, options["size"], crop_size) if options["do_resize"] else picture

    def _note_the_flip(self) -> None:
        if self._flip_noted:
            return
        self._flip_noted = True
        warnings.warn(
            "this image processor swaps red and blue (do_flip_channel_order=True), but MobileViTV2 weights were trained on RGB,"
            " Apple's own included, whatever their preprocessor_config.json says: load the processor with"
            " from_pretrained(..., do_flip_channel_order=False), unless you trained on BGR yourself",
            InputContractWarning,
            stacklevel=2,
        )

    def _labels(self, maps: list[Tensor], sizes: list[tuple[int, ...]], options: dict[str, Any]) -> list[Tensor]:
        if len(maps) != len(sizes):
            raise ImageError(f"{len(maps)} segmentation maps came with {len(sizes)} pictures: pass one for each")
        labels = []
        for number, (each, size) in enumerate(zip(maps, sizes, strict=True), 1):
            if tuple(each.shape) != size:
                raise ImageError(
                    f"segmentation map {number} is {each.shape[1]} x {each.shape[0]} but its picture {size[1]} x {size[0]}: a map"
                    " has one class number for each pixel of its picture, as seen (EXIF orientation applied)"
                )
            labels.append(self._label(each[None], options))
        if options["do_pad"]:
            labels = self.pad(labels, pad_size=options["pad_size"], fill_value=IGNORED_LABEL)
        return [label[0].long() for label in labels]

    def _label(self, label: Tensor, options: dict[str, Any]) -> Tensor:
        """(1, H, W) to (1, height, width): the geometry of the pictures, with the nearest label, and ignored where nothing is."""
        label = self._placed(label, options)
        if options["do_reduce_labels"]:
            label = torch.where((label == 0) | (label == IGNORED_LABEL), IGNORED_LABEL, label - 1)
        if options["do_resize"]:
            label = self.resize(label, options["size"], PILImageResampling.NEAREST)
        if options["do_center_crop"]:
            # The base class pads with zeros; shifted by the ignored label, those are it.
            label = self.center_crop(label - IGNORED_LABEL, options["crop_size"]) + IGNORED_LABEL
        return label

    # --------------------------------------------------------------------------------------------------------- outputs to answers

    def post_process_image_classification(self, outputs: Any, *, top_k: int = 5) -> list[list[tuple[int, float]]]:
        """The best labels of each picture.

        Args:
            outputs: of MobileViTV2ForImageClassification, or logits (N, classes).
            top_k: how many labels; all, if there are fewer.

        Returns:
            For each picture (label, probability) pairs, the best first.
        """
        logits = _logits_of(outputs, 2)
        if top_k < 1:
            raise ConfigurationError(f"top_k is {top_k}: ask for 1 or more")
        best = logits.float().softmax(-1).topk(min(top_k, logits.shape[-1]))
        return [list(zip(*pair, strict=True)) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """The class of each pixel. Logits are upsampled first, as in the official evaluation (bilinear, align_corners=True).

        Args:
            outputs: of MobileViTV2ForSemanticSegmentation, or logits (N, classes, h, w).
            target_sizes: for each picture (height, width) of its map; without, maps have the size of the logits. The logits see
                what the model saw: to lay a map over the whole picture, prepare it with do_center_crop=False.
            return_segmentation_scores: give the upsampled logits too. Without, memory stays small at any target size.

        Returns:
            For each picture its map (height, width), int64; with scores, an object with `segmentation` and `segmentation_scores`
            (classes, height, width).

        Raises:
            ConfigurationError: not one target size for each picture, or one that is no (height, width).
        """
        logits = _logits_of(outputs, 4)
        sizes = _sizes_of(target_sizes, logits)
        if not return_segmentation_scores:
            return [class_map(each, size) for each, size in zip(logits, sizes, strict=True)]
        answers = []
        for each, size in zip(logits, sizes, strict=True):
            scores = torch.cat(list(upsampled(each, size)), dim=1)
            answers.append(
                SemanticSegmentationPostProcessorOutput(data={"segmentation": scores.argmax(0), "segmentation_scores": scores})
            )
        return answers

    @torch.no_grad()
    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: Sequence[tuple[int, int]] | Tensor | None = None,
        *,
        nms_threshold: float = 0.5,
        candidates: int = 400,
        max_detections: int = 200,
    ) -> list[dict[str, Tensor]]:
        """The objects in each picture; with a threshold of 0.01 as in the official evaluation.

        Args:
            outputs: of MobileViTV2ForObjectDetection.
            threshold: the least score, exclusive, in 0..1.
            target_sizes: for each picture its (height, width) in pixels, which boxes are then given in. Boxes lie in what the model
                saw: prepare pictures with a size of height and width, and do_center_crop=False.
            nms_threshold: of two boxes of a class that share more than this (intersection over union) the surer one stays.
            candidates: how many boxes of each class take part in that at most.
            max_detections: how many objects are given for a picture at most.

        Returns:
            For each picture a dictionary, the surest object first: "scores" (n,), "labels" (n,) in 0..num_labels - 1, and "boxes"
            (n, 4), (left, top, right, bottom), clipped to the picture; in units of the picture (0..1) without target sizes.

        Raises:
            ConfigurationError: outputs of another task, a number out of its range, not one target size for each picture.
        """
        check_detection_numbers(threshold, nms_threshold, candidates, max_detections)
        logits, boxes = detector_answers(outputs)
        sizes = [(1, 1)] * len(logits) if target_sizes is None else _target_sizes(target_sizes, len(logits))
        scores, corners = logits.float().softmax(-1)[..., 1:], to_corners(boxes.float())
        answers = []
        for index, (height, width) in enumerate(sizes):
            found = suppress(
                scores[index],
                corners[index],
                threshold=threshold,
                nms_threshold=nms_threshold,
                candidates=candidates,
                max_detections=max_detections,
            )
            clipped = found.boxes.clamp(0, 1) * found.boxes.new_tensor([width, height, width, height])
            answers.append({"scores": found.scores, "labels": found.labels, "boxes": clipped})
        return answers


# ------------------------------------------------------------------------------------------------------------- logits and the like


def _logits_of(outputs: Any, dims: int) -> Tensor:
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, Tensor) or logits.ndim != dims:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"type {type(outputs).__name__}"
        shape = "(N, classes)" if dims == 2 else "(N, classes, height, width)"
        raise ConfigurationError(
            f"outputs of {found} are no logits {shape}: pass what the model of this task returned, or its logits"
        )
    return logits


def _sizes_of(target_sizes: Sequence[tuple[int, int]] | Tensor | None, logits: Tensor) -> list[tuple[int, int]]:
    if target_sizes is None:
        return [(logits.shape[-2], logits.shape[-1])] * len(logits)
    return _target_sizes(target_sizes, len(logits))


def _target_sizes(target_sizes: Sequence[tuple[int, int]] | Tensor, pictures: int) -> list[tuple[int, int]]:
    given = target_sizes.tolist() if isinstance(target_sizes, Tensor) else target_sizes
    try:
        sizes = [tuple(int(length) for length in target) for target in given]
    except (TypeError, ValueError):  # (480, 640) for a batch, most often
        raise ConfigurationError(
            f"target_sizes is {given!r}: give a list with one (height, width) in pixels for each of the {pictures} pictures"
        ) from None
    if len(sizes) != pictures:
        raise ConfigurationError(f"{len(sizes)} target_sizes came with the logits of {pictures} pictures: pass one for each")
    for size in sizes:
        if len(size) != 2 or min(size) < 1:
            raise ConfigurationError(f"the target size {size} is no (height, width) in pixels, 1 or more")
    return [(size[0], size[1]) for size in sizes]
