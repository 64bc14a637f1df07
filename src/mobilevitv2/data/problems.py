"""Broken places of a data set, each remembered with where it is, what is wrong and what was done about it."""

from __future__ import annotations

import os
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


def inside(root: str | os.PathLike[str], *parts: str) -> Path | None:
    """The absolute path below a folder that a file of the data names; None where it leads out of it.

    Told from the names alone, so that links someone laid on purpose may lead anywhere.
    """
    if any("\0" in part for part in parts):
        return None
    base = os.path.abspath(root)  # noqa: PTH100  # resolve() would follow links
    path = os.path.normpath(os.path.join(base, *(part.replace("\\", "/") for part in parts)))  # noqa: PTH118  # many paths, fast
    return Path(path) if path == base or path.startswith(base.rstrip(os.sep) + os.sep) else None


def shortened(text: object, limit: int = 60) -> str:
    """What a file says, for messages: on one line, and cut where it is long."""
    words = " ".join(str(text).split())
    return words if len(words) <= limit else words[: limit - 3] + "..."
