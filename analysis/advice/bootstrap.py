"""How sure a gain is: the held-out sequences drawn anew, with replacement, again and again.

A resample has as many sequences as the held-out part, dealt onto ranks as they come, so that its spread holds both
which sequences a cluster happens to serve and where they happen to live. Every plan is counted and priced exactly on
the same resamples; a gain is formed inside each, and the interval runs between percentiles (Efron, Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). Largest loads do not add up over sequences, so nothing short of
counting again is right for them; the number of resamples is what fits into the time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.advice.candidates import Candidate
from analysis.advice.judging import Judge
from analysis.results import Row

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
        if most and judge.held_out.trace.num_sequences >= FEWEST_SEQUENCES:
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
        for index, phase in enumerate(self._judge.phases):
            rows = self.rows(choice[phase.name])
            total += phase.request_tokens * np.array([of[index]["layer_s_per_token"] for of in rows])
        return total

    def phase_seconds(self, candidate: Candidate, phase: str) -> NDArray[np.float64]:
        """[resamples] seconds a token in one phase."""
        index = [one.name for one in self._judge.phases].index(phase)
        return np.array([of[index]["layer_s_per_token"] for of in self.rows(candidate)])

    def spread(self, candidate: Candidate, phase: str, field: str) -> Interval | None:
        """Interval of a field of the rows themselves."""
        index = [one.name for one in self._judge.phases].index(phase)
        return interval([of[index][field] for of in self.rows(candidate)])

    def _row_of(self, candidate: Candidate, number: int) -> list[Row]:
        judge = self._judge
        trace = judge.held_out.trace
        drawn = np.random.default_rng([judge.seed, number]).integers(trace.num_sequences, size=trace.num_sequences)
        problem = replace(judge.held_out, trace=judge.dealt(trace.select(drawn)))
        return [judge.row(candidate, phase, problem) for phase in judge.phases]


def interval(values: Sequence[float] | NDArray[np.float64]) -> Interval | None:
    """The percentiles that hold LEVEL of the values; None without values."""
    if not len(values):
        return None
    low, high = np.quantile(np.asarray(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def saved(now: NDArray[np.float64], then: NDArray[np.float64]) -> Interval | None:
    """Interval of the share of time saved, resample by resample."""
    return interval(1 - then / now)
