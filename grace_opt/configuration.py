"""From `key=value` arguments to the objects they describe, with Hydra; every mistake becomes one clear line.

One root file of `conf/` is one command; its `_target_` is the function that runs it. Root keys that are parameters of
that function are handed over; others (`seed`, `scheme`, `workload`) are values that parts refer to as `${seed}`.
"""

import copy
import difflib
import functools
import inspect
import logging
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

_BESIDE, _CHECKOUT = Path(__file__).parent / "conf", Path(__file__).parent.parent / "conf"
CONF_DIR = _BESIDE if _BESIDE.is_dir() else _CHECKOUT  # a wheel carries conf/ inside the package

_READ_ELSEWHERE = ("experiment", "scaled", "output", "figures")  # not by a command's function: by Hydra, or by a study

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what it raises as well, over three lines

OmegaConf.register_new_resolver("conf_dir", lambda: str(CONF_DIR), replace=True)


def commands() -> dict[str, str]:
    """Names of the commands and what each does: the root files and their first comment."""
    return {path.stem: first_comment(path) for path in sorted(CONF_DIR.glob("*.yaml"))}


def groups() -> dict[str, dict[str, str]]:
    """The choices of each group and what each is: the folders with YAML files and their first comments."""
    folders = sorted(path for path in CONF_DIR.iterdir() if path.is_dir() and path.name != "clusters")
    choices = {f.name: {p.stem: first_comment(p) for p in sorted(f.glob("*.yaml"))} for f in folders}
    return {name: files for name, files in choices.items() if files}


def parts_of(command: str) -> dict[str, str]:
    """The groups a command takes one choice of, and its default choice ("null" for none)."""
    lines = (CONF_DIR / f"{command}.yaml").read_text(encoding="utf-8").splitlines()
    found = (re.fullmatch(r"  - (?:optional )?(\w+): (\w+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def first_comment(path: Path) -> str:
    """What a file says about itself in its first comment line that is no Hydra directive."""
    lines = (line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return next((line for line in lines if not line.startswith("@package")), "")


def read_configuration(command: str, overrides: list[str]) -> DictConfig:
    """Compose a command's configuration.

    Raises:
        ValueError: an override that names no key, no choice or no command, with the nearest valid name.
    """
    _require_known("command", command, commands())
    with initialize_config_dir(str(CONF_DIR.absolute()), version_base="1.3"):
        try:
            parsed = OverridesParser.create().parse_overrides(overrides)
            parts = set(parts_of(command))
            choices = tuple(str(override.input_line) for override in parsed if _is_choice(override, parts))
            chosen = _composed(command, choices)
            valid = set(flat_keys(chosen)) | parts
            for override in parsed:
                _check_key(override, valid)
            named = [override for override in parsed if _is_value_named_as_a_group(override, valid - parts)]
            lines = tuple(str(override.input_line) for override in parsed if override not in named)
            config = copy.deepcopy(chosen) if lines == choices else compose(command, list(lines))
            for override in named:
                config[override.key_or_group] = override.value()
        except OverrideParseException as error:
            raise ValueError(f"{_one_line(error)}: expected key=value; put values with commas in quotes") from None
        except HydraException as error:
            raise ValueError(_one_line(error)) from None
    _warn_of_unused(config, overrides)
    return config


@functools.lru_cache(maxsize=32)
def _composed(command: str, choices: tuple[str, ...]) -> DictConfig:
    """The configuration with these choices, which nobody may change: composing takes longer than all else here."""
    return compose(command, list(choices))


def run(config: DictConfig) -> Any:
    """Build all parts and call the command."""
    parameters = check(config)
    with Console(stderr=True).status("preparing") as status:  # shows nothing unless stderr is a terminal
        built = {}
        for key in parameters:
            status.update(f"preparing {key}")
            built[key] = build(config[key])
    return located(config["_target_"])(**built)


def located(target: str) -> Any:
    """What a `_target_` names.

    Raises:
        ValueError: a package that it needs is not installed.
    """
    try:
        return get_object(target)
    except ImportError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ModuleNotFoundError):
            cause = cause.__cause__ or cause.__context__
        if cause is None or not cause.name:
            raise
        package = cause.name.partition(".")[0]
        raise ValueError(
            f"{target} needs {package}, which is not installed: pip install 'grace-opt[runtime]'"
        ) from None


def check(config: DictConfig) -> list[str]:
    """Resolve a configuration in place and compare it with what its command takes; the keys the command is given.

    Raises:
        ValueError: a value is missing, refers to none, or has another type than the command expects.
    """
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ValueError(_one_line(error)) from None
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ValueError(f"{missing[0]} must be given: add {missing[0]}=VALUE")
    accepted = inspect.signature(located(config["_target_"])).parameters
    parameters = [str(key) for key in config if key in accepted]
    for name, parameter in accepted.items():
        if name not in config and parameter.default is parameter.empty:
            raise ValueError(f"{name} must be given, but it was left out")
    check_types(config, "", only=parameters)
    return parameters


def check_types(config: Any, where: str, only: list[str] | None = None) -> None:
    """Compare plain values with the annotations of the parameters they are for, in all parts of the configuration."""
    if not isinstance(config, DictConfig):
        return
    hints: dict[str, Any] = {}
    if "_target_" in config:
        target = located(config["_target_"])
        function = target.__init__ if inspect.isclass(target) else target
        hints = typing.get_type_hints(function)
        known = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
        unknown = [str(key) for key in config if key != "_target_" and key not in known] if only is None else []
        if unknown:
            raise ValueError(f"{where}{unknown[0]} is no option of {config['_target_']}{_nearest(unknown[0], known)}")
    for key in map(str, config) if only is None else only:
        value = config[key]
        if isinstance(value, DictConfig) and hints.get(key) not in (int, float, bool, str):
            check_types(value, f"{where}{key}.")
        elif key in hints and not _fits(value, hints[key]):
            raise ValueError(f"{where}{key} must be {_name(hints[key])}, got {value!r}")


def flat_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all values."""
    for key in map(str, config):
        if OmegaConf.is_dict(config._get_node(key)) and not OmegaConf.is_missing(config, key):
            yield from flat_keys(config[key], f"{prefix}{key}.")
        elif key != "_target_":
            yield f"{prefix}{key}"


def build(value: Any) -> Any:
    """The object a part of the configuration describes; plain values stay."""
    if not OmegaConf.is_config(value):
        return value
    try:
        return instantiate(value, _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, ValueError | OSError):
            cause = cause.__cause__
        if isinstance(cause, ValueError | OSError):
            raise cause from None
        if isinstance(cause, TypeError):
            raise ValueError(_one_line(cause)) from None
        raise


def _is_choice(override: Override, parts: set[str]) -> bool:
    """Whether an override chooses a part, or adds or leaves out one (`group@place`).

    Raises:
        ValueError: there is no such choice.
    """
    group = override.key_or_group
    if group not in (parts if override.package is None else groups()):
        return False
    if not override.is_delete():
        _require_known(f"{group}=", str(override.value()), groups()[group])
    return True


def _is_value_named_as_a_group(override: Override, values: set[str]) -> bool:
    """Whether it sets a plain value that has the name of a group of other commands: Hydra would look for a choice."""
    plain = override.package is None and not override.is_add() and not override.is_delete()
    return plain and override.key_or_group in values and override.key_or_group in groups()


def _check_key(override: Override, valid: set[str]) -> None:
    """Raise ValueError if no option and no part has this name; what `+` adds must at least belong to a part."""
    key = override.key_or_group
    if override.package is not None and key in groups():
        return
    known = {".".join(name.split(".")[:depth]) for name in valid for depth in range(1, name.count(".") + 2)}
    wanted = key.rpartition(".")[0] if override.is_add() or key.endswith("._target_") else key
    if wanted not in known and key not in known:
        raise ValueError(f"unknown option {key!r}{_nearest(key, sorted(valid))}")


def _warn_of_unused(config: DictConfig, overrides: list[str]) -> None:
    """Warn when a value was set that nothing in this configuration refers to."""
    parameters = inspect.signature(located(config["_target_"])).parameters
    text = OmegaConf.to_yaml(config)
    for override in overrides:
        root = re.split(r"[.=]", override.lstrip("+"))[0]
        if (
            root in config
            and root not in (*parameters, *_READ_ELSEWHERE)
            and not re.search(rf"\$\{{(oc.select:)?{root}", text)
        ):
            warnings.warn(f"{override} has no effect: nothing in this configuration uses {root}", stacklevel=2)


def _require_known(what: str, name: str, valid: typing.Iterable[str]) -> None:
    if name not in valid:
        raise ValueError(f"{what}{'' if what.endswith('=') else ' '}{name} does not exist{_nearest(name, list(valid))}")


def _nearest(name: str, valid: list[str]) -> str:
    last = {v.split(".")[-1]: v for v in reversed(valid)}
    near = difflib.get_close_matches(name, [*valid, *last], n=1, cutoff=0.5)
    if near:
        return f"; did you mean {last.get(near[0], near[0])}?"
    return f"; valid: {', '.join(sorted(name for name in valid if '.' not in name))}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that is no part of its own (no dict) fits an annotation."""
    plain: dict[Any, Callable[[Any], bool]] = {
        int: lambda v: type(v) is int,
        float: lambda v: type(v) in (int, float),
        bool: lambda v: type(v) is bool,
        str: lambda v: isinstance(v, str),
        type(None): lambda v: v is None,
    }
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is Sequence:
        return isinstance(value, ListConfig) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    if typing.get_origin(hint) is Mapping:
        return isinstance(value, DictConfig)
    if hint is Path:
        return isinstance(value, str)
    return plain[hint](value) if hint in plain else False


def _name(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    return text.replace("collections.abc.", "").replace("pathlib.", "")
