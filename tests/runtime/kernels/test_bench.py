import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")


def test_every_benchmark_runs_and_its_rows_have_the_same_fields(device):
    from runtime.kernels.bench import Sizes, measure

    sizes = Sizes(copy_bytes=64, moves=((4, 24),), choices=(5,), products=((7, 3, 16, 8),))
    rows = list(measure(sizes, device))
    assert [row["kernel"] for row in rows] == [
        "copy", "permute", "unpermute", "choose", "choose", "cover", "cover", "grouped_gemm", "grouped_gemm",
    ]  # fmt: skip
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert "fraction_of_limit" in rows[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_says_so_and_succeeds():
    done = subprocess.run(
        [sys.executable, "-m", "runtime.kernels.bench"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "skipped: measuring the kernels needs a GPU\n"
