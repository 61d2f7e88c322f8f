"""Plans for a mix of batch sizes, and for several domains: what is minimised, and that nothing is read and ignored."""

from dataclasses import replace

import numpy as np
import pytest

from grace_opt.planners.domain_weights import DomainWeights, draws_by_weight
from grace_opt.planners.home_scenarios import home_maps
from grace_opt.planners.joint import CHOICE_SEED, Joint
from grace_opt.planners.joint_choice import best_of_each_layer, plan_of_slots
from grace_opt.planners.workload import Workload, batches_by_share
from grace_opt.trace import Trace
from simulator.cluster import SimulatedCluster

SMALL = Joint(SimulatedCluster(tokens_per_rank=25), trials=800, num_batches=4, num_tokens=600, num_maps=4)
EXPERTS, LENGTH = 8, 5


@pytest.fixture(scope="module")
def two_domains(problem_of):
    """(seed) -> problem on 2 nodes of one rank; 8 experts, top-2, slots for every expert once.

    In domain `large` (80 sequences) experts of equal parity go together, in domain `little` (16) those of one half.
    """

    def make(seed):
        random = np.random.default_rng(seed)
        experts, large_Q = np.arange(EXPERTS), random.permutation(96) < 80
        cluster_QE = np.where(large_Q[:, None], experts % 2, experts // (EXPERTS // 2))
        in_cluster_TE = np.repeat(cluster_QE == random.integers(0, 2, 96)[:, None], LENGTH, axis=0)
        in_cluster_TE[random.random(len(in_cluster_TE)) < 0.1] = False
        ids_TK = np.argsort(random.random(in_cluster_TE.shape) - in_cluster_TE, axis=1)[:, :2]
        problem = problem_of([ids_TK, ids_TK], EXPERTS, EXPERTS // 2, nodes=2, ranks_per_node=1)
        starts = np.arange(0, len(ids_TK), LENGTH)
        trace = Trace(
            problem.trace.expert_ids, starts, starts + LENGTH, 1 - large_Q, ("large", "little"), EXPERTS,
            homes=np.arange(96) % 2,
        )  # fmt: skip
        return replace(problem, trace=trace)

    return make


def seconds_of_domains(problem, plan):
    """Layer time of each domain at equal tokens of a rank, each alone on the machine in batches of its own."""
    result = []
    for domain in range(2):
        trace = problem.trace.select(np.flatnonzero(problem.trace.domains == domain))
        if domain == 1:
            trace = trace.select(np.tile(np.arange(trace.num_sequences), 4))
        times = [SMALL.cost(replace(problem, trace=homes), plan) for homes in home_maps(trace, problem.topology, 4, 77)]
        result.append(np.mean([time.mean_s / time.tokens_per_rank for time in times]))
    return np.array(result)


def test_a_robust_plan_is_better_for_its_worst_domain_on_sequences_it_never_saw(two_domains):
    fit, held_out = two_domains(0), two_domains(1)
    plain, mean, worst = (
        seconds_of_domains(held_out, replace(SMALL, robust=robust)(fit).plan) for robust in ("none", "mean", "worst")
    )
    assert plain.argmax() == 1  # planned for the many, the few pay
    assert worst.max() < 0.9 * min(plain.max(), mean.max())
    assert mean.mean() < 0.98 * min(plain.mean(), worst.mean())


def test_the_objective_is_the_time_of_the_domains_alone(two_domains):
    problem = two_domains(0)
    solutions = {robust: replace(SMALL, robust=robust)(problem) for robust in ("none", "mean", "worst")}
    for robust, solution in solutions.items():
        workload = Workload.of(problem, SMALL.cost, None, robust)
        maps = workload.home_maps(SMALL.num_maps, CHOICE_SEED)
        seconds_DL = workload.seconds(solution.plan, maps)
        assert seconds_DL.shape == (1 if robust == "none" else 2, 2)
        totals_D = seconds_DL.mean(axis=1)
        assert solution.objective == pytest.approx(totals_D.max() if robust == "worst" else totals_D.mean(), rel=1e-9)


def test_a_domain_of_few_tokens_is_repeated_to_a_batch(two_domains):
    problem = two_domains(0)
    large, little = Workload.of(problem, SMALL.cost, None, "mean").domains
    assert (large.num_tokens, little.num_tokens) == (400, 80)  # a batch is 50
    large, little = Workload.of(problem, replace(SMALL.cost, tokens_per_rank=90), None, "mean").domains
    assert (large.num_tokens, little.num_tokens) == (400, 240)  # a batch is 180
    large, little = Workload.of(problem, replace(SMALL.cost, tokens_per_rank=None), None, "mean").domains
    assert (large.num_tokens, little.num_tokens) == (800, 480)  # the whole trace is 480
    assert set(little.domains.tolist()) == {1}


@pytest.mark.parametrize("robust", ["mean", "worst"])
def test_one_domain_alone_cannot_be_robust(two_domains, robust):
    problem = two_domains(0)
    trace = problem.trace.select(np.flatnonzero(problem.trace.domains == 0))
    with pytest.raises(
        ValueError, match=rf"^joint: robust={robust} needs a trace of several domains, .* 'large': give"
    ):
        replace(SMALL, robust=robust)(replace(problem, trace=replace(trace, homes=trace.starts % 2)))


def test_a_mix_of_which_one_size_has_all_is_the_plan_for_that_size(two_domains):
    problem = two_domains(0)
    mix = [{"tokens_per_rank": 25, "share": 2.0}, {"tokens_per_rank": 5, "share": 0}]
    alone = replace(SMALL, cost=SimulatedCluster(tokens_per_rank=25))(problem)
    mixed = replace(SMALL, cost=SimulatedCluster(tokens_per_rank=5), mix=mix)(problem)
    assert mixed.plan.placement.to_lists() == alone.plan.placement.to_lists()
    assert mixed.objective == alone.objective
    other = replace(SMALL, cost=SimulatedCluster(tokens_per_rank=5))(problem)
    assert other.objective != alone.objective


def test_a_mix_is_the_mean_over_batches_by_their_shares(two_domains):
    problem = two_domains(0)
    mix = [{"tokens_per_rank": 25, "share": 1}, {"tokens_per_rank": 5, "share": 3}]
    solution = replace(SMALL, mix=mix)(problem)
    maps = home_maps(problem.trace, problem.topology, SMALL.num_maps, CHOICE_SEED)
    large, small = (
        np.mean(
            [replace(SMALL.cost, tokens_per_rank=size)(replace(problem, trace=t), solution.plan).mean_s for t in maps]
        )
        for size in (25, 5)
    )
    assert large != small
    assert solution.objective == pytest.approx((large + 3 * small) / 4, rel=1e-9)


def test_a_mix_and_robust_go_together(two_domains):
    problem = two_domains(0)
    mix = [{"tokens_per_rank": 25, "share": 1}, {"tokens_per_rank": 5, "share": 1}]
    solution = replace(SMALL, mix=mix, robust="worst")(problem)
    pure = [Workload.of(problem, replace(SMALL.cost, tokens_per_rank=size), None, "worst") for size in (25, 5)]
    halves_DL = np.mean(
        [each.seconds(solution.plan, each.home_maps(SMALL.num_maps, CHOICE_SEED)) for each in pure], axis=0
    )
    assert solution.objective == pytest.approx(halves_DL.mean(axis=1).max(), rel=1e-9)


def test_a_mix_with_a_recording_of_each_size_is_for_batches_of_their_own(two_domains):
    """Prefill of one recording, decode of another: each size is sampled, priced and weighed on its own."""
    problem, other = two_domains(0), two_domains(1)
    mix = [{"tokens_per_rank": 25, "share": 1}, {"tokens_per_rank": 5, "share": 3}]
    planner = replace(SMALL, mix=mix)
    solution = planner.search(problem, recordings=[problem.trace, other.trace])
    alone = {size: replace(SMALL.cost, tokens_per_rank=size) for size in (25, 5)}
    large, small = (
        np.mean([alone[size](replace(problem, trace=t), solution.plan).mean_s for t in
                 home_maps(trace, problem.topology, SMALL.num_maps, CHOICE_SEED)])
        for size, trace in ((25, problem.trace), (5, other.trace))
    )  # fmt: skip
    assert solution.objective == pytest.approx((large + 3 * small) / 4, rel=1e-9)
    workload = Workload.of(problem, SMALL.cost, mix, "none", [problem.trace, other.trace])
    ids = {25: problem.trace.expert_ids, 5: other.trace.expert_ids}
    assert all(trace.expert_ids is ids[size] for trace, size in workload.scenarios(4, 1, 0)[0][0])
    same = planner.search(problem, recordings=[problem.trace, problem.trace])
    assert same.plan.placement.to_lists() == planner(problem).plan.placement.to_lists()
    nothing_of_it = [{**mix[0]}, {**mix[1], "share": 0}]
    unseen = replace(SMALL, mix=nothing_of_it).search(problem, recordings=[problem.trace, other.trace])
    without = replace(SMALL, mix=nothing_of_it)(problem)
    assert unseen.plan.placement.to_lists() == without.plan.placement.to_lists()


@pytest.mark.parametrize("changes", [{}, {"robust": "mean", "mix": True}, {"mix": False}])
def test_recordings_need_a_mix_with_a_part_for_each(two_domains, changes):
    problem = two_domains(0)
    mix = [{"tokens_per_rank": 25, "share": 1}, {"tokens_per_rank": 5, "share": 1}]
    given = {} if "mix" not in changes else {"mix": mix if changes["mix"] else mix[:1]}
    planner = replace(SMALL, robust=changes.get("robust", "none"), **given)
    with pytest.raises(
        ValueError, match=r"^joint: recordings need a mix with a part for each of them, and robust=none"
    ):
        planner.search(problem, recordings=[problem.trace, problem.trace])


def test_the_search_sees_sizes_by_share_and_every_domain(two_domains):
    problem = two_domains(0)
    mix = [{"tokens_per_rank": 25, "share": 1}, {"tokens_per_rank": 5, "share": 3}]
    workload = Workload.of(problem, SMALL.cost, mix, "mean")
    scenarios = workload.scenarios(4, 2, 0)
    assert [[[size for _, size in draw] for draw in domain] for domain in scenarios] == [[[25, 5, 5, 5]] * 2] * 2
    for number, domain in enumerate(scenarios):
        assert {int(d) for draw in domain for trace, _ in draw for d in trace.domains} == {number}
    assert SMALL._draws(Workload.of(problem, SMALL.cost, None, "none"))[0][0][0][1] == 25


@pytest.mark.parametrize(("robust", "draws"), [("mean", 1), ("worst", 4)])
def test_every_draw_of_a_domain_has_a_map_of_homes_and_its_mirror(two_domains, robust, draws):
    workload = Workload.of(two_domains(0), SMALL.cost, None, robust)
    found = replace(SMALL, robust=robust, num_batches=1)._draws(workload)
    assert [len(domain) for domain in found] == [draws, draws]
    for one, other in (draw for domain in found for draw in domain):
        assert np.array_equal(one[0].homes, 1 - other[0].homes)  # two nodes of one rank


def test_rates_of_a_mix_are_those_of_its_mean_row(two_domains):
    problem = two_domains(0)
    mix = [{"tokens_per_rank": 25, "share": 1}, {"tokens_per_rank": 5, "share": 3}]
    workload = Workload.of(problem, SMALL.cost, mix, "none")
    large, small = workload.rates
    rates = workload.mean_rates()
    # batches are cut evenly: 240 tokens of a rank in 10 of 24, or in 48 of 5
    assert (large.tokens_per_rank, small.tokens_per_rank) == (24, 5)
    assert rates.between_rank_s == pytest.approx((24 * large.between_rank_s + 15 * small.between_rank_s) / 39)
    assert rates.most_tokens == 48


@pytest.mark.parametrize(
    ("shares", "num_batches", "counts"),
    [
        ([1.0], 4, [4]),
        ([0.5, 0.5], 4, [2, 2]),
        ([0.9, 0.1], 4, [9, 1]),
        ([0.999, 0.001], 2, [8, 1]),
        ([0.5, 0.3, 0.2], 1, [2, 1, 1]),
    ],
)
def test_batches_come_as_close_to_shares_as_few_can(shares, num_batches, counts):
    assert batches_by_share(shares, num_batches) == counts


def test_draws_go_to_the_domain_that_lags():
    assert draws_by_weight([1, 1, 1]) == [2, 2, 2]
    assert draws_by_weight([0, 0, 1]) == [1, 1, 4]
    assert draws_by_weight([0.5, 0.4, 0.1]) == [3, 2, 1]


def test_the_slots_of_the_best_worst_domain_are_kept():
    weights = DomainWeights(np.array([[0]]), lambda slots: np.array([slots[0, 0], 10 - slots[0, 0]], float))
    for slots, kept in ((3, 3), (8, 3), (4, 4), (0, 4)):
        weights.look(np.array([[slots]]))
        assert weights.slots.tolist() == [[kept]]
    assert weights.seconds == 6
    assert weights.draws() == [1, 3]  # the second took 7, 2, 6 and 10


def test_layers_are_chosen_for_the_worst_domain_of_all_together(monkeypatch, two_domains):
    """Each of two candidates serves one domain in both layers: one layer from each is best, though no layer's own."""
    problem = two_domains(0)
    workload = Workload.of(problem, SMALL.cost, None, "worst")
    plain = np.stack([np.arange(EXPERTS).reshape(2, -1)] * 2)
    candidates = [plain, plain[:, ::-1]]
    table = {0: [[1.0, 1.0], [3.0, 3.1]], 4: [[3.0, 3.1], [1.0, 1.0]]}
    monkeypatch.setattr(
        Workload, "seconds", lambda self, plan, maps: np.array(table[plan.placement.to_lists()[0][0][0]])
    )
    plan, seconds = best_of_each_layer(workload, [], candidates)
    firsts = [layer[0][0] for layer in plan.placement.to_lists()]
    assert sorted(firsts) == [0, 4]
    assert seconds == pytest.approx((1.0 + 3.1) / 2)
    assert plan_of_slots(plain, problem).routing.policy == "primary"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"robust": "median"}, "robust must be one of none, mean, worst, got 'median'"),
        ({"robust": "mean", "homes": "chosen"}, "a mix, or robust=mean or worst, is planned with homes=given only"),
        ({"mix": [{"tokens_per_rank": 1, "share": 1}], "homes": "chosen"}, "a mix, or .* with homes=given only"),
        ({"robust": "mean", "homes": "known"}, "a mix, or robust=mean or worst, is planned with homes=given only"),
        ({"mix": []}, "mix must name every size once, one at least with a share above 0; null for no mix"),
        ({"mix": [{"tokens_per_rank": 4, "share": 0}]}, "mix must name every size once, .*"),
        ({"mix": [{"tokens_per_rank": 4, "share": 1}] * 2}, "mix must name every size once, .*"),
        ({"mix": [{"tokens_per_rank": 4}]}, r"mix must be a list of \{tokens_per_rank: .*\}, or null, got .*"),
        ({"mix": [{"tokens_per_rank": 0, "share": 1}]}, "tokens_per_rank of a mix must be a whole number, .* got 0"),
        ({"mix": [{"tokens_per_rank": 4.5, "share": 1}]}, "tokens_per_rank of a mix must be a .* number, .* got 4.5"),
        ({"mix": [{"tokens_per_rank": 4, "share": -1}]}, "share of a mix must be a number, not negative, got -1"),
        ({"mix": [{"tokens_per_rank": 4, "share": float("nan")}]}, "share of a mix must be a number, .* got nan"),
    ],
)  # fmt: skip
def test_options_of_no_sense_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=f"^joint: {message}$"):
        replace(SMALL, **change)
