"""The axes of a study, from `key=a,b,c` arguments and a ready study's `hydra.sweeper.params`, and the cells they span.

An argument with several values is an axis, one with a single value holds for all cells, and a cell is the configuration
of one combination. What the user gives replaces what a ready study has under the same name. Everything is checked
before anything runs: each value by itself under the rules of `grace_opt.configuration`, each combination by composing
it.
"""

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.study_cell import Cell
from grace_opt.configuration import CONF_DIR, check, groups, read_configuration

_OUTER, _INNER = ("trace", "model", "split", "homes", "seed"), ("slots_per_rank", "planner", "planners")


@dataclass(frozen=True)
class Axis:
    """One argument and its values, as text that Hydra reads.

    Attributes:
        key: as given, for instance `topology.inter_bytes_per_s` or `planner`.
        values: one for an argument that holds for all cells.
    """

    key: str
    values: tuple[str, ...]

    @property
    def name(self) -> str:
        """The column of the table that says which value a cell has."""
        return "cell." + self.key.lstrip("+~").partition("@")[0]


@dataclass(frozen=True, eq=False)
class Sweep:
    """The arguments of a study and the cells they span.

    Attributes:
        axes: all arguments, those with one value included, in the order given.
        launcher: arguments for Hydra itself, as `hydra/launcher=submitit_slurm`.
        cells: every combination, the last axis fastest.
        values: for each cell the value of every axis that has several, under the axis' name.
        config: the configuration of the first cell, for what holds for the whole study (`output`, `figures`).
    """

    axes: tuple[Axis, ...]
    launcher: tuple[str, ...]
    cells: tuple[Cell, ...]
    values: tuple[Mapping[str, Any], ...]
    config: DictConfig

    @property
    def swept(self) -> tuple[Axis, ...]:
        """The axes that have several values."""
        return tuple(axis for axis in self.axes if len(axis.values) > 1)

    def arguments(self, wanted: Sequence[bool]) -> list[str]:
        """Arguments of a Hydra multirun over the smallest box of values that contains the wanted cells.

        Cells run in an order in which neighbours share a trace but not a plan, so that processes working side by side
        neither load much nor wait for each other's plan: traces outermost, planners innermost.
        """
        chosen = [which for which, want in zip(self._combinations(), wanted, strict=True) if want]
        used = [sorted({which[i] for which in chosen}) for i in range(len(self.axes))]
        order = sorted(range(len(self.axes)), key=lambda i: _depth(self.axes[i].key))
        return [
            *self.launcher,
            *(f"{self.axes[i].key}={','.join(self.axes[i].values[j] for j in used[i])}" for i in order),
        ]

    def _combinations(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(*(range(len(axis.values)) for axis in self.axes))


def read_sweep(command: str, overrides: Sequence[str]) -> Sweep:
    """Read and check all arguments of a study.

    Raises:
        ValueError: an argument that names no key or no choice, has the wrong type, or does not go with another.
    """
    launcher = [text for text in overrides if text.lstrip("+~").startswith(("hydra.", "hydra/"))]
    own = [text for text in overrides if text not in launcher]
    for text in own:
        if text.partition("=")[0] in ("experiment", "output", "figures") and "," in text:
            raise ValueError(f"{text}: a study has one {text.partition('=')[0]}: run one study after the other")
    ready = [text for text in own if text.startswith("experiment=")]
    if ready:
        read_configuration(command, ready)  # a name that does not exist is said before anything is looked up in it
    with initialize_config_dir(str(CONF_DIR.absolute()), version_base="1.3"):
        try:
            params = compose(command, [*launcher, *ready], return_hydra_config=True).hydra.sweeper.get("params") or {}
        except HydraException as error:
            way_out = ": install the plugin that brings it" if "hydra/launcher/" in str(error) else ""
            raise ValueError(_first_lines(error) + way_out) from None
        axes = _axes([*(f"{key}={value}" for key, value in params.items()), *own])
    said = []
    for arguments in _one_at_a_time(axes):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            check(read_configuration(command, arguments))
        said.append({str(warning.message) for warning in heard})
    sweep = _compose(command, axes, tuple(launcher))
    for message in sorted(set.intersection(*said)) + _without_effect(sweep):
        warnings.warn(message, stacklevel=2)
    return sweep


def _axes(overrides: Sequence[str]) -> tuple[Axis, ...]:
    axes: dict[str, Axis] = {}
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    for text in overrides:
        try:
            (override,) = parser.parse_overrides([text])
            axis = _axis(override)
        except HydraException as error:
            raise ValueError(
                f"{_first_lines(error)}: expected key=value or key=value,value; put a value with commas in quotes"
            ) from None
        plain = axis.key.lstrip("+~")
        axes[plain] = axis
    return tuple(axes.values())


def _axis(override: Override) -> Axis:
    key = str(override.get_key_element())
    if override.is_delete() or not override.is_sweep_override():
        return Axis(key, ("" if override.is_delete() else override.get_value_element_as_str(),))
    if not override.is_discrete_sweep():
        raise ValueError(
            f"{override.input_line}: a study needs a list of values, key=a,b,c or key=range(start,stop,step)"
        )
    return Axis(key, tuple(dict.fromkeys(override.sweep_string_iterator())))


def _one_at_a_time(axes: Sequence[Axis]) -> Iterator[list[str]]:
    """The first combination, then each further value of each axis with the first values of all others."""
    first = [_argument(axis, axis.values[0]) for axis in axes]
    yield first
    for index, axis in enumerate(axes):
        for value in axis.values[1:]:
            yield [*first[:index], _argument(axis, value), *first[index + 1 :]]


def _compose(command: str, axes: tuple[Axis, ...], launcher: tuple[str, ...]) -> Sweep:
    """All cells; plain values are set in a configuration composed before, which is 30 times as fast as composing."""
    plain = [_is_plain(axis.key) for axis in axes]
    composed: dict[tuple[str, ...], DictConfig] = {}
    cells, values = [], []
    config = None
    with initialize_config_dir(str(CONF_DIR.absolute()), version_base="1.3"):
        for which in itertools.product(*(axis.values for axis in axes)):
            arguments = [_argument(axis, value) for axis, value in zip(axes, which, strict=True)]
            parts = tuple(text for text, is_plain in zip(arguments, plain, strict=True) if not is_plain)
            options = [text for text, is_plain in zip(arguments, plain, strict=True) if is_plain]
            try:
                if parts not in composed:
                    composed[parts] = compose(command, list(parts))
                config_of_cell = copy.deepcopy(composed[parts])
                parsed = OverridesParser.create().parse_overrides(options)
                for override in parsed:
                    OmegaConf.update(config_of_cell, override.key_or_group, override.value(), merge=True)
            except (HydraException, OmegaConfBaseException) as error:
                raise ValueError(f"{' '.join(arguments)}: {_first_lines(error)}") from None
            check(config_of_cell)
            config = config_of_cell if config is None else config
            cells.append(Cell.from_config(config_of_cell))
            values.append(_values(axes, which))
    assert config is not None
    return Sweep(axes, launcher, tuple(cells), tuple(values), config)


def _without_effect(sweep: Sweep) -> list[str]:
    """Axes along which all cells are the same: nothing in any configuration uses them."""
    messages = []
    for axis in sweep.swept:
        groups: dict[str, set[str]] = {}
        for cell, values in zip(sweep.cells, sweep.values, strict=True):
            others = repr({name: value for name, value in values.items() if name != axis.name})
            groups.setdefault(others, set()).add(cell.digest)
        if all(len(digests) == 1 for digests in groups.values()):
            messages.append(f"{axis.key}={','.join(axis.values)} has no effect: all cells along it are the same")
    return messages


def _values(axes: Sequence[Axis], which: Sequence[str]) -> dict[str, Any]:
    """What a table shows of a combination: numbers and names as they are, lists as text, files by their names."""
    shown = {}
    for axis, text in zip(axes, which, strict=True):
        if len(axis.values) > 1:
            value = OverridesParser.create().parse_override(f"x={text}").value()
            if isinstance(value, str) and axis.key.endswith(("path", "like")) and _have_different_names(axis):
                value = Path(value).name
            shown[axis.name] = value if isinstance(value, int | float | str | None) else text
    return shown


def _have_different_names(axis: Axis) -> bool:
    return len({Path(value.strip("'\"")).name for value in axis.values}) == len(axis.values)


def _is_plain(key: str) -> bool:
    return not key.startswith(("+", "~")) and key.partition("@")[0] not in groups()


def _argument(axis: Axis, value: str) -> str:
    return axis.key if axis.key.startswith("~") else f"{axis.key}={value}"


def _depth(key: str) -> int:
    root = key.lstrip("+~").partition("@")[0].partition(".")[0]
    return 0 if root in _OUTER else 2 if root in _INNER else 1


def _first_lines(error: BaseException) -> str:
    """Without Hydra's search path."""
    text = str(error).partition("Config search path")[0]
    return " ".join(text.split())
