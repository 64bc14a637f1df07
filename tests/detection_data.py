"""Small detection data for tests, in the layouts that are read: pictures of noise, and boxes that the test names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from classification_data import picture

Box = tuple[str, float, float, float, float]
"""Class, left, top, right, bottom."""


def write_picture(path: Path, number: int, size: tuple[int, int] = (64, 48)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture("green", number, size=size))


def coco(images: int, annotations: Sequence[Mapping[str, Any]], names: Sequence[str] = ("cat", "dog")) -> dict[str, Any]:
    """Pictures 0.png, 1.png, ... of 64 x 48 with ids from 10; classes with ids 3, 6, 9, ..."""
    listed = [{"id": 10 + at, "file_name": f"{at}.png", "width": 64, "height": 48} for at in range(images)]
    categories = [{"id": 3 * at + 3, "name": name} for at, name in enumerate(names)]
    return {"images": listed, "annotations": list(annotations), "categories": categories}


def annotation(image: int, box: Sequence[float], category: int = 3, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "bbox": list(box), "category_id": category, **more}


def write_coco(root: Path, name: str, content: object, *, folder: str = "images", pictures: int = 2, first: int = 0) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for number in range(pictures):
        write_picture(root / folder / f"{number}.png", first + number)
    return path


def voc_xml(boxes: Sequence[Box], *, size: tuple[int, int] = (64, 48), database: str = "", extra: str = "") -> str:
    objects = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox>{extra}</object>"
        for name, left, top, right, bottom in boxes
    )
    source = f"<source><database>{database}</database></source>" if database else ""
    return f"<annotation>{source}<size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>"


def write_voc(root: Path, pictures: Mapping[str, str | None], splits: Mapping[str, Sequence[str]] | None = None) -> Path:
    """Pictures and their xml (None for none), and ImageSets/Main."""
    (root / "Annotations").mkdir(parents=True)
    for number, (stem, xml) in enumerate(pictures.items()):
        write_picture(root / "JPEGImages" / f"{stem}.png", number)
        if xml is not None:
            (root / "Annotations" / f"{stem}.xml").write_text(xml)
    for split, stems in (splits or {}).items():
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(stems))
    return root


def write_yolo(root: Path, splits: Mapping[str, Sequence[str | None]], *, yaml: str | None = None) -> Path:
    """images/SPLIT/0.png, ... and labels/SPLIT/0.txt with the text named (None for no file)."""
    number = 0
    for split, texts in splits.items():
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        for at, text in enumerate(texts):
            write_picture(root / "images" / split / f"{at}.png", number)
            number += 1
            if text is not None:
                (root / "labels" / split / f"{at}.txt").write_text(text)
    if yaml is not None:
        (root / "data.yaml").write_text(yaml)
    return root
