"""Which candidate to take, and whether to take any.

One rule decides everything: what costs more (memory, a second plan, any plan at all) must surely save more than
`min_gain` of the time of the MoE layers. Surely: the lower end of the interval; without an interval, the mean.

    redundancy   the smallest whose best plan no larger one surely beats
    plans        one for all phases, unless a plan for each surely beats it, within the same memory
    at all       leave it as it is, unless the choice surely beats the engine's default
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.advice.bootstrap import Interval, Resamples, saved
from analysis.advice.candidates import Candidate
from analysis.advice.demand import Phase
from analysis.advice.judging import request_seconds
from analysis.results import Row

Choice = Mapping[str, Candidate]
"""A candidate for each phase; the same for all, or one each."""


@dataclass(frozen=True)
class Gain:
    """A share of the MoE layers' time that is saved, by a mean request.

    Attributes:
        mean: over homes of the held-out sequences as they are.
        sure: over resamples of them; None if none were made.
    """

    mean: float
    sure: Interval | None

    def pays(self, min_gain: float) -> bool:
        """Whether it surely is more than so much; without an interval, whether it is in the mean."""
        return min(self.mean, self.mean if self.sure is None else self.sure.low) > min_gain


class Comparison:
    """Candidates that were priced, and what one saves over another.

    Args:
        rows: those of each candidate by its name, one a phase; more may come.
    """

    def __init__(self, phases: Sequence[Phase], rows: Mapping[str, Sequence[Row]], resamples: Resamples) -> None:
        self.phases, self.rows, self._resamples = phases, rows, resamples

    def shared(self, candidate: Candidate) -> Choice:
        """The same for all phases."""
        return {phase.name: candidate for phase in self.phases}

    def seconds(self, choice: Choice) -> float:
        """Of a mean layer that a request takes."""
        rows = [self.rows[choice[phase.name].name][index] for index, phase in enumerate(self.phases)]
        return request_seconds(rows, self.phases)

    def gain(self, now: Choice, then: Choice) -> Gain:
        """What going from one choice to another saves."""
        sure = saved(self._resamples.request_seconds(now), self._resamples.request_seconds(then))
        return Gain(1 - self.seconds(then) / self.seconds(now), sure)

    def phase_gain(self, now: Choice, then: Choice, phase: str, field: str = "layer_s_per_token") -> Gain:
        """The same for one phase alone, or the share saved of another field."""
        before, after = (self._resamples.values(choice[phase], phase, field) for choice in (now, then))
        was, is_ = (self._of_phase(choice[phase], phase, field) for choice in (now, then))
        return Gain(1 - is_ / was, saved(before, after))

    def best(self, candidates: Sequence[Candidate]) -> Candidate:
        """The one plan that a request takes least time under."""
        return min(candidates, key=lambda candidate: self.seconds(self.shared(candidate)))

    def best_for_each_phase(self, candidates: Sequence[Candidate]) -> Choice:
        """For each phase the plan that takes least time there."""
        return {
            phase.name: min(candidates, key=lambda candidate: self._of_phase(candidate, phase.name))
            for phase in self.phases
        }

    def least_redundancy(self, best: Mapping[int, Candidate], min_gain: float) -> int:
        """The smallest redundancy whose best candidate none with more surely beats."""
        ascending = sorted(best)
        for index, redundancy in enumerate(ascending):
            more = (best[other] for other in ascending[index + 1 :])
            own = self.shared(best[redundancy])
            if not any(self.gain(own, self.shared(other)).pays(min_gain) for other in more):
                return redundancy
        raise AssertionError("nothing has more than the largest")

    def _of_phase(self, candidate: Candidate, phase: str, field: str = "layer_s_per_token") -> float:
        index = [one.name for one in self.phases].index(phase)
        return float(self.rows[candidate.name][index][field])
