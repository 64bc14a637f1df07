"""Signals that end a program, as exceptions: what a verb has begun is then cleared away, whichever of them came."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt; SIGTERM and a closed terminal raise SystemExit with the code
    that shells give (143, 129).

    Signals that are ignored stay so: those of a shell's background job, or under nohup.
    """
    if threading.current_thread() is not threading.main_thread():  # Python gives signals to the main thread alone
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in handled:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
