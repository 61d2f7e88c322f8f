"""When flows that share links end, as SimGrid 3.32 has it: JSON on stdin, JSON on stdout.

Run by the python that has the module `simgrid` (Debian: python3-simgrid), which need not have this project's packages.
It is asked for {"bytes_per_s": capacity of each link, "flows": [[links of the route, bytes], ...]} and answers with a
list of seconds, one a flow. All flows start together; links are directed, without latency, and shared max-min fairly
(model CM02 without any of its corrections for TCP).
"""

import json
import sys
from typing import Any

from simgrid import Actor, Comm, Engine, LinkInRoute, NetZone

SETTINGS = (
    "network/model:CM02",
    "network/crosstraffic:0",
    "network/TCP-gamma:0",
    "network/weight-S:0",
    "network/latency-factor:1",
    "network/bandwidth-factor:1",
)


def main() -> None:
    asked = json.load(sys.stdin)
    engine = Engine(["oracle", *(f"--cfg={setting}" for setting in SETTINGS), "--log=root.thresh:error"])
    zone = NetZone.create_full_zone("zone")
    links = [zone.create_link(f"link{i}", float(speed)).seal() for i, speed in enumerate(asked["bytes_per_s"])]
    flows = []
    for i, (route, num_bytes) in enumerate(asked["flows"]):
        ends = [zone.create_host(f"{end}{i}", 1e9).seal() for end in ("source", "destination")]  # each flow has its own
        hops = [LinkInRoute(links[link]) for link in route]
        zone.add_route(ends[0].netpoint, ends[1].netpoint, None, None, hops, False)
        flows.append((*ends, int(num_bytes)))
    zone.seal()
    seconds: list[float] = []
    Actor.create("all", flows[0][0], send_all, flows, seconds)
    engine.run()
    json.dump(seconds, sys.stdout)


def send_all(flows: list[tuple[Any, Any, int]], seconds: list[float]) -> None:
    """Start all flows at time 0 and note when each ended."""
    sent = [Comm.sendto_async(*flow) for flow in flows]
    for flow in sent:
        flow.wait()
        seconds.append(flow.finish_time)


if __name__ == "__main__":
    main()
