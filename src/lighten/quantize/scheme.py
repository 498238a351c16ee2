"""Scheme: which number format weights and activations get, as a short string or a dataclass.

w8a8          integer weights and activations of 8 bits, activation ranges from calibration (static)
w4a8, w4a4    weights of 4 bits, activations of 8 or 4
w8a8-tensor   one scale for a whole weight instead of one an output channel
w8a8-dynamic  activation ranges found at run time, one a token
w4            weights alone, one scale an output channel; w4-g128: one for every 128 inputs
w3-g64-asym   -sym / -asym: whether 0 is the middle of the codes
nf4-g64       the 16 quantiles of a normal distribution (QLoRA)
fp8, fp8-e5m2 floats of 8 bits (fp8 = fp8-e4m3)
mxfp4, nvfp4  floats of 4 bits (e2m1) in blocks of 32 and 16
"""

import difflib
import re
from dataclasses import dataclass

from lighten.errors import ConfigError

# What a weight's code means -> (bits, the group size it comes with, whether another may be asked for).
FLOAT_TYPES: dict[str, tuple[int, int | None, bool]] = {
    "nf4": (4, 64, True),
    "fp8-e4m3": (8, None, True),
    "fp8-e5m2": (8, None, True),
    "mxfp4": (4, 32, False),
    "nvfp4": (4, 16, False),
}
EXAMPLES = (
    *("w8a8", "w4a8", "w4a4", "w8a8-tensor", "w8a8-dynamic", "w8", "w4", "w4-g128", "w4-g128-sym", "w3-g64", "w2-g32"),
    *("nf4-g64", "fp8", "fp8-e5m2", "mxfp4", "nvfp4"),
)
GRAMMAR = (
    "w<bits 2..8>[a<bits 2..8>][-dynamic][-g<inputs a scale>][-sym|-asym][-tensor], nf4[-g<n>], "
    "fp8[-e4m3|-e5m2][-g<n>], mxfp4, nvfp4"
)
_INTEGER = re.compile(
    r"w(?P<w>\d+)(?:a(?P<a>\d+))?(?P<dynamic>-dynamic)?(?:-g(?P<g>\d+))?(?P<s>-a?sym)?(?P<t>-tensor)?"
)
_FLOAT = re.compile(r"(?P<type>nf4|fp8-e4m3|fp8-e5m2|fp8|mxfp4|nvfp4)(?:-g(?P<g>\d+))?")


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
    """What a weight and an activation become; `name` is its short string.

    weight_bits: of a weight's code, 2..8. activation_bits: 2..8, or None = activations stay float. group_size: inputs
    per scale, None = the whole row. symmetric: 0 is the middle code; None = symmetric, save in groups of 4 bits or
    less, where every code counts. per_tensor: one scale a weight. dynamic: activation ranges are found at run time.
    weight_type: "int" or one of FLOAT_TYPES.
    """

    weight_bits: int
    activation_bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    per_tensor: bool = False
    dynamic: bool = False
    weight_type: str = "int"

    def __post_init__(self) -> None:
        check_weight_bits(self.weight_bits, 8)
        if self.activation_bits is not None and not 2 <= self.activation_bits <= 8:
            raise ConfigError(f"activation_bits={self.activation_bits} is outside 2..8. Use 8, or 4 after qat.")
        if self.group_size is not None and self.group_size < 1:
            raise ConfigError(f"group_size={self.group_size} is below 1. Use 128, or None for the whole row.")
        self._check_type()
        if self.symmetric is None:
            object.__setattr__(self, "symmetric", self._symmetric_by_default())
        if self.activation_bits is None:
            if self.dynamic or self.per_tensor:
                raise ConfigError(
                    "dynamic and per_tensor say how integer kernels are fed, and without activation_bits there are "
                    "none. Use w8a8-dynamic or w8a8-tensor."
                )
        elif self.weight_type != "int" or self.group_size is not None or not self.symmetric:
            raise ConfigError(
                f"Integer kernels multiply symmetric integer weights with one scale a channel, which {self.name} does "
                f"not ask for. Drop a{self.activation_bits} to quantize the weights alone."
            )
        elif self.dynamic and self.activation_bits != 8:
            raise ConfigError("dynamic schemes have activations of 8 bits. Use w8a8-dynamic.")
        elif self.dynamic and self.per_tensor:
            raise ConfigError("dynamic schemes keep one scale an output channel. Drop -tensor.")

    @property
    def name(self) -> str:
        """The short string; parse_scheme(name) is this scheme."""
        if self.weight_type == "int":
            parts = [f"w{self.weight_bits}" + (f"a{self.activation_bits}" if self.activation_bits else "")]
            parts += ["dynamic"] if self.dynamic else []
        else:
            parts = [self.weight_type.removesuffix("-e4m3")]
        usual = FLOAT_TYPES.get(self.weight_type, (0, None, True))[1]
        parts += [f"g{self.group_size}"] if self.group_size != usual else []
        parts += [] if self.symmetric in (None, self._symmetric_by_default()) else ["sym" if self.symmetric else "asym"]
        return "-".join(parts + (["tensor"] if self.per_tensor else []))

    def _symmetric_by_default(self) -> bool:
        return self.weight_type != "int" or self.weight_bits > 4 or self.group_size is None

    def _check_type(self) -> None:
        if self.weight_type == "int":
            return
        if self.weight_type not in FLOAT_TYPES:
            raise ConfigError(f"There is no weight_type '{self.weight_type}'. Known: int, {', '.join(FLOAT_TYPES)}.")
        bits, group_size, free = FLOAT_TYPES[self.weight_type]
        if self.weight_bits != bits or (not free and self.group_size != group_size):
            of = "" if free else f" in groups of {group_size}"
            raise ConfigError(f"{self.weight_type} has {bits} bits{of}, not {self.weight_bits} in {self.group_size}.")
        if self.symmetric is False:
            raise ConfigError(f"{self.weight_type} has its zero built in. Drop symmetric=False.")


def parse_scheme(scheme: str | Scheme) -> Scheme:
    """The Scheme that a short string names.

    Raises:
        ConfigError: unknown, or a combination that does not exist; the message names the closest one and the parts.
    """
    if isinstance(scheme, Scheme):
        return scheme
    try:
        if found := _INTEGER.fullmatch(scheme):
            return Scheme(
                weight_bits=int(found["w"]),
                activation_bits=None if found["a"] is None else int(found["a"]),
                group_size=None if found["g"] is None else int(found["g"]),
                symmetric=None if found["s"] is None else found["s"] == "-sym",
                per_tensor=found["t"] is not None,
                dynamic=found["dynamic"] is not None,
            )
        if found := _FLOAT.fullmatch(scheme):
            kind = "fp8-e4m3" if found["type"] == "fp8" else found["type"]
            bits, usual, _ = FLOAT_TYPES[kind]
            size = usual if found["g"] is None else int(found["g"])
            return Scheme(weight_type=kind, weight_bits=bits, group_size=size)
    except ConfigError as error:
        raise ConfigError(f"There is no scheme '{scheme}': {error}") from error
    close = difflib.get_close_matches(scheme, EXAMPLES, n=1, cutoff=0.4)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise ConfigError(f"There is no scheme '{scheme}'.{hint} A scheme is {GRAMMAR}; for example w8a8, w4-g128.")
