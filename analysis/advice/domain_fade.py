"""How fast a gain fades on text of a kind the plan never saw.

For a domain d: one plan is fitted on the fit part as it is, one on the fit part without d; both are judged on the same
held-out sequences of d, against the engine's default. These are repeated up to a batch as large as that of all domains:
in smaller ones start-ups hide what a plan saves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.advice.candidates import Candidate, Workshop
from analysis.advice.demand import Phase
from analysis.advice.judging import Judge, request_seconds
from analysis.results import Row
from grace_opt.problem import Problem
from grace_opt.trace import Trace


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


def domains_to_try(phases: Sequence[Phase], most: int) -> list[str]:
    """The domains that can be left out and judged in every phase: those with most held-out tokens."""
    held_out = [tokens_of_domains(phase.held_out.trace) for phase in phases]
    fit = [tokens_of_domains(phase.fit.trace) for phase in phases]
    if min(map(len, fit)) < 2:
        return []
    everywhere = [name for name in held_out[0] if all(name in of for of in (*held_out, *fit))]
    return sorted(everywhere, key=lambda name: -sum(of[name] for of in held_out))[:most]


def tokens_of_domains(trace: Trace) -> dict[str, int]:
    """Tokens of each domain of which there are any, in the order of their numbers."""
    tokens_D = np.bincount(trace.domains, trace.lengths, len(trace.domain_names))
    return {name: int(tokens) for name, tokens in zip(trace.domain_names, tokens_D, strict=True) if tokens}


def fade(
    workshop: Workshop,
    judge: Judge,
    choice: Mapping[str, Candidate],
    default: Candidate,
    domain: str,
    check: Callable[[], None],
) -> Fade:
    """The gain of a choice (a candidate for each phase) with and without a domain in the fit.

    Args:
        check: called after each plan; may raise.

    Raises:
        ValueError: the planner cannot plan without the domain.
    """
    others = _without(workshop.phases, domain, judge.dealt)
    without: dict[str, Candidate] = {}
    for candidate in choice.values():
        if candidate.name not in without:
            made = workshop.make(candidate.planner, candidate.redundancy, candidate.goal, others)
            without[candidate.name] = made
            check()
    parts = judge.of_each(lambda trace: trace.select(_up_to_a_batch(judge, trace, sequences_of(trace, domain))))
    there = replace(
        judge, phases=tuple(replace(of, held_out=part) for of, part in zip(judge.phases, parts, strict=True))
    )
    seconds = {
        name: _request_seconds(there, of)
        for name, of in (
            ("default", dict.fromkeys(choice, default)),
            ("seen", choice),
            ("unseen", {phase: without[candidate.name] for phase, candidate in choice.items()}),
        )
    }
    seen, unseen = (1 - seconds[name] / seconds["default"] for name in ("seen", "unseen"))
    held_out = max(len(sequences_of(phase.held_out.trace, domain)) for phase in judge.phases)
    return Fade(domain, held_out, seen, unseen)


def sequences_of(trace: Trace, domain: str) -> NDArray[np.int64]:
    """Numbers of the sequences of a domain."""
    return np.flatnonzero(np.asarray(trace.domain_names)[trace.domains] == domain)


def _without(phases: Sequence[Phase], domain: str, dealt: Callable[[Trace], Trace]) -> list[Phase]:
    """The phases with fit parts that lack a domain."""
    made: dict[int, Problem] = {}
    for fit in {id(phase.fit): phase.fit for phase in phases}.values():
        others = np.setdiff1d(np.arange(fit.trace.num_sequences), sequences_of(fit.trace, domain))
        made[id(fit)] = replace(fit, trace=dealt(fit.trace.select(others)))
    return [replace(phase, fit=made[id(phase.fit)]) for phase in phases]


def _up_to_a_batch(judge: Judge, trace: Trace, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sequences, repeated until they fill the largest batch that all held-out ones fill together."""
    ranks = judge.topology.num_ranks
    wanted = min(max(phase.tokens_per_rank for phase in judge.phases) * ranks, trace.num_tokens)
    return np.tile(sequences, -(-wanted // int(trace.lengths[sequences].sum())))


def _request_seconds(judge: Judge, choice: Mapping[str, Candidate]) -> float:
    rows: dict[str, list[Row]] = {one.name: judge.rows(one) for one in choice.values()}
    return request_seconds([rows[choice[p.name].name][index] for index, p in enumerate(judge.phases)], judge.phases)
