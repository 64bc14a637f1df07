"""Broken places of a data set, each remembered with where it is, what is wrong and what was done about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One broken place, found when the data were opened."""

    split: str
    """"train", "validation" or "test"; "all" for what belongs to none."""
    where: str
    """File, and the place in it: "BloodImage_00338.xml object 13"."""
    what: str
    """The kind of problem, the same words for each of a kind: "box of no area"."""
    detail: str = ""
    """The value that was wrong: "xmin 504 = xmax 504"."""
    action: str = "left out"
    """What was done about it: "left out", "clipped", "kept"."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.detail})" if self.detail else "") + f", {self.action}"


def inside(root: Path, *parts: str) -> Path | None:
    """The path below a folder that a file of the data names; None where it leads out of it.

    Told from the names alone, so that links someone laid on purpose may lead anywhere.
    """
    import os.path

    if any("\0" in part for part in parts):
        return None
    path = Path(os.path.normpath(root.joinpath(*(part.replace("\\", "/") for part in parts))))
    return path if path.is_relative_to(os.path.normpath(root)) else None


def shortened(text: object, limit: int = 60) -> str:
    """What a file says, for messages: on one line, and cut where it is long."""
    words = " ".join(str(text).split())
    return words if len(words) <= limit else words[: limit - 3] + "..."
