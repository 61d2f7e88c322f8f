"""Divide the sequences of a trace (never its tokens) into the part a plan is fitted on and the part it is judged on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from grace_opt.trace import Trace


class Split(Protocol):
    """(trace) -> (fit part, held-out part), both without homes."""

    def __call__(self, trace: Trace) -> tuple[Trace, Trace]: ...


@dataclass(frozen=True)
class Alternate:
    """Sequences numbered by first appearance: even ones fit, odd ones are held out."""

    def __call__(self, trace: Trace) -> tuple[Trace, Trace]:
        return _divide(trace, np.arange(trace.num_sequences) % 2 == 0, "alternate")


@dataclass(frozen=True)
class ByDomain:
    """Some domains fit, all others are held out: how a plan fares on text it never saw the like of.

    Attributes:
        fit_domains: names of the domains to fit on.
    """

    fit_domains: Sequence[str]

    def __call__(self, trace: Trace) -> tuple[Trace, Trace]:
        unknown = [name for name in self.fit_domains if name not in trace.domain_names]
        if unknown:
            raise ValueError(
                f"split by domain: the trace has no domain {unknown[0]!r}; it has {', '.join(trace.domain_names)}"
            )
        numbers = [trace.domain_names.index(name) for name in self.fit_domains]
        return _divide(trace, np.isin(trace.domains, numbers), f"by domain {', '.join(self.fit_domains)}")


@dataclass(frozen=True)
class Random:
    """A seeded random share of the sequences fits.

    Attributes:
        fit_share: share of the sequences to fit on, between 0 and 1.
    """

    seed: int
    fit_share: float = 0.5

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"split: seed must not be negative, got {self.seed}")

    def __call__(self, trace: Trace) -> tuple[Trace, Trace]:
        if not 0 < self.fit_share < 1:
            raise ValueError(f"split.fit_share must lie between 0 and 1, got {self.fit_share}")
        fits = np.zeros(trace.num_sequences, bool)
        order = np.random.default_rng(self.seed).permutation(trace.num_sequences)
        fits[order[: round(self.fit_share * trace.num_sequences)]] = True
        return _divide(trace, fits, f"random, seed {self.seed}")


def _divide(trace: Trace, fits: NDArray[np.bool_], name: str) -> tuple[Trace, Trace]:
    if fits.all() or not fits.any():
        part = "held-out" if fits.all() else "fit"
        raise ValueError(
            f"split {name} leaves the {part} part empty: the trace has {trace.num_sequences} sequences; "
            "give a longer trace or another split"
        )
    return trace.select(np.flatnonzero(fits)), trace.select(np.flatnonzero(~fits))
