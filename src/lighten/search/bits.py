"""Bits: of a trained network, how few bits each layer's weights can have within a budget of the drop.

It comes after training, because what rounding does depends on the weights that it meets, and takes no training of its
own: the layers' sensitivities are measured (see lighten.quantize.mixed), and bisection finds the fewest bytes at which
the best bits of each layer keep the drop within the budget.
"""

from collections.abc import Callable, Mapping, Sequence

from lighten.quantize.mixed import Option, choose

# What a runtime's files hold at its own width; others would take as much as the next.
WIDTHS = {"native": ("w2", "w3", "w4", "w6", "w8"), "onnxruntime": ("w2", "w4", "w8"), "openvino": ("w4", "w8")}
N_STEPS = 8  # from all layers at their widest to all at their narrowest, evenly in the logarithm of bytes


def fewest_bits(
    table: Mapping[str, Sequence[Option]], is_within: Callable[[dict[str, str]], bool]
) -> dict[str, str] | None:
    """The assignment of fewest bytes found for which is_within holds, None where not even one narrower than the widest.

    table: of lighten.quantize.mixed.measure. is_within: called with three or four assignments; it should not hold for
    one of fewer bytes where it does not hold for one of more.
    """
    widest = sum(max(option.size_bytes for option in options) for options in table.values())
    narrowest = sum(min(option.size_bytes for option in options) for options in table.values())
    good, bad, best = 0, N_STEPS + 1, None
    while bad - good > 1:
        step = (good + bad) // 2
        limit = round(widest * (narrowest / widest) ** (step / N_STEPS))
        assignment = choose(table, max(limit, narrowest))
        if is_within(assignment):
            good, best = step, assignment
        else:
            bad = step
    return best


def mean_bits(table: Mapping[str, Sequence[Option]], assignment: Mapping[str, str]) -> float:
    """What a weight takes on average, where at the widest it takes 8 bits."""
    chosen = sum(o.size_bytes for name, options in table.items() for o in options if o.scheme == assignment[name])
    widest = sum(max(option.size_bytes for option in options) for options in table.values())
    return 8 * chosen / widest
