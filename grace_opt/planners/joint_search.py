"""All layers of a problem searched side by side, within a time limit, with the best so far at hand at any time."""

import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from grace_opt.batch_rates import BatchRates
from grace_opt.cores import num_cores
from grace_opt.planners.home_scenarios import ScenarioSampler
from grace_opt.planners.local_search import LocalSearch, rates_of
from grace_opt.problem import Problem
from grace_opt.trace import Trace

if TYPE_CHECKING:
    from grace_opt.planners.joint import Joint

CHUNK = 500
"""Moves between two looks at the clock and at Ctrl-C."""
LAG = 0.05
"""Share of the search by which the clock may be ahead of the moves before it decides the temperature."""
COOLING = 0.01
"""Last temperature over the first."""
COARSE, COARSE_SHARE = 4, 0.5
"""The first part of the search, of this share, sees every fourth of the sampled tokens: more moves while it is hot."""
POLISH = 0.8
"""Share of the search after which the p-norm comes closer to the maximum."""


@dataclass(frozen=True)
class Progress:
    """How far a search is: layers done, and their mean time in the sample at the start and now."""

    layers_done: int
    num_layers: int
    start_s: float
    found_s: float


class LayerSearches:
    """Searches all layers side by side; `slots_L` holds the best found of each at any time; `interrupted` is
    True after Ctrl-C."""

    def __init__(
        self,
        options: "Joint",
        problem: Problem,
        rates: BatchRates,
        maps: Sequence[Trace],
        starts: Sequence[NDArray[np.int64]],
        deadline: float,
        watch: Callable[[Progress], None],
    ) -> None:
        topology = problem.topology
        self._options, self._problem, self._starts, self._watch = options, problem, starts, watch
        self._rates = rates_of(rates, topology)
        self._coarse, self._fine = (
            ScenarioSampler(
                problem, list(maps), options.cost.tokens_per_rank, options.num_batches, tokens, options.seed
            )
            for tokens in (max(1, options.num_tokens // COARSE), options.num_tokens)
        )
        self.slots_L = list(starts[0])
        self.interrupted = False
        self._deadline, self._stop, self._done = deadline, Event(), list[tuple[float, float]]()

    def run(self) -> bool:
        """Whether all trials of all layers were made."""
        with ThreadPoolExecutor(num_cores()) as pool:
            futures = [pool.submit(self._layer, layer) for layer in range(len(self.slots_L))]
            try:
                return all(done for done in [future.result() for future in futures])
            except KeyboardInterrupt:
                self.interrupted = True
                self._stop.set()
                warnings.warn("joint: interrupted, the best plan so far is kept", stacklevel=2)
                return False

    def _layer(self, layer: int) -> bool:
        options, now = self._options, time.perf_counter()
        turns_left = -(-(len(self.slots_L) - layer) // num_cores())
        budget = max((self._deadline - now) / turns_left, 1e-9)
        slots_RS, start_s = self._best_start(layer)
        search = self._search(layer, slots_RS, self._coarse, len(self._starts))
        done, phase, begins = 0, 0, True
        while done < options.trials and not self._stop.is_set():
            share, spent = done / options.trials, (time.perf_counter() - now) / budget
            share = spent if spent > share + LAG else share
            if share >= 1:
                break
            before, phase = phase, (share > COARSE_SHARE) + (share > POLISH)
            if before == 0 and phase > 0:
                search = self._search(layer, search.slots, self._fine, len(self._starts) + 1)
            trials = min(CHUNK, options.trials - done)
            hot, cold = (options.hottest * COOLING ** min(s, 1.0) for s in (share, share + trials / options.trials))
            repeated = COARSE if phase == 0 else 1
            search.run(trials * repeated, hot, cold, 4 if phase == 2 else 3, resume=not begins and phase == before)
            self.slots_L[layer] = search.slots
            done, begins = done + trials, False
        self._done.append((start_s, search.objective))
        start, found = np.mean(self._done, axis=0)
        self._watch(Progress(len(self._done), len(self.slots_L), start, found))
        return done >= options.trials

    def _search(self, layer: int, slots_RS: NDArray[np.int64], sampler: ScenarioSampler, number: int) -> LocalSearch:
        """The layer's search from some slots on some sample; number tells the searches of a layer apart."""
        problem = self._problem
        seed = (self._options.seed * len(self.slots_L) + layer) * 1000 + number
        sample = sampler.of_layer(layer)
        return LocalSearch(slots_RS, problem.slots_per_rank, problem.model.num_experts, sample, self._rates, seed)

    def _best_start(self, layer: int) -> tuple[NDArray[np.int64], float]:
        """[R, S] the start that is best in the sample, and its seconds."""
        found = []
        for index, slots in enumerate(self._starts):
            search = self._search(layer, slots[layer], self._fine, index)
            search.run(0, 0.0, 0.0)
            found.append((search.objective, index))
        seconds, index = min(found)
        self.slots_L[layer] = self._starts[index][layer]
        return self.slots_L[layer], seconds
