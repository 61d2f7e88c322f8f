"""What a joint plan is to be good at: batches of one size or a mix of sizes, of all text alike or of each domain's own.

    plain     mean over batches of the trace, of the one size that the cost model prices
    mix       mean over the batches that a rank runs, of which each size has its share
    mean      mean over domains: each counts alike, however much of it was recorded
    worst     the domain that takes longest, as if a server had nothing else to serve

A domain of fewer tokens than a batch is repeated until it fills one, and times are put at equal tokens of a rank:
otherwise a domain would look fast or slow by how much of it was recorded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from grace_opt.batch_rates import BatchRates, PricesTraffic, batch_rates
from grace_opt.cost import LayerTime
from grace_opt.plan import Plan
from grace_opt.planners.home_scenarios import Scenario, home_maps
from grace_opt.problem import Problem
from grace_opt.trace import Trace
from grace_opt.traffic import Traffic, traffic

ROBUST = ("none", "mean", "worst")
FINER = 4
"""A mix may take so many times as many sample batches as were asked for, to come closer to its shares."""


@dataclass(frozen=True)
class AtSize:
    """A cost model at another batch size."""

    cost: PricesTraffic
    tokens_per_rank: int | None

    @property
    def scheme(self) -> str:
        return self.cost.scheme

    def price(self, problem: Problem, counts: Traffic) -> LayerTime:
        """As the model itself does: the counts know their batches."""
        return self.cost.price(problem, counts)


@dataclass(frozen=True, eq=False)
class Workload:
    """The batches that count, and how.

    Attributes:
        problem: planned for.
        costs: the cost model at each size of batch.
        shares: of the batches that a rank runs, for each size; above 0, in sum 1.
        rates: of each size (see `grace_opt.batch_rates`).
        domains: traces, homes yet to be dealt, whose times are told apart; the problem's own alone if none are.
        worst: the worst domain's time counts, else the mean over domains.
        recordings: a trace of each size; None: batches of all sizes are of the domain's.
        homes_known: requests live where the traces say, in place of random homes.
    """

    problem: Problem
    costs: tuple[AtSize, ...]
    shares: tuple[float, ...]
    rates: tuple[BatchRates, ...]
    domains: tuple[Trace, ...]
    worst: bool
    recordings: tuple[Trace, ...] | None = None
    homes_known: bool = False

    @classmethod
    def of(
        cls, problem: Problem, cost: PricesTraffic, mix: Sequence[Mapping[str, float]] | None, robust: str,
        recordings: Sequence[Trace] | None = None, homes_known: bool = False,
    ) -> "Workload":  # fmt: skip
        """That of a problem.

        Args:
            mix: {tokens_per_rank, share} of each size, as `require_mix` allows; None: the size that the cost prices.
            robust: one of ROBUST.
            recordings: a trace with homes for each part of the mix, whose batches are of it; None: the problem's.

        Raises:
            ValueError: robust, but the trace has one domain only; or recordings that do not go with mix and robust.
        """
        own = None if recordings is None else _of_mix(recordings, mix, robust)
        parts = [part for part in mix or () if part["share"] > 0]
        sizes = [int(part["tokens_per_rank"]) for part in parts] if mix else [cost.tokens_per_rank]
        shares = np.array([part["share"] for part in parts] if mix else [1.0])
        costs = tuple(AtSize(cost, size) for size in sizes)
        domains = (problem.trace,) if robust == "none" else _domains(problem, sizes, robust)
        each = [problem] * len(costs) if own is None else [replace(problem, trace=trace) for trace in own]
        rates = tuple(batch_rates(one, cost) for one, cost in zip(each, costs, strict=True))
        shares_S = tuple((shares / shares.sum()).tolist())
        return cls(problem, costs, shares_S, rates, domains, robust == "worst", own, homes_known)

    def mean_rates(self) -> BatchRates:
        """One set of rates for batches of all sizes: seconds of the mean row; the experts' table of the largest."""
        if len(self.rates) == 1:
            return self.rates[0]
        weights = np.array(self.shares) * [rates.tokens_per_rank for rates in self.rates]
        between_rank_s, between_node_s, inside_s = (
            np.average([getattr(rates, name) for rates in self.rates], axis=0, weights=weights)
            for name in ("between_rank_s", "between_node_s", "inside_s")
        )
        largest = max(self.rates, key=lambda rates: rates.most_tokens)
        overlaps = self.rates[int(weights.argmax())].overlaps
        return replace(
            largest,
            between_rank_s=between_rank_s,
            between_node_s=between_node_s,
            inside_s=inside_s,
            overlaps=overlaps,
        )

    def scenarios(self, num_batches: int, num_draws: int, first_seed: int) -> list[list[list[Scenario]]]:
        """[domain][draw] sample batches to draw, each draw with the sizes by their shares: `num_batches`, or some more
        where the shares ask for it. Batches of a domain take turns among random homes and their mirrors."""
        counts = batches_by_share(self.shares, num_batches)
        sizes = [cost.tokens_per_rank for cost, count in zip(self.costs, counts, strict=True) for _ in range(count)]
        result = []
        for maps_S in self.home_maps(-(-len(sizes) * num_draws // 2), first_seed):
            maps_of_batch = [maps for maps, count in zip(maps_S, counts, strict=True) for _ in range(count)]
            numbers = np.arange(len(sizes) * num_draws).reshape(num_draws, -1) % len(maps_S[0])
            result.append(
                [
                    [(maps[m], size) for m, maps, size in zip(draw, maps_of_batch, sizes, strict=True)]
                    for draw in numbers
                ]
            )
        return result

    def home_maps(self, num_maps: int, first_seed: int) -> list[list[list[Trace]]]:
        """[domain][size] its trace under seeded random homes and their mirrors; known homes are the one map."""

        def of(trace: Trace) -> list[Trace]:
            if self.homes_known:
                return [trace]
            return home_maps(trace, self.problem.topology, num_maps, first_seed)

        if self.recordings is not None:
            return [[of(trace) for trace in self.recordings]]
        return [[of(trace)] * len(self.costs) for trace in self.domains]

    def seconds(self, plan: Plan, maps_of_domain: Sequence[Sequence[Sequence[Trace]]]) -> NDArray[np.float64]:
        """[D, L] exact time of each layer for each domain: mean over home maps and, by their shares, over sizes."""
        seconds_DL = np.zeros((len(self.domains), self.problem.model.num_layers))
        for domain, maps_S in enumerate(maps_of_domain):
            for cost, share, rates, maps in zip(self.costs, self.shares, self.rates, maps_S, strict=True):
                times = []
                for trace in maps:
                    time = cost.price(replace(self.problem, trace=trace), traffic(trace, plan, cost.tokens_per_rank))
                    alike = 1.0 if len(self.domains) == 1 else rates.tokens_per_rank / time.tokens_per_rank
                    times.append(time.layer_s * alike)
                seconds_DL[domain] += share * np.mean(times, axis=0)
        return seconds_DL

    def objective(self, seconds_DL: NDArray[np.float64]) -> float:
        """Mean time of a layer, for the domains together."""
        return float(seconds_DL.mean(axis=1).max() if self.worst else seconds_DL.mean(axis=0).mean())


def require_mix(mix: Sequence[Mapping[str, float]] | None) -> None:
    """Raise ValueError unless this is a list of {tokens_per_rank, share}."""
    if mix is None:
        return
    for part in mix:
        if not isinstance(part, Mapping) or set(part) != {"tokens_per_rank", "share"}:
            raise ValueError(
                f"joint: mix must be a list of {{tokens_per_rank: ..., share: ...}}, or null, got {part!r}"
            )
        size, share = part["tokens_per_rank"], part["share"]
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"joint: tokens_per_rank of a mix must be a whole number, at least 1, got {size!r}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < np.inf:
            raise ValueError(f"joint: share of a mix must be a number, not negative, got {share!r}")
    sizes = [part["tokens_per_rank"] for part in mix]
    if not sum(part["share"] for part in mix) > 0 or len(set(sizes)) < len(sizes):
        raise ValueError("joint: mix must name every size once, one at least with a share above 0; null for no mix")


def _of_mix(recordings: Sequence[Trace], mix: Sequence[Mapping[str, float]] | None, robust: str) -> tuple[Trace, ...]:
    """Those of the parts of a mix that have a share."""
    if robust != "none" or mix is None or len(mix) != len(recordings):
        raise ValueError("joint: recordings need a mix with a part for each of them, and robust=none")
    return tuple(trace for trace, part in zip(recordings, mix, strict=True) if part["share"] > 0)


def batches_by_share(shares: Sequence[float], num_batches: int) -> list[int]:
    """Batches of each size, one at least: at least so many in all, up to FINER times as many if that is closer."""
    best, least = [1] * len(shares), np.inf
    for total in range(num_batches, FINER * num_batches + 1):
        counts = np.maximum(1, np.rint(np.array(shares) * total)).astype(int)
        error = float(np.abs(counts / counts.sum() - shares).max())
        if error < least - 1e-9:
            best, least = counts.tolist(), error
    return best


def _domains(problem: Problem, sizes: Sequence[int | None], robust: str) -> tuple[Trace, ...]:
    """The trace of each domain, repeated to a batch of the largest size if it has fewer tokens."""
    trace, numbers = problem.trace, np.unique(problem.trace.domains)
    if len(numbers) < 2:
        name = trace.domain_names[int(numbers[0])]
        raise ValueError(
            f"joint: robust={robust} needs a trace of several domains, but all {trace.num_sequences} sequences to plan "
            f"for are of domain {name!r}: give such a trace, or robust=none"
        )
    wanted = [trace.num_tokens if size is None else size * problem.topology.num_ranks for size in sizes]
    result = []
    for number in numbers:
        own = np.flatnonzero(trace.domains == number)
        times = -(-min(max(wanted), trace.num_tokens) // int(trace.lengths[own].sum()))
        result.append(trace.select(np.tile(own, times)))
    return tuple(result)
