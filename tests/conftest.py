"""What the tests share: where the real data lie, real photographs, small models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not Path("/dev/nvidiactl").exists():  # without a GPU kernels run in Triton's interpreter; Triton reads this when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(part: str) -> Path:
    folder = SHARED / part
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; it holds the real data of the acceptance tests")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """The folder with outputs of the official code."""
    return _shared("fixtures")


@pytest.fixture(scope="session")
def cat_photo() -> Path:
    """A real photograph of a cat (scikit-image's chelsea, CC0)."""
    return Path(__file__).resolve().parents[1] / "examples" / "cat.jpg"
