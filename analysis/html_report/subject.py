"""Which row of a result is spoken of, and which others it is fairly compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.html_report.result_file import Found, Result
from analysis.html_report.units import words

METRICS = ("layer_time_s", "load_max_over_mean")
"""What plans are compared by: the first that rows have. Less is better."""
SAME = ("split", "scheme", "homes", "slots_per_rank", "slots", "model", "topology", "phase", "pass", "budget",
        "workload", "cluster", "overlap")  # fmt: skip
"""Rows that agree in these, and in all axes of a study but the planner, are plans for the same work."""
ENGINES = "eplb"
"""The planner that serving engines come with."""
GAIN, LOSS = 1.005, 0.995
"""Ratios of times between them are no difference."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A row on the part it was not fitted to, and its rivals.

    Attributes:
        metric: what is compared, one of METRICS.
        group: all rows for the same work, its own included, the best first.
        fit: the same plan on the part it was fitted to.
        kind: what its work is among others that were priced, in words; "" if it is the only one.
        linear, engine, rival: experts in index order, EPLB, and the best plan of any other method (EPLB or not).
    """

    found: Found
    metric: str
    group: Sequence[Found]
    fit: Sequence[Found]
    linear: Found | None
    engine: Found | None
    rival: Found | None
    kind: str

    @property
    def name(self) -> str:
        weight = self.found["weight"]
        return self.found.text("planner") + (f" (weight {weight})" if weight is not None else "")

    @property
    def own_fit(self) -> Found | None:
        """The subject itself on the part it was fitted to."""
        return next((f for f in self.fit if f["planner"] == self.found["planner"]), None)

    def ratio(self, other: Found) -> float:
        """How many times as good as another: above 1 is a gain."""
        return float(other[self.metric] / self.found[self.metric])


def subject(result: Result, planner: str | None = None) -> Subject | None:
    """The plan that a result is about: the one asked for, the one that was made, or the best.

    Of several kinds of work it is the plan that gains most over experts in index order. None if rows are no plans.

    Raises:
        ValueError: the planner asked for has no row.
    """
    metric = next((m for m in METRICS if result.with_number(m, "held_out")), None)
    if metric is None:
        _require_none(planner, [])
        return None
    rows = [found for found in result.with_number(metric, "held_out") if found["planner"] and found[metric] > 0]
    groups: dict[str, list[Found]] = {}
    for found in sorted(rows, key=lambda found: float(found[metric])):
        groups.setdefault(_work(found), []).append(found)
    wanted = [found for found in rows if planner in (None, found["planner"])]
    if not wanted:
        _require_none(planner, rows)
        return None
    if result.command in ("plan", "simulate"):
        chosen = wanted[0]
    elif result.command == "front" or len(groups) == 1:
        chosen = min(wanted, key=lambda found: float(found[metric]))
    else:
        chosen = max(wanted, key=lambda found: _gain(found, groups[_work(found)], metric))
    group = groups[_work(chosen)]
    fit = [found for found in result.with_number(metric) if found["split"] == "fit"]
    others = [f for f in group if _method(f) != _method(chosen) and not _is(f, "linear")]
    linear = next((f for f in group if _is(f, "linear") and f is not chosen), None)
    engine = next((f for f in others if f["planner"] == ENGINES), None)
    return Subject(chosen, metric, group, fit, linear, engine, others[0] if others else None, _kind(groups, chosen))


def _kind(groups: dict[str, list[Found]], chosen: Found) -> str:
    """What sets the chosen row's work apart from that of other groups; "" for one group."""
    if len(groups) < 2:
        return ""
    said = [f"{words(field)} {chosen.text(field)}" for field in differing(groups) if chosen[field] is not None]
    return ", ".join(said)


def groups_of(result: Result, metric: str) -> dict[str, list[Found]]:
    """Rows for the same work, the best first, by what they have in common."""
    groups: dict[str, list[Found]] = {}
    for found in sorted(result.with_number(metric, "held_out"), key=lambda found: float(found[metric])):
        groups.setdefault(_work(found), []).append(found)
    return groups


def differing(groups: dict[str, list[Found]]) -> list[str]:
    """Fields in which the groups differ, to name them by."""
    firsts = [rows[0] for rows in groups.values()]
    fields = [*SAME, *(name for name in firsts[0].row if name.startswith("cell.") and name != "cell.planner")]
    varying = [field for field in fields if len({repr(found[field]) for found in firsts}) > 1]
    axes = [field for field in varying if field.startswith("cell.")]
    return axes or [field for field in varying if field != "slots" or "slots_per_rank" not in varying]


def _work(found: Found) -> str:
    axes = [name for name in found.row if name.startswith("cell.") and name != "cell.planner"]
    return repr([found[field] for field in (*SAME, *axes)])


def _gain(found: Found, group: Sequence[Found], metric: str) -> float:
    base = next((other for other in group if _is(other, "linear")), None)
    return 0.0 if base is None else float(base[metric] / found[metric])


def _is(found: Found, name: str) -> bool:
    return found["planner"] == name or str(found["method"]).lower() == name


def _method(found: Found) -> str:
    return found.text("method") or found.text("planner")


def _require_none(planner: str | None, rows: Sequence[Found]) -> None:
    if planner is not None:
        names = ", ".join(dict.fromkeys(found.text("planner") for found in rows)) or "none"
        raise ValueError(f"planner={planner} has no held-out row in this result; those with one: {names[:300]}")
