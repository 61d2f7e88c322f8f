"""Copies for the hot experts of a layer's heaviest rank, and the loads predicted from them (GRACE-MoE, "DR").

With rank loads W, their mean W_avg, W_max and R ranks:

    n         = min(max(1, floor(W_max / W_avg)), R - 1)
    hot       = shortest prefix of the heaviest rank's experts, by descending load, that carries W_max n / (n + 1)
    hosts     = the n least loaded other ranks; each gets a copy of every hot expert, originals stay
    predicted = W_max - W_r + W_p on the heaviest rank, W_i + W_p on a host i, W_i elsewhere; W_r is the load of hot

and W_p = W_r / (n + 1) (`even_split`: what the paper's sentence says) or W_max / (n + 1) (`as_printed`: its formula).
As printed, one replica (n = 1) of experts that carry exactly half of W_max is predicted to bring no relief.
*Fixed* replication copies the same experts to the least loaded rank only; its W_p has n = 1. Ties go to the lower rank
or expert.

Example: experts 0..3 of load 60, 30, 20, 10 on rank 0; experts 4, 5, 6 of load 50, 20, 10 on ranks 1, 2, 3.
W_max / W_avg = 120 / 50, so n = 2; hot = {0, 1}, because 60 < 80 <= 90; hosts = 3 and 2. Predicted loads are
60, 50, 50, 40 (`even_split`, W_p = 30) or 70, 50, 60, 50 (`as_printed`, W_p = 40).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REPLICATIONS = ("none", "fixed", "dynamic")
LOAD_PREDICTIONS = ("even_split", "as_printed")


@dataclass(frozen=True, eq=False)
class ReplicatedLayer:
    """One layer's experts with their copies.

    Attributes:
        rank_of_expert: int64 [E], where the original is.
        num_ranks: R.
        hosts_of_expert: ranks that hold a copy, for each replicated expert, hottest first.
        num_replicas: n, the copies each hot expert was meant to get.
    """

    rank_of_expert: NDArray[np.int64]
    num_ranks: int
    hosts_of_expert: dict[int, tuple[int, ...]]
    num_replicas: int

    def experts_of_ranks(self) -> list[list[int]]:
        """The experts on each rank: originals in index order, then copies, hottest first."""
        experts_R = [np.flatnonzero(self.rank_of_expert == rank).tolist() for rank in range(self.num_ranks)]
        for expert, hosts in self.hosts_of_expert.items():
            for host in hosts:
                experts_R[host].append(expert)
        return experts_R

    def predicted_load(self, load_E: NDArray[np.integer], load_prediction: str) -> NDArray[np.float64]:
        """[R] tokens each rank is predicted to serve.

        Where copies had to be dropped, `even_split` divides each expert's load over the copies that it has, and
        `as_printed` adds its W_p to ranks that host any.
        """
        load_R = rank_loads(load_E, self.rank_of_expert, self.num_ranks)
        if not self.hosts_of_expert:
            return load_R
        source = self.rank_of_expert[next(iter(self.hosts_of_expert))]
        if load_prediction == "as_printed":
            share = load_R[source] / (self.num_replicas + 1)
            load_R[[source, *{host for hosts in self.hosts_of_expert.values() for host in hosts}]] += share
            load_R[source] -= load_E[list(self.hosts_of_expert)].sum()
            return load_R
        for expert, hosts in self.hosts_of_expert.items():
            share = load_E[expert] / (len(hosts) + 1)
            load_R[source] -= load_E[expert] - share
            load_R[list(hosts)] += share
        return load_R


def replicate(
    load_E: NDArray[np.integer], rank_E: NDArray[np.int64], room_R: NDArray[np.int64], replication: str
) -> ReplicatedLayer:
    """Give the hot experts of the heaviest rank their copies.

    Args:
        load_E: tokens that chose each expert.
        rank_E: rank of each expert.
        room_R: slots of each rank. Hottest experts first, each takes the least loaded ranks that have a free slot: past
            a full rank the next one in order of load serves, and with no free slot left the copy is dropped.
        replication: one of REPLICATIONS.
    """
    num_ranks = len(room_R)
    load_R = rank_loads(load_E, rank_E, num_ranks)
    if replication == "none" or num_ranks == 1 or load_R.sum() == 0:
        return ReplicatedLayer(rank_E, num_ranks, {}, 0)
    heaviest = int(np.argmax(load_R))
    num_replicas = min(max(1, int(load_R[heaviest] * num_ranks // load_R.sum())), num_ranks - 1)
    hot = hot_experts(load_E, np.flatnonzero(rank_E == heaviest), num_replicas)
    num_replicas = 1 if replication == "fixed" else num_replicas
    order = [int(rank) for rank in np.argsort(load_R, kind="stable") if rank != heaviest]
    free_R = room_R - np.bincount(rank_E, minlength=num_ranks)
    hosts_of_expert: dict[int, tuple[int, ...]] = {}
    for expert in hot:
        hosts = [rank for rank in order if free_R[rank] > 0][:num_replicas]
        free_R[hosts] -= 1
        if hosts:
            hosts_of_expert[int(expert)] = tuple(hosts)
    return ReplicatedLayer(rank_E, num_ranks, hosts_of_expert, num_replicas)


def hot_experts(load_E: NDArray[np.integer], experts: NDArray[np.integer], num_replicas: int) -> NDArray[np.integer]:
    """The fewest of these experts, by descending load, that carry num_replicas / (num_replicas + 1) of their load."""
    order = experts[np.argsort(-load_E[experts], kind="stable")]
    carried = np.cumsum(load_E[order])
    return order[: int(np.searchsorted(carried * (num_replicas + 1), carried[-1] * num_replicas)) + 1]


def rank_loads(load_E: NDArray[np.integer], rank_E: NDArray[np.int64], num_ranks: int) -> NDArray[np.float64]:
    """[R] load of all experts of each rank."""
    return np.bincount(rank_E, weights=load_E, minlength=num_ranks).astype(np.float64)


def polling_weights(predicted_R: NDArray[np.float64]) -> list[float]:
    """[R] mean predicted load / predicted load, to six digits; a rank of no load weighs 1.

    For the example of this module: 0.833333, 1, 1, 1.25 (`even_split`).
    """
    mean = predicted_R.mean()
    return [float(f"{mean / load:.6g}") if load > 0 else 1.0 for load in predicted_R]
