import pytest

torch = pytest.importorskip("torch")

from runtime.kernels.counting import positions
from runtime.kernels.unpermute import unpermute_reference

SIZES = [(0, 1, 24), (1, 8, 2880), (37, 6, 100), (200, 1, 24), (37, 8, 1), (3, 6, 2880), (5, 19, 8)]  # N, K, D
RANDOM = torch.Generator().manual_seed(0)


def test_a_row_is_the_weighted_sum_of_its_results(kernel):
    rows, position = torch.tensor([[1.0], [10.0], [100.0]]), torch.tensor([[1, 0], [-1, 2]])
    unpermute = kernel("unpermute", "unpermute")
    assert unpermute(rows, position, torch.tensor([[2, 3], [9, 0.5]])).tolist() == [[23], [50]]
    assert unpermute(rows, position, None).tolist() == [[11], [100]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_rows", "top_k", "hidden"), SIZES)
def test_sums_are_those_of_the_reference(kernel, num_rows, top_k, hidden, dtype):
    position, ends = positions(torch.randint(-1, 5, (num_rows, top_k), generator=RANDOM), 5)
    rows = torch.randn(int(ends[-1]), hidden, generator=RANDOM).to(dtype)
    weights = torch.rand(num_rows, top_k, generator=RANDOM)
    actual = kernel("unpermute", "unpermute")(rows, position, weights)
    assert actual.dtype == dtype
    # Both sum in float32 in the same order and differ at most by fused multiplications, then are rounded once.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(actual, unpermute_reference(rows, position, weights), rtol=unit, atol=top_k * 2.0**-21)


def test_what_serves_nothing_adds_nothing_whatever_its_weight(kernel):
    weights = torch.tensor([[float("nan"), 2.0], [float("inf"), float("nan")]])
    result = kernel("unpermute", "unpermute")(torch.ones(1, 3), torch.tensor([[-1, 0], [-1, -1]]), weights)
    assert result.tolist() == [[2, 2, 2], [0, 0, 0]]


def test_the_sum_follows_the_order_of_the_experts(kernel):
    rows = torch.tensor([[1e8], [-1e8], [1.0]])
    unpermute, ones = kernel("unpermute", "unpermute"), torch.ones(1, 3)
    assert unpermute(rows, torch.tensor([[0, 1, 2]]), ones).item() == 1
    assert unpermute(rows, torch.tensor([[0, 2, 1]]), ones).item() == 0
