"""Steps before integers: what is done to the float network so that rounding costs less, one file each.

equalization and smoothquant move factors between layers and leave the function as it is; bias-correction changes the
biases, once weights are rounded, so that outputs stay where they were on average.
"""

from lighten.errors import ConfigError

STEPS = ("equalization", "smoothquant", "bias-correction")


def check_steps(steps: object) -> tuple[str, ...]:
    """steps in the order in which they are done.

    Raises:
        ConfigError: one is unknown.
    """
    asked = [steps] if isinstance(steps, str) else list(steps)  # type: ignore[call-overload]
    for step in asked:
        if step not in STEPS:
            raise ConfigError(f"There is no step '{step}'. Known: {', '.join(STEPS)}.")
    return tuple(step for step in STEPS if step in asked)
