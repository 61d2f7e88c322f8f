"""What a reader of recordings hands on, piece by piece, and the checks that all readers share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from grace_opt.model import MoEModel

Watch = Callable[[float], None]
"""Called with the share of the recording that is read."""

WHOLE_BYTES = 500_000_000
"""Largest JSON text that is held in memory: a file, or one of its lines."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Choices of some sequences.

    Attributes:
        expert_ids: uint8 or uint16 [T, L, K], logical experts of the MoE layers.
        lengths: [Q] tokens of each sequence.
        prefill: bool [T], which tokens are of prompts; None if the recording does not say.
        domain: what the text is of; None if the recording does not say.
    """

    expert_ids: NDArray[np.unsignedinteger]
    lengths: Sequence[int]
    prefill: NDArray[np.bool_] | None = None
    domain: str | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """int64 [L, E], tokens that chose each expert of the MoE layers in one step."""

    counts: NDArray[np.int64]


class Source(Protocol):
    """(files, model, watch) -> the recording piece by piece: all tokens, or all steps.

    `title` says in a few words what is read; `suffixes` are those of its files, none if it reads folders.
    """

    @property
    def title(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    def __call__(self, paths: Sequence[Path], model: MoEModel, watch: Watch) -> Iterator[Tokens] | Iterator[Step]: ...


class _NamedError(ValueError):
    """A message that names its file already."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes one line that names the file."""
    try:
        yield
    except (OSError, _NamedError):
        raise
    except ValueError as error:
        raise _NamedError(" ".join(f"{path}: {error}".split())) from None
    except Exception as error:  # of a damaged file the libraries beneath raise almost anything
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise _NamedError(f"{path}: damaged, or of another kind ({text})") from error


def moe_counts(counts: NDArray[Any], model: MoEModel, field: str) -> NDArray[np.int64]:
    """[..., L, E] the MoE layers of counts [..., layers, E] of all layers or of these; dense ones must be zero."""
    _require_integers(counts, field)
    if counts.ndim < 2 or counts.shape[-1] != model.num_experts:
        raise ValueError(
            f"{field} has shape {list(counts.shape)}, but model {model.name} has {model.num_experts} experts: "
            "another model? give model=NAME"
        )
    dense = _dense_layers(counts.shape[-2], model, field)
    if counts[..., :dense, :].any():
        raise ValueError(f"{field}: a layer that is dense in model {model.name} has counts: give model=NAME")
    return counts[..., dense:, :].astype(np.int64)


def moe_choices(ids_TLK: NDArray[Any], model: MoEModel, field: str) -> NDArray[np.unsignedinteger]:
    """[T, L, K] choices of the MoE layers, from those of all layers or of these, checked against the model.

    Dense layers, which engines fill with expert 0 throughout (or -1), are left out.
    """
    _require_integers(ids_TLK, field)
    if ids_TLK.ndim != 3 or ids_TLK.shape[2] != model.top_k:
        raise ValueError(
            f"{field} has shape {list(ids_TLK.shape)}, but model {model.name} chooses top-{model.top_k}: "
            "another model? give model=NAME"
        )
    dense = _dense_layers(ids_TLK.shape[1], model, field)
    if (ids_TLK[:, :dense] > 0).any():
        raise ValueError(f"{field}: a layer that is dense in model {model.name} names experts other than 0")
    ids_TLK = ids_TLK[:, dense:]
    if ids_TLK.size and (ids_TLK.min() < 0 or ids_TLK.max() >= model.num_experts):
        odd = ids_TLK.min() if ids_TLK.min() < 0 else ids_TLK.max()
        raise ValueError(f"{field} names expert {odd}, but model {model.name} has experts 0..{model.num_experts - 1}")
    repeated_TL = (np.diff(np.sort(ids_TLK, axis=2), axis=2) == 0).any(axis=2)
    if repeated_TL.any():
        token, layer = np.argwhere(repeated_TL)[0].tolist()
        chosen = ids_TLK[token, layer].tolist()
        where = f"{field}: layer {layer + model.first_moe_layer} of a token chose {chosen}, the same expert twice"
        hint = "the layer is dense in the recorded model" if not any(chosen) else "the recording is damaged"
        raise ValueError(f"{where}: {hint}, or model {model.name} is another one")
    return ids_TLK.astype(np.uint8 if model.num_experts <= 256 else np.uint16)


def _dense_layers(num_layers: int, model: MoEModel, field: str) -> int:
    """How many of the recorded layers come before the model's MoE layers."""
    if num_layers == model.num_layers:
        return 0
    if num_layers == model.first_moe_layer + model.num_layers:
        return model.first_moe_layer
    dense = f" after {model.first_moe_layer} dense" if model.first_moe_layer else ""
    raise ValueError(
        f"{field} has {num_layers} layers, but model {model.name} has {model.num_layers} MoE layers{dense}: "
        "another model? give model=NAME"
    )


def _require_integers(array: NDArray[Any], field: str) -> None:
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{field} must hold integers, got {array.dtype}")
