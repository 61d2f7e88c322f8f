"""What the links of a cluster carry: start-up time, bandwidth, what passes at once after a pause, and who is near whom.

Everything is measured with the exchange that the runtime itself uses, on made-up rows, all ranks of a pattern at once:

    near      pairs of ranks that exchange a message much faster than others stand on one node
    latency   an exchange of one row a pair, its counts included
    line      seconds = start + bytes / bandwidth, fitted to exchanges of several sizes
    burst     what `start` falls short of the latency: bytes that a token bucket lets pass at once after a pause
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from runtime.calibration.timing import exchange_seconds
from runtime.exchange import Peers, Transfer
from runtime.group import Group, current_group

GAP = 2.0
"""Pairs on one node are at least this much faster than pairs on two."""
ROW_BYTES = 1024
TELLING_S = 0.01
"""Pairs are compared by messages that take one of them so long, or by the largest: shorter ones show only noise."""
LONG_ENOUGH_S, LARGEST_BYTES = 0.08, 64_000_000
"""The largest exchange should take so long that a scheduler's tick (4 ms) does not matter; but within memory."""


@dataclass(frozen=True)
class Line:
    """A link, per direction: seconds = latency + max(bytes - burst, 0) / bandwidth.

    Attributes:
        latency_s: the lower quartile of many; on ranks that share cores the upper ones are the scheduler's ticks.
        points: (bytes, seconds) measured, medians.
        worst_error: largest relative distance of a point from the line.
        latency_range_s: the shortest latency seen and the median.
    """

    latency_s: float
    bytes_per_s: float
    burst_bytes: float
    worst_error: float
    points: tuple[tuple[float, float], ...]
    latency_range_s: tuple[float, float] = (0.0, 0.0)

    def seconds(self, size: float) -> float:
        """What so many bytes take."""
        return self.latency_s + max(size - self.burst_bytes, 0.0) / self.bytes_per_s


@dataclass(frozen=True)
class Links:
    """All that was measured of the links.

    Attributes:
        ranks_per_node: structure found.
        inside: the link of a rank inside its node, all ranks at work; None if no node has two ranks.
        out_of_node: the link of each node to all others, all its ranks at work; empty if there is one node.
        out_of_rank: the same of rank 0 and the first rank of another node alone; None if there is one node.
        all_with_all: measured seconds of an exchange of everyone with everyone, over those of the busiest link's line.
    """

    ranks_per_node: tuple[int, ...]
    inside: Line | None
    out_of_node: tuple[Line, ...]
    out_of_rank: Line | None
    all_with_all: float

    @property
    def shared_card(self) -> bool:
        """Whether the ranks of a node share a network card, so that together they send no faster than one alone."""
        if self.out_of_rank is None or max(self.ranks_per_node) == 1:
            return True
        together = float(np.mean([line.bytes_per_s for line in self.out_of_node]))
        return together < self.out_of_rank.bytes_per_s * (1 + float(np.mean(self.ranks_per_node))) / 2


def measure_links(group: Group, message_bytes: int, repetitions: int, say: Callable[[str], None]) -> Links:
    """Measure the links between all ranks; every rank must call it, and gets the same result.

    Args:
        message_bytes: the largest message through a link, at first.
        say: told what is being measured.

    Raises:
        ValueError: ranks of a node are not consecutive.
    """
    say("which ranks are near each other")
    nodes = find_nodes(group, message_bytes, repetitions)
    node_R = np.repeat(np.arange(len(nodes)), nodes)
    everyone, near = Peers.everyone(), Peers.of_my_node(nodes)
    out_of_node, out_of_rank, inside = [], None, None
    if len(nodes) > 1:
        for node in range(len(nodes)):
            say(f"the links of node {node} to the others")
            out_of_node.append(measure_line(group, everyone, star(node_R, node), message_bytes, repetitions))
        say("the link of one rank alone")
        out_of_rank = measure_line(group, everyone, pair(group.size, 0, nodes[0]), message_bytes, repetitions)
    same_node = (node_R[:, None] == node_R[None, :]) & ~np.eye(group.size, dtype=bool)
    if same_node.any():
        say("the links inside nodes")
        share = same_node / np.maximum(same_node.sum(axis=1, keepdims=True), 1)
        inside = measure_line(group, near, share, message_bytes, repetitions)
    say("everyone with everyone")
    lines = [(line, share) for line, share in zip(out_of_node, _leaving(group.size, node_R), strict=False)]
    if inside is not None:
        lines.append((inside, float((same_node.sum(axis=1) / (group.size - 1)).max())))
    ratios = []
    for size in (message_bytes // part for part in (8, 4, 2, 1)):
        action = exchange(everyone, (1 - np.eye(group.size)) / max(group.size - 1, 1) * size)
        measured = float(np.median(exchange_seconds(group, action, repetitions)))
        ratios.append(measured / max([line.seconds(share * size) for line, share in lines], default=measured))
    return Links(nodes, inside, tuple(out_of_node), out_of_rank, float(np.median(ratios)))


def find_nodes(group: Group, message_bytes: int, repetitions: int) -> tuple[int, ...]:
    """Ranks of each node: fast pairs stand on one node. Where no pair is much faster, hosts are nodes, as started.

    Raises:
        ValueError: the fast pairs are not those of consecutive ranks.
    """
    seconds, everyone = np.full((group.size, group.size), np.inf), Peers.everyone()

    def shortest(a: int, b: int, size: int) -> float:
        return float(exchange_seconds(group, exchange(everyone, pair(group.size, a, b) * size), max(3, repetitions))[0])

    size = message_bytes // 8
    while group.size > 1 and size < message_bytes and shortest(0, 1, size) < TELLING_S:
        size *= 2
    for a, b in combinations(range(group.size), 2):
        seconds[a, b] = seconds[b, a] = shortest(a, b, size)
    return nodes_of_pairs(seconds, group.ranks_per_node)


def nodes_of_pairs(seconds_RR: NDArray[np.float64], started: tuple[int, ...]) -> tuple[int, ...]:
    """Ranks of each node from the seconds every pair takes (inf on the diagonal).

    Args:
        started: ranks of each host, as the launcher says; counts where no gap between sorted times is GAP or more.

    Example: pairs (0, 1) and (2, 3) take 1 ms, all others 10 ms: nodes of 2 and 2 ranks.
    """
    times = np.sort(seconds_RR[np.isfinite(seconds_RR)])
    gaps = [later / earlier for earlier, later in pairwise(times)]
    if max(gaps, default=1.0) < GAP:
        return started
    limit = times[int(np.argmax(gaps))]
    near = (seconds_RR <= limit) | np.eye(len(seconds_RR), dtype=bool)
    starts = [rank for rank in range(len(near)) if not near[rank, :rank].any()]
    nodes = np.diff([*starts, len(near)])
    node_R = np.repeat(np.arange(len(nodes)), nodes)
    if (near != (node_R[:, None] == node_R[None, :])).any():
        raise ValueError(
            f"ranks near each other (pairs within {limit * 1e3:.3g} ms: {np.argwhere(np.triu(near, 1)).tolist()}) are "
            "not consecutive: start the ranks of a host together"
        )
    return tuple(int(size) for size in nodes)


def measure_line(
    group: Group, peers: Peers, share_RR: NDArray[np.float64], message_bytes: int, repetitions: int
) -> Line:
    """Fit a line to exchanges of several sizes, rank a sending rank b share_RR[a, b] of each.

    Sizes grow until an exchange takes LONG_ENOUGH_S.
    """
    start = exchange_seconds(group, exchange(peers, (share_RR > 0).astype(np.float64)), 4 * repetitions)
    largest, points = message_bytes, []
    while (
        largest < LARGEST_BYTES and exchange_seconds(group, exchange(peers, share_RR * largest), 3)[1] < LONG_ENOUGH_S
    ):
        largest *= 2
    for size in (largest // part for part in (8, 4, 2, 1)):
        taken = exchange_seconds(group, exchange(peers, share_RR * size), repetitions)
        points.append((float(size), float(np.median(taken))))
    line = fit_line(float(np.quantile(start, 0.25)), points)
    return replace(line, latency_range_s=(float(start[0]), float(np.median(start))))


def fit_line(latency_s: float, points: Sequence[tuple[float, float]]) -> Line:
    """The line of the median slope between points (Theil-Sen, which one slow exchange does not bend).

    A start below the latency is a burst, one above it takes the latency's place.

    Example: latency 2 ms, (1 MB, 9 ms) and (2 MB, 19 ms): 100 MB/s from -1 ms on, so 0.3 MB pass at once.
    """
    size, seconds = np.array(points).T
    slopes = [(t - u) / (b - a) for (a, u), (b, t) in combinations(points, 2)]
    per_byte = float(np.median(slopes))
    if per_byte <= 0:  # noise: nothing but latency
        per_byte = float(seconds.min() / size.max())
    start = float(np.median(seconds - per_byte * size))
    line = Line(max(latency_s, start), 1 / per_byte, max(0.0, latency_s - start) / per_byte, 0.0, tuple(points))
    return replace(line, worst_error=max(abs(line.seconds(s) / taken - 1) for s, taken in points))


def exchange(peers: Peers, bytes_RR: NDArray[np.float64]) -> Callable[[], object]:
    """An exchange as a stage of the runtime makes it: counts, then rows; rank a sends rank b bytes_RR[a, b]."""
    me, ranks = peers.ranks[peers.me], list(peers.ranks)
    rows_RR = np.ceil(bytes_RR / ROW_BYTES).astype(int)
    sent, received = tuple(rows_RR[me, ranks].tolist()), tuple(rows_RR[ranks, me].tolist())
    device = current_group().device
    rows = torch.ones(sum(sent), ROW_BYTES // 4, device=device)
    counts = torch.tensor([sent, sent], device=device).T.contiguous()

    def run() -> None:
        dist.all_to_all_single(torch.empty_like(counts), counts, group=peers.group)
        Transfer.start(rows, sent, received, peers).wait()

    return run


def pair(num_ranks: int, a: int, b: int) -> NDArray[np.float64]:
    """Shares [R, R] of two ranks that send everything to each other."""
    share = np.zeros((num_ranks, num_ranks))
    share[a, b] = share[b, a] = 1.0
    return share


def star(node_R: NDArray[np.integer], node: int) -> NDArray[np.float64]:
    """Shares [R, R] of a node whose ranks exchange with all ranks elsewhere: 1 leaves it and 1 enters it."""
    here = node_R == node
    across = here[:, None] ^ here[None, :]
    return np.asarray(across / (here.sum() * (~here).sum()))


def _leaving(num_ranks: int, node_R: NDArray[np.integer]) -> Iterator[float]:
    """Parts of what each rank sends to all others equally that leave each node, summed over its ranks."""
    for size in np.bincount(node_R):
        yield float(size * (num_ranks - size) / max(num_ranks - 1, 1))
