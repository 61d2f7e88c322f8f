"""The joint planner: what it promises of its plan, of its homes, and of how it ends."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from numba import typeof

import grace_opt.traffic as traffic_module
from grace_opt.plan_file import digest
from grace_opt.planners import joint, joint_homes, joint_search, local_search
from grace_opt.planners.home_choice import dealt
from grace_opt.planners.home_scenarios import home_maps
from grace_opt.planners.joint import CHOICE_SEED, Joint
from grace_opt.planners.joint_choice import plan_of_slots
from grace_opt.planners.joint_progress import Enough
from grace_opt.planners.joint_starts import STARTS, slots_of, starts_of, warm_up
from grace_opt.planners.linear import Linear
from grace_opt.planners.local_search import LocalSearch
from grace_opt.planners.workload import Workload
from grace_opt.routing import Routing
from grace_opt.trace import Trace
from grace_opt.traffic import traffic
from simulator.cluster import SimulatedCluster

SMALL = Joint(SimulatedCluster(), trials=800, num_batches=2, num_tokens=400, num_maps=1)


@pytest.fixture(scope="module")
def problem(problem_of, random_ids):
    """Two layers, two nodes of two ranks, 6 slots more than the 10 experts, 40 sequences of 5 tokens."""
    tokens = problem_of(random_ids(0, 2, 200, 10, 3), 10, 4, nodes=2)
    starts = np.arange(0, 200, 5)
    trace = Trace(tokens.trace.expert_ids, starts, starts + 5, starts * 0, ("text",), 10, homes=starts // 5 % 4)
    return replace(tokens, trace=trace)


@pytest.fixture(scope="module")
def clustered(problem_of):
    """(share, experts, ranks) -> top-2; experts of one cluster are those of equal remainder by the ranks, each a node.

    A sequence of 5 tokens keeps to one cluster but for a share of its tokens. Slots for every expert once.
    """

    def make(strays, experts, ranks):
        random = np.random.default_rng(1)
        cluster_T = np.repeat(random.permutation(np.arange(60) % ranks), 5)
        in_cluster_TE = np.arange(experts) % ranks == cluster_T[:, None]
        in_cluster_TE[random.random(300) < strays] = False
        ids_TK = np.argsort(random.random(in_cluster_TE.shape) - in_cluster_TE, axis=1)[:, :2]
        problem = problem_of([ids_TK], experts, experts // ranks, nodes=ranks, ranks_per_node=1)
        starts = np.arange(0, 300, 5)
        trace = Trace(problem.trace.expert_ids, starts, starts + 5, starts * 0, ("text",), experts)
        return replace(problem, trace=replace(trace, homes=np.arange(60) % ranks))

    return make


def seconds(problem, plan, cost=SMALL.cost):
    """On the home maps that the planner chooses by."""
    maps = home_maps(problem.trace, problem.topology, SMALL.num_maps, CHOICE_SEED + SMALL.seed)
    return np.mean([cost(replace(problem, trace=trace), plan).mean_s for trace in maps])


@pytest.mark.parametrize("scheme", ["hierarchical", "flat"])
@pytest.mark.parametrize("slots", [4, [4, 5, 2, 3]])
def test_no_start_is_better_on_the_maps_it_chooses_by(problem, scheme, slots):
    cost = SimulatedCluster(scheme, tokens_per_rank=20)
    problem = replace(problem, slots=slots)
    solution = replace(SMALL, cost=cost)(problem)
    problem.check(solution.plan)
    assert solution.status == "heuristic" and solution.plan.provenance["planner"] == "joint"
    assert solution.objective == pytest.approx(seconds(problem, solution.plan, cost), rel=1e-9)
    starts = [seconds(problem, plan, cost) for plan in starts_of(problem).values()]
    assert len(starts) == (len(STARTS) - 1 if slots == 4 else len(starts))  # a node has not all experts
    assert solution.objective < 0.999 * min(starts)


def test_a_clustered_trace_is_solved_to_its_optimum(clustered, groupings):
    problem = clustered(0.3, 8, 2)
    every = []
    for group_E in groupings([4, 4]):
        slots_LRS = np.array([[np.flatnonzero(group_E == rank) for rank in range(2)]])
        every.append(seconds(problem, plan_of_slots(slots_LRS, problem)))
    assert len(every) == 70
    assert SMALL(problem).objective == pytest.approx(min(every), rel=1e-9)
    assert min(every) < 0.9 * sorted(every)[2]  # by far the best, and its mirror


def test_with_time_to_spare_the_clock_has_no_say(problem, monkeypatch):
    plans, heats = [], []
    for tick in (0.0, 0.001):
        clock, asked = [0.0], []

        def now(tick=tick, clock=clock):
            clock[0] += tick
            return clock[0]

        def run(search, trials, hottest, *rest, original=LocalSearch.run, asked=asked, **options):
            asked.append((trials, hottest))
            original(search, trials, hottest, *rest, **options)

        with monkeypatch.context() as patch:
            for module in (joint, joint_search):
                patch.setattr(module, "time", SimpleNamespace(perf_counter=now))
            patch.setattr(LocalSearch, "run", run)
            plans.append(digest(SMALL(problem).plan))
            heats.append(sorted(asked))
    assert plans[0] == plans[1]
    assert heats[0] == heats[1]
    assert plans[0] == digest(SMALL(problem).plan)


def test_the_result_depends_on_the_seed(problem):
    assert digest(SMALL(problem).plan) != digest(replace(SMALL, seed=1)(problem).plan)


def test_out_of_time_it_returns_what_it_has(problem):
    solution = replace(SMALL, time_limit_s=1e-6)(problem)
    problem.check(solution.plan)
    assert solution.status == "feasible"
    best_start = min(seconds(problem, plan) for plan in starts_of(problem).values())
    assert solution.objective <= best_start * (1 + 1e-9)


@pytest.mark.parametrize("homes", ["given", "chosen"])
def test_an_interrupt_ends_the_search_with_a_whole_plan(problem, homes, monkeypatch):
    """It comes with the first trials; no layer, and with homes=chosen no second turn, is searched any more."""
    begun = []

    def run(search, trials, *rest, original=LocalSearch.run, **options):
        if trials:
            begun.append(id(search))
            raise KeyboardInterrupt
        original(search, trials, *rest, **options)

    monkeypatch.setattr(LocalSearch, "run", run)
    with pytest.warns(UserWarning, match="^joint: interrupted, the best plan so far is kept$"):
        solution = replace(SMALL, homes=homes)(problem)
    problem.check(solution.plan)
    assert solution.status == "feasible"
    assert len(begun) <= problem.model.num_layers


@pytest.mark.parametrize("homes", ["given", "chosen"])
def test_progress_tells_stages_layers_done_and_seconds_found(problem, homes):
    seen = []
    replace(SMALL, homes=homes).search(problem, seen.append)
    search = [("searching", 0), ("searching", 1), ("searching", 2)]
    assert [(now.stage, now.layers_done) for now in seen] == [
        ("compiling", 0), ("starting", 0), *(search * 2 if homes == "chosen" else [*search, ("choosing", 2)]),
    ]  # fmt: skip
    assert {now.num_layers for now in seen} == {2}
    found = [now.found_s for now in seen if now.stage == "searching"]
    assert found[0] > found[1] > found[2]
    assert all(now.own_homes == (homes == "given") for now in seen if now.found_s is not None)


@pytest.mark.parametrize(("policy", "fill"), [("cover", False), ("tar", True)])
def test_seconds_told_are_exact_on_the_problems_own_homes(problem, policy, fill):
    seen = []
    solution = replace(SMALL, num_maps=2, policy=policy, fill=fill).search(problem, seen.append)
    grace = starts_of(problem)["grace"]
    begin = plan_of_slots(slots_of(grace, problem, fill), problem, policy)
    searching = [now for now in seen if now.stage == "searching"]
    assert searching[0].found_s == pytest.approx(SMALL.cost(problem, begin).mean_s, rel=1e-9)
    assert searching[-1].found_s == pytest.approx(SMALL.cost(problem, solution.plan).mean_s, rel=1e-9)


@pytest.mark.parametrize("done", [0, 1])
def test_a_watcher_that_has_enough_ends_the_search_without_a_word(problem, done, recwarn):
    def watch(now):
        if now.stage == "searching" and now.layers_done == done:
            raise Enough

    begun, run = [], LocalSearch.run

    def counted(search, trials, *rest, **options):
        begun.append(trials)
        run(search, trials, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalSearch, "run", counted)
        patch.setattr(joint_search, "num_cores", lambda: 1)
        solution = replace(SMALL, trials=600).search(problem, watch)
    problem.check(solution.plan)
    assert solution.status == "feasible" and not list(recwarn)
    assert sum(trials > 0 for trials in begun) == 2 * done  # two stretches of the one layer that was searched


def test_the_clock_starts_when_everything_is_compiled(problem, monkeypatch):
    events = []

    def now():
        events.append("clock")
        return 0.0

    monkeypatch.setattr(joint, "time", SimpleNamespace(perf_counter=now))
    monkeypatch.setattr(joint, "warm_up", lambda *_: events.append("compiled"))
    monkeypatch.setattr(joint, "starts_of", lambda problem: events.append("starts") or starts_of(problem))
    SMALL(problem)
    assert events == ["compiled", "clock", "starts"]


@pytest.mark.parametrize(("homes", "policy"), [("given", "cover"), ("chosen", "cover"), ("given", "tar")])
def test_what_compiles_first_is_what_the_search_runs(problem, homes, policy, monkeypatch):
    """The same types, down to which arrays may be written to: another type would compile again, on the clock."""
    types, anneal = {}, local_search.anneal
    counting = "_count_covered_layer" if policy == "cover" else "_count_layer"

    def noted(name, function):
        def call(*arguments):
            types.setdefault((phase[0], name), set()).add(str([typeof(argument) for argument in arguments]))
            return function(*arguments)

        return call

    def warm(*arguments):
        phase[0] = "compiling"
        warm_up(*arguments)
        phase[0] = "searching"

    phase = ["searching"]
    monkeypatch.setattr(local_search, "anneal", noted("anneal", anneal))
    monkeypatch.setattr(traffic_module, counting, noted("count", getattr(traffic_module, counting)))
    monkeypatch.setattr(joint, "warm_up", warm)
    replace(SMALL, homes=homes, policy=policy)(problem)
    for name in ("anneal", "count"):
        assert types["compiling", name] == types["searching", name]


@pytest.mark.parametrize(
    ("homes", "stage", "message"),
    [
        ("given", "warm_up", "interrupted before the search began, the plan is that of linear"),
        ("chosen", "starts_of", "interrupted before the search began, the plan is that of linear"),
        ("given", "best_of_each_layer", "interrupted, the plan is the best of the samples"),
        ("chosen", "with_best_rule", "interrupted, the plan has no rule for homes yet"),
        ("chosen", "dealt_in_orders", "interrupted, the best plan so far is kept"),
    ],
)
def test_an_interrupt_at_any_stage_leaves_a_plan(problem, homes, stage, message, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(joint if hasattr(joint, stage) else joint_homes, stage, interrupt)
    with pytest.warns(UserWarning, match=f"^joint: {message}$"):
        solution = replace(SMALL, homes=homes)(problem)
    problem.check(solution.plan)
    assert solution.status == "feasible"
    assert (solution.plan.homes is not None) == (stage == "dealt_in_orders")
    if stage == "starts_of":
        assert solution.plan.placement.to_lists() == Linear()(problem).plan.placement.to_lists()


def test_homes_as_a_decision_carry_a_rule_and_end_all_traffic_of_a_clustered_trace(clustered):
    problem = clustered(0, 8, 4)
    given, chosen = SMALL(problem), replace(SMALL, homes="chosen", first_tokens=2)(problem)
    assert given.plan.homes is None and chosen.plan.homes is not None and chosen.plan.homes.first_tokens == 2
    trace = dealt(problem.trace, chosen.plan)
    assert traffic(trace, chosen.plan).cross_node_rows("hierarchical").sum() == 0
    assert np.bincount(trace.homes).tolist() == [15] * 4
    assert traffic(problem.trace, given.plan).cross_node_rows("hierarchical").sum() > 0
    assert chosen.objective < given.objective / 10


def test_known_homes_are_the_only_ones_that_are_planned_for(clustered):
    """Sequences of a kind share a rank, which can hold all their experts; a plan for any homes cannot tell."""
    problem = clustered(0, 8, 4)
    chosen = replace(SMALL, homes="chosen", first_tokens=2)(problem)
    problem = replace(problem, trace=dealt(problem.trace, chosen.plan))
    given, known = SMALL(problem), replace(SMALL, homes="known")(problem)
    assert known.plan.homes is None
    assert known.objective == SMALL.cost(problem, known.plan).mean_s < SMALL.cost(problem, given.plan).mean_s
    none, some = (traffic(problem.trace, s.plan).cross_node_rows("hierarchical").sum() for s in (known, given))
    assert none == 0 < some


def check_filled(problem, plan):
    problem.check(plan)
    assert (plan.placement.slots_used == problem.slots_per_rank).all()
    assert all(len(rank) == len(set(rank)) for layer in plan.placement.to_lists() for rank in layer)


@pytest.mark.parametrize("slots", [4, [4, 5, 2, 3]])
@pytest.mark.parametrize("policy", ["cover", "tar", "uniform"])
@pytest.mark.parametrize(
    "workload",
    [
        {},
        {"robust": "worst"},
        {"mix": [{"tokens_per_rank": 10, "share": 1}, {"tokens_per_rank": 40, "share": 1}]},
    ],
)
def test_a_plan_for_an_engine_has_its_policy_and_no_slot_left(problem, policy, slots, workload):
    trace = replace(problem.trace, domains=problem.trace.domains + np.arange(40) % 2, domain_names=("text", "code"))
    problem = replace(problem, slots=slots, trace=trace)
    solution = replace(SMALL, policy=policy, fill=True, trials=400, **workload)(problem)
    check_filled(problem, solution.plan)
    assert (solution.plan.routing.policy, solution.plan.routing.weights) == (policy, None)
    if not workload:
        assert solution.objective == pytest.approx(seconds(problem, solution.plan), rel=1e-9)
        starts = [slots_of(plan, problem, filled=True) for plan in starts_of(problem).values()]
        assert solution.objective < min(seconds(problem, plan_of_slots(s, problem, policy)) for s in starts)


def test_homes_can_be_chosen_with_all_slots_filled(problem):
    plan = replace(SMALL, fill=True, homes="chosen", trials=400)(problem).plan
    check_filled(problem, plan)
    assert plan.homes is not None and plan.routing.policy == "cover"


def test_a_search_for_a_policy_beats_the_plan_for_another_under_it(problem):
    """Of two plans with all slots filled, priced exactly as each policy serves them."""
    uniform, cover = (replace(SMALL, policy=name, fill=True)(problem) for name in ("uniform", "cover"))
    assert uniform.objective < seconds(problem, replace(cover.plan, routing=Routing("uniform")))
    assert cover.objective < seconds(problem, replace(uniform.plan, routing=Routing("cover")))


def test_with_a_slot_for_every_expert_and_no_more_nothing_is_left_to_fill(clustered):
    problem = clustered(0.3, 8, 2)
    one, same = (replace(SMALL, fill=fill)(problem) for fill in (False, True))
    assert digest(one.plan) == digest(same.plan) and one.objective == same.objective
    # no expert has a copy, so all rules are the same
    assert replace(SMALL, policy="uniform")(problem).objective == pytest.approx(one.objective, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "returned"),
    [
        ({}, True),
        ({"fill": True}, False),
        ({"policy": "tar"}, False),  # its own has weights
        ({"policy": "uniform"}, False),
    ],
)
def test_a_start_that_routes_by_another_rule_is_not_returned_as_it_is(problem, options, returned, monkeypatch):
    """The start is made to look best of all."""
    grace = starts_of(problem)["grace"]
    assert grace.routing.policy == "tar" and grace.routing.weights is not None
    priced = Workload.seconds
    monkeypatch.setattr(
        Workload, "seconds", lambda own, plan, maps: priced(own, plan, maps) * (plan.routing.weights is None)
    )
    plan = replace(SMALL, trials=100, **options)(problem).plan
    assert (plan.routing.weights is not None) == returned
    assert returned or plan.routing.policy == options.get("policy", "cover")


@pytest.mark.parametrize("stage", ["warm_up", "best_of_each_layer"])
def test_an_interrupt_leaves_a_plan_for_the_engine_too(problem, stage, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(joint, stage, interrupt)
    with pytest.warns(UserWarning, match="^joint: interrupted"):
        plan = replace(SMALL, policy="uniform", fill=True)(problem).plan
    check_filled(problem, plan)
    assert plan.routing.policy == "uniform"


def test_slots_that_only_second_copies_on_a_rank_could_fill_are_refused_in_one_line(problem):
    message = (
        r"^joint: fill=true would have a rank hold an expert twice, with slots_per_rank=11 for 10 experts; "
        "give slots_per_rank=10 at most$"
    )
    with pytest.raises(ValueError, match=message):
        replace(SMALL, fill=True)(replace(problem, slots=[4, 11, 2, 3]))
    check_filled(replace(problem, slots=10), replace(SMALL, fill=True, trials=1)(replace(problem, slots=10)).plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"num_tokens": -1}, "num_tokens must be at least 1, got -1"),
        ({"time_limit_s": float("inf")}, "time_limit_s must be a positive number, got inf"),
        ({"hottest": float("nan")}, "hottest must be a positive number, got nan"),
        ({"policy": "wrr"}, "policy must be one of cover, tar, uniform, got 'wrr'"),
        ({"policy": "tar", "homes": "chosen"}, "policy=tar is planned for with homes=given only"),
        ({"fill": "yes"}, "fill must be true or false, got 'yes'"),
        ({"homes": "random"}, "homes must be one of given, known, chosen, got 'random'"),
        ({"first_tokens": 0}, "first_tokens must be at least 1, or null for all, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"cost": lambda problem, plan: None}, "cost must be a model that prices traffic, got function"),
    ],
)
def test_options_of_no_sense_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=f"^joint: {message}$"):
        replace(SMALL, **change)
