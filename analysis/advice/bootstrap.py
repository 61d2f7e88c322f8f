"""How sure a gain is: the held-out sequences drawn anew, with replacement, again and again.

A resample has as many sequences as the held-out part, dealt onto ranks as they come, so that its spread holds both
which sequences a cluster happens to serve and where they happen to live. Every plan is counted and priced exactly on
the same resamples (recordings of prefill and decode with as many sequences are drawn alike: they may be the same
requests); a gain is formed inside each, and the interval runs between percentiles (Efron, Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). Largest loads do not add up over sequences, so nothing short of
counting again is right for them; the number of resamples is what fits into the time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.advice.candidates import Candidate
from analysis.advice.judging import Judge
from analysis.results import Row
from grace_opt.trace import Trace

LEVEL = 0.9
FEWEST_SEQUENCES = 8
"""With fewer, resamples say little of other sequences than these."""
FEWEST_RESAMPLES = 20
"""Fewer have no percentiles at LEVEL: made whatever time they take."""


@dataclass(frozen=True)
class Interval:
    """Percentiles of a share of time saved."""

    low: float
    high: float


class Resamples:
    """The rows of candidates on resamples of the held-out sequences, each priced when it is first asked for.

    Attributes:
        num: resamples; 0 if there are too few sequences.

    Args:
        most: resamples at most.
        seconds: for all candidates together.
        expected: candidates that will be asked for.
        tell: told before each resample (its number, of how many).
    """

    def __init__(
        self, judge: Judge, first: Candidate, most: int, seconds: float, expected: int, tell: Callable[[int, int], None]
    ) -> None:
        self._judge, self._tell, self._rows = judge, tell, dict[str, list[list[Row]]]()
        self.num = 0
        if most and judge.fewest_sequences >= FEWEST_SEQUENCES:
            self._row_of(first, 0)  # what is compiled at the first call is no measure
            began = time.perf_counter()
            self._row_of(first, 0)
            affordable = int(seconds / (time.perf_counter() - began) / expected)
            self.num = min(most, max(FEWEST_RESAMPLES, affordable))

    def rows(self, candidate: Candidate) -> list[list[Row]]:
        """[resample][phase] rows."""
        if candidate.name not in self._rows:
            made = []
            for number in range(self.num):
                self._tell(number, self.num)
                made.append(self._row_of(candidate, number))
            self._rows[candidate.name] = made
        return self._rows[candidate.name]

    def request_seconds(self, choice: Mapping[str, Candidate]) -> NDArray[np.float64]:
        """[resamples] seconds of a mean layer that a request takes, each phase with its own candidate."""
        total = np.zeros(self.num)
        for phase in self._judge.phases:
            total += phase.request_tokens * self.values(choice[phase.name], phase.name, "layer_s_per_token")
        return total

    def values(self, candidate: Candidate, phase: str, field: str) -> NDArray[np.float64]:
        """[resamples] a field of the rows of one phase."""
        index = [one.name for one in self._judge.phases].index(phase)
        return np.array([of[index][field] for of in self.rows(candidate)])

    def spread(self, candidate: Candidate, phase: str, field: str) -> Interval | None:
        """Interval of a field of the rows of one phase."""
        return interval(self.values(candidate, phase, field))

    def made(self, candidate: Candidate) -> bool:
        """Whether a candidate was priced on the resamples already."""
        return self.num > 0 and candidate.name in self._rows

    def _row_of(self, candidate: Candidate, number: int) -> list[Row]:
        judge = self._judge

        def drawn(trace: Trace) -> Trace:
            size = trace.num_sequences
            return trace.select(np.random.default_rng([judge.seed, number]).integers(size, size=size))

        return judge.rows_on(candidate, judge.of_each(drawn))


def interval(values: Sequence[float] | NDArray[np.float64]) -> Interval | None:
    """The percentiles that hold LEVEL of the values; None without values."""
    if not len(values):
        return None
    low, high = np.quantile(np.asarray(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def saved(now: NDArray[np.float64], then: NDArray[np.float64]) -> Interval | None:
    """Interval of the share of time saved, resample by resample."""
    return interval(1 - then / now)
