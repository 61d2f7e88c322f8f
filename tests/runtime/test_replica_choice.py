"""A rank that chooses copies by itself gives every physical expert the tokens that `traffic` counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from grace_opt.traffic import batch_segments, traffic
from runtime.kernels import NOT_HERE
from runtime.replica_choice import ReplicaChoice


def batches_of_ranks(case):
    """(batch, rank, its tokens in order), all of them."""
    segments, tokens_BR = batch_segments(case.problem.trace, case.plan.num_ranks, case.tokens_per_rank)
    for batch, rank in np.ndindex(tokens_BR.shape):
        mine = segments[(segments[:, 2] == rank) & (segments[:, 3] == batch)]
        yield batch, rank, np.concatenate([np.arange(a, b) for a, b, _, _ in mine] or [np.zeros(0, int)])


@given(data=st.data())
def test_every_physical_expert_gets_the_tokens_that_traffic_counts(random_cases, data):
    case = data.draw(random_cases)
    counts = traffic(case.problem.trace, case.plan, case.tokens_per_rank)
    for layer in range(case.problem.trace.num_layers):
        served = np.zeros_like(counts.tokens[layer])
        for batch, rank, tokens in batches_of_ranks(case):
            ids = torch.from_numpy(case.problem.trace.expert_ids[layer, tokens].astype(np.int64))
            choice = ReplicaChoice.of_plan(case.plan, layer, rank).counted(ids)
            held = case.plan.placement.slots[layer].ravel()[choice.physical.numpy()]
            assert np.array_equal(held, ids.numpy())
            served[batch] += choice.counts.numpy()
        assert np.array_equal(served, counts.tokens[layer])


@given(data=st.data())
def test_padding_changes_nothing(random_cases, data):
    case = data.draw(random_cases)
    choice = ReplicaChoice.of_plan(case.plan, 0, 1 % case.plan.num_ranks)
    ids = torch.from_numpy(case.problem.trace.expert_ids[0].astype(np.int64))
    padded = torch.stack((torch.full_like(ids, NOT_HERE), ids), dim=1)
    assert torch.equal(choice(padded.flatten(0, 1)).view_as(padded)[:, 1], choice(ids))
    assert torch.equal(choice.counted(padded.flatten(0, 1)).offsets, choice.counted(ids).offsets)
