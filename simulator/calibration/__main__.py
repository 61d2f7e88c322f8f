"""`python -m simulator.calibration`: fit all presets anew and set them beside what conf/ holds."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from grace_opt.configuration import CONF_DIR
from simulator.calibration import experts, transport_presets
from simulator.calibration.tables import MissingDataError

TOLERANCE = 0.01


def main() -> int:
    """Print every constant; exit code 1 if one in conf/ is more than TOLERANCE from its fit, 2 without data."""
    try:
        gpus, transports = experts.presets(), transport_presets.presets()
    except MissingDataError as error:
        print(f"grace-opt: {error}", file=sys.stderr)
        return 2
    bf16 = {name: types.pop("bf16", {}) for name, types in gpus.items()}
    fitted = {f"gpu/{name}": {**bf16[name], "weight_types": types} for name, types in gpus.items()}
    fitted |= {f"transport/{name}": constants for name, constants in transports.items()}
    apart = 0
    for preset, constants in fitted.items():
        held = OmegaConf.to_container(OmegaConf.load(CONF_DIR / f"{preset}.yaml"))
        for name, value in numbers(constants):
            given = _held(held, name)
            same = given is not None and abs(given - value) <= TOLERANCE * abs(value)
            tiny = given is None and abs(value) < 1e-8  # left out: it adds nothing
            apart += not (same or tiny)
            print(f"{preset}.{name}: fitted {value:.4g}, held {given}{'' if same or tiny else '  <- differs'}")
    return int(apart > 0)


def numbers(constants: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Dotted names and values of all numbers in nested mappings and lists."""
    items = constants.items() if isinstance(constants, Mapping) else enumerate(constants)
    for key, value in items:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
        elif isinstance(value, Mapping | list | tuple):
            yield from numbers(value, f"{prefix}{key}.")


def _held(content: Any, name: str) -> float | None:
    for key in name.split("."):
        try:
            content = content[int(key) if isinstance(content, list) else key]
        except (KeyError, IndexError):
            return None
    return float(content)


if __name__ == "__main__":
    sys.exit(main())
