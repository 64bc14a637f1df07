"""One picture as one tensor (channels, height, width), whatever it came as; the first step of the image processor."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_utils import SizeDict

from mobilevitv2.errors import ImageError
from mobilevitv2.pictures import read_picture

# A picture of ordinary proportions has 0.1 to 1 million pixels after resizing.
_MOST_RESIZED_PIXELS = 50_000_000


class InputContractWarning(UserWarning):
    """The pictures are prepared in a way that MobileViTV2 weights were not trained with."""


def each_tensor(sources: Any, dims: int, read: Callable[[Any], Tensor], what: str) -> list[Tensor]:
    """Read every source of a possibly nested list or batch; arrays of more than `dims` dimensions are batches.

    Raises:
        ImageError: as `read` raises it, with the number of the source; or there is none.
    """
    flat = list(_flat(sources, dims))
    if not flat:
        raise ImageError(f"no {what} was given: the list is empty")
    tensors = []
    for number, source in enumerate(flat, 1):
        try:
            tensors.append(read(source))
        except ImageError as error:
            if len(flat) == 1:
                raise
            raise ImageError(f"{what} {number} of {len(flat)}: {error}") from error
    return tensors


def _flat(sources: Any, dims: int) -> Iterator[Any]:
    shape = tuple(getattr(sources, "shape", ()))
    batch = len(shape) - (shape[-1:] == (1,) and dims == 2) > dims  # (H, W, 1) is one map
    # `datasets` hands out columns, which are sequences but no lists.
    listed = isinstance(sources, Sequence) and not isinstance(sources, (str, bytes, bytearray, memoryview))
    if not (batch or listed):
        yield sources
        return
    for source in sources:
        yield from _flat(source, dims)


def tensor_of(source: Any, options: dict[str, Any]) -> Tensor:
    """(channels, H, W) of uint8, or of float32 if the source is an array or tensor of floats."""
    if not isinstance(source, (Tensor, np.ndarray)):
        return torch.from_numpy(np.array(read_picture(source))).movedim(-1, 0)
    rgb, given = options["do_convert_rgb"], layout(options["input_data_format"])
    name = f"{'tensor' if isinstance(source, Tensor) else 'array'} of shape {tuple(source.shape)} and type {source.dtype}"
    picture = _channels_first(source, given, name, any_channels=not rgb)
    if picture.dtype == torch.bool:
        picture = picture.to(torch.uint8) * 255
    elif picture.dtype == torch.uint16:
        picture = (picture.float() * (255 / 65535)).round().to(torch.uint8)
    elif picture.is_floating_point():
        picture = picture.float()
        _check_scale(picture, options)
    elif picture.dtype != torch.uint8:
        raise ImageError(f"{name} is no picture: the types are uint8, uint16, bool and float; convert it to uint8")
    return _rgb(picture, 1 / options["rescale_factor"] if options["do_rescale"] else 1.0) if rgb else picture


def _native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.require(array, array.dtype.newbyteorder("="), ["C", "W"])


def _channels_first(source: Tensor | np.ndarray[Any, Any], given: str | None, name: str, *, any_channels: bool) -> Tensor:
    try:
        # torch warns of arrays that cannot be written to, such as those of Pillow images, and knows one byte order.
        picture = source if isinstance(source, Tensor) else torch.from_numpy(_native(source))
    except TypeError as error:
        raise ImageError(f"{name} is no picture: the types are uint8, uint16, bool and float; convert it to uint8") from error
    if picture.ndim == 2:
        picture, given = picture[None], "channels_first"
    if picture.ndim != 3:
        raise ImageError(f"{name} is no picture: it needs 2 dimensions (height, width), 3 with channels, 4 for a batch")
    first, last = picture.shape[0] in (1, 3, 4), picture.shape[-1] in (1, 3, 4)
    if given is None:
        given = "channels_first" if (isinstance(source, Tensor) if first == last else first) else "channels_last"
    as_first = given == "channels_first"
    if not (first if as_first else last) and not any_channels:
        raise ImageError(f"{name} is no picture of 1, 3 or 4 channels: for other numbers pass do_convert_rgb=False")
    picture = picture if as_first else picture.movedim(-1, 0)
    if picture.numel() == 0:
        raise ImageError(f"{name} has no pixels: check what made it")
    return picture


def _check_scale(picture: Tensor, options: dict[str, Any]) -> None:
    top = float(picture.detach().max())
    if options["do_rescale"] and options["rescale_factor"] < 0.1 and 0 < top <= 1:
        warnings.warn(
            f"an array or tensor of floats with values up to {top:g} seems to run from 0 to 1 already and is multiplied by"
            f" rescale_factor={options['rescale_factor']:g} all the same: pass do_rescale=False",
            InputContractWarning,
            stacklevel=2,
        )


def _rgb(picture: Tensor, white: float) -> Tensor:
    """Greyscale and RGBA tensors as RGB, as `read_picture` does; `white` is the largest value of floats."""
    if picture.shape[0] == 1:
        return picture.expand(3, -1, -1)
    if picture.shape[0] == 3:
        return picture
    if picture.dtype == torch.uint8:
        return torch.from_numpy(np.array(read_picture(picture))).movedim(-1, 0).to(picture.device)
    alpha = picture[3:] / white
    return picture[:3] * alpha + white * (1 - alpha)


def shortened(picture: Tensor, size: SizeDict, crop_size: SizeDict | None) -> Tensor:
    """Cut a very long picture around its centre, where resizing its short side would make it enormous and the crop throw it away.

    A picture of 20000 x 3 pixels would become 1,920,000 x 288. What remains covers the crop and the reach of the filter; the phase
    of the resampling may move by less than a pixel.
    """
    edge = size.shortest_edge
    if not edge or size.longest_edge:
        return picture
    height, width = picture.shape[-2:]
    short, long = min(height, width), max(height, width)
    if edge * edge * long / short <= _MOST_RESIZED_PIXELS:
        return picture
    if crop_size is None:
        raise ImageError(
            f"a picture of {width} x {height} pixels would become {edge * long // short} long with a short side of {edge}: use"
            " do_center_crop=True or a size of height and width"
        )
    dim = -2 if height > width else -1
    wanted = crop_size.height if height > width else crop_size.width
    margin = 4 * math.ceil(max(1.0, short / edge))
    kept = min(long, math.ceil(wanted * short / edge) + 2 * margin)
    kept += (long - kept) % 2  # as even or odd as before: the centre stays the centre
    return picture.narrow(dim, (long - kept) // 2, kept)


def layout(data_format: Any) -> str | None:
    """The plain name of transformers' ChannelDimension, which may be one already."""
    return None if data_format is None else str(getattr(data_format, "value", data_format))
