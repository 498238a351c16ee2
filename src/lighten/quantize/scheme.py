"""Scheme: which number format weights and activations get, as a short string or a dataclass."""

from dataclasses import dataclass

from lighten.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """name: the short string. weight_bits: of a weight's code; activation_bits: of an activation's."""

    name: str
    weight_bits: int
    activation_bits: int


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
