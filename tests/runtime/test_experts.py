import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.experts import GroupedExperts
from runtime.reference import Experts

RANDOM = torch.Generator().manual_seed(0)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def experts_of(num_slots, hidden, ffn, dtype=torch.float32, device="cpu"):
    shapes = ((hidden, ffn), (hidden, ffn), (ffn, hidden))
    weights = (torch.randn(num_slots, *shape, generator=RANDOM) / shape[0] ** 0.5 for shape in shapes)
    return Experts(*(weight.to(device, dtype) for weight in weights))


def one_slot_after_the_other(experts, rows, slot, weights):
    """The loop that grouping replaces."""
    result = torch.zeros_like(rows, dtype=torch.float32)
    for s in range(len(experts.gate)):
        row, k = (slot == s).nonzero(as_tuple=True)
        result.index_add_(0, row, experts(s, rows[row]).float() * weights[row, k][:, None])
    return result.to(rows.dtype)


def test_a_row_is_the_weighted_sum_of_its_slots_by_hand():
    one = torch.ones(2, 1, 1)
    experts = GroupedExperts(Experts(one, one * torch.tensor([1.0, 2.0]).view(2, 1, 1), one))
    silu = 1 / (1 + np.exp(-1.0))
    slot, weights = torch.tensor([[0, 1], [1, -1], [-1, -1]]), torch.tensor([[0.25, 0.5], [1.0, 9.0], [1.0, 1.0]])
    result = experts(torch.ones(3, 1), slot, weights)
    np.testing.assert_allclose(result.flatten(), [0.25 * silu + 0.5 * 2 * silu, 2 * silu, 0], rtol=1e-6)
    assert experts.tokens_of_slots(slot).tolist() == [1, 2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "top_k", "num_slots", "hidden", "ffn"), [
    (0, 2, 3, 24, 16), (1, 8, 60, 100, 13), (37, 6, 5, 24, 16), (300, 1, 3, 1, 1), (50, 3, 2, 2880, 8), (9, 2, 0, 8, 8),
])  # fmt: skip
def test_grouped_experts_equal_the_loop_over_slots(num_rows, top_k, num_slots, hidden, ffn, dtype, device):
    experts = experts_of(num_slots, hidden, ffn, dtype, device)
    rows = torch.randn(num_rows, hidden, generator=RANDOM).to(device, dtype)
    slot = torch.randint(-1, max(1, num_slots) - 1, (num_rows, top_k), generator=RANDOM).to(device)  # the last is empty
    weights = torch.rand(num_rows, top_k, generator=RANDOM).to(device)
    actual = GroupedExperts(experts)(rows, slot, weights)
    assert actual.shape == rows.shape and actual.dtype == dtype
    expected = one_slot_after_the_other(experts, rows, slot, weights)
    # Hidden values and outputs are rounded to the rows' type; sums of float32 differ in order only.
    scale = expected.float().abs().max().item() if num_rows else 0
    tolerance = 4 * torch.finfo(dtype).eps * max(scale, 1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 3), min_size=2, max_size=2), max_size=30))
def test_every_slot_serves_the_rows_that_name_it(slots):
    slot = torch.tensor(slots, dtype=torch.int64).view(-1, 2)
    counts = GroupedExperts(experts_of(4, 1, 1)).tokens_of_slots(slot)
    assert counts.tolist() == [int((slot == s).sum()) for s in range(4)]
