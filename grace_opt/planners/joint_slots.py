"""How many slots each layer gets, when a budget of memory is for all layers together.

    alike   search with the same slots in every layer
    tries   shorter searches at other numbers, both ends first, each from the neighbours' results
    deal    the numbers of least total time within the budget (`slot_deal`), by exact traffic; all alike if it brings
            little

A short look at the given number and the ends comes first, so that all the time is left to layers alike where no deal
pays. The given number is searched most: what a deal brings is more than it seems, not less.

Where a layer gains with every slot until each node holds all its experts, and no row leaves a node any more, a few
layers with all of them beat all layers with a few.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from grace_opt.batch_rates import BatchRates
from grace_opt.placement import EMPTY
from grace_opt.planners.home_scenarios import Scenario
from grace_opt.planners.joint_choice import plan_of_slots
from grace_opt.planners.joint_search import LayerSearches
from grace_opt.planners.joint_starts import QUICK_STARTS, slots_of, starts_of
from grace_opt.problem import Problem, with_slots
from grace_opt.profile import expert_loads
from grace_opt.slot_deal import deal_of_least, numbers_to_try

if TYPE_CHECKING:
    from grace_opt.planners.joint import Joint

LOOK = (("given", 0.12), ("ends", 0.2))
TRIES = (("given", 0.5), ("ends", 0.6), ("between", 0.8))
"""Which numbers are tried, and when that ends, as a share of the time; layers that get another number than was given
have the rest to themselves."""
WORTH_TRIES, WORTH_A_DEAL = 0.03, 0.02
"""Gains below these leave all layers alike: after a look, and at the end, as it may be no more on other tokens."""
SecondsOf = Callable[[NDArray[np.int64], Problem], NDArray[np.float64]]
"""(slots [L, R, S], problem) -> [L] exact seconds of each layer."""


@dataclass(frozen=True, eq=False)
class Deal:
    """What the layers have.

    Attributes:
        room: int64 [L, R] experts a rank may hold in each layer.
        starts: slots [L, R, S] within that room to go on from, the best first.
        layers: yet to be searched, None: all.
    """

    room: NDArray[np.int64]
    starts: Sequence[NDArray[np.int64]]
    layers: Sequence[int] | None = None
    interrupted: bool = False

    @classmethod
    def alike(cls, problem: Problem, starts: Sequence[NDArray[np.int64]], interrupted: bool = False) -> "Deal":
        """The problem's slots in every layer."""
        return cls(_room(problem, problem.slots_per_rank), starts, interrupted=interrupted)


class SlotDealer:
    """Deals the slots of all layers.

    Args:
        rates, draws: to search on (see `LayerSearches`).
        seconds_of: to compare by.
    """

    def __init__(
        self,
        options: "Joint",
        problem: Problem,
        rates: BatchRates,
        draws: Sequence[Sequence[Sequence[Scenario]]],
        seconds_of: SecondsOf,
    ) -> None:
        self._options, self._problem, self._rates, self._draws = options, problem, rates, draws
        self._seconds_of, self._given = seconds_of, int(problem.slots_per_rank[0])
        self._load_LE, self._counts = expert_loads(problem.trace), _numbers(problem)
        self._tried, self._seconds_L = dict[int, NDArray[np.int64]](), dict[int, NDArray[np.float64]]()

    def run(self, starts: Sequence[NDArray[np.int64]], began: float, limit_s: float) -> Deal:
        """The deal; all layers alike if no other is better, or after Ctrl-C.

        Args:
            starts: with the problem's slots in every layer.
            began, limit_s: when the clock started, and seconds for the tries and the search that follows.
        """
        count_L = None
        for stages, least_gain in ((LOOK, WORTH_TRIES), (TRIES, WORTH_A_DEAL)):
            for kind, share in stages:
                if not self._tries(self._counts[kind], starts, began + share * limit_s):
                    return self._alike(starts, interrupted=True)
            count_L = self._choice(least_gain)
            if count_L is None:
                break
        return self._alike(starts) if count_L is None else self._deal(count_L, starts)

    def _tries(self, counts: Sequence[int], starts: Sequence[NDArray[np.int64]], deadline: float) -> bool:
        """Search all layers at each of these numbers; False after Ctrl-C."""
        for number, count in enumerate(counts):
            now, part = time.perf_counter(), with_slots(self._problem, count)
            until = now + max(0.0, deadline - now) / (len(counts) - number)
            own, room_LR = self._starts_at(count, starts), _room(part, count)
            search = LayerSearches(self._options, part, self._rates, self._draws, own, room_LR, until, None)
            search.run()
            if search.interrupted:
                return False
            slots_LRS = np.stack(search.slots_L)
            self._tried[count], self._seconds_L[count] = slots_LRS, self._seconds_of(slots_LRS, part)
        return True

    def _alike(self, starts: Sequence[NDArray[np.int64]], interrupted: bool = False) -> Deal:
        found = [self._tried[self._given]] if self._given in self._tried else []
        return Deal.alike(self._problem, [*found, *starts], interrupted)

    def _deal(self, count_L: NDArray[np.int64], starts: Sequence[NDArray[np.int64]]) -> Deal:
        """What the layers have, each with so many slots."""
        width = int(count_L.max())
        slots_LRS = np.stack([padded(self._tried[int(count)][layer], width) for layer, count in enumerate(count_L)])
        wide_L = count_L == self._given if self._options.fill else count_L >= self._given
        others = [np.where(wide_L[:, None, None], padded(start, width), slots_LRS) for start in starts]
        changed = np.flatnonzero(count_L != self._given).tolist()
        return Deal(_room(self._problem, count_L[:, None]), [slots_LRS, *others], changed)

    def _choice(self, least_gain: float) -> NDArray[np.int64] | None:
        """[L] slots of each layer, of those tried; None: all alike."""
        counts = sorted(self._seconds_L)
        seconds_CL = np.stack([self._seconds_L[count] for count in counts])
        layers = np.arange(seconds_CL.shape[1])
        choice_L = deal_of_least(seconds_CL, counts, self._given * len(layers))
        gain = self._seconds_L[self._given].sum() / seconds_CL[choice_L, layers].sum() - 1
        return np.array(counts)[choice_L] if gain >= least_gain else None

    def _starts_at(self, count: int, starts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Where a try begins: quick plans, and what was found with the next fewer slots and the next more."""
        part, options, tried = with_slots(self._problem, count), self._options, self._tried
        again = [tried[count]] if count in tried else []
        if count == self._given:
            return [*starts, *again]
        own = again + [slots_of(plan, part, options.fill) for plan in starts_of(part, QUICK_STARTS).values()]
        fewer = sorted(other for other in tried if other < count)
        more = sorted(other for other in tried if other > count)
        near = [tried[other] for other in fewer[-1:]] + [
            reduced(tried[other], count, self._load_LE) for other in more[:1]
        ]
        return own + [slots_of(plan_of_slots(slots, part, options.policy), part, options.fill) for slots in near]


def _numbers(problem: Problem) -> dict[str, list[int]]:
    """Numbers of slots to try, by kind; none pays beyond all experts on every node."""
    topology, experts, given = problem.topology, problem.model.num_experts, int(problem.slots_per_rank[0])
    on_a_node = -(-experts // min(topology.ranks_per_node))
    most = experts if topology.num_nodes == 1 else max(on_a_node, given)
    counts = numbers_to_try(-(-experts // topology.num_ranks), given, most, [on_a_node])
    ends = [count for count in (counts[0], counts[-1]) if count != given]
    return {
        "given": [given],
        "ends": ends,
        "between": [count for count in reversed(counts) if count not in (given, *ends)],
    }


def _room(problem: Problem, slots: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """[L, R] of slots that are the same in all layers, or on all ranks."""
    return np.array(np.broadcast_to(slots, (problem.model.num_layers, problem.topology.num_ranks)))


def reduced(slots_LRS: NDArray[np.int64], count: int, load_LE: NDArray[np.integer]) -> NDArray[np.int64]:
    """[L, R, count] with fewer slots: each expert keeps a copy where it has one, as far as can be (an assignment
    problem), then ranks keep those of their experts with most load."""
    layers, ranks, _ = slots_LRS.shape
    experts, result_LRS = load_LE.shape[1], np.full((layers, ranks, count), EMPTY)
    for layer, slots_RS in enumerate(slots_LRS):
        holds_RE = np.zeros((ranks, experts + 1), bool)
        holds_RE[np.arange(ranks)[:, None], slots_RS] = True  # EMPTY is the last column
        holds_RE = holds_RE[:, :experts]
        expert, slot = linear_sum_assignment(np.repeat(~holds_RE.T, count, axis=1))
        kept_RE = np.zeros_like(holds_RE)
        kept_RE[slot // count, expert] = True
        for rank in range(ranks):
            own, others = np.flatnonzero(kept_RE[rank]), np.flatnonzero(holds_RE[rank] & ~kept_RE[rank])
            hottest = others[np.argsort(-load_LE[layer, others], kind="stable")]
            held = np.concatenate([own, hottest])[:count]
            result_LRS[layer, rank, : len(held)] = held
    return result_LRS


def padded(slots: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """[..., width] with empty slots behind, or with some of them cut off."""
    more = width - slots.shape[-1]
    if more <= 0:
        return slots[..., :width]
    return np.concatenate([slots, np.full((*slots.shape[:-1], more), EMPTY)], axis=-1)
