"""Keep other libraries' notes off the terminal; what this package has to say itself is shown in one line each."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from mobilevitv2.cli.output import note


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def own_warnings_only(*, debug: bool) -> Iterator[None]:
    """Inside, warnings and log messages of this package become lines on standard error; those of others show in debug alone."""
    logger, handler = logging.getLogger("mobilevitv2"), _Lines(logging.DEBUG if debug else logging.WARNING)
    propagate, level = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    if debug:
        logger.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _show_all if debug else _show_own
            yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)


def _show_own(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    if category.__module__.startswith("mobilevitv2"):
        note(f"warning: {message}")


def _show_all(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None, line: str | None = None
) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def quiet_libraries() -> None:
    """Only errors from transformers and the hub, and no progress bars over weights; download bars stay."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
