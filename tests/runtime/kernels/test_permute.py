import pytest

torch = pytest.importorskip("torch")

from runtime.kernels.counting import positions
from runtime.kernels.permute import permute_reference

SIZES = [(0, 1, 24), (1, 8, 2880), (37, 6, 100), (300, 1, 24), (37, 8, 1), (3, 6, 2880), (5, 19, 8)]  # N, K, D
RANDOM = torch.Generator().manual_seed(0)


def test_a_row_goes_to_all_its_positions(kernel):
    rows = kernel("permute", "permute")(torch.tensor([[1.0], [2.0]]), torch.tensor([[1, 0], [-1, 2]]), 3)
    assert rows.tolist() == [[1], [1], [2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize(("num_rows", "top_k", "hidden"), SIZES)
def test_rows_are_those_of_the_reference(kernel, num_rows, top_k, hidden, dtype):
    position, ends = positions(torch.randint(-1, 5, (num_rows, top_k), generator=RANDOM), 5)
    x = (100 * torch.randn(num_rows, hidden, generator=RANDOM)).to(dtype)
    expected = permute_reference(x, position, int(ends[-1]))
    assert torch.equal(kernel("permute", "permute")(x, position, int(ends[-1])), expected)


def test_rows_need_not_be_contiguous(kernel):
    x = torch.arange(24.0).view(4, 6).T
    position = torch.tensor([[5], [4], [3], [2], [1], [0]])
    assert torch.equal(kernel("permute", "permute")(x, position, 6), x.flip(0))


def test_nobody_may_have_a_position(kernel):
    assert kernel("permute", "permute")(torch.ones(3, 5), torch.full((3, 2), -1), 0).shape == (0, 5)
