import pytest

torch = pytest.importorskip("torch")

from runtime.kernels.grouped_gemm import grouped_gemm_reference

RANDOM = torch.Generator().manual_seed(0)
SIZES = [  # sizes of groups, D, F
    ((3, 0, 5), 24, 33),
    ((0, 0), 8, 8),
    ((1,), 1, 1),
    ((0, 700, 0, 1), 100, 72),
    ((70, 17, 129, 64, 0), 64, 100),
    ((2, 1, 0, 1), 2880, 16),
]


def tensors(sizes, hidden, ffn, dtype):
    rows = torch.randn(sum(sizes), hidden, generator=RANDOM).to(dtype)
    weight = (torch.randn(len(sizes), hidden, ffn, generator=RANDOM) / hidden**0.5).to(dtype)
    return rows, weight, torch.tensor(sizes).cumsum(0)


def test_each_row_meets_the_matrix_of_its_group(kernel):
    rows, matrices = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1)
    result = kernel("grouped_gemm", "grouped_gemm")(rows, matrices, torch.tensor([2, 2, 3]))
    assert result.tolist() == [[10], [20], [90]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("sizes", "hidden", "ffn"), SIZES)
def test_products_are_those_of_the_reference(kernel, sizes, hidden, ffn, dtype):
    rows, weight, ends = tensors(sizes, hidden, ffn, dtype)
    expected = grouped_gemm_reference(rows.double(), weight.double(), ends)
    magnitude = grouped_gemm_reference(rows.double().abs(), weight.double().abs(), ends)
    actual = kernel("grouped_gemm", "grouped_gemm")(rows, weight, ends)
    assert actual.dtype == dtype
    # Sums of D terms in float32, whatever their order, rounded once to the type of the rows.
    bound = hidden * 2.0**-24 * magnitude + torch.finfo(dtype).eps * expected.abs()
    assert ((actual.double() - expected).abs() <= bound).all()


def test_matrices_may_be_stored_transposed(kernel):
    rows, weight, ends = tensors((5, 0, 20), 40, 24, torch.float32)
    stored = weight.transpose(1, 2).contiguous().transpose(1, 2)
    actual = kernel("grouped_gemm", "grouped_gemm")(rows, stored, ends)
    torch.testing.assert_close(actual, grouped_gemm_reference(rows, weight, ends))


def test_rows_behind_the_last_group_are_left_alone(kernel):
    rows, weight, ends = tensors((5, 20), 40, 24, torch.float32)
    actual = kernel("grouped_gemm", "grouped_gemm")(torch.cat((rows, rows)), weight, ends)
    torch.testing.assert_close(actual[:25], grouped_gemm_reference(rows, weight, ends))
