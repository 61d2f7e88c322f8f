"""A planner that takes longer than any test waits."""

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Slow:
    def __call__(self, problem):
        time.sleep(600)
