"""Predictions beside measurements, under a protocol that says which rows the constants were fitted to.

in_sample                 fitted to the rows it is tested on
leave_one_node_count_out  each number of nodes predicted from the others
leave_one_ep_size_out     each expert-parallel size predicted from the others
leave_one_gpu_type_out    each type of GPU predicted from the others and its own data sheet
uniform_to_skewed         fitted to evenly loaded experts, tested on skewed ones
preset                    the constants of a preset as they are
other_table               fitted to another table
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PROTOCOLS = (
    "in_sample",
    "leave_one_node_count_out",
    "leave_one_ep_size_out",
    "leave_one_gpu_type_out",
    "uniform_to_skewed",
    "preset",
    "other_table",
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Predicted and measured seconds of the rows of one data set.

    Attributes:
        data: name of the data set: what, on which hardware, where from.
        protocol: one of PROTOCOLS.
        predicted_s, measured_s: float64 [rows], positive.
        note: what a reader must know of these rows, such as those left out and why.
    """

    data: str
    protocol: str
    predicted_s: NDArray[np.float64]
    measured_s: NDArray[np.float64]
    note: str = ""

    def __post_init__(self) -> None:
        assert self.protocol in PROTOCOLS, self.protocol
        predicted, measured = np.array(self.predicted_s, np.float64), np.array(self.measured_s, np.float64)
        assert predicted.shape == measured.shape, "as many predictions as measurements"
        if not len(measured) or not (np.isfinite(measured).all() and (measured > 0).all()):
            raise ValueError(f"{self.data}: measured times must be positive, and at least one")
        for field, array in (("predicted_s", predicted), ("measured_s", measured)):
            array.setflags(write=False)
            object.__setattr__(self, field, array)

    @property
    def error(self) -> NDArray[np.float64]:
        """[rows] predicted over measured, less 1."""
        return self.predicted_s / self.measured_s - 1
