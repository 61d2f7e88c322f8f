"""A rank's experts on rows sorted by slot: one permutation, three grouped products, one weighted sum back."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from runtime.kernels.counting import count, positions
from runtime.kernels.grouped_gemm import grouped_gemm
from runtime.kernels.permute import permute
from runtime.kernels.unpermute import unpermute
from runtime.reference import Experts


@dataclass(frozen=True)
class GroupedExperts:
    """The experts in a rank's slots.

    Attributes:
        weights: of the slots, in slot order: gate, up [S, D, F], down [S, F, D].
    """

    weights: Experts

    def __call__(self, rows: Tensor, slot: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum, over its slots here, of each row's experts.

        Args:
            rows: [N, D].
            slot: int64 [N, K], which slots serve a row; -1 for experts of other ranks.
            weights: float32 [N, K], gate weights.

        Returns:
            [N, D] in the type of `rows`, accumulated in float32; 0 where no slot serves a row.
        """
        position, ends = positions(slot, len(self.weights.gate))
        num_rows = int(ends[-1]) if len(ends) else 0  # waits for a GPU: a row for every slot that serves, none spare
        outputs = self.swiglu(permute(rows, position, num_rows), ends)
        return unpermute(outputs, position, weights)

    def swiglu(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Rows [M, D] sorted by slot, whose parts end at `ends`, to their slots' outputs [M, D]."""
        gate, up, down = self.weights.gate, self.weights.up, self.weights.down
        hidden = functional.silu(grouped_gemm(rows, gate, ends), inplace=True).mul_(grouped_gemm(rows, up, ends))
        return grouped_gemm(hidden, down, ends)

    def tokens_of_slots(self, slot: Tensor) -> Tensor:
        """Int64 [S], how many rows each slot serves, given slots [N, K]."""
        return count(slot, len(self.weights.gate)).counts
