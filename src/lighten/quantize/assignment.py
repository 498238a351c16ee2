"""Assignment: which scheme each layer gets, where not all get the same.

    "w4-g128; head=w8; blocks.*.up=w2-g32"     the first is for all; the last pattern that fits a layer counts

Patterns are shell patterns over module names, and one that fits a module fits what is inside. The same as a mapping:
{"*": "w4-g128", "head": "w8", "blocks.*.up": "w2-g32"}.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lighten.errors import ConfigError
from lighten.graph.groups import matches
from lighten.quantize.scheme import Scheme, parse_scheme

SchemeLike = str | Scheme | Mapping[str, str | Scheme]


@dataclass(frozen=True)
class Assignment:
    """default: the scheme of a layer that no pattern of special fits. special: (pattern, scheme), the last counts.

    All schemes are of one kind: weights alone, or activations by ranges, or activations at run time.
    """

    default: Scheme
    special: tuple[tuple[str, Scheme], ...] = ()

    def __post_init__(self) -> None:
        for pattern, scheme in self.special:
            if _kind(scheme) != _kind(self.default):
                raise ConfigError(
                    f"One model cannot be both: {self.default.name} is {_kind(self.default)}, and {scheme.name}, for "
                    f"'{pattern}', is {_kind(scheme)}. Exclude those layers instead."
                )

    def of(self, *names: str) -> Scheme:
        """The scheme of a layer that goes by these names."""
        fitting = [scheme for pattern, scheme in self.special if any(matches(name, (pattern,)) for name in names)]
        return fitting[-1] if fitting else self.default

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """All of them."""
        return (self.default, *(scheme for _, scheme in self.special))

    @property
    def name(self) -> str:
        """The string that parse_assignment reads."""
        return "; ".join([self.default.name, *(f"{pattern}={scheme.name}" for pattern, scheme in self.special)])


def parse_assignment(scheme: SchemeLike) -> Assignment:
    """The Assignment that a string, a Scheme or a mapping stands for.

    Raises:
        ConfigError: a scheme is unknown, there is none for all layers, or they do not go together.
    """
    if isinstance(scheme, Scheme):
        return Assignment(scheme)
    if isinstance(scheme, str):
        first, *rest = (part.strip() for part in scheme.split(";"))
        pairs = [tuple(part.rpartition("=")[::2]) for part in rest]
        if any(not pattern or not value for pattern, value in pairs):
            raise ConfigError(f"'{scheme}' must be one scheme, then pattern=scheme for others: 'w4-g128; head=w8'.")
        return Assignment(parse_scheme(first), tuple((pattern.strip(), parse_scheme(s)) for pattern, s in pairs))
    given = dict(scheme)
    if "*" not in given:
        raise ConfigError(f"A mapping of schemes needs '*', for all other layers. Got: {', '.join(given) or 'none'}.")
    default = parse_scheme(given.pop("*"))
    return Assignment(default, tuple((pattern, parse_scheme(value)) for pattern, value in given.items()))


def _kind(scheme: Scheme) -> str:
    if scheme.activation_bits is None:
        return "weights alone"
    return "activations at run time" if scheme.dynamic else "activations by calibrated ranges"
