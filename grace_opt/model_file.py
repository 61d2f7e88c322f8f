"""Models described in a YAML file, with the same fields as the presets in conf/model.

_target_: grace_opt.model.MoEModel        # optional, as in a preset; nothing else may stand here
name: my model
num_layers: 16                            # MoE layers
num_experts: 64
...                                       # fields of MoEModel
backbone: {num_heads: 16, ...}            # fields of Backbone; optional, as are all that have a default
"""

import dataclasses
import typing
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from grace_opt.atomic import write_text_atomically
from grace_opt.backbone import Backbone
from grace_opt.model import MoEModel


def write_model(path: str | Path, model: MoEModel, comment: str = "") -> None:
    """Write a model file, whole or not at all; `comment` becomes its first line."""
    fields = _content(model)
    backbone = fields.pop("backbone")
    if backbone is not None:
        fields["backbone"] = _content(backbone)
    text = f"# {comment}\n" if comment else ""
    write_text_atomically(Path(path), text + OmegaConf.to_yaml(OmegaConf.create(fields)))


def read_model(path: str | Path) -> MoEModel:
    """Read a model file.

    Raises:
        ValueError: what the file holds is not a whole model; the message names file and field.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"model file {path} does not exist: give model.path=FILE (.yaml)")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        return MoEModel(**_fields(content, MoEModel, ""))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no readable YAML ({' '.join(str(error).split())})") from None
    except (ValueError, OSError) as error:  # the reader of YAML raises OSError for a file that is no mapping
        raise ValueError(f"{path}: {error}") from None


def _content(value: MoEModel | Backbone) -> dict[str, Any]:
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {"_target_": _target(type(value)), **fields}


def _target(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _fields(content: Any, kind: type, where: str) -> dict[str, Any]:
    """Keyword arguments of a class from a mapping, checked."""
    if not isinstance(content, dict):
        raise ValueError(f"{where.rstrip('.') or 'the file'} must hold fields with values, got {content!r}")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in content.items():
        if name == "_target_" and value == _target(kind):
            continue
        if name not in hints:
            raise ValueError(f"{where}{name} is no field; fields are {', '.join(hints)}")
        if name == "backbone":
            values[name] = None if value is None else Backbone(**_fields(value, Backbone, "backbone."))
            continue
        expected = hints[name]
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise ValueError(f"{where}{name} must be {expected.__name__}, got {value!r}")
        values[name] = value
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.name not in values
    ]
    if missing:
        raise ValueError(f"field {where}{missing[0]} is missing")
    return values
