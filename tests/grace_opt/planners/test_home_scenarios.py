"""Sample batches hold what the ranks would process together, and serve tokens as `traffic` counts them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.planners.home_scenarios import ScenarioSampler, home_maps, mirrored
from grace_opt.traffic_reference import deal_batches


@given(data=st.data(), num_batches=st.integers(1, 4), seed=st.integers(0, 99))
def test_whole_batches_are_those_of_traffic_with_homes_and_turns(random_cases, data, num_batches, seed):
    case = data.draw(random_cases)
    problem, layer = case.problem, case.problem.model.num_layers - 1
    maps = home_maps(problem.trace, problem.topology, 1, seed)
    scenarios = [(maps[index % len(maps)], case.tokens_per_rank) for index in range(num_batches)]
    sampler = ScenarioSampler(problem, scenarios, 10_000, seed)
    sample = sampler.of_layer(layer)
    assert sample.weight.tolist() == [1] * num_batches
    for index in range(num_batches):
        of_rank = deal_batches(maps[index % len(maps)], problem.topology.num_ranks, case.tokens_per_rank)
        here = sample.batch == index
        found = [sample.ids[here].tolist(), sample.home[here].tolist(), sample.turn[here].tolist()]
        batches = []
        for batch in range(len(of_rank[0])):
            each = [(t, home, home + n) for home, own in enumerate(of_rank) for n, t in enumerate(own[batch])]
            tokens, homes, turns = (list(column) for column in zip(*each, strict=True))
            batches.append([problem.trace.expert_ids[layer][tokens].tolist(), homes, turns])
        assert found in batches
    for expert in range(problem.model.num_experts):
        chose = np.flatnonzero((sample.ids == expert).any(axis=1))
        assert sample.tokens[sample.first[expert, 0] : sample.first[expert, -1]].tolist() == chose.tolist()


def test_a_part_of_a_batch_stands_for_all_of_it(problem_of, random_ids):
    """100 tokens in 2 batches of 50; 10 sampled of each stand for 5 each, and keep their turn among all."""
    problem = problem_of(random_ids(0, 1, 100, 8, 2), 8, 4)
    scenarios = [(problem.trace, 25)] * 2
    sampler = ScenarioSampler(problem, scenarios, 10, seed=3)
    sample = sampler.of_layer(0)
    assert np.bincount(sample.batch).tolist() == [10, 10]
    assert sample.weight.tolist() == [5, 5]
    whole = ScenarioSampler(problem, scenarios, 500, seed=3).of_layer(0)
    assert (sample.turn - sample.home).max() > 10
    for index in range(2):
        key = [set(zip(s.home[s.batch == index], s.turn[s.batch == index], strict=True)) for s in (sample, whole)]
        assert len(key[0]) == 10 and len(key[1]) == 50 and key[0] <= key[1]


def test_a_part_keeps_the_turns_that_its_experts_have_in_the_whole_batch(problem_of, random_ids):
    problem = problem_of(random_ids(0, 2, 100, 8, 2), 8, 4)
    scenarios = [(problem.trace, 25)] * 2
    part, whole = (ScenarioSampler(problem, scenarios, tokens, 3, "uniform").of_layer(1) for tokens in (10, 500))
    for index in range(2):
        count = np.zeros((2, 8), np.int64)
        turn_of = {}
        here = whole.batch == index
        for home, turn, ids in zip(whole.home[here], whole.turn[here], whole.ids[here], strict=True):
            turn_of[home, turn] = (home + count[home, ids]).tolist()
            count[home, ids] += 1
        for sample in (part, whole):
            here = sample.batch == index
            key = zip(sample.home[here], sample.turn[here], strict=True)
            assert [turn_of[token] for token in key] == sample.expert_turn[here].tolist()
    assert ScenarioSampler(problem, scenarios, 10, 3).of_layer(1).expert_turn is None


def test_maps_are_seeded_and_each_is_followed_by_its_mirror(problem_of, random_ids):
    problem = problem_of(random_ids(0, 1, 60, 8, 2), 8, 4, nodes=3, ranks_per_node=2)
    maps = home_maps(problem.trace, problem.topology, 2, 7)
    assert len(maps) == 4
    for one, other in (maps[:2], maps[2:]):
        # ranks 0 1 | 2 3 | 4 5 mirrored are 4 5 | 2 3 | 0 1
        assert np.array_equal(other.homes, np.array([4, 5, 2, 3, 0, 1])[one.homes])
        assert np.array_equal(mirrored(other, problem.topology).homes, one.homes)
    assert not np.array_equal(maps[0].homes, maps[2].homes)
    again = home_maps(problem.trace, problem.topology, 1, 8)
    assert np.array_equal(again[0].homes, maps[2].homes)


def test_one_node_has_no_mirror(problem_of, random_ids):
    problem = problem_of(random_ids(0, 1, 60, 8, 2), 8, 4, ranks_per_node=4)
    assert len(home_maps(problem.trace, problem.topology, 3, 0)) == 3


def test_a_sample_depends_on_its_seed_alone_and_layers_share_it(problem_of, random_ids):
    problem = problem_of(random_ids(0, 2, 200, 8, 2), 8, 4, nodes=2)
    maps = home_maps(problem.trace, problem.topology, 2, 0)
    scenarios = [(trace, 20) for trace in maps]
    one, same, other = (ScenarioSampler(problem, scenarios, 10, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one.of_layer(0), same.of_layer(0), strict=True))
    assert not np.array_equal(one.of_layer(0).turn, other.of_layer(0).turn)
    first, second = one.of_layer(0), one.of_layer(1)
    assert np.array_equal(first.home, second.home) and np.array_equal(first.turn, second.turn)
    assert not np.array_equal(first.ids, second.ids)


def test_batches_can_be_taken_again_and_left_out_and_may_differ_in_size(problem_of, random_ids):
    problem = problem_of(random_ids(0, 1, 100, 8, 2), 8, 4)
    sampler = ScenarioSampler(problem, [(problem.trace, 25), (problem.trace, 5)], 10, seed=3)
    assert sampler.of_layer(0).weight.tolist() == [5, 1]
    whole, part = sampler.of_layer(0), sampler.of_layer(0, [1, 0, 1])
    assert part.weight.tolist() == [1, 5, 1]
    for index, number in enumerate([1, 0, 1]):
        assert np.array_equal(part.ids[part.batch == index], whole.ids[whole.batch == number])
        assert np.array_equal(part.turn[part.batch == index], whole.turn[whole.batch == number])
