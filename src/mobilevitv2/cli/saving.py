"""What `predict --save` writes: annotated pictures and videos, index masks, score maps."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.prediction import Prediction, Task
    from mobilevitv2.video import Video, VideoWriter

LARGEST_MAP_SIDE = 1280
ENDINGS = {"classify": "labels", "segment": "segments", "detect": "boxes"}


class Saver:
    """Writes what was answered as pictures: NAME.labels.jpg, NAME.segments.jpg or NAME.boxes.jpg (of videos .mp4), the classes of
    the pixels as NAME.mask.png, and NAME.attention.jpg with NAME.attention/LAYER.jpg.
    """

    def __init__(self, folder: Path, *, labels: bool) -> None:
        self.folder, self.labels, self.count = folder, labels, 0
        self.taken: set[str] = set()

    def save(self, prediction: Prediction, task: Task) -> None:
        """Write the pictures of one answer.

        Raises:
            OSError: as the system gave it; no half-written picture is left behind.
        """
        picture, name = prediction.picture, self._name(prediction.source)
        assert picture is not None  # asked for above
        if self.labels:
            self._write(f"{name}.{ENDINGS[task.name]}.jpg", task.draw(picture, prediction))
        if self.labels and prediction.mask is not None:
            from mobilevitv2.draw_masks import mask_png

            self._write_bytes(f"{name}.mask.png", mask_png(prediction.mask, first_name=str(task.names.get(0, ""))))
        if prediction.attention is None:
            return
        from mobilevitv2.draw import draw_heatmap, draw_score_maps, fitted

        self._write(f"{name}.attention.jpg", draw_score_maps(picture, prediction.attention, box=prediction.seen))
        small, box = fitted(picture, LARGEST_MAP_SIDE, box=prediction.seen)
        for layer, scores in prediction.attention:
            self._write(f"{name}.attention/{layer}.jpg", draw_heatmap(small, scores, box=box))

    @contextmanager
    def video(self, video: Video, task: Task) -> Iterator[VideoWriter]:
        """Inside, a file for the annotated frames of a video, which appears when all of them are there.

        Raises:
            OSError: as the system gave it. MissingDependency: no PyAV.
        """
        from mobilevitv2.video import VideoWriter

        name = f"{self._name(video.name)}.{ENDINGS[task.name]}.mp4"
        with VideoWriter(self.folder / name, rate=video.rate) as writer:
            yield writer
        self.count += writer.path.exists()

    def _write(self, name: str, picture: Image.Image) -> None:
        buffer = io.BytesIO()
        if max(picture.size) > 65_500:  # JPEG's limit
            picture.save(buffer, "PNG")
            name = f"{name.removesuffix('.jpg')}.png"
        else:
            picture.save(buffer, "JPEG", quality=92)
        self._write_bytes(name, buffer.getvalue())

    def _write_bytes(self, name: str, content: bytes) -> None:
        from mobilevitv2.weights import write_whole

        write_whole(self.folder / name, content)
        self.count += 1

    def _name(self, source: str) -> str:
        """The picture's own name, numbered where another one of this run has it: a/cat.jpg, b/cat.png -> cat, cat-2."""
        path = unquote(urlsplit(source).path) if "://" in source else source
        stem = PurePath(path).stem[:120] if not source.startswith("data:") else "picture"
        stem, number = stem or "picture", 2
        name = stem
        while name.lower() in self.taken:
            name, number = f"{stem}-{number}", number + 1
        self.taken.add(name.lower())
        return name
