"""Integer programs written in PuLP, solved by HiGHS from a plan that is already there, within a time limit.

A program's variables carry that plan before solving (`variable.setInitialValue`) and the best one found afterwards, so
whoever reads them always finds a feasible plan. HiGHS runs on one thread with a fixed seed: with time enough the same
program gives the same plan. A limit of wall-clock time is not deterministic; a program that meets it may end with
another plan next time.
"""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import highspy
import pulp

RELATIVE_GAP = 1e-4
"""HiGHS' own default: a plan this close to the bound counts as optimal."""
_FEASIBLE = 2  # HiGHS: kSolutionStatusFeasible


@dataclass(frozen=True)
class Outcome:
    """What the solver says of the values its variables now hold.

    Attributes:
        objective: of the best plan found.
        bound: no plan of this program has a smaller objective; -inf if time ended before there was one.
        closed: objective and bound met, within the gap asked for.
    """

    objective: float
    bound: float
    closed: bool


def solve(program: pulp.LpProblem, deadline_s: float, relative_gap: float = RELATIVE_GAP) -> Outcome:
    """Minimise a program with integer variables that already hold a feasible plan.

    Args:
        deadline_s: on the clock `time.monotonic`, so that the time a program takes to build counts.
        relative_gap: a plan this close to the bound ends the search.

    Raises:
        RuntimeError: HiGHS ended without a plan, though it was given one.
    """
    options = {"random_seed": 0, "mip_rel_gap": relative_gap, "time_limit": max(deadline_s - time.monotonic(), 0.0)}
    program.solve(_StartedHiGHS(**options))
    info = program.solverModel.getInfo()
    if info.primal_solution_status != _FEASIBLE:
        raise RuntimeError(f"HiGHS ended without a plan: {program.solverModel.getModelStatus()}")
    closed = program.solverModel.getModelStatus() == highspy.HighsModelStatus.kOptimal
    constant = program.objective.constant  # PuLP keeps it from HiGHS
    return Outcome(info.objective_function_value + constant, info.mip_dual_bound + constant, closed)


def deadlines(total_s: float, num_programs: int) -> Iterator[float]:
    """Deadline of each program in turn, on the clock `time.monotonic`: an equal share of the time that is left.

    A program that ends early leaves its time to those after it.
    """
    end_s = time.monotonic() + total_s
    for programs_left in range(num_programs, 0, -1):
        now_s = time.monotonic()
        yield now_s + max(end_s - now_s, 0.0) / programs_left


def is_late(deadline_s: float, what: str) -> bool:
    """Whether there is no time left to search on; if so, a warning says that the plan found by then stands."""
    late = time.monotonic() >= deadline_s
    if late:
        warnings.warn(f"{what}: time_limit_s is over, the plan found by then stands", stacklevel=3)
    return late


def require_time(planner: str, time_limit_s: float) -> None:
    """Raise ValueError unless a time limit is one."""
    if not (isinstance(time_limit_s, int | float) and time_limit_s >= 0):
        raise ValueError(f"{planner}: time_limit_s must be a number of seconds, at least 0, got {time_limit_s!r}")


class _StartedHiGHS(pulp.HiGHS):  # type: ignore[misc]
    """PuLP's HiGHS, silent, given the values the variables hold as its first plan."""

    def createAndConfigureSolver(self, lp: pulp.LpProblem) -> None:  # noqa: N802
        lp.solverModel = _SilentHighs()  # type: ignore[no-untyped-call]
        lp.solverModel.setOptionValue("threads", 1)
        for option, value in self.optionsDict.items():
            lp.solverModel.setOptionValue(option, value)

    def callSolver(self, lp: pulp.LpProblem) -> None:  # noqa: N802
        start = highspy.HighsSolution()
        start.col_value = [variable.varValue or 0.0 for variable in lp.variables()]
        lp.solverModel.setSolution(start)
        lp.solverModel.run()


class _SilentHighs(highspy.Highs):
    """HiGHS greets the terminal when its callbacks are enabled, before anyone can turn its output off."""

    def enableCallbacks(self) -> None:  # noqa: N802
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()  # type: ignore[no-untyped-call]
