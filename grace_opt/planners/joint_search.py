"""All layers of a problem searched side by side, within a time limit, with the best so far at hand at any time."""

import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from grace_opt.batch_rates import BatchRates
from grace_opt.cores import num_cores
from grace_opt.planners.domain_weights import DRAWS, STRETCHES, DomainWeights
from grace_opt.planners.home_scenarios import Scenario, ScenarioSampler
from grace_opt.planners.joint_progress import Enough, Watcher
from grace_opt.planners.local_search import LocalSearch, rates_of
from grace_opt.planners.search_objective import Sample
from grace_opt.problem import Problem

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


class LayerSearches:
    """Searches all layers side by side; `slots_L` holds the best found of each at any time; `interrupted` is
    True after Ctrl-C.

    Args:
        draws: [domain][draw] sample batches, as many in every draw. With robust=worst a sample takes some draws of each
            domain (see `domain_weights`), else it is all of them.
        room_LR: experts a rank may hold in each layer.
        layers: those to search, None: all; the others stay as in the first start.
    """

    def __init__(
        self,
        options: "Joint",
        problem: Problem,
        rates: BatchRates,
        draws: Sequence[Sequence[Sequence[Scenario]]],
        starts: Sequence[NDArray[np.int64]],
        room_LR: NDArray[np.int64],
        deadline: float,
        watcher: Watcher | None,
        layers: Sequence[int] | None = None,
    ) -> None:
        self._options, self._problem, self._starts, self._watcher = options, problem, starts, watcher
        self._room_LR = room_LR
        self._layers = range(len(room_LR)) if layers is None else layers
        self._rates = rates_of(rates, problem.topology)
        scenarios = [scenario for domain in draws for draw in domain for scenario in draw]
        self._numbers = np.arange(len(scenarios)).reshape(len(draws), len(draws[0]), -1)
        self._worst = options.robust == "worst"
        at_once = len(draws) * DRAWS * self._numbers.shape[2] if self._worst else len(scenarios)
        self._coarse, self._fine = (
            ScenarioSampler(problem, scenarios, tokens // at_once, options.seed, options.policy)
            for tokens in (max(1, options.num_tokens // COARSE), options.num_tokens)
        )
        self.slots_L = list(starts[0])
        self.interrupted = False
        self._deadline, self._stop = deadline, Event()

    def run(self) -> bool:
        """Whether all trials of all layers were made."""
        with ThreadPoolExecutor(num_cores()) as pool:
            try:
                if self._watcher:
                    self._watcher.begin(self.slots_L)
                futures = [pool.submit(self._layer, *turn) for turn in enumerate(self._layers)]
                return all(done for done in [future.result() for future in futures])
            except KeyboardInterrupt as interrupt:
                self._stop.set()
                self.interrupted = not isinstance(interrupt, Enough)
                if self.interrupted:
                    warnings.warn("joint: interrupted, the best plan so far is kept", stacklevel=2)
                return False

    def _layer(self, turn: int, layer: int) -> bool:
        options, now = self._options, time.perf_counter()
        turns_left = -(-(len(self._layers) - turn) // num_cores())
        budget = max((self._deadline - now) / turns_left, 1e-9)
        slots_RS = self._best_start(layer)
        worst = DomainWeights(slots_RS, partial(self._seconds_of_domains, layer)) if self._worst else None
        search = self._search(layer, slots_RS, self._coarse, len(self._starts))
        done, phase, stretch, begins = 0, 0, 0, True
        while done < options.trials and not self._stop.is_set():
            share, spent = done / options.trials, (time.perf_counter() - now) / budget
            share = spent if spent > share + LAG else share
            if share >= 1:
                break
            before, phase = phase, (share > COARSE_SHARE) + (share > POLISH)
            earlier, stretch = stretch, int(share * STRETCHES) if worst else 0
            if worst and stretch != earlier:
                worst.look(search.slots)
            if (before == 0 and phase > 0) or stretch != earlier:
                sampler, number = self._fine if phase else self._coarse, len(self._starts) + 1 + stretch
                search, begins = self._search(layer, search.slots, sampler, number, worst), True
            trials = min(CHUNK, options.trials - done)
            hot, cold = (options.hottest * COOLING ** min(s, 1.0) for s in (share, share + trials / options.trials))
            repeated = COARSE if phase == 0 else 1
            search.run(trials * repeated, hot, cold, 4 if phase == 2 else 3, resume=not begins and phase == before)
            self.slots_L[layer] = worst.slots if worst else search.slots
            done, begins = done + trials, False
        if worst:
            worst.look(search.slots)
            self.slots_L[layer] = worst.slots
        if self._watcher and not self._stop.is_set():
            self._tell(layer)
        return done >= options.trials

    def _tell(self, layer: int) -> None:
        assert self._watcher is not None
        try:
            self._watcher.layer_done(layer, self.slots_L[layer])
        except KeyboardInterrupt:
            self._stop.set()  # at once: `run` may be waiting for another layer
            raise

    def _search(
        self,
        layer: int,
        slots_RS: NDArray[np.int64],
        sampler: ScenarioSampler,
        number: int,
        worst: DomainWeights | None = None,
    ) -> LocalSearch:
        """The layer's search from some slots on some sample; number tells the searches of a layer apart."""
        batches = None
        if self._worst:
            draws_D = worst.draws() if worst else [DRAWS] * len(self._numbers)
            taken = [
                np.resize(of_domain, (draws, of_domain.shape[1]))
                for of_domain, draws in zip(self._numbers, draws_D, strict=True)
            ]
            batches = np.concatenate(taken).ravel().tolist()
        return self._search_on(sampler.of_layer(layer, batches), layer, slots_RS, number)

    def _search_on(self, sample: Sample, layer: int, slots_RS: NDArray[np.int64], number: int) -> LocalSearch:
        seed = (self._options.seed * len(self.slots_L) + layer) * 1000 + number
        room_R, experts = self._room_LR[layer], self._problem.model.num_experts
        return LocalSearch(slots_RS, room_R, experts, sample, self._rates, seed, self._options.fill)

    def _best_start(self, layer: int) -> NDArray[np.int64]:
        """[R, S] the start that is best in the sample."""
        seconds = [self._seconds(layer, slots[layer]) for slots in self._starts]
        index = int(np.argmin(seconds))
        self.slots_L[layer] = self._starts[index][layer]
        return np.asarray(self.slots_L[layer])

    def _seconds(self, layer: int, slots_RS: NDArray[np.int64]) -> float:
        """Of a layer in the sample, for all domains or for the worst."""
        if self._worst:
            return float(self._seconds_of_domains(layer, slots_RS).max())
        search = self._search(layer, slots_RS, self._fine, 0)
        search.run(0, 0.0, 0.0)
        return search.objective

    def _seconds_of_domains(self, layer: int, slots_RS: NDArray[np.int64]) -> NDArray[np.float64]:
        """[D] of a layer in all sample batches of each domain."""
        seconds = []
        for numbers in self._numbers:
            search = self._search_on(self._fine.of_layer(layer, numbers.ravel().tolist()), layer, slots_RS, 0)
            search.run(0, 0.0, 0.0)
            seconds.append(search.objective)
        return np.array(seconds)
