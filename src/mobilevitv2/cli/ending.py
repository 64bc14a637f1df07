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

    The first one counts: what comes after it, a second Ctrl-C or the terminal closing, would break off the clearing away, and is
    passed over until the end. Signals that are ignored stay so: those of a shell's background job, or under nohup.
    """
    if threading.current_thread() is not threading.main_thread():  # Python gives signals to the main thread alone
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def end(number: int, frame: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, _pass_over)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def _pass_over(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which programs that are started meanwhile would inherit."""
