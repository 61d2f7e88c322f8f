"""One line on a terminal in which the best plan so far and the bound on all plans close in on each other."""

from types import TracebackType

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from grace_opt.planners.joint_progress import Enough


class GapLine:
    """Stage, layers done, milliseconds found, milliseconds no plan beats, and the gap; drawn on a terminal only.

    Args:
        num_layers: of the model.
        wanted: gap at which `show` raises `Enough`; None: never.
    """

    def __init__(self, num_layers: int, wanted: float | None) -> None:
        columns = TextColumn(f"{{task.description}} {{task.fields[done]}}/{num_layers} layers{{task.fields[stands]}}")
        self._bar = Progress(columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("planning", total=None, done=0, stands="")  # no total: the time goes on
        self._found_s: float | None = None
        self._wanted = wanted

    def __enter__(self) -> "GapLine":
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar.console.is_terminal:
            self._bar.stop()

    def show(self, stage: str, done: int, found_s: float | None, bound_s: float | None) -> None:
        """Say how it stands; a plan of unknown seconds leaves the last known ones, a bound of unknown ones none.

        Raises:
            Enough: the wanted gap is reached.
        """
        self._found_s = found_s or self._found_s
        self._bar.update(self._task, description=stage, done=done, stands=stands(self._found_s, bound_s))
        if self._wanted is not None and found_s and bound_s and found_s / bound_s - 1 <= self._wanted:
            raise Enough


def stands(found_s: float | None, bound_s: float | None) -> str:
    """Plan, bound and gap, as far as they are known."""
    found = f"  found {found_s * 1e3:.3f} ms a layer" if found_s else ""
    bound = f"  bound {bound_s * 1e3:.3f} ms" if bound_s else ""
    return found + bound + (f"  gap {found_s / bound_s - 1:.1%}" if found_s and bound_s else "")
