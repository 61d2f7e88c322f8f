"""What a study tells: break-even points, knees, best sizes, gains lost, rankings that flip. One flat row a finding.

break-even      two series that differ in one choice (planner, scheme, ...) take equally long at this value of a
                numeric axis: log time is interpolated linearly in the log of the axis between neighbouring cells
fastest         the same for the fastest of all planners and schemes: where the choice should change
knee            of the best time so far against redundant experts, scaled to its range in both directions, the point
                highest above the chord (Satopaa et al. 2011); none where copies gain less than KNEE_GAIN
best EP size    the number of ranks a model's experts are spread over at which a GPU serves most tokens a second:
                with equal GPUs in all, a smaller size means more groups side by side, each with all experts
domain shift    the speed-up over `linear` on the domains a plan was fitted on, and on all others
sensitivity     the order of planners when one constant of the cost model is scaled; times within TIE are equal
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from analysis.results import Row
from analysis.study_series import (
    DECIDED,
    DOMAINS,
    SCALED,
    SLOTS,
    Label,
    bytes_of,
    grouped,
    name_of,
    numeric_axes,
    series,
    sets_size,
    short,
    shown,
    tokens_per_s,
    varies_ep_size,
    varying,
)
from grace_opt.planners.spectral import knee

KNEE_GAIN, TIE = 0.01, 0.001
"""Shares of a time: what copies must gain for a knee to mean anything, and what is no difference between two plans."""


def findings(rows: Sequence[Row]) -> list[Row]:
    """All findings in the rows of cells that were priced, each with its sentence under `text`."""
    axes = varying(rows)
    found: list[Row] = []
    for axis in numeric_axes(rows):
        found += fastest_changes(rows, axis) + break_evens(rows, axis)
    if SLOTS in axes:
        found += knees(rows)
    if varies_ep_size(rows):
        found += best_ep_sizes(rows)
    if DOMAINS in axes:
        found += domain_shifts(rows)
    if SCALED in axes:
        found += sensitivities(rows)
    return found or winners(rows)


def break_evens(rows: Sequence[Row], x: str) -> list[Row]:
    """Where two series that differ in one choice take equally long."""
    found = []
    groups = series(rows, x, [name for name in varying(rows) if name != x])
    for one, other in itertools.combinations(groups, 2):
        different = [index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]
        if len(different) != 1:
            continue
        (index,) = different
        context = tuple(pair for place, pair in enumerate(one) if place != index)
        for at, time, below, above in _crossings(groups[one], groups[other], x):
            names = [name_of((label[index],)) for label in (one, other)]
            found.append(_crossing("break_even", x, at, time, names[below], names[above], context))
    return found


def fastest_changes(rows: Sequence[Row], x: str) -> list[Row]:
    """Where another planner or scheme becomes the fastest."""
    found = []
    given = [name for name in varying(rows) if name != x and name not in DECIDED]
    decided = [name for name in varying(rows) if name in DECIDED and name != x]
    if not decided:
        return []
    for context, group in series(rows, x, given).items():
        rivals = series(group, x, decided)
        best = [min((r for r in group if r[x] == at), key=_time) for at in sorted({row[x] for row in group})]
        labels = [tuple((name, row.get(name)) for name in decided) for row in best]
        for before, after in itertools.pairwise(range(len(best))):
            if labels[before] == labels[after]:
                continue
            window = (best[before][x], best[after][x])
            one, other = ([r for r in rivals[labels[i]] if r[x] in window] for i in (before, after))
            for at, time, *_ in _crossings(one, other, x):
                names = name_of(labels[before]), name_of(labels[after])
                found.append(_crossing("fastest", x, at, time, *names, context))
    return found


def winners(rows: Sequence[Row]) -> list[Row]:
    """The fastest of planners and schemes for everything one is given, and how far the next is behind."""
    found = []
    decided = [name for name in varying(rows) if name in DECIDED]
    for context, group in grouped(rows, [name for name in varying(rows) if name not in DECIDED]).items():
        order = sorted(group, key=_time)
        if not decided or len(order) < 2:
            continue
        first, second = (name_of(tuple((name, row.get(name)) for name in decided)) for row in order[:2])
        lead = 100 * (_time(order[1]) / _time(order[0]) - 1)
        where = f"{name_of(context)}: " if context else ""
        text = f"{where}{first} is fastest, {_time(order[0]) * 1e3:.3g} ms; {second} takes {lead:.1f} % longer"
        fields = {"winner": first, "second": second, "lead_pct": lead, "layer_time_s": _time(order[0])}
        found.append(_finding("winner", text, context, **fields))
    return found


def knees(rows: Sequence[Row]) -> list[Row]:
    """The number of redundant experts beyond which more bring little, for every series."""
    found = []
    for label, group in series(rows, "redundant_experts", [name for name in varying(rows) if name != SLOTS]).items():
        time = np.array([_time(row) for row in group])
        extra = np.array([row["redundant_experts"] for row in group], float)
        gain = np.maximum.accumulate(time[0] / time - 1)
        if len(group) < 3 or gain[-1] < KNEE_GAIN:
            continue
        row = group[knee(extra, gain)]
        more = float(time[0] / _time(row) - 1)
        text = (
            f"{name_of(label)}: knee at {row['redundant_experts']} redundant experts "
            f"({row['slots_per_rank']} slots per rank): {more:.1%} faster than without any more, "
            f"{gain[-1]:.1%} at most; {bytes_of(row)} of weights per rank"
        )
        fields = ("redundant_experts", "slots_per_rank", "layer_time_s", "memory_bytes_per_rank")
        found.append(_finding("knee", text, label, gain_pct=100 * more, most_gain_pct=100 * float(gain[-1]),
                              **{name: row[name] for name in fields}))  # fmt: skip
    return found


def best_ep_sizes(rows: Sequence[Row]) -> list[Row]:
    """The number of ranks at which one GPU serves most tokens a second, at what memory."""
    found = []
    for label, group in series(rows, "num_ranks", _without_sizes(rows)).items():
        if len({row["num_ranks"] for row in group}) < 2:
            continue
        best = max(group, key=tokens_per_s)
        batches = sorted({round(row["tokens_per_rank"]) for row in group})
        unequal = (
            f" (batches differ: {batches[0]} to {batches[-1]} tokens per rank)"
            if batches[-1] > 1.1 * batches[0]
            else ""
        )
        text = (
            f"{name_of(label)}: best EP size {best['num_ranks']}, {tokens_per_s(best):,.0f} tokens/s per GPU in the "
            f"MoE layers, {bytes_of(best)} of weights per GPU{unequal}"
        )
        found.append(_finding("best_ep_size", text, label, ep_size=best["num_ranks"], planner=best["planner"],
                              tokens_per_s_per_gpu=tokens_per_s(best), tokens_per_rank=best["tokens_per_rank"],
                              memory_bytes_per_rank=best["memory_bytes_per_rank"]))  # fmt: skip
    return found


def domain_shifts(rows: Sequence[Row]) -> list[Row]:
    """How much of a plan's gain over `linear` is left on domains it was not fitted on."""
    found = []
    for row in rows:
        fit, held_out = row.get("fit_speedup_over_linear"), row.get("speedup_over_linear")
        if fit is None or held_out is None or row["method"] == "Linear":
            continue
        label = tuple((name, row.get(name)) for name in varying(rows))
        lost = 100 * (fit - held_out) / (fit - 1) if fit > 1.005 else None
        said = (
            "no gain to lose"
            if lost is None
            else "all of the gain is lost"
            if lost >= 100
            else f"{lost:.0f} % of the gain is lost"
        )
        text = f"{name_of(label)}: {fit:.2f}x over linear on its own domains, {held_out:.2f}x on others: {said}"
        found.append(_finding("domain_shift", text, label, fit_speedup_over_linear=fit,
                              speedup_over_linear=held_out, gain_lost_pct=lost))  # fmt: skip
    return found


def sensitivities(rows: Sequence[Row]) -> list[Row]:
    """Who wins when a constant is scaled, how many pairs of planners change places, what the old winner then costs."""
    found = []
    given = [name for name in varying(rows) if name not in (SCALED, *DECIDED)]
    decided = [name for name in varying(rows) if name in DECIDED]
    for context, group in grouped(rows, given).items():
        times = {
            scaled: {tuple((n, r.get(n)) for n in decided): _time(r) for r in group if r.get(SCALED) == scaled}
            for scaled in dict.fromkeys(row.get(SCALED) for row in group)
        }
        nominal = times.pop(None, {})
        for scaled, after in times.items():
            both = [label for label in nominal if label in after]
            if len(both) < 2:
                continue
            was, now = min(both, key=nominal.__getitem__), min(both, key=after.__getitem__)
            flips = sum(_flips(nominal, after, *pair) for pair in itertools.combinations(both, 2))
            regret = 100 * (after[was] / after[now] - 1)
            now = was if regret < 100 * TIE else now
            winner = (
                f"{name_of(now)} wins in place of {name_of(was)} (by {regret:.1f} %)" if was != now else "same winner"
            )
            where = f"{name_of(context)}: " if context else ""
            pairs = math.comb(len(both), 2)
            text = f"{where}{scaled}: {winner}; {flips} of {pairs} pairs change places"
            order = " < ".join(name_of(label) for label in sorted(both, key=after.__getitem__))
            found.append(_finding("sensitivity", text, context, scaled=scaled, winner=name_of(now),
                                  winner_before=name_of(was), winner_changes=was != now, pairs_flipped=flips,
                                  num_pairs=pairs, regret_pct=regret, order=order))  # fmt: skip
    return found


def _without_sizes(rows: Sequence[Row]) -> list[str]:
    """Axes other than those that set the number of ranks."""
    return [name for name in varying(rows) if not sets_size(rows, name)]


def _flips(before: dict[Label, float], after: dict[Label, float], a: Label, b: Label) -> bool:
    leads = [math.log(times[a] / times[b]) for times in (before, after)]
    return leads[0] * leads[1] < 0 and min(map(abs, leads)) > TIE


def _time(row: Row) -> float:
    return float(row["layer_time_s"])


def _crossings(one: Sequence[Row], other: Sequence[Row], x: str) -> Iterator[tuple[float, float, int, int]]:
    """(value of x, time, which is faster below, which above: 0 or 1) for each crossing of two series."""
    times = [{row[x]: math.log(_time(row)) for row in rows} for rows in (one, other)]
    shared = sorted(set(times[0]) & set(times[1]))
    lead = [(at, times[0][at] - times[1][at]) for at in shared]
    lead = [(at, gap) for at, gap in lead if abs(gap) > 1e-9]  # equal plans take equally long everywhere
    for (left, before), (right, after) in itertools.pairwise(lead):
        if before * after < 0:
            share = before / (before - after)
            at = math.exp(math.log(left) + share * math.log(right / left))
            time = math.exp(times[0][left] + share * (times[0][right] - times[0][left]))
            yield at, time, int(before > 0), int(after > 0)


def _crossing(kind: str, x: str, at: float, time: float, below: str, above: str, context: Label) -> Row:
    where = f"{name_of(context)}: " if context else ""
    what = "is fastest" if kind == "fastest" else "is faster"
    text = f"{where}below {short(x)} {shown(x, at)} {below} {what}, above it {above} ({time * 1e3:.3g} ms there)"
    return _finding(kind, text, context, axis=x, value=at, layer_time_s=time, below=below, above=above)


def _finding(kind: str, text: str, label: Label, **fields: Any) -> Row:
    return {"kind": kind, **dict(label), **fields, "text": text}
