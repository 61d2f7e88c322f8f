"""How fast a gain fades on text of a kind the plan never saw.

For a domain d: one plan is fitted on the fit part as it is, one on the fit part without d; both are judged on the same
held-out sequences of d, against the engine's default. These are repeated up to a batch as large as that of all domains:
in smaller ones start-ups hide what a plan saves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.advice.candidates import Candidate, Workshop
from analysis.advice.judging import Judge, request_seconds
from analysis.results import Row


@dataclass(frozen=True)
class Fade:
    """Shares of time saved on one domain's held-out sequences.

    Attributes:
        domain: its name.
        sequences: held out.
        seen, unseen: with the domain in the fit, and without.
    """

    domain: str
    sequences: int
    seen: float
    unseen: float


def domains_to_try(workshop: Workshop, judge: Judge, most: int) -> list[int]:
    """Numbers of the domains that can be left out and judged: those with most held-out tokens."""
    fit, held_out = workshop.fit.trace, judge.held_out.trace
    if len(np.unique(fit.domains)) < 2:
        return []
    tokens_D = np.bincount(held_out.domains, held_out.lengths, len(held_out.domain_names))
    both = np.intersect1d(fit.domains, held_out.domains)
    return sorted(both.tolist(), key=lambda domain: (-tokens_D[domain], domain))[:most]


def fade(
    workshop: Workshop,
    judge: Judge,
    choice: Mapping[str, Candidate],
    default: Candidate,
    domain: int,
    check: Callable[[], None],
) -> Fade:
    """The gain of a choice (a candidate for each phase) with and without a domain in the fit.

    Args:
        check: called after each plan; may raise.

    Raises:
        ValueError: the planner cannot plan without the domain.
    """
    fit = workshop.fit
    others = replace(fit, trace=judge.dealt(fit.trace.select(np.flatnonzero(fit.trace.domains != domain))))
    without: dict[str, Candidate] = {}
    for candidate in choice.values():
        if candidate.name not in without:
            made = workshop.make(candidate.planner, candidate.redundancy, candidate.goal, others)
            without[candidate.name] = made
            check()
    trace = judge.held_out.trace
    sequences = np.flatnonzero(trace.domains == domain)
    there = judge.of(_up_to_a_batch(judge, sequences))
    seconds = {
        name: _request_seconds(there, of)
        for name, of in (
            ("default", dict.fromkeys(choice, default)),
            ("seen", choice),
            ("unseen", {phase: without[candidate.name] for phase, candidate in choice.items()}),
        )
    }
    seen, unseen = (1 - seconds[name] / seconds["default"] for name in ("seen", "unseen"))
    return Fade(trace.domain_names[domain], len(sequences), seen, unseen)


def _up_to_a_batch(judge: Judge, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sequences, repeated until they fill the largest batch that all held-out ones fill together."""
    trace, ranks = judge.held_out.trace, judge.held_out.topology.num_ranks
    wanted = min(max(phase.tokens_per_rank for phase in judge.phases) * ranks, trace.num_tokens)
    return np.tile(sequences, -(-wanted // int(trace.lengths[sequences].sum())))


def _request_seconds(judge: Judge, choice: Mapping[str, Candidate]) -> float:
    rows: dict[str, list[Row]] = {one.name: judge.rows(one) for one in choice.values()}
    return request_seconds([rows[choice[p.name].name][index] for index, p in enumerate(judge.phases)], judge.phases)
