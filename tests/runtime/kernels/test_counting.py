import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels.counting import count_reference, positions_reference

SIZES = [(0, 1, 3), (1, 8, 257), (37, 6, 60), (1000, 8, 257), (300, 1, 3)]  # T, K, number of keys
RANDOM = torch.Generator().manual_seed(0)


def test_occurrences_count_earlier_equals(kernel):
    counted = kernel("counting", "count")(torch.tensor([3, 1, 3, -1, 3]), 4)
    assert counted.occurrence.tolist() == [0, 0, 1, -1, 2]
    assert counted.counts.tolist() == [0, 1, 0, 3]


def test_positions_sort_by_slot(kernel):
    position, ends = kernel("counting", "positions")(torch.tensor([[2, 0], [-1, 2]]), 3)
    assert position.tolist() == [[1, 0], [-1, 2]]
    assert ends.tolist() == [1, 1, 3]


@pytest.mark.parametrize(("tokens", "top_k", "num_keys"), SIZES)
def test_counts_are_those_of_the_reference(kernel, tokens, top_k, num_keys):
    keys = torch.randint(-1, num_keys, (tokens * top_k,), generator=RANDOM)
    counted, expected = kernel("counting", "count")(keys, num_keys), count_reference(keys, num_keys)
    assert torch.equal(counted.occurrence, expected.occurrence) and torch.equal(counted.counts, expected.counts)


@pytest.mark.parametrize(("tokens", "top_k", "num_keys"), SIZES)
def test_positions_are_those_of_the_reference(kernel, tokens, top_k, num_keys):
    slot = torch.randint(-1, num_keys, (tokens, top_k), generator=RANDOM)
    position, ends = kernel("counting", "positions")(slot, num_keys)
    expected = positions_reference(slot, num_keys)
    assert torch.equal(position, expected[0]) and torch.equal(ends, expected[1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_keys_may_be_of_any_type_and_all_the_same(kernel, dtype):
    counted = kernel("counting", "count")(torch.full((300,), 255, dtype=dtype), 256)
    assert counted.occurrence.tolist() == list(range(300))
    assert counted.counts.tolist() == [0] * 255 + [300]


def test_blocks_may_be_more_than_a_scan_takes_at_a_time(device, monkeypatch):
    from runtime.kernels import counting_triton

    monkeypatch.setattr(counting_triton, "SCAN_BLOCK", 2)
    keys = torch.arange(1400) % 7  # 6 blocks
    counted = counting_triton.count_triton(keys.to(device), 7)
    assert torch.equal(counted.occurrence.cpu(), torch.arange(1400) // 7)
    assert counted.counts.tolist() == [200] * 7


def test_a_rank_may_have_no_slots(kernel):
    position, ends = kernel("counting", "positions")(torch.full((5, 2), -1), 0)
    assert position.tolist() == [[-1, -1]] * 5 and len(ends) == 0


def test_a_key_too_large_is_refused():
    from runtime.kernels.counting import count

    with pytest.raises(AssertionError, match="not below num_keys"):
        count(torch.tensor([4]), 4)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 4), min_size=2, max_size=2), max_size=40))
def test_positions_are_distinct_and_in_order(kernel, slots):
    slot = torch.tensor(slots, dtype=torch.int64).view(-1, 2)
    position, ends = kernel("counting", "positions")(slot, 5)
    here = slot >= 0
    assert sorted(position[here].tolist()) == list(range(int(here.sum())))
    assert torch.equal(torch.bucketize(position[here], ends, right=True), slot[here])
    assert all(position[slot == s].tolist() == sorted(position[slot == s].tolist()) for s in range(5))
