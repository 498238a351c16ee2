"""The program: what an artifact of the native engine computes, as data, and the check that it can be computed.

A tensor of one sample is a matrix: a row for each channel or feature, a column for each place, places being a height x
width grid. Tokens are places in one line, a vector has one place. The batch is no axis of it: samples are independent.

The plan says neither how anything lies in memory nor how it is computed, so nothing read from a file can become a
pointer: layout and schedule are made anew wherever it is loaded.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args, get_type_hints

from lighten.errors import ArtifactError
from lighten.runtime.native.packed import BFLOAT_BITS, CODE_BITS, FLOAT_BITS

VERSION = 4
MAX_SIZE = 2**28  # elements of a tensor of one sample, and rows, columns and kernels far below it
# How many numbers follow the name of an activation, as in "clamp -1.0 inf"; what they mean: emit/activation.py.
ACTIVATIONS = {
    **dict.fromkeys(("none", "relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "gelu_tanh"), 0),
    **dict.fromkeys(("tanh", "mish", "abs", "sqrt", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p", "erf"), 0),
    **{"leaky_relu": 1, "power": 1, "clamp": 2, "softplus": 2, "elu": 3},
}
# What Elements computes, and of how many inputs. Comparisons give 1 or 0; "where" is b if a is not 0, else c.
OPERATIONS = {
    "none": 1,
    **dict.fromkeys(("add", "sub", "mul", "div", "max", "min", "eq", "ne", "lt", "le", "gt", "ge"), 2),
    "where": 3,
}
REDUCTIONS = ("mean", "sum", "max", "min")
BLOCKS = (1, 2, 4, 8, 16)
BITS = (*CODE_BITS, BFLOAT_BITS, FLOAT_BITS)


@dataclass(frozen=True)
class Tensor:
    """Sizes of one sample's matrix: rows x (height · width) columns."""

    rows: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Conv:
    """Sparse product: y = act(W x + bias [+ residual]). inputs: x, then the residual if any.

    weight: the name of a packed weight with `block` outputs to a block, whose indices count (channel, ky, kx) over all
    input channels, so that groups are zeros like any others. A linear layer is a convolution with a 1 x 1 kernel.
    bits: of a stored value, see packed.py. layer: of the model, by its name there; for people.
    """

    kind: ClassVar[str] = "conv"
    inputs: tuple[int, ...]
    weight: str
    rows: int
    block: int
    kernel: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    act: str = "none"
    bits: int = FLOAT_BITS
    layer: str = ""

    @property
    def is_pointwise(self) -> bool:
        """Whether each place of y is of the same place of x."""
        return (self.kernel, self.stride, self.padding) == ((1, 1), (1, 1), (0, 0))


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Maximum or average over windows, row by row; padding counts as zeros in an average."""

    kind: ClassVar[str] = "pool"
    inputs: tuple[int, ...]
    mode: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)


@dataclass(frozen=True, kw_only=True)
class Reduce:
    """One number of many: of all places of each row; or, where there are groups, of each group's rows at each place.

    Groups are of rows that follow one another.
    """

    kind: ClassVar[str] = "reduce"
    inputs: tuple[int, ...]
    how: str = "mean"
    groups: int = 0


@dataclass(frozen=True, kw_only=True)
class Elements:
    """y = act(op of the inputs), number by number. An input of one row serves all rows, one of one place all places."""

    kind: ClassVar[str] = "elements"
    inputs: tuple[int, ...]
    op: str = "none"
    act: str = "none"


@dataclass(frozen=True, kw_only=True)
class Cat:
    """Inputs one after another, along rows."""

    kind: ClassVar[str] = "cat"
    inputs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Reshape:
    """The same numbers in row-major order, as a vector."""

    kind: ClassVar[str] = "reshape"
    inputs: tuple[int, ...]
    rows: int


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same numbers for all samples. array: the name of float32 [rows, height · width]."""

    kind: ClassVar[str] = "constant"
    inputs: tuple[int, ...] = ()
    array: str
    rows: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Gather:
    """Any numbers of the inputs. array: the name of [rows, height · width] indices into their numbers, row by row."""

    kind: ClassVar[str] = "gather"
    inputs: tuple[int, ...]
    array: str
    rows: int
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Norm:
    """Layer norm: each place's rows to mean 0, variance 1, then times scale, plus shift. inputs: x, scale, shift.

    Not centered it is RMS norm: the mean is taken for 0.
    """

    kind: ClassVar[str] = "norm"
    inputs: tuple[int, ...]
    eps: float
    centered: bool = True


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """Of each place's rows, in so many groups of rows that follow one another."""

    kind: ClassVar[str] = "softmax"
    inputs: tuple[int, ...]
    groups: int


@dataclass(frozen=True, kw_only=True)
class Matmul:
    """y[g, i, place] = scale · sum over k of w[g, i, k] · x[g, k, place], for each group (a head) g. inputs: x, w.

    starts: the first row of x and of w. x has rows (g, k); w has rows (g, i) and a place for each k where `across`, as
    values have for attention's second product, else rows (g, k) and a place for each i, as keys have for its first.
    """

    kind: ClassVar[str] = "matmul"
    inputs: tuple[int, ...]
    starts: tuple[int, ...]
    groups: int
    depth: int
    size: int
    across: bool
    scale: float


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """A column of features for each row of a vector of tokens, NaN for one outside of [0, entries).

    table: the name of float32 [entries, rows]. Tokens are whole numbers in float32, so there are at most 2^24.
    """

    kind: ClassVar[str] = "embedding"
    inputs: tuple[int, ...]
    table: str
    entries: int
    rows: int


Op = Conv | Pool | Reduce | Elements | Cat | Reshape | Constant | Gather | Norm | Softmax | Matmul | Embedding
KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in get_args(Op)}


@dataclass(frozen=True)
class Program:
    """Tensors 0 … len(inputs) - 1 are the inputs; op i makes tensor len(inputs) + i, from earlier ones."""

    inputs: tuple[Tensor, ...]
    ops: tuple[Op, ...]
    outputs: tuple[int, ...]

    @property
    def tensors(self) -> list[Tensor]:
        """Sizes of all tensors, inferred.

        Raises:
            ValueError: an op does not fit its inputs.
        """
        found = list(self.inputs)
        for i, op in enumerate(self.ops):
            if not all(0 <= at < len(found) for at in op.inputs):
                raise ValueError(f"op {i} reads tensors {op.inputs}, but there are {len(found)} before it")
            try:
                found.append(checked(infer(op, [found[at] for at in op.inputs])))
            except ValueError as error:
                raise ValueError(f"op {i}, {op.kind}: {error}") from None
        return found

    def to_json(self) -> str:
        """The inverse of from_json."""
        return json.dumps(
            {
                "version": VERSION,
                "inputs": [list(dataclasses.astuple(tensor)) for tensor in self.inputs],
                "ops": [{"kind": op.kind, **dataclasses.asdict(op)} for op in self.ops],
                "outputs": list(self.outputs),
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "Program":
        """Read and check a plan; text is not trusted.

        Raises:
            ArtifactError: it is not a plan that can be computed.
        """
        try:
            data = json.loads(text)
            if data["version"] != VERSION:
                raise ValueError(f"version {data['version']!r}, and this lighten reads {VERSION}")
            inputs = tuple(checked(Tensor(*map(_count, sizes))) for sizes in data["inputs"])
            ops = tuple(_op(entry) for entry in data["ops"])
            outputs = tuple(_count(tensor, 0) for tensor in data["outputs"])
            program = cls(inputs, ops, outputs)
            n_tensors = len(program.tensors)
            if not inputs or not outputs or max(outputs) >= n_tensors:
                raise ValueError(f"{len(inputs)} inputs, and outputs {outputs} of {n_tensors} tensors")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise ArtifactError(
                f"This is not a plan of the native engine: {type(error).__name__}: {error}. Export the model again."
            ) from error
        return program


def infer(op: Op, inputs: list[Tensor]) -> Tensor:
    """What op makes of inputs.

    Raises:
        ValueError: they do not fit.
    """
    _must(len(inputs) in _ARITY[op.kind], f"{len(inputs)} inputs")
    x = inputs[0] if inputs else Tensor(0, 0, 0)
    match op:
        case Conv():
            _must(op.block in BLOCKS and op.bits in BITS and op.rows > 0 and is_act(op.act), f"{op}")
            out = Tensor(op.rows, *_window(op, x))
            _must(len(inputs) == 1 or inputs[1] == out, f"residual {inputs[1:]} beside {out}")
            return out
        case Pool():
            _must(op.mode in ("max", "mean"), f"mode {op.mode!r}")
            _must(all(2 * p <= k for p, k in zip(op.padding, op.kernel, strict=True)), f"padding {op.padding}")
            return Tensor(x.rows, *_window(op, x))
        case Reduce():
            _must(op.how in REDUCTIONS, f"{op}")
            _must(op.groups == 0 or x.rows % op.groups == 0, f"{op.groups} groups of {x}")
            return Tensor(op.groups, x.height, x.width) if op.groups else Tensor(x.rows, 1, 1)
        case Elements():
            _must(is_act(op.act) and OPERATIONS.get(op.op) == len(inputs), f"{op}")
            rows, grid = max(b.rows for b in inputs), max((b.height, b.width) for b in inputs)
            fits = (b.rows in (1, rows) and (b.height, b.width) in ((1, 1), grid) for b in inputs)
            _must(all(fits), f"{inputs}")
            return Tensor(rows, *grid)
        case Cat():
            _must(all((b.height, b.width) == (x.height, x.width) for b in inputs), f"{inputs}")
            return Tensor(sum(b.rows for b in inputs), x.height, x.width)
        case Reshape():
            _must(x.rows * x.height * x.width == op.rows, f"{x} as {op}")
            return Tensor(op.rows, 1, 1)
        case Constant() | Gather():
            return Tensor(op.rows, op.height, op.width)
        case Norm():
            _must(op.eps >= 0 and all(each == Tensor(x.rows, 1, 1) for each in inputs[1:]), f"{op} of {inputs}")
            return x
        case Softmax():
            _must(op.groups > 0 and x.rows % op.groups == 0, f"{op.groups} groups of {x}")
            return x
        case Matmul():
            w = inputs[1]
            sizes, rows = (w.height, w.width), op.groups * (op.size if op.across else op.depth)
            _must(min(op.groups, op.depth, op.size) > 0 and len(op.starts) == 2, f"{op}")
            _must(op.starts[0] + op.groups * op.depth <= x.rows and op.starts[1] + rows <= w.rows, f"{op} of {inputs}")
            _must(sizes == (1, op.depth if op.across else op.size), f"{op} of {inputs}")
            return Tensor(op.groups * op.size, x.height, x.width)
        case Embedding():
            _must(x.height * x.width == 1 and 0 < op.entries <= 2**24, f"{op.entries} entries for {x}")
            return Tensor(op.rows, 1, x.rows)


def is_act(act: str) -> bool:
    """Whether act is the name of an activation, followed by as many numbers as it has, each as Python writes it."""
    name, *numbers = act.split(" ")
    return ACTIVATIONS.get(name) == len(numbers) and all(_is_number(number) for number in numbers)


def _is_number(text: str) -> bool:
    try:
        return repr(float(text)) == text != "nan"
    except ValueError:
        return False


_ARITY: dict[str, range] = {
    "conv": range(1, 3),
    "pool": range(1, 2),
    "reduce": range(1, 2),
    "elements": range(1, 4),
    "cat": range(1, 1025),
    "reshape": range(1, 2),
    "constant": range(1),
    "gather": range(1, 1025),
    "norm": range(3, 4),
    "softmax": range(1, 2),
    "matmul": range(2, 3),
    "embedding": range(1, 2),
}


def _window(op: Conv | Pool, x: Tensor) -> tuple[int, int]:
    for name in ("kernel", "stride", "padding", "dilation"):
        values = getattr(op, name)
        low = 0 if name == "padding" else 1
        _must(len(values) == 2 and all(low <= value <= 2**16 for value in values), f"{name} {values}")
    _must(math.prod(op.kernel) <= 2**16, f"kernel {op.kernel}")
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((x.height, x.width), op.kernel, op.stride, op.padding, op.dilation, strict=True)
    ]
    return sizes[0], sizes[1]


def checked(tensor: Tensor) -> Tensor:
    """tensor, if there can be such a one.

    Raises:
        ValueError: a size is not a count, or it is too large.
    """
    sizes = (tensor.rows, tensor.height, tensor.width)
    if not all(1 <= size <= MAX_SIZE for size in sizes) or math.prod(sizes) > MAX_SIZE:
        raise ValueError(f"a tensor of {sizes[0]} x {sizes[1]} x {sizes[2]}")
    return tensor


def _op(entry: Mapping[str, Any]) -> Op:
    given = dict(entry)
    kind = KINDS[given.pop("kind")]
    hints = get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)}
    given = dict.fromkeys(fields & {"layer"}, "") | given  # of lightens that did not write it
    if set(given) != fields:
        raise ValueError(f"{kind.kind} has the fields {sorted(fields)}, not {sorted(given)}")
    made: Op = kind(**{name: _value(given[name], hints[name]) for name in fields})
    return made


def _value(value: Any, hint: Any) -> Any:
    if hint == tuple[int, ...]:
        return tuple(_count(item, 0) for item in value)
    if hint is int:
        return _count(value, 0)
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{value!r} is not a {hint.__name__}")
    return value


def _count(value: Any, low: int = 1) -> int:
    if type(value) is not int or not low <= value <= MAX_SIZE:
        raise ValueError(f"{value!r} is not a count")
    return value


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"does not fit: {what}")
