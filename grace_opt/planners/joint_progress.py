"""What a search tells whoever watches it, and how a watcher ends it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray


class Enough(KeyboardInterrupt):
    """Raised by a watcher of a search, or of bounds, that needs no better: it ends as by Ctrl-C, what was found stays.

    Bounds end by any KeyboardInterrupt (`grace_opt.bounds.certificate`); nobody typed this one, so nothing warns of it.
    """


@dataclass(frozen=True)
class Progress:
    """How far a plan is.

    Attributes:
        stage: compiling, starting (with published plans), dealing (slots to layers, if they are to be dealt),
            searching, choosing (among what was found).
        layers_done: searched, of num_layers.
        found_s: mean layer time of the best so far, exact under the cost model; None before the search. A layer that
            is yet to be searched counts as in the first start.
        own_homes: found_s is for the problem's own homes; else homes are decided too, and it is for those in question.
    """

    stage: str
    layers_done: int
    num_layers: int
    found_s: float | None = None
    own_homes: bool = True


class Watcher:
    """Prices layers as they are done, and tells.

    Args:
        watch: told; what it raises ends the search.
        price: (layer, slots [R, S]) -> seconds.
    """

    def __init__(
        self, watch: Callable[[Progress], None], price: Callable[[int, NDArray[np.int64]], float], own_homes: bool
    ) -> None:
        self._watch, self._price, self._own_homes = watch, price, own_homes
        self._seconds_L, self._done, self._lock = np.zeros(0), 0, Lock()

    def begin(self, slots_L: Sequence[NDArray[np.int64]]) -> None:
        """What all layers start from, at the least."""
        self._seconds_L = np.array([self._price(layer, slots) for layer, slots in enumerate(slots_L)])
        self._tell()

    def layer_done(self, layer: int, slots_RS: NDArray[np.int64]) -> None:
        """From any thread."""
        seconds = self._price(layer, slots_RS)
        with self._lock:
            self._seconds_L[layer] = seconds
            self._done += 1
            self._tell()

    def _tell(self) -> None:
        found_s = float(self._seconds_L.mean())
        self._watch(Progress("searching", self._done, len(self._seconds_L), found_s, self._own_homes))
