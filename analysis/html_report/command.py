"""`grace-opt report`: one self-contained HTML page from the result of any command."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from analysis.html_report.advice import advice_sections
from analysis.html_report.advised import advised, has_advice, rebuild_advised
from analysis.html_report.agreement import accuracy, validation
from analysis.html_report.elements import Element
from analysis.html_report.inputs import Drawn, rebuild
from analysis.html_report.inputs_table import all_rows, further, inputs
from analysis.html_report.page import GENERATOR, page
from analysis.html_report.placement import placement
from analysis.html_report.planners import cells, certificate, failed, planners
from analysis.html_report.result_file import Found, Result, read_result
from analysis.html_report.studied import rebuild_cell
from analysis.html_report.subject import Subject, subject
from analysis.html_report.trade_offs import along_axes, findings, front, redundancy
from analysis.results import require_writable
from grace_opt.atomic import write_text_atomically

REBUILD: dict[str, Callable[[Result, Found, Sequence[str]], Drawn]] = {
    **dict.fromkeys(("plan", "compare", "simulate", "front"), rebuild),
    "advise": rebuild_advised,
    "study": rebuild_cell,
}
"""How the plan of a row is had again, for commands that keep plans."""


def report(
    result: str,
    output: str | None = None,
    planner: str | None = None,
    layer: int | None = None,
    given: Sequence[str] = (),
) -> Path:
    """Write the page.

    Affinity, load, traffic and timeline are counted again from the plan and the trace. Where these are not there, or
    are not those of the result, the page and a warning say so; with `given` that is an error.

    Args:
        result: file or folder.
        output: file to write; None: report.html beside the result.
        planner: whose plan is spoken of and drawn; None: the one that was made, or the best. An advice speaks of its
            own plan; then this is whose fastest plan is drawn.
        layer: absolute id of the layer that is drawn; None: the one in which the plan brings most experts together.
        given: further arguments of the command that made the result, as trace.path=FILE if the file has moved.

    Raises:
        ValueError: bad input.
    """
    read = read_result(result)
    file = _writable(read.folder / "report.html" if output is None else Path(output))
    about = None if has_advice(read) else subject(read, planner)
    with Console(stderr=True).status("counting and drawing"):
        drawn, notes = _of_plan(read, about, planner, layer, given)
        sections = _sections(read, about, drawn)
        text = page(read, about, sections, notes)
    write_text_atomically(file, text)
    figures = sum(1 for section in sections for _ in section.iter("figure"))
    print(f"wrote {file}: {figures} figures, {len(text.encode()) / 1e6:.1f} MB")
    return file


def _of_plan(
    result: Result, about: Subject | None, planner: str | None, layer: int | None, given: Sequence[str]
) -> tuple[list[Element], list[str]]:
    """Sections that need the plan and its inputs; else a note that says why they are missing."""
    advice = has_advice(result)
    timed = about is not None and about.metric == "layer_time_s"
    if result.command not in REBUILD or not (advice or timed):
        if given or layer is not None:
            raise ValueError(
                f"given and layer are for results with plans ({', '.join(REBUILD)}), not for {result.command}"
            )
        return [], []
    try:
        found = advised(result, planner) if about is None else about.found
        return placement(REBUILD[result.command](result, found, given), layer), []
    except (ValueError, OSError) as error:
        if given or layer is not None or (advice and planner is not None):
            raise
        said = " ".join(str(error).split())
        note = f"affinity, load, traffic and timeline are left out: {said}"
        warnings.warn(note, stacklevel=2)
        return [], [note]


def _sections(result: Result, about: Subject | None, drawn: Sequence[Element]) -> list[Element]:
    """Those that the result has data for, the most telling first."""
    made = [
        *advice_sections(result),
        validation(result),
        accuracy(result),
        front(result),
        redundancy(result),
        findings(result),
        planners(about),
        along_axes(result),
        *drawn,
        certificate(about),
        cells(result, about),
        further(result),
        failed(result),
        inputs(result),
        all_rows(result),
    ]
    return [section for section in made if section is not None]


def _writable(file: Path) -> Path:
    """The file to write, unless something that is no report stands there."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"output={file} must name an .html file")
    require_writable(str(file.parent))
    if file.exists():
        head = file.read_bytes()[:4000] if file.is_file() else b""
        if f'content="{GENERATOR}"'.encode() not in head:
            raise ValueError(f"output={file} exists and is no report of ours: name another file")
    return file
