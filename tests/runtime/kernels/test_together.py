"""A rank's experts computed by the Triton kernels alone."""

import pytest

torch = pytest.importorskip("torch")

from runtime.experts import GroupedExperts
from runtime.kernels import counting, grouped_gemm, permute, unpermute
from runtime.reference import Experts, moe_layer


def test_experts_are_served_by_triton_alone(device, monkeypatch):
    for module in (counting, grouped_gemm, permute, unpermute):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(grouped_gemm, "_grouped_mm_takes", lambda rows, weight: False)
    random = torch.Generator().manual_seed(0)
    experts = Experts(*(torch.randn(5, *shape, generator=random) / 4 for shape in ((20, 12), (20, 12), (12, 20))))
    x, weights = torch.randn(37, 20, generator=random), torch.rand(37, 3, generator=random)
    ids = torch.randint(4, (37, 3), generator=random)  # nobody chose slot 4
    served = GroupedExperts(Experts(*(t.to(device) for t in (experts.gate, experts.up, experts.down))))
    actual = served(x.to(device), ids.to(device), weights.to(device)).cpu()
    torch.testing.assert_close(actual, moe_layer(x, ids, weights, experts))
