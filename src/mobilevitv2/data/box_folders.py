"""Which of the layouts for detection a folder has."""

from __future__ import annotations

from pathlib import Path

from mobilevitv2.data.boxes import RawSplit
from mobilevitv2.data.coco import coco_files, read_coco_folder
from mobilevitv2.data.voc import is_voc, read_voc_folder
from mobilevitv2.data.yolo import is_yolo, read_yolo_folder
from mobilevitv2.errors import DataError

LAYOUTS = """\
  ROOT/annotations/instances_train*.json, ..., pictures in ROOT/train*, ROOT/images or beside   COCO json
  ROOT/train/_annotations.coco.json, ...                                                         COCO json as Roboflow lays it
  ROOT/Annotations/*.xml, ROOT/JPEGImages, ROOT/ImageSets/Main/train.txt, ...                    PASCAL VOC xml
  ROOT/data.yaml, ROOT/images/train and ROOT/labels/train, or ROOT/train/images, ...             YOLO txt
  ROOT/train-*.parquet, ... or what save_to_disk wrote, or OWNER/NAME of the Hugging Face hub    columns image and objects"""


def read_box_folder(root: Path) -> list[RawSplit]:
    """The splits of a folder in any of the layouts.

    Raises:
        DataError: none of the layouts; the message lists what is there.
    """
    files = coco_files(root)
    if files:
        return read_coco_folder(root, files)
    if is_voc(root):
        return read_voc_folder(root)
    if is_yolo(root):
        return read_yolo_folder(root)
    below = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    known = [folder for folder in below if coco_files(folder) or is_voc(folder) or is_yolo(folder)]
    if len(known) == 1:
        return read_box_folder(known[0])
    if known:
        raise DataError(f"{root} holds several data sets, {', '.join(folder.name for folder in known)}: name one of them")
    entries = sorted(entry.name for entry in root.iterdir())
    listed = ", ".join(entries[:10]) + (f" and {len(entries) - 10} more" if len(entries) > 10 else "")
    raise DataError(f"{root} has no boxes in a layout known; found: {listed or 'nothing'}. Layouts known for detection:\n{LAYOUTS}")
