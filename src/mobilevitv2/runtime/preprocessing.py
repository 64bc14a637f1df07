"""Pictures into arrays with Pillow and numpy, as the image processor does it in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mobilevitv2.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.runtime.metadata import PictureContract

Array = np.ndarray[Any, Any]
MOST_RESIZED_PIXELS = 2**26
"""Pictures that resizing would make larger than this are cut around their centre first, where a crop follows anyway."""


def resized_size(size: tuple[int, int], resize: dict[str, int] | None) -> tuple[int, int]:
    """(width, height) after the contract's resize.

    Args:
        size: (width, height) of the picture.
        resize: {"shortest_edge": s}, {"height": h, "width": w} or None.
    """
    if resize is None:
        return size
    edge = resize.get("shortest_edge")
    if not edge:
        return resize["width"], resize["height"]
    width, height = size
    if width <= height:
        return edge, max(1, int(edge * height / width))
    return max(1, int(edge * width / height)), edge


def prepare(picture: Image.Image, contract: PictureContract) -> Array:
    """An RGB picture as uint8 (height, width, 3): resized and cropped, not yet scaled.

    Raises:
        ImageError: a picture that the resize would make enormous.
    """
    from PIL import Image as Pillow

    width, height = resized_size(picture.size, contract.resize)
    if width * height > MOST_RESIZED_PIXELS:
        if contract.crop is None:
            raise ImageError(
                f"a picture of {picture.width} x {picture.height} pixels would become {width} x {height}: cut it first"
            )
        picture = _cut(picture, contract)
        width, height = resized_size(picture.size, contract.resize)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Pillow.Resampling[contract.interpolation.upper()])
    pixels = np.asarray(picture)
    return pixels if contract.crop is None else center_crop(pixels, contract.crop["height"], contract.crop["width"])


def center_crop(pixels: Array, height: int, width: int) -> Array:
    """The middle of (h, w, 3); zeros around it where it is smaller."""
    missing_rows, missing_columns = max(0, height - pixels.shape[0]), max(0, width - pixels.shape[1])
    if missing_rows or missing_columns:
        above, left = missing_rows // 2, missing_columns // 2
        pixels = np.pad(pixels, ((above, missing_rows - above), (left, missing_columns - left), (0, 0)))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def as_input(pixels: Array, contract: PictureContract, layout: str) -> Array:
    """Pictures (batch, height, width, 3), uint8, as the file takes them.

    Args:
        pixels: as `prepare` gives them, stacked.
        contract: of the file.
        layout: "NCHW" or "NHWC", of a float input.
    """
    if contract.inside:
        return np.ascontiguousarray(pixels)
    values = pixels.astype(np.float32)
    if contract.channel_order == "BGR":
        values = values[..., ::-1]
    values *= np.float32(contract.scale)
    if contract.mean is not None:
        values -= np.asarray(contract.mean, np.float32)
    if contract.std is not None:
        values /= np.asarray(contract.std, np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if layout == "NCHW" else values)


def _cut(picture: Image.Image, contract: PictureContract) -> Image.Image:
    """The part around the centre that crop and filter reach."""
    assert contract.crop is not None and contract.resize is not None
    edge, short = contract.resize["shortest_edge"], min(picture.size)
    margin = 4 * max(1, round(short / edge))
    width, height = picture.size
    kept_width = min(width, -(-contract.crop["width"] * short // edge) + 2 * margin)
    kept_height = min(height, -(-contract.crop["height"] * short // edge) + 2 * margin)
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    return picture.crop((left, top, left + kept_width, top + kept_height))
