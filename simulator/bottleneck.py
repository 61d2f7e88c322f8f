"""Why a plan takes as long as it does: what each step waits for, and what would be gained if it were not so.

Every step of every layer and batch waits for one thing (`simulator.timeline`). To tell what that costs, the plan is
priced again without it:

    link         infinitely fast; `links` are all of the same speed, as if a faster network were bought
    rank         as busy as the ranks are on average; `ranks` are all of them, which perfect balance would bring (a rank
                 is busy while its own rows travel, however slow the links they cross)
    expert       one more copy in every layer where that helps: the hottest expert of the rank that is waited for most
                 gives half its tokens to a copy on the least busy rank without one
    processor    a core for each rank
    start-up, SMs, pair, copying   none of it, or no limit by it

What remains is bounded by the next thing, often just behind. Contention grows with evenness, and fair shares can shift
to the worse when a link is widened; where that would make a layer and batch slower, nothing is counted as gained.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.timeline import phase_of, stage_names
from grace_opt.traffic import Traffic
from simulator.cluster import SimulatedCluster
from simulator.compute import expert_seconds
from simulator.relief import without
from simulator.timeline import KINDS, LINK, NOTHING, PROCESSOR, RANK, Step, bound_name, expert_step, steps


@dataclass(frozen=True)
class Bound:
    """One thing a step waits for. Times are means over layers and batches.

    Attributes:
        phase, step: of a layer, as in `Timeline.steps`.
        bound: what it is, in words.
        kind: link, links, rank, ranks, expert, processor, latency, SMs, pair or copying.
        share_pct: layers and batches in which the step waits for it.
        time_pct: of the step's time, the part that passes in those.
        now_s, without_s: the step, and the step if the bound is removed.
        layer_now_s, layer_without_s: all phases of a layer.
        next_bound: what the step then waits for most of the time, where it waited for this; "" for all ranks alike.
        detail: how much of what, in the mean of those layers and batches.
    """

    phase: str
    step: str
    bound: str
    kind: str
    share_pct: float
    time_pct: float
    now_s: float
    without_s: float
    layer_now_s: float
    layer_without_s: float
    next_bound: str
    detail: str


def bounds(
    cost: SimulatedCluster, problem: Problem, plan: Plan, counts: Traffic, most: int = 2, least_pct: float = 5.0
) -> list[Bound]:
    """What each step waits for, step by step, the longest time first.

    Args:
        counts: the plan's traffic in the cost's batches.
        most: things named for a step, not counting `links`, `ranks` and `expert`.
        least_pct: part of a step's time below which a thing is not named.
    """
    case = _Case(cost, problem, plan, counts, tuple(steps(cost, problem, counts)))
    return [bound for place in range(len(case.parts)) for bound in case.of_step(place, most, least_pct)]


@dataclass(frozen=True, eq=False)
class _Case:
    cost: SimulatedCluster
    problem: Problem
    plan: Plan
    counts: Traffic
    parts: tuple[Step, ...]

    def of_step(self, place: int, most: int, least_pct: float) -> list[Bound]:
        """The bounds of one step; none if it takes no time."""
        step = self.parts[place]
        total = step.seconds.sum()
        if not total:
            return []
        causes, index = np.unique(np.stack([step.kind.ravel(), step.where.ravel()]), axis=1, return_inverse=True)
        time = np.bincount(index.ravel(), step.seconds.ravel(), causes.shape[1])
        order = [i for i in np.argsort(-time, kind="stable") if causes[0, i] != NOTHING]
        named = [i for i in order[:most] if 100 * time[i] >= least_pct * total]
        found = [self._bound(place, *causes[:, i].tolist()) for i in named]
        links = [i for i in order if causes[0, i] == LINK]
        if links:
            found.append(self._alike(place, int(causes[1, links[0]])))
        if np.isin(step.kind, (RANK, LINK)).any():
            found.append(self._balanced(place))
        if step.name == "experts" and (step.kind == RANK).any():
            found.append(self._split(place))
        return found

    def _bound(self, place: int, kind: int, where: int) -> Bound:
        """One cause, and all there is of it removed."""
        step = self.parts[place]
        cells = (step.kind == kind) & (step.where == where)
        if kind in (RANK, PROCESSOR):
            relieved = self._evened(place, kind, where)
        else:
            relieved = steps(*without(self.cost, self.problem, kind, [where]), self.counts)
        name = bound_name(self.problem.topology, kind, where)
        return self._row(place, KINDS[kind], name, cells, relieved, self._detail(place, kind, where, cells))

    def _alike(self, place: int, link: int) -> Bound:
        """All links of one's speed."""
        topology, step = self.problem.topology, self.parts[place]
        speed = topology.link_bytes_per_s
        alike = np.flatnonzero(np.isclose(speed, speed[link]))
        cells = (step.kind == LINK) & np.isin(step.where, alike)
        relieved = steps(*without(self.cost, self.problem, LINK, alike.tolist()), self.counts)
        name = f"all links like {bound_name(topology, LINK, link)}"
        return self._row(place, "links", name, cells, relieved, f"{len(alike)} of {speed[link] / 1e9:.3g} GB/s")

    def _balanced(self, place: int) -> Bound:
        """All ranks as busy as they are on average, where one is waited for, or a link."""
        step = self.parts[place]
        cells = np.isin(step.kind, (RANK, LINK))
        busy_LBR = np.where(cells[:, :, None], step.busy_s.mean(axis=2, keepdims=True), step.busy_s)
        relieved = self._with_busy(place, busy_LBR)
        row = self._row(place, "ranks", "imbalance of ranks", cells, relieved, "all at the mean")
        return replace(row, next_bound="")  # all of them alike

    def _split(self, place: int) -> Bound:
        """A copy more of hot experts."""
        step, topology = self.parts[place], self.problem.topology
        tokens_LBRS = self.counts.tokens_by_rank
        num_slots = tokens_LBRS.shape[3]
        split = np.concatenate([tokens_LBRS, np.zeros_like(tokens_LBRS[..., :1])], axis=3)
        cells, hot = np.zeros(step.kind.shape, bool), []
        for layer in np.flatnonzero((step.kind == RANK).any(axis=1)).tolist():
            waits_B = step.kind[layer] == RANK
            rank = int(np.bincount(step.where[layer, waits_B], step.seconds[layer, waits_B]).argmax())
            slot = int(tokens_LBRS[layer, :, rank].sum(axis=0).argmax())
            slots_RS = self.plan.placement.slots[layer]
            expert = int(slots_RS[rank, slot])
            busy_R = np.where((slots_RS == expert).any(axis=1), np.inf, step.busy_s[layer].sum(axis=0))
            if np.isinf(busy_R).all():
                continue  # every rank has a copy
            half_B = tokens_LBRS[layer, :, rank, slot] // 2
            split[layer, :, rank, slot] -= half_B
            split[layer, :, busy_R.argmin(), num_slots] += half_B
            cells[layer] = waits_B & (step.where[layer] == rank)
            hot.append((layer, expert, float(tokens_LBRS[layer, :, rank, slot].mean())))
        relieved = expert_step(topology, expert_seconds(self.problem.model, topology, split))
        helps_L = relieved.seconds.mean(axis=1) < step.seconds.mean(axis=1)
        kept = {
            field: np.where(helps_L.reshape(-1, *[1] * (getattr(step, field).ndim - 1)), *pair)
            for field in ("busy_s", "seconds", "kind", "where")
            for pair in [(getattr(relieved, field), getattr(step, field))]
        }
        parts = [*self.parts[:place], Step(step.name, **kept), *self.parts[place + 1 :]]
        detail = f"one copy more helps in {helps_L.sum()} of {len(helps_L)} layers"
        if hot:
            layer, expert, tokens = max(hot, key=lambda one: one[2])
            detail += f"; hottest: expert {expert} of layer {self.problem.model.layer_ids[layer]}, {tokens:.0f} tokens"
        return self._row(place, "expert", "hottest expert of the rank waited for", cells, parts, detail)

    def _evened(self, place: int, kind: int, where: int) -> list[Step]:
        """The steps with one rank as busy as all are on average, or with a core for each rank of a processor."""
        step = self.parts[place]
        busy_LBR = step.busy_s.copy()
        if kind == RANK:
            busy_LBR[:, :, where] = np.minimum(busy_LBR[:, :, where], busy_LBR.mean(axis=2))
            return self._with_busy(place, busy_LBR)
        waits = (step.kind == PROCESSOR) & (step.where == where)
        alone = replace(
            step,
            seconds=np.where(waits, busy_LBR.max(axis=2), step.seconds),
            kind=np.where(waits, RANK, step.kind),
            where=np.where(waits, busy_LBR.argmax(axis=2), step.where),
        )
        return [*self.parts[:place], alone, *self.parts[place + 1 :]]

    def _with_busy(self, place: int, busy_LBR: NDArray[np.float64]) -> list[Step]:
        """The steps with one in which ranks are busy for so long."""
        step = self.parts[place]
        if step.name == "experts":
            evened = expert_step(self.problem.topology, busy_LBR)
        else:  # it need not be the same rank that puts most rows in order and moves most, so a stage can take longer
            ends_LB = busy_LBR.max(axis=2) + step.seconds - step.busy_s.max(axis=2)
            ranks = {"kind": np.full_like(step.kind, RANK), "where": busy_LBR.argmax(axis=2)}
            evened = replace(step, busy_s=busy_LBR, seconds=ends_LB, **ranks)
        return [*self.parts[:place], evened, *self.parts[place + 1 :]]

    def _row(
        self, place: int, kind: str, name: str, cells: NDArray[np.bool_], relieved: Sequence[Step], detail: str
    ) -> Bound:
        """What is gained, given the steps without the bound."""
        step, after = self.parts[place], relieved[place]
        means = [np.minimum(part.seconds, now.seconds).mean() for part, now in zip(relieved, self.parts, strict=True)]
        next_bound = ""
        if cells.any():
            pairs, index = np.unique(np.stack([after.kind[cells], after.where[cells]]), axis=1, return_inverse=True)
            most = np.bincount(index.ravel(), after.seconds[cells], pairs.shape[1]).argmax()
            next_bound = bound_name(self.problem.topology, *pairs[:, most].tolist())
        return Bound(
            phase=phase_of(step.name),
            step=step.name,
            bound=name,
            kind=kind,
            share_pct=100 * float(cells.mean()),
            time_pct=100 * float(step.seconds[cells].sum() / step.seconds.sum()),
            now_s=float(step.seconds.mean()),
            without_s=float(means[place]),
            layer_now_s=float(sum(part.seconds.mean() for part in self.parts)),
            layer_without_s=float(sum(means)),
            next_bound=next_bound,
            detail=detail,
        )

    def _detail(self, place: int, kind: int, where: int, cells: NDArray[np.bool_]) -> str:
        step = self.parts[place]
        if step.name == "experts" and kind == RANK:
            tokens_CS = self.counts.tokens_by_rank[cells][:, where]
            cell, slot = np.unravel_index(int(tokens_CS.argmax()), tokens_CS.shape)
            layer = int(np.argwhere(cells)[cell][0])
            expert = self.plan.placement.slots[layer, where, slot]
            mean = self.counts.load[cells].mean()
            hottest = f"expert {expert} of layer {self.problem.model.layer_ids[layer]}: {tokens_CS[cell, slot]} tokens"
            return f"{tokens_CS.sum(axis=1).mean():.0f} tokens, all ranks {mean:.0f}; {hottest}"
        if step.name != "experts" and kind in (LINK, RANK):
            rows_CRR, row_bytes = self._rows(step, cells)
            if kind == LINK:
                rows = rows_CRR.reshape(len(rows_CRR), -1) @ self.problem.topology.routes[[where]].toarray()[0]
            else:
                rows = np.maximum(rows_CRR[:, where].sum(axis=1), rows_CRR[:, :, where].sum(axis=1))
            return f"{rows.mean() * row_bytes / 1e6:.3g} MB"
        return ""

    def _rows(self, step: Step, cells: NDArray[np.bool_]) -> tuple[NDArray[np.int64], float]:
        """[C, R, R] rows of a step that leave their rank, in some layers and batches, and bytes of one."""
        combining, model, scheme = phase_of(step.name) == "combine", self.problem.model, self.cost.scheme
        stages = self.counts.combine(scheme) if combining else self.counts.dispatch(scheme)
        row_bytes = self.cost.combine_row_bytes(model) if combining else self.cost.dispatch_row_bytes(model)
        names = stage_names(phase_of(step.name), len(stages))
        shown = [rows[cells] for name, rows in zip(names, stages, strict=True) if step.name in (name, phase_of(name))]
        return np.sum(shown, axis=0), row_bytes
