"""Candidates as they are made: their plans and rows on disk, at any time those that are done."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis.advice.candidates import ALL, Candidate, Workshop
from analysis.advice.judging import Judge
from analysis.results import Row, write_result
from grace_opt.plan_file import write_plan


class Ledger:
    """Attributes:
        rows: of each candidate by name, one a phase.
        failed: rows of planners that could not plan, with their errors.
        candidates: those that have rows, in the order in which they were made.

    Args:
        check: called after each plan; may raise.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], workshop: Workshop, judge: Judge, check: Callable[[], None]
    ) -> None:
        self._folder, self._about, self._workshop, self._judge, self._check = folder, about, workshop, judge, check
        self.rows: dict[str, Sequence[Row]] = {}
        self.failed: list[Row] = []
        self.candidates: list[Candidate] = []

    def make(self, planner: str, redundancy: int, goal: str = ALL) -> Candidate | None:
        """Plan, price, write; None if the planner cannot plan within the slots."""
        try:
            candidate = self._workshop.make(planner, redundancy, goal)
        except ValueError as error:
            asked = {"planner": planner, "split": "held_out", "goal": goal, "redundancy": redundancy}
            self.failed.append({**asked, "error": str(error)})
            return None
        self._check()
        return self.add(candidate)

    def add(self, candidate: Candidate) -> Candidate:
        """Price and write a candidate."""
        write_plan(self.path(candidate), candidate.solution.plan)
        plan = str(self.path(candidate).relative_to(self._folder))
        self.rows[candidate.name] = [{**row, "plan": plan} for row in self._judge.rows(candidate)]
        self.candidates.append(candidate)
        self.write()
        return candidate

    def path(self, candidate: Candidate) -> Path:
        """Of its plan."""
        return self._folder / "plans" / f"{candidate.name}.json"

    def all_rows(self) -> list[Row]:
        """Of all candidates, in the order in which they were made, then what failed."""
        return [row for rows in self.rows.values() for row in rows] + self.failed

    def write(self, advice: dict[str, Any] | None = None) -> None:
        """Write result.json, with the advice once it is there."""
        extra = {"advice": advice}
        write_result(self._folder, "advise", self._about, self.all_rows(), complete=advice is not None, extra=extra)
