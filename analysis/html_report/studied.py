"""The plan of a cell of a study: from the configuration and the plan that the study kept, never planned again.

The name of a cell is the digest of all that decides its row: content of files, options, the version. So what is built
from the kept configuration is what was priced if it has the cell's name. The configuration names classes; only those
are followed that a group of `conf/` names, as an argument could have chosen them.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.html_report.inputs import Drawn, drawn, fitted
from analysis.html_report.result_file import Found, Result
from analysis.html_report.units import words
from analysis.parts import problems
from analysis.study_cache import StudyCache
from analysis.study_cell import PARTS, Cell
from grace_opt.configuration import CONF_DIR, build

GROUPS = ("model", "topology", "trace", "split", "homes", "cost", "planner", "transport", "gpu")
PASSES = "analysis.whole_model.Passes"
PLAIN = re.compile("[0-9a-f]{32}")


def rebuild_cell(result: Result, found: Found, given: Sequence[str]) -> Drawn:
    """The plan of a cell, on the part of the trace that it was not fitted to.

    Args:
        given: values of the cell's configuration by a person, as trace.path=FILE.

    Raises:
        ValueError, OSError: inputs or plan are not there, or are others than those of the cell.
    """
    cell = _cell(result, found, given)
    inputs = {name: build(OmegaConf.create(cell.content[name])) for name in PARTS if name != "passes"}
    slots, deal = cell.content["slots_per_rank"], cell.content["deal_slots"]
    model, topology, trace, split, homes, cost, planner = inputs.values()
    fit = problems(model, topology, trace, split, homes, slots, deal)["fit"]
    plan = StudyCache(result.folder / "cache", cell.parts).kept(planner, fit, slots is None)
    if plan is None:
        raise ValueError(f"{result.folder / 'cache'} no longer has the plan of cell {cell.digest}: run the study again")
    shown = drawn(result, found, plan, fitted(result, plan, inputs), cost, str(cell.content["overlap"]))
    return replace(shown, about=_about(found))


def _cell(result: Result, found: Found, given: Sequence[str]) -> Cell:
    name = found.text("cell")
    if not PLAIN.fullmatch(name):
        raise ValueError(f"{result.path}: {found.at} has no cell: run the study again")
    path = result.folder / "cells" / f"{name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["config"]
        _require_known(content, _classes())
        cell = Cell.from_config(_with_given(content, given))
    except (KeyError, TypeError, AttributeError, RecursionError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is no cell of a study ({type(error).__name__})") from None
    if cell.digest != name:
        raise ValueError(
            f"inputs or version are not those of cell {name}: give what moved, as given='[\"trace.path=FILE\"]'"
        )
    return cell


def _require_known(value: Any, classes: frozenset[str]) -> None:
    """Raise ValueError if a configuration does what the arguments of a result must not do."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key.startswith("_") and not (key == "_target_" and item in classes):
                raise ValueError(
                    f"the configuration of the cell holds {key}: {item!s:.60}, which a report does not follow"
                )
            _require_known(item, classes)
    elif isinstance(value, list):
        for item in value:
            _require_known(item, classes)
    elif isinstance(value, str) and "${" in value:
        raise ValueError(f"the configuration of the cell holds {value!r:.60}, which a report does not follow")


def _classes() -> frozenset[str]:
    """What the groups of a study name."""
    files = (path for group in GROUPS for path in (CONF_DIR / group).glob("*.yaml"))
    named = (re.findall(r"_target_: ([\w.]+)", path.read_text(encoding="utf-8")) for path in files)
    return frozenset({PASSES}.union(*named))


def _with_given(content: Any, given: Sequence[str]) -> DictConfig:
    config = OmegaConf.create({**content, "_target_": "analysis.study_cell.price_cell"})
    OmegaConf.set_struct(config, True)
    for text in given:
        try:
            (override,) = OverridesParser.create().parse_overrides([text])
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except (HydraException, OmegaConfBaseException):
            names = ", ".join(map(str, content))
            raise ValueError(f"given {text:.100}: expected KEY=VALUE of what a cell has: {names:.300}") from None
    return config


def _about(found: Found) -> str:
    """Which cell this is."""
    axes = [f"{words(name)} {found.text(name)}" for name in found.row if name.startswith("cell.")]
    return f"This is the cell of {', '.join(axes)}." if axes else ""
