"""Times of several things that are run in turn, so that whatever disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key")
Run = Callable[[], object]
WARM_UPS = 3
FEWEST_ROUNDS, MOST_ROUNDS, SECONDS = 9, 200, 12.0
"""Where the rounds are not given: as many as fit into this time, within these bounds."""
PAUSE = 0.05
"""Seconds between runs on a processor. The threads of ONNX Runtime and OpenVINO wait by spinning, after an answer, too:
without a pause OpenVINO took 1.5 times as long behind ONNX Runtime as by itself (2 cores, width 1.0)."""


@dataclass(frozen=True)
class Times:
    """Of several runs, in milliseconds.

    Attributes:
        median, low, high: the middle, and the quartiles.
        least, most: the fastest and the slowest run.
        runs: how many there were.
    """

    median: float
    low: float
    high: float
    least: float
    most: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """From seconds; of at least one run."""
        ms = sorted(1e3 * each for each in seconds)
        low, _, high = statistics.quantiles(ms, n=4, method="inclusive") if len(ms) > 1 else (ms[0],) * 3
        return cls(statistics.median(ms), low, high, ms[0], ms[-1], len(ms))

    @property
    def spread(self) -> float:
        """Between the quartiles, as a share of the median."""
        return (self.high - self.low) / self.median


def in_turn(
    runs: Mapping[Key, Run],
    *,
    rounds: int | None,
    failed: Callable[[Key, Exception], None] | None = None,
    warm_ups: int = WARM_UPS,
    pause: float = 0.0,
) -> dict[Key, list[float]]:
    """Seconds of every run, round by round: one round runs each once. The first place moves on from round to round.

    Args:
        runs: that come back when the work is done.
        rounds: as many as fit into `SECONDS` where None.
        failed: told of a run that raises, which is left out from then on; without it the error passes on.
        warm_ups: rounds before, at least 1.
        pause: seconds before each run; see `PAUSE`.
    """
    left, times = dict(runs), {key: list[float]() for key in runs}
    warm: dict[Key, float] = {}
    for _ in range(warm_ups):
        warm = _round(left, list(left), failed, pause)
    total = rounds if rounds is not None else rounds_for(sum(warm.values()))
    for number in range(total):
        order = list(left)
        first = number % len(order) if order else 0
        for key, seconds in _round(left, order[first:] + order[:first], failed, pause).items():
            times[key].append(seconds)
    return {key: each for key, each in times.items() if key in left}


def _round(
    left: dict[Key, Run], order: list[Key], failed: Callable[[Key, Exception], None] | None, pause: float
) -> dict[Key, float]:
    times = {}
    for key in order:
        time.sleep(pause)
        start = time.perf_counter()
        try:
            left[key]()
        except Exception as error:
            if failed is None:
                raise
            del left[key]
            failed(key, error)
            continue
        times[key] = time.perf_counter() - start
    return times


def rounds_for(seconds: float) -> int:
    """How many rounds of this length are worth their time."""
    return max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(SECONDS / max(seconds, 1e-9))))


def times_faster(base: Sequence[float], other: Sequence[float]) -> float:
    """The median over the rounds of base / other: what disturbs a round disturbs both."""
    return statistics.median(first / second for first, second in zip(base, other, strict=True))
