"""Spectral clustering of an affinity graph, and groups of controlled size (GRACE-MoE, "controlled non-uniform").

1. *Limits.* n experts in D groups: ideal size E = floor(n / D), slack d = max(1, round(E r)), sizes in
   [max(1, E - d), E + d]. r = 0 stands for equal sizes (d = 0), d = n for sizes left free.
2. *Cluster*: `spectral_clustering`, blind to sizes.
3. A group above its limit keeps the members with the most affinity to it and releases the others.
4. Of all pairs (released expert, group not yet full) the one with the largest affinity is joined, until none is left.
5. A group below its limit receives, one by one, the expert whose move costs least: affinity to the group it leaves,
   which must be able to spare one, less affinity to the group it joins.

What the paper leaves open is decided here: where D does not divide n, equal sizes are floor(n / D) and
ceil(n / D); a group that clustering leaves empty is filled by step 5; ties go to the lower expert, then the lower
group.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.linalg import eigh
from threadpoolctl import threadpool_limits

EMBEDDINGS = ("random_walk", "unit_rows")
"""Shi and Malik 2000, which scikit-learn's spectral clustering uses too; Ng, Jordan and Weiss 2001."""
FREE = -1


def spectral_clustering(
    affinity_EE: NDArray[np.integer], num_groups: int, embedding: str, seed: int
) -> NDArray[np.int64]:
    """[E] cluster 0..num_groups - 1 of each expert; some clusters may stay empty.

    k-means on the rows of the num_groups leading eigenvectors of D^-1 A (`random_walk`), D the row sums of A, or on
    those of D^-1/2 A D^-1/2 scaled to length 1 (`unit_rows`). An expert without affinity is a row of zeros.

    Args:
        affinity_EE: A, symmetric, tokens that chose both experts; the diagonal is 0.
        embedding: one of EMBEDDINGS.
        seed: of k-means.
    """
    num_experts = len(affinity_EE)
    if num_experts <= num_groups:
        return np.arange(num_experts)
    if num_groups == 1:
        return np.zeros(num_experts, np.int64)
    degree_E = affinity_EE.sum(axis=1).astype(np.float64)
    scale_E = 1 / np.sqrt(np.where(degree_E > 0, degree_E, np.inf))
    leading = [num_experts - num_groups, num_experts - 1]
    with threadpool_limits(1):  # for a few hundred rows BLAS threads wait far longer than they work
        _, rows_EG = eigh(scale_E[:, None] * affinity_EE * scale_E[None, :], subset_by_index=leading)
    if embedding == "random_walk":
        return k_means(rows_EG * scale_E[:, None] * np.sqrt(degree_E.sum()), num_groups, seed)
    norm_E = np.linalg.norm(rows_EG, axis=1)
    return k_means(rows_EG / np.where(norm_E > 1e-9, norm_E, np.inf)[:, None], num_groups, seed)


def k_means(points_ED: NDArray[np.float64], num_clusters: int, seed: int, restarts: int = 20) -> NDArray[np.int64]:
    """[E] cluster of each point, the tightest of several runs from random starts; fewer clusters if points coincide."""
    points_ED = np.round(points_ED, 9)
    distinct = np.unique(points_ED, axis=0)
    random = np.random.default_rng(seed)
    tightest, best_E = np.inf, np.zeros(len(points_ED), np.int64)
    for _ in range(restarts):
        starts = distinct[random.choice(len(distinct), min(num_clusters, len(distinct)), replace=False)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a cluster that runs empty is filled by step 5
            centers, cluster_E = kmeans2(points_ED, starts, minit="matrix", iter=30, check_finite=False)
        spread = ((points_ED - centers[cluster_E]) ** 2).sum()
        if spread < tightest - 1e-9:
            tightest, best_E = spread, cluster_E.astype(np.int64)
    return best_E


def number_groups(cluster_E: NDArray[np.int64], room_G: NDArray[np.int64]) -> NDArray[np.int64]:
    """[E] group of each expert: clusters come unordered, groups are numbered by their smallest expert.

    Where groups have different room, larger clusters go to groups with more of it, equal ones by smallest expert.
    """
    num_experts, num_groups = len(cluster_E), len(room_G)
    sizes = np.bincount(cluster_E, minlength=num_groups)
    smallest = np.full(num_groups, num_experts)
    np.minimum.at(smallest, cluster_E, np.arange(num_experts))
    if (room_G == room_G[0]).all():
        sizes = (sizes > 0).astype(np.int64)  # only "empty clusters last" remains
    group_of_cluster = np.empty(num_groups, np.int64)
    group_of_cluster[np.lexsort((smallest, -sizes))] = np.argsort(-room_G, kind="stable")
    return group_of_cluster[cluster_E]


def slack(num_experts: int, num_groups: int, ratio: float) -> int:
    """d of step 1: how far sizes may lie from floor(n / D)."""
    return max(1, round(num_experts // num_groups * ratio)) if ratio > 0 else 0


def size_limits(num_experts: int, room_G: NDArray[np.int64], slack: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Smallest and largest size [G] of each group (step 1), never more than its room.

    With fewer experts than groups the smallest size is 0. If room is so uneven that the experts do not fit, the
    largest size grows until they do.
    """
    ideal = num_experts // len(room_G)
    smallest = min(max(1, ideal - slack), ideal)
    largest = max(ideal + slack, -(-num_experts // len(room_G)))
    while np.minimum(largest, room_G).sum() < num_experts:
        largest += 1
    return np.minimum(smallest, room_G), np.minimum(largest, room_G)


def within_limits(
    group_E: NDArray[np.int64],
    affinity_EE: NDArray[np.integer],
    smallest_G: NDArray[np.int64],
    largest_G: NDArray[np.int64],
) -> NDArray[np.int64]:
    """[E] group of each expert after steps 3 to 5.

    Example: a chain 0-1-2-3 of affinities 3, 2, 1 in groups {0, 1, 2} and {3} that may hold 2 each. Affinity to the
    first group is 3, 5, 2: it keeps 1 and 0 and releases 2, which joins {3}.
    """
    group_E = group_E.copy()
    groups = np.arange(len(largest_G))
    for group in groups:
        members = np.flatnonzero(group_E == group)
        order = np.argsort(-affinity_EE[np.ix_(members, members)].sum(axis=1), kind="stable")
        group_E[members[order[largest_G[group] :]]] = FREE
    sizes_G = (group_E[:, None] == groups).sum(axis=0)
    affinity_EG = affinity_EE @ (group_E[:, None] == groups).astype(np.float64)

    def move(expert: int, group: int) -> None:
        if group_E[expert] != FREE:
            sizes_G[group_E[expert]] -= 1
            affinity_EG[:, group_E[expert]] -= affinity_EE[:, expert]
        sizes_G[group] += 1
        affinity_EG[:, group] += affinity_EE[:, expert]
        group_E[expert] = group

    while (group_E == FREE).any():
        allowed_EG = (group_E == FREE)[:, None] & (sizes_G < largest_G)
        move(*_best(affinity_EG, allowed_EG))
    while (sizes_G < smallest_G).any():
        own_E = np.take_along_axis(affinity_EG, group_E[:, None], axis=1)
        allowed_EG = (sizes_G > smallest_G)[group_E][:, None] & (sizes_G < smallest_G)
        move(*_best(affinity_EG - own_E, allowed_EG))
    return group_E


def affinity_inside(group_E: NDArray[np.int64], affinity_EE: NDArray[np.integer]) -> int:
    """Affinity of all ordered pairs of experts that share a group."""
    return int(affinity_EE[group_E[:, None] == group_E[None, :]].sum())


def knee(x: NDArray[np.float64], y: NDArray[np.float64]) -> int:
    """Index of the point highest above the chord of a curve that rises from its first to its last point.

    Both axes are scaled to their range (Satopaa et al. 2011). Ties go to the first point, so a flat curve has its knee
    at 0.
    """
    x_range, y_range = np.ptp(x), np.ptp(y)
    if x_range == 0 or y_range == 0:
        return 0
    return int(np.argmax((y - y.min()) / y_range - (x - x.min()) / x_range))


def _best(value_EG: NDArray[np.float64], allowed_EG: NDArray[np.bool_]) -> tuple[int, int]:
    expert, group = np.unravel_index(np.argmax(np.where(allowed_EG, value_EG, -np.inf)), value_EG.shape)
    return int(expert), int(group)
