"""Transfers that share links max-min fairly: when each of them ends if all start together.

A flow is what one rank sends another, along the fixed route of that pair. At any time rates are max-min fair: the link
that would be full first, were all flows to grow alike, shares its capacity equally among its flows; these are fixed,
the others grow on (progressive filling; Bertsekas and Gallager, Data Networks, section 6.5.2). When a flow ends, the
rest are shared anew, so the time goes from end to end of a flow, exactly, without steps.

The bytes of the busiest link over its bandwidth (`simulator.network`) never exceed what comes out here: they assume
that this link is busy to the end, while fair flows may leave it idle late because some of them had to wait elsewhere.
Latency, bursts, and what a protocol adds are left out.

Example: links of 10, 20 and 10 bytes/s; flows of 1000 bytes on the first two, 500 on the first, 1000 on the second and
2000 on the last two. At first the first link is full first: 5 and 5; the second leaves 7.5 each to the others. The flow
of 500 bytes ends at 100 s, the next at 137.5, 162.5 and 237.5 s.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from grace_opt.topology import Topology

_ROUNDING = 1e-12  # flows whose last bytes differ by less than this part of all their bytes end together


def fair_seconds(topology: Topology, bytes_CRR: NDArray[np.float64]) -> NDArray[np.float64]:
    """[C] seconds until the last flow of each case is done; 0 where nothing is sent.

    Args:
        bytes_CRR: [C, R, R] bytes rank to rank of each case; those on the diagonal stay where they are.

    Raises:
        ValueError: bytes that are negative, not finite, or of other ranks than the topology's.
    """
    bytes_CF = _bytes_of_flows(topology, bytes_CRR)
    tables = _tables(topology)
    ends: Any = _ends  # compiled
    return np.array([ends(*tables, bytes_F).max(initial=0.0) for bytes_F in bytes_CF])


def fair_finish_s(topology: Topology, bytes_RR: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R, R] seconds until each flow is done; 0 for those without bytes.

    Args:
        bytes_RR: [R, R] bytes rank to rank; those on the diagonal stay where they are.

    Raises:
        ValueError: as `fair_seconds`.
    """
    (bytes_F,) = _bytes_of_flows(topology, np.asarray(bytes_RR)[None])
    ends: Any = _ends
    return np.asarray(ends(*_tables(topology), bytes_F).reshape(topology.num_ranks, topology.num_ranks))


def _bytes_of_flows(topology: Topology, bytes_CRR: NDArray[np.float64]) -> NDArray[np.float64]:
    """[C, R * R] checked bytes."""
    num_ranks = topology.num_ranks
    bytes_CRR = np.asarray(bytes_CRR, np.float64)
    if bytes_CRR.ndim != 3 or bytes_CRR.shape[1:] != (num_ranks, num_ranks):
        raise ValueError(
            f"bytes must be [cases, {num_ranks}, {num_ranks}] for topology {topology.name}, got {bytes_CRR.shape}"
        )
    if not np.isfinite(bytes_CRR).all() or (bytes_CRR < 0).any():
        raise ValueError("bytes of flows must be finite and not negative")
    return bytes_CRR.reshape(len(bytes_CRR), num_ranks * num_ranks)


def _tables(topology: Topology) -> tuple[NDArray[np.float64], ...]:
    """Capacity of each link; its flows, by where they start; the links of each flow, by where they start."""
    by_link, by_flow = topology.routes, topology.routes.tocsc()
    return (topology.link_bytes_per_s, by_link.indptr, by_link.indices, by_flow.indptr, by_flow.indices)


@njit(nogil=True, cache=True, error_model="numpy")
def _ends(capacity, link_start, link_flows, flow_start, flow_links, bytes_F):  # type: ignore[no-untyped-def]
    """[F] when each flow ends."""
    end, rate, remaining = np.zeros(len(bytes_F)), np.zeros(len(bytes_F)), bytes_F.copy()
    waits = (bytes_F > 0) & (flow_start[1:] > flow_start[:-1])  # flows that are to be given a rate
    free, waiting = capacity.copy(), np.zeros(len(capacity), np.int64)  # of each link: capacity, flows without a rate
    for flow in np.nonzero(waits)[0]:
        for hop in range(flow_start[flow], flow_start[flow + 1]):
            waiting[flow_links[hop]] += 1
    fixed = np.empty(waits.sum(), np.int64)  # flows under way in the order in which they were given their rates, rising
    now, kept, live = 0.0, 0, len(fixed)
    while live > 0:
        _share(link_start, link_flows, flow_start, flow_links, fixed[:live], kept, free, waiting, waits, rate)
        for place in range(kept, live):
            end[fixed[place]] = now + remaining[fixed[place]] / rate[fixed[place]]
        now = end[fixed[:live]].min()
        kept = _first_to_share_anew(fixed[:live], end, rate, now * (1 + _ROUNDING))
        left = int(kept)
        for place in range(kept, live):
            flow = fixed[place]
            ended = end[flow] <= now * (1 + _ROUNDING)
            remaining[flow] = (end[flow] - now) * rate[flow]
            waits[flow] = not ended
            for hop in range(flow_start[flow], flow_start[flow + 1]):
                free[flow_links[hop]] += rate[flow]
                waiting[flow_links[hop]] += not ended
            left += not ended
        live = left
    return end


@njit(nogil=True, cache=True)
def _first_to_share_anew(fixed, end, rate, now):  # type: ignore[no-untyped-def]
    """From which place on flows need new rates, once those whose end has come are gone.

    Slower flows than the slowest of those keep theirs: the links they were fixed on carried no flow that ended, or it
    would have been fixed with them, and all other links are now full later than before, not earlier.
    """
    place = 0
    while end[fixed[place]] > now:
        place += 1
    while place > 0 and rate[fixed[place - 1]] == rate[fixed[place]]:
        place -= 1
    return place


@njit(nogil=True, cache=True, error_model="numpy")
def _share(  # type: ignore[no-untyped-def]
    link_start, link_flows, flow_start, flow_links, fixed, done, free, waiting, waits, rate
):
    """Give all waiting flows a rate and write them to `fixed`, whose first `done` have theirs, in that order."""
    links = np.nonzero(waiting)[0]
    level = rate[fixed[done - 1]] if done > 0 else 0.0
    while done < len(fixed):
        full, share, used = links[0], np.inf, 0
        for link in links:
            if waiting[link] > 0:
                links[used] = link
                used += 1
                if free[link] < share * waiting[link]:
                    full, share = link, free[link] / waiting[link]
        links = links[:used]
        level = max(level, share)  # rounding must not lower it
        for place in range(link_start[full], link_start[full + 1]):
            flow = link_flows[place]
            if waits[flow]:
                waits[flow] = False
                rate[flow] = level
                fixed[done] = flow
                done += 1
                for hop in range(flow_start[flow], flow_start[flow + 1]):
                    free[flow_links[hop]] -= level
                    waiting[flow_links[hop]] -= 1
