"""Entry point of group `vllm.general_plugins`: put a balancing policy of ours in the place of vLLM's, when asked to.

    GRACE_OPT_PLAN=FILE      serve the plan that `grace-opt export engine=vllm` wrote
    GRACE_OPT_PLAN=online    plan from the load that vLLM measures, as `planners.eplb`, no expert twice on a GPU
    unset                    vLLM stays as it is, unless VLLM_PLUGINS names grace_opt: then online

vLLM loads plugins in each of its processes, also in those of users who only have this package installed; so nothing
else is imported before the environment asks for it.
"""

import logging
import os

VARIABLE, ONLINE, PLUGIN = "GRACE_OPT_PLAN", "online", "grace_opt"


def register() -> None:
    """Replace vLLM's default policy if the environment asks for it.

    Raises:
        ValueError, OSError: the plan cannot be read or served; vLLM then does not start.
    """
    wanted = os.environ.get(VARIABLE, "")
    if not wanted and PLUGIN in os.environ.get("VLLM_PLUGINS", "").split(","):
        wanted = ONLINE
    if not wanted:
        return
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    from grace_opt.engines.vllm_policy import OnlinePolicy, read_policy

    EPLB_POLICIES["default"] = OnlinePolicy() if wanted == ONLINE else read_policy(wanted)
    logging.getLogger("vllm.grace_opt").info("experts are placed by grace-opt: %s", wanted)
