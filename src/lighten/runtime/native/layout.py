"""Layout: where every tensor lies, so that a convolution of any kernel is a sparse product with constant offsets.

A row holds the places of one channel of one sample, in lines of one pitch, with zeros between lines (the right margin
of one is the left margin of the next) and before the first. Place (y, x) is column y · pitch + x, and the input that
weight (c, ky, kx) needs lies at a constant distance from it:

    before      the channel
    0 0 0 0 0 | a b c 0 d e f 0 0 0 0 0        (height 2, width 3, one column and one line of margin)

Tensors that such products tie together share pitch and lines, so a layout is solved for a class of tensors at a time.
A product's stride is taken out first: a *split* writes every s-th column and line as a plane of its own (a phase), and
on phases the product has stride 1 again. What goes by windows, see emit/windows.py, reads with its stride, and ties
nothing; the splits of maxima are copies with another margin.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lighten.errors import ArtifactError
from lighten.runtime.native.packed import Array
from lighten.runtime.native.program import (
    Constant,
    Conv,
    Elements,
    Matmul,
    Norm,
    Op,
    Pool,
    Program,
    Reduce,
    Softmax,
    Tensor,
)

ALIGN = 16  # floats: a cache line, and the widest vector
MOST_ROWS = 16  # rows are allocated in whole blocks of the largest kind
MAX_FLOATS = 2**31 - 2**16  # offsets are int32


@dataclass(frozen=True)
class Place:
    """Where a tensor lies, in floats from the start of the arena. origin: of row 0, column 0.

    Valid are columns y · pitch + x. clean: whether the margins hold `fill`, as readers with a window need; otherwise
    they hold rubbish.
    """

    tensor: Tensor
    origin: int
    row_stride: int
    pitch: int
    clean: bool
    fill: float = 0.0

    @property
    def columns(self) -> int:
        """All columns from the first to the last valid one."""
        return (self.tensor.height - 1) * self.pitch + self.tensor.width

    @property
    def is_solid(self) -> bool:
        """Whether every column up to the last is valid."""
        return self.columns == self.tensor.height * self.tensor.width

    @property
    def is_vector(self) -> bool:
        """Whether rows lie next to each other: there is one place."""
        return self.row_stride == 1

    @property
    def addresses(self) -> Array:
        """int64 [rows, height · width]: where each number lies, in floats from the start of the arena."""
        t = self.tensor
        grid = np.arange(t.height)[:, None] * self.pitch + np.arange(t.width)
        return self.origin + np.arange(t.rows)[:, None] * self.row_stride + grid.ravel()

    def valid(self, length: int) -> Array:
        """uint8 [length]: 1 where a column is a place."""
        found = np.zeros(length, np.uint8)
        for y in range(self.tensor.height):
            found[y * self.pitch : y * self.pitch + self.tensor.width] = 1
        return found


@dataclass(frozen=True)
class Split:
    """Phases of a tensor: row slot · channels + c of `to` holds x[c][stride · y + a][stride · x + b]."""

    source: int
    to: int
    stride: tuple[int, int]
    phases: tuple[tuple[int, int], ...]


@dataclass
class Layout:
    """places: of every tensor of the program, then of the splits. splits: by the op that needs it. size: in floats."""

    places: list[Place]
    splits: dict[int, Split]
    size: int
    fills: list[tuple[int, int, float]] = field(default_factory=list)


def taps(op: Conv | Pool) -> list[tuple[int, int]]:
    """How far from its output's place, times the stride, each weight (ky, kx) of a window reads."""
    return [
        (ky * op.dilation[0] - op.padding[0], kx * op.dilation[1] - op.padding[1])
        for ky, kx in itertools.product(range(op.kernel[0]), range(op.kernel[1]))
    ]


def reads(op: Conv, split: Split | None) -> list[tuple[int, int, int]]:
    """For each weight (ky, kx) of a product: the phase's slot and the distance (lines, columns) in that phase."""
    if split is None:
        return [(0, y, x) for y, x in taps(op)]
    sy, sx = split.stride
    return [(split.phases.index((y % sy, x % sx)), y // sy, x // sx) for y, x in taps(op)]


def make_layout(program: Program, depthwise: Collection[int], in_cache: Mapping[int, int]) -> Layout:
    """Lay out program for one sample. depthwise: the convolutions that go by windows, as all pools do. in_cache: rows
    that there is room for, by the op whose rows the next one reads a few at a time.

    Raises:
        ArtifactError: it needs more than 2^31 floats.
    """
    tensors = program.tensors
    first = len(program.inputs)
    fill = [0.0] * len(tensors)
    wanted: dict[tuple[int, tuple[int, ...], float, int, int], list[int]] = {}
    for i, op in enumerate(program.ops):
        if isinstance(op, Conv) and op.stride != (1, 1) and i not in depthwise:
            out = tensors[first + i]  # of one size, so that the pitch can be one as well
            wanted.setdefault((op.inputs[0], op.stride, 0.0, out.height, out.width), []).append(i)
        if isinstance(op, Pool) and op.mode == "max" and any(op.padding):
            wanted.setdefault((op.inputs[0], (1, 1), -np.inf, 0, 0), []).append(i)
    splits: dict[int, Split] = {}
    for (source, (sy, sx), value, *_), readers in wanted.items():
        ops = [op for i in readers if isinstance(op := program.ops[i], (Conv, Pool))]
        phases = tuple(dict.fromkeys((y % sy, x % sx) for op in ops for y, x in taps(op)))
        x = tensors[source]
        splits |= dict.fromkeys(readers, Split(source, len(tensors), (sy, sx), phases))
        tensors.append(Tensor(x.rows * len(phases), -(-x.height // sy), -(-x.width // sx)))
        fill.append(value)
    return _place(program, tensors, splits, fill, depthwise, in_cache)


def _place(
    program: Program,
    tensors: list[Tensor],
    splits: dict[int, Split],
    fill: list[float],
    depthwise: Collection[int],
    in_cache: Mapping[int, int],
) -> Layout:
    first = len(program.inputs)
    classes = _Classes(tensors)
    clean = [False] * len(tensors)
    for i, op in enumerate(program.ops):
        by_windows = isinstance(op, Pool) or i in depthwise
        if not by_windows:
            for at in tied_inputs(op, splits.get(i), tensors):
                classes.tie(at, first + i)
        if isinstance(op, (Conv, Pool)):
            at = splits[i].to if i in splits else op.inputs[0]
            x, y = tensors[at], tensors[first + i]
            if by_windows:
                lines, columns = _reach(taps(op), op.stride, y)
                clean[at] |= min(lines[0], columns[0]) < 0 or lines[1] >= x.height or columns[1] >= x.width
            else:
                assert isinstance(op, Conv)
                distances = [(line, column) for _, line, column in reads(op, splits.get(i))]
                lines, columns = _reach(distances, (1, 1), y)
                clean[at] |= any(distance != (0, 0) for distance in distances)
            classes.leave_room(at, lines, columns)
    last_use = _last_uses(program, splits, len(tensors), in_cache)
    arena = _Arena()
    places: list[Place | None] = [None] * len(tensors)
    born = [*range(first), *(first + i for i, op in enumerate(program.ops) if isinstance(op, Constant))]
    live: list[int] = []

    def put(at: int) -> None:
        split = next((split for split in splits.values() if split.to == at), None)
        holes = () if split is None else (tensors[split.source], split.phases)  # places that a phase lacks are margin
        wanted = Place(tensors[at], 0, 0, classes.pitch_of(at), clean[at], fill[at])
        places[at] = arena.put(wanted, classes.lines_of(at), holes, in_cache.get(at - first, tensors[at].rows))
        live.append(at)

    for at in born:
        put(at)
    for i in range(len(program.ops)):
        if i in splits and places[splits[i].to] is None:
            put(splits[i].to)
        if places[first + i] is None:
            put(first + i)
        for at in [at for at in live if last_use[at] <= i]:
            arena.free(places[at])
            live.remove(at)
    if arena.size > MAX_FLOATS:
        raise ArtifactError(f"The model needs {arena.size * 4 / 2**30:.1f} GiB for one sample; 8 is the most.")
    return Layout([place for place in places if place is not None], splits, arena.size, arena.fills)


def _reach(distances: Sequence[tuple[int, int]], stride: tuple[int, ...], y: Tensor) -> list[tuple[int, int]]:
    """The first and the last line, and column, that are read from distances of the places of y times stride."""
    return [
        (min(each), step * (size - 1) + max(each))
        for each, step, size in zip(zip(*distances, strict=True), stride, (y.height, y.width), strict=True)
    ]


def tied_inputs(op: Op, split: Split | None, tensors: Sequence[Tensor]) -> Iterable[int]:
    """The tensors that must share pitch and lines with what op makes."""
    match op:
        case Conv():
            return (op.inputs[0] if split is None else split.to, *op.inputs[1:])
        case Elements():
            grids = [(tensors[at].height, tensors[at].width) for at in op.inputs]
            return [at for at, grid in zip(op.inputs, grids, strict=True) if grid == max(grids)]
        case Reduce() if op.groups:
            return op.inputs
        case Norm() | Softmax() | Matmul():
            return op.inputs[:1]
        case _:
            return ()


def _last_uses(program: Program, splits: dict[int, Split], n_tensors: int, in_cache: Collection[int]) -> list[int]:
    """The last op that reads each tensor; outputs and constants live on, and what nobody reads dies at once. in_cache:
    ops that read on while the next one writes."""
    last = [-1] * n_tensors
    for i, op in enumerate(program.ops):
        last[len(program.inputs) + i] = i
        for at in (*op.inputs, *([splits[i].to] if i in splits else [])):
            last[at] = i + (i in in_cache)
    constants = (len(program.inputs) + i for i, op in enumerate(program.ops) if isinstance(op, Constant))
    for at in (*program.outputs, *constants):
        last[at] = len(program.ops)
    return last


class _Classes:
    """Tensors in classes of one pitch and one number of lines."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.parent = list(range(len(tensors)))
        self.pitch = [tensor.width for tensor in tensors]
        self.lines = [tensor.height for tensor in tensors]
        self.tensors = tensors

    def root(self, at: int) -> int:
        while self.parent[at] != at:
            at = self.parent[at]
        return at

    def tie(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        self.parent[b] = a
        self.pitch[a] = max(self.pitch[a], self.pitch[b])
        self.lines[a] = max(self.lines[a], self.lines[b])

    def leave_room(self, source: int, lines: tuple[int, int], columns: tuple[int, int]) -> None:
        """Margins, so that what is read of `source`, from the first to the last line and column, is place or margin."""
        at, x = self.root(source), self.tensors[source]
        self.pitch[at] = max(self.pitch[at], x.width - columns[0], columns[1] + 1)
        self.lines[at] = max(self.lines[at], x.height - lines[0], lines[1] + 1)

    def pitch_of(self, at: int) -> int:
        return self.pitch[self.root(at)]

    def lines_of(self, at: int) -> int:
        return self.lines[self.root(at)]


class _Arena:
    """Buffers one after another. One is used again only for a tensor of the same layout: its margins still hold."""

    def __init__(self) -> None:
        self.size = ALIGN
        self.idle: dict[tuple[object, ...], list[int]] = {}
        self.keys: dict[int, tuple[object, ...]] = {}
        self.fills: list[tuple[int, int, float]] = []

    def put(self, wanted: Place, lines: int, holes: tuple[object, ...], n_rows: int) -> Place:
        """Find room for n_rows of wanted, whose origin and row_stride are not known yet."""
        tensor, pitch, length = wanted.tensor, wanted.pitch, wanted.pitch * lines
        rows = _up(n_rows, MOST_ROWS)
        if length == 1:
            before, row_stride = 0, 1
        else:
            # A window reaches back by at most the lines and columns of the margins.
            before = _up((lines - tensor.height) * pitch + pitch - tensor.width, ALIGN)
            row_stride = before + _up(length, ALIGN)
            if row_stride % 256 == 0:
                row_stride += ALIGN  # rows a multiple of 1 KiB apart would fall into few sets of the cache
        key = (rows, row_stride, replace(wanted, tensor=tensor if wanted.clean else Tensor(0, 0, 0)), lines, holes)
        if self.idle.get(key):
            origin = self.idle[key].pop()
        else:
            origin = self.size + before
            # What tiles read past the last row, at the largest distance, is rubbish but has to be there.
            size = rows * row_stride + (0 if row_stride == 1 else length + pitch + ALIGN)
            if wanted.fill:
                self.fills.append((self.size, self.size + size, wanted.fill))
            self.size += _up(size, ALIGN)
        place = replace(wanted, origin=origin, row_stride=row_stride)
        self.keys[id(place)] = key
        return place

    def free(self, place: Place | None) -> None:
        assert place is not None
        self.idle.setdefault(self.keys[id(place)], []).append(place.origin)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
