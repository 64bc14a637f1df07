"""Small pictures of coloured rectangles for tests of training: with masks, and with boxes as COCO json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

RED, BLUE, GROUND = (230, 40, 30), (30, 50, 230), (90, 160, 90)


def scene(number: int, *, size: tuple[int, int] = (72, 60)) -> tuple[Image.Image, list[int], int]:
    """A picture, the rectangle on it (left, top, right, bottom) and its class: 0 red, 1 blue."""
    random = np.random.default_rng(number)
    width, height = size
    left, top = (int(random.integers(2, side // 3)) for side in size)
    box = [left, top, left + int(random.integers(width // 3, width // 2)), top + int(random.integers(height // 3, height // 2))]
    pixels = np.full((height, width, 3), GROUND, dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = RED if number % 2 == 0 else BLUE
    return Image.fromarray(pixels), box, number % 2


def write_boxes(root: Path, counts: dict[str, int]) -> Path:
    """COCO: `root/images`, `root/instances_SPLIT.json`; the categories' ids have a gap."""
    (root / "images").mkdir(parents=True)
    first = 0
    for split, count in counts.items():
        images, annotations = [], []
        for number in range(first, first + count):
            picture, box, label = scene(number)
            picture.save(root / "images" / f"{number:03d}.png")
            width, height = box[2] - box[0], box[3] - box[1]
            images.append({"id": number, "file_name": f"{number:03d}.png", "width": picture.width, "height": picture.height})
            annotations.append(
                {
                    "id": number + 1,
                    "image_id": number,
                    "category_id": (3, 7)[label],
                    "bbox": [box[0], box[1], width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        categories = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
        first += count
    return root


def write_masks(root: Path, counts: dict[str, int]) -> Path:
    """`root/SPLIT/images`, `root/SPLIT/masks`, `root/id2label.json`; a band at the bottom is 255."""
    first = 0
    for split, count in counts.items():
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for number in range(first, first + count):
            picture, box, label = scene(number)
            mask = np.zeros((picture.height, picture.width), dtype=np.uint8)
            mask[box[1] : box[3], box[0] : box[2]] = 1 + label
            mask[-2:] = 255
            picture.save(root / split / "images" / f"{number:03d}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{number:03d}.png")
        first += count
    (root / "id2label.json").write_text(json.dumps({"0": "ground", "1": "red", "2": "blue"}))
    return root
