"""Work that rank 0 decides on and all ranks do: comparing runs on rank 0 alone, the other ranks serve its orders.

An order is a name from a table that every rank has, and options as JSON; nothing received is ever executed as code. It
travels through the store, so rank 0 may think between two orders for as long as it likes: the watch tells the others
that it lives.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from runtime.group import Group

FINISH = "finish"
_POLL_S = 0.01


def give(group: Group, name: str, options: Mapping[str, Any]) -> None:
    """Tell the other ranks to run `name` with these options; rank 0 must then run the same itself."""
    assert group.rank == 0
    number = group.store.add("orders", 1)
    group.store.set(f"order/{number}", json.dumps([name, options]))


def serve(group: Group, table: Mapping[str, Callable[..., object]]) -> None:
    """Run the orders of rank 0, each as table[name](group, **options), until it has finished."""
    number = 0
    while True:
        number += 1
        while not group.store.check([f"order/{number}"]):
            time.sleep(_POLL_S)
        name, options = json.loads(group.store.get(f"order/{number}"))
        if name == FINISH:
            return
        table[name](group, **options)
