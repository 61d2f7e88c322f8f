import pytest

torch = pytest.importorskip("torch")

from runtime.kernels.choice import choose_reference

SIZES = [(0, 1, 3), (1, 8, 257), (37, 6, 60), (1000, 8, 257), (300, 1, 3)]  # T, K, E
RANDOM = torch.Generator().manual_seed(0)


def tables(num_experts, num_physical):
    """Schedules of 1 to 70 entries."""
    length = torch.randint(1, 71, (num_experts,), generator=RANDOM)
    return length.cumsum(0) - length, length, torch.randint(num_physical, (int(length.sum()),), generator=RANDOM)


def same(choice, expected):
    parts = ("physical", "counts", "offsets")
    return all(torch.equal(getattr(choice, part), getattr(expected, part)) for part in parts)


def test_tokens_take_copies_in_turn(kernel):
    choice = kernel("choice", "choose")(
        torch.tensor([[1, 0], [1, -1], [0, 1]]), 1, torch.tensor([0, 1]), torch.tensor([1, 3]),
        torch.tensor([0, 1, 2, 1]), 3,
    )  # fmt: skip
    assert choice.physical.tolist() == [[2, 0], [1, -1], [0, 1]]
    assert choice.counts.tolist() == [2, 2, 1]
    assert choice.offsets.tolist() == [0, 2, 4, 5]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16])
@pytest.mark.parametrize(("tokens", "top_k", "num_experts"), SIZES)
def test_choices_are_those_of_the_reference(kernel, tokens, top_k, num_experts, dtype):
    ids = torch.randint(num_experts, (tokens, top_k), generator=RANDOM).to(dtype)
    arguments = (ids, 5, *tables(num_experts, num_experts + 7), num_experts + 7)
    assert same(kernel("choice", "choose")(*arguments), choose_reference(*arguments))


def test_all_tokens_may_choose_one_expert(kernel):
    arguments = (torch.full((300, 2), 59), 63, *tables(60, 66), 66)
    assert same(kernel("choice", "choose")(*arguments), choose_reference(*arguments))


def test_the_last_id_of_a_small_type_is_an_expert_like_any_other(kernel):
    arguments = (torch.full((3, 1), 255, dtype=torch.uint8), 0, *tables(256, 256), 256)
    assert same(kernel("choice", "choose")(*arguments), choose_reference(*arguments))


def test_an_expert_out_of_range_is_refused():
    from runtime.kernels.choice import choose

    with pytest.raises(AssertionError, match="not below the number of experts"):
        choose(torch.tensor([[3]]), 0, *tables(3, 3), 3)
