"""Intervals of a gain: what they cover, and when they are no wider than they must be."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from analysis.advice.bootstrap import FEWEST_RESAMPLES, Interval, Resamples, interval, saved
from analysis.advice.candidates import Candidate
from analysis.advice.demand import Phase
from analysis.advice.judging import Judge
from analysis.advice.serving import Serving
from analysis.whole_model import Passes
from grace_opt.gpu import GPU
from grace_opt.homes import Balanced
from grace_opt.model import MoEModel
from grace_opt.problem import Problem
from grace_opt.solution import Solution
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from simulator.cluster import SimulatedCluster

FREE = GPU("free", flops_per_s=1e18, memory_bytes_per_s=1e18, memory_bytes=3000, launch_s=0.0, tile_tokens=1)
TOKENS, BATCH = 8, 80  # of a sequence; of a rank in a batch: all 40 sequences on 4 ranks


@pytest.fixture
def judge_of(model: MoEModel, make_trace: Callable[..., Trace]) -> Callable[..., Judge]:
    """([sequence] whether it gains) -> judge of one phase; only rows between nodes take time.

    Tokens of a sequence that gains choose 0 with 2 and 1 with 3 in turn, of another 0 with 1 and 2 with 3.
    """
    topology = Topology.two_level("hand", FREE, 2, 2, nic_of="rank", intra_bytes_per_s=1e15, intra_latency_s=0,
                                  inter_bytes_per_s=20, inter_latency_s=1e-9)  # fmt: skip

    def judge(gains: np.ndarray, seed: int = 0) -> Judge:
        turns = np.array([[[0, 1], [2, 3]], [[0, 2], [1, 3]]])[gains.astype(int)]
        trace = make_trace(np.tile(turns, (1, TOKENS // 2, 1)).reshape(1, -1, 2), lengths=[TOKENS] * len(gains))
        problem = Problem(replace(model, bytes_per_weight=1e-9), topology, Balanced()(trace, 4), 1)
        phase = Phase("prefill", BATCH, BATCH, 100, problem, problem)
        return Judge(Balanced(), (phase,), SimulatedCluster(), Serving.of("grace", True), Passes(), 2, seed)

    return judge


@pytest.fixture
def candidates(make_plan: Callable) -> tuple[Candidate, Candidate]:
    """Experts in order; and 0 with 2 on the first node, 1 with 3 on the second."""
    in_order, paired = (
        Solution(make_plan([ranks])) for ranks in ([[0], [1], [2], [3]], [[0], [2], [1], [3]])
    )  # fmt: skip
    named = [replace(one, plan=replace(one.plan, provenance={"planner": "made"})) for one in (in_order, paired)]
    return Candidate("linear", "all", 0, named[0]), Candidate("made", "all", 0, named[1])


def gain_of(judge: Judge, candidates: tuple[Candidate, Candidate]) -> float:
    default, made = (judge.rows(one)[0]["layer_s_per_token"] for one in candidates)
    return 1 - made / default


def interval_of(judge: Judge, candidates: tuple[Candidate, Candidate], most: int = 60) -> Interval | None:
    drawn = Resamples(judge, candidates[0], most, 60.0, 2, lambda number, of: None)
    default, made = ({"prefill": one} for one in candidates)
    return saved(drawn.request_seconds(default), drawn.request_seconds(made))


def kinds(num: int, share: float, seed: int) -> np.ndarray:
    """Sequences of which a share gains."""
    return np.random.default_rng(seed).random(num) < share


def test_the_interval_covers_the_gain_on_all_text_that_the_sequences_are_drawn_from(judge_of, candidates):
    """Ten parts of 40 sequences: nine intervals of 90 % should hold the gain on 4,000; seven must."""
    truth = gain_of(judge_of(kinds(4000, 0.7, 99)), candidates)
    found = [interval_of(judge_of(kinds(40, 0.7, seed), seed), candidates) for seed in range(10)]
    assert sum(one.low <= truth <= one.high for one in found) >= 7
    assert all(0 < one.high - one.low < 0.6 for one in found)


def test_of_identical_sequences_the_interval_is_a_point(judge_of, candidates):
    """Each token has to cross by default; with pairs on one node, half of them have to."""
    judge = judge_of(np.ones(40, bool))
    found = interval_of(judge, candidates)
    assert found.low == pytest.approx(found.high, abs=1e-12)
    assert found.low == pytest.approx(0.5) == gain_of(judge, candidates)


def test_resamples_are_the_same_for_every_candidate_and_for_the_same_seed(judge_of, candidates):
    judge = judge_of(kinds(40, 0.7, 1))
    first, second = (Resamples(judge, candidates[0], 20, 60.0, 2, lambda n, of: None) for _ in range(2))
    choice = {"prefill": candidates[1]}
    assert first.request_seconds(choice).tolist() == second.request_seconds(choice).tolist()
    other = Resamples(replace(judge, seed=7), candidates[0], 20, 60.0, 2, lambda n, of: None)
    assert first.request_seconds(choice).tolist() != other.request_seconds(choice).tolist()


def test_time_limits_the_resamples_but_some_are_always_made(judge_of, candidates):
    judge = judge_of(kinds(40, 0.7, 1))
    assert Resamples(judge, candidates[0], 200, 1e-9, 2, lambda n, of: None).num == FEWEST_RESAMPLES
    assert Resamples(judge, candidates[0], 5, 60.0, 2, lambda n, of: None).num == 5


def test_too_few_sequences_have_no_interval(judge_of, candidates):
    assert interval_of(judge_of(kinds(7, 0.7, 1)), candidates) is None
    assert interval_of(judge_of(kinds(8, 0.7, 1)), candidates) is not None


def test_an_interval_leaves_out_a_twentieth_on_either_side():
    found = interval(np.arange(101.0))
    assert (found.low, found.high) == pytest.approx((5.0, 95.0))
    assert saved(np.full(3, 2.0), np.full(3, 1.0)) == Interval(0.5, 0.5)
