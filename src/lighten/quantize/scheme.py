"""Scheme: which number format weights and activations get, as a short string or a dataclass."""

from dataclasses import dataclass

from lighten.errors import ConfigError


def check_weight_bits(bits: int, most: int) -> int:
    """bits itself, if a weight's code can have as many.

    Raises:
        ConfigError: it is not in 2..most.
    """
    if not 2 <= bits <= most:
        raise ConfigError(f"weight_bits={bits} is outside 2..{most}. Use 8, or 7 where 8-bit products saturate.")
    return bits


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """name: the short string. weight_bits: of a weight's code, 2..8; activation_bits: of an activation's, 8."""

    name: str
    weight_bits: int
    activation_bits: int

    def __post_init__(self) -> None:
        check_weight_bits(self.weight_bits, 8)
        if self.activation_bits != 8:
            raise ConfigError(f"activation_bits={self.activation_bits} is not available. Available: 8.")


SCHEMES = {"w8a8": Scheme(name="w8a8", weight_bits=8, activation_bits=8)}


def parse_scheme(scheme: "str | Scheme") -> Scheme:
    """The Scheme that a short string names.

    Raises:
        ConfigError: unknown; the message lists what there is.
    """
    if isinstance(scheme, Scheme):
        return scheme
    if scheme not in SCHEMES:
        raise ConfigError(
            f"There is no scheme '{scheme}'. Known: {', '.join(SCHEMES)} (w8a8 = weights of 8 bits, activations of 8)."
        )
    return SCHEMES[scheme]
