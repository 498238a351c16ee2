"""What operators on single numbers and windows become, and what the other files of handlers are made of.

A handler: (reader, node, its arguments as values) to the value of what it computes.
"""

import math
from typing import Any

import torch
from torch import Tensor, fx

from lighten.export.native.ids import FIRST, Batch, Ids, batch_of, both_samples, by_rows, in_rows, one_sample
from lighten.export.native.reader import Handler, Reader, must
from lighten.graph.arguments import arguments
from lighten.runtime.native.program import Elements, Embedding, Op, Pool
from lighten.runtime.native.program import Tensor as Sizes

aten = torch.ops.aten
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
ACTIVATIONS: dict[Any, str] = {
    aten.relu.default: "relu",
    aten.relu6.default: "relu6",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
    aten.mish.default: "mish",
    aten.abs.default: "abs",
    aten.sqrt.default: "sqrt",
    aten.rsqrt.default: "rsqrt",
    aten.reciprocal.default: "reciprocal",
    aten.exp.default: "exp",
    aten.expm1.default: "expm1",
    aten.log.default: "log",
    aten.log1p.default: "log1p",
    aten.erf.default: "erf",
}
LIMITS = (-math.inf, math.inf)
# With the arguments that are their numbers.
WITH_NUMBERS: dict[Any, tuple[str, ...]] = {
    aten.leaky_relu.default: ("leaky_relu", "negative_slope"),
    aten.elu.default: ("elu", "alpha", "scale", "input_scale"),
    aten.softplus.default: ("softplus", "beta", "threshold"),
    aten.hardtanh.default: ("clamp", "min_val", "max_val"),
    aten.clamp.default: ("clamp", "min", "max"),
}


def made(reader: Reader, op: Op, order: Tensor, batch: Batch) -> Ids:
    """The value of what op makes, whose numbers stand in the given order in one sample of it."""
    return both_samples(order + reader.build.starts[reader.build.add(op)], batch)


def image(reader: Reader, value: Any) -> tuple[int, Tensor]:
    """The tensor of channels and places of [n, channels, places] or [n, channels, height, width], and its sample."""
    must(isinstance(value, Ids) and value.at.ndim in (3, 4), "it is no image")
    sample = one_sample(value, FIRST)
    must(len(sample) == 1, "its first axis is more than the batch")
    sizes = Sizes(sample.shape[1], *((1,) if sample.ndim == 3 else ()), *sample.shape[2:])
    return reader.build.lay(sample.reshape(sizes.rows, -1), sizes), sample


def pair(value: Any, ndim: int, line: int = 1) -> tuple[int, int]:
    """Of a window's height and width; line: the height's where places are one line."""
    values = [value] if isinstance(value, int) else list(value)
    return (line, values[0]) if ndim == 3 else (values[0], values[-1])


def is_laid(reader: Reader, ids: Tensor) -> bool:
    """Whether there is a tensor with just these rows and places."""
    whole = reader.build.whole(ids)
    return whole is not None and reader.build.sizes[whole].rows == len(ids)


# Elements


def act_of(node: fx.Node) -> str:
    """The activation that the node is; "none" if it is none."""
    if node.target in ACTIVATIONS:
        return ACTIVATIONS[node.target]
    given = arguments(node)
    if node.target is aten.gelu.default:
        return "gelu" if given["approximate"] == "none" else "gelu_tanh"
    if node.target in WITH_NUMBERS:
        name, *names = WITH_NUMBERS[node.target]
        numbers = [given[each] for each in names]
        if name == "clamp":
            numbers = [limit if number is None else number for number, limit in zip(numbers, LIMITS, strict=True)]
        return " ".join([name, *(repr(float(number)) for number in numbers)])
    return "none"


def _activation(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    return activated(reader, given["self"], act_of(node))


def activated(reader: Reader, value: Ids, act: str) -> Ids:
    """act of each number."""
    batch = batch_of(value)
    at, order = laid(reader, one_sample(value, batch))
    return made(reader, Elements(inputs=(at,), act=act), order, batch)


def laid(reader: Reader, sample: Tensor) -> tuple[int, Tensor]:
    """A tensor with all numbers of the sample, and where in it each stands."""
    at = reader.build.in_some_order(sample)
    if at is not None:
        return at, sample - reader.build.starts[at]
    is_image = sample.ndim == 4 and len(sample) == 1
    axes, sizes = ([1], Sizes(*sample.shape[1:])) if is_image else ([-1], None)
    return reader.build.lay(by_rows(sample, axes), sizes), in_rows(sample.shape, axes)


def _combination(op: str) -> Handler:
    """a op b, one of which may have an axis of 1 where the other has more."""

    def handler(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
        a, b, alpha = given["self"], given["other"], given.get("alpha", 1)
        must(alpha == 1 or not isinstance(b, Ids), f"alpha={alpha}")
        is_sum_of_masks = op == "add" and node.meta["val"].dtype == torch.bool
        return combined(reader, "max" if is_sum_of_masks else op, a, b if alpha == 1 else b * alpha)

    return handler


def combined(reader: Reader, op: str, *values: Any) -> Ids:
    """op of the values, in the order in which the one that was made last lies: others may be needed in it again."""
    build = reader.build
    terms = [reader.ids(value) for value in values]
    shape = torch.broadcast_shapes(*(term.at.shape for term in terms))
    terms = [Ids(term.at.expand(shape)) for term in terms]
    batch = batch_of(*terms)
    samples = [one_sample(term, batch) for term in terms]
    ordered = [sample for sample in samples if build.in_some_order(sample) is not None]
    at, order = laid(reader, max(ordered, key=lambda sample: int(sample.min()), default=samples[0]))
    sizes, back = build.sizes[at], order.flatten().argsort()
    matrices = [sample.flatten()[back].reshape(sizes.rows, -1) for sample in samples]
    inputs = [build.lay(*without_repeats(matrix, sizes)) for matrix in matrices]
    if all(build.sizes[each] != sizes for each in inputs):  # none says how large the result is
        inputs[0] = build.lay(matrices[0], sizes)
    return made(reader, Elements(inputs=tuple(inputs), op=op), order, batch)


def without_repeats(ids: Tensor, sizes: Sizes) -> tuple[Tensor, Sizes]:
    """One row of ids [rows, places] where all are the same, and one place where all are; and the sizes of the rest."""
    ids = ids[:1] if bool((ids == ids[:1]).all()) else ids
    is_one = bool((ids == ids[:, :1]).all())
    return (ids[:, :1], Sizes(len(ids), 1, 1)) if is_one else (ids, Sizes(len(ids), sizes.height, sizes.width))


def _division(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    if isinstance(given["other"], Ids):
        return combined(reader, "div", given["self"], given["other"])
    return combined(reader, "mul", given["self"], 1 / torch.as_tensor(given["other"], dtype=torch.float32))


def _negation(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    return combined(reader, "mul", given["self"], -1.0)


def _reversed_subtraction(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    must(given["alpha"] == 1, f"alpha={given['alpha']}")
    return combined(reader, "sub", given["other"], given["self"])


def _clamped(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    """Between limits that are tensors."""
    x: Ids = given["self"]
    for op, limit in (("max", given["min"]), ("min", given["max"])):
        x = x if limit is None else combined(reader, op, x, limit)
    return x


def _sign(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    is_above, is_below = (combined(reader, op, given["self"], 0.0) for op in ("gt", "lt"))
    return combined(reader, "sub", is_above, is_below)


def _power(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    """Whole exponents as products, which negative numbers have too; others by a logarithm."""
    x, exponent = given["self"], float(given["exponent"])
    acts = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    if exponent in acts or not exponent.is_integer():
        return activated(reader, x, acts.get(exponent, f"power {exponent!r}"))
    must(1 <= abs(exponent) <= MOST_FACTORS, f"exponent {exponent}")
    product = x
    for bit in f"{int(abs(exponent)):b}"[1:]:
        product = combined(reader, "mul", product, product)
        product = combined(reader, "mul", product, x) if bit == "1" else product
    return product if exponent > 0 else activated(reader, product, "reciprocal")


MOST_FACTORS = 16  # of a power: each doubles the error of rounding


# Masks: 1 where they hold, else 0


def _is_nan(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    return combined(reader, "ne", given["self"], given["self"])


def _opposite(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    must(node.meta["val"].dtype == torch.bool, "it is no mask")
    return combined(reader, "eq", given["self"], 0.0)


def _of_masks(op: str) -> Handler:
    def handler(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
        dtypes = [each.meta["val"].dtype for each in node.all_input_nodes]
        must(all(dtype == torch.bool for dtype in dtypes), "it is not of masks")
        return combined(reader, op, given["self"], given["other"])

    return handler


def _choice(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    return combined(reader, "where", given["condition"], given["self"], given["other"])


def _filled(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    return combined(reader, "where", given["mask"], given["value"], given["self"])


def _cast(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    """All numbers are float32 as they are, but a mask is 0 or 1."""
    ids: Ids = given["self"]
    return combined(reader, "ne", ids, 0.0) if node.meta["val"].dtype == torch.bool else ids


def _padding(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    """Moves numbers, one of which is the padding's; float64 holds every id."""
    ids, mode = given["self"].at, given.get("mode", "constant")
    if mode != "constant":
        return Ids(torch.nn.functional.pad(ids.double(), given["pad"], mode).long())
    return Ids(torch.constant_pad_nd(ids, given["pad"], int(reader.ids(float(given["value"] or 0)).at)))


def _embedding(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    tokens, table = given["indices"], given["weight"]
    must(isinstance(table, Tensor), "its table is not constant")
    batch = batch_of(tokens)
    sample = one_sample(tokens, batch)
    x = reader.build.lay(sample.reshape(-1, 1))
    entries, rows = table.shape
    op = Embedding(inputs=(x,), table=reader.build.store(table.numpy()), entries=entries, rows=rows)
    return made(reader, op, in_rows((*sample.shape, rows), [-1]), batch)


def _batch_norm(reader: Reader, node: fx.Node, given: dict[str, Any]) -> tuple[Ids, None, None]:
    """One that no convolution precedes."""
    shape = [-1] + [1] * (given["input"].at.ndim - 2)
    scale = (given["running_var"] + given["eps"]).rsqrt()
    scale = scale if given["weight"] is None else scale * given["weight"]
    shift = -given["running_mean"] * scale
    shift = shift if given["bias"] is None else shift + given["bias"]
    scaled = combined(reader, "mul", given["input"], scale.reshape(shape))
    return combined(reader, "add", scaled, shift.reshape(shape)), None, None


def _nearest(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    """Moves numbers; float64 holds every id."""
    target: Any = node.target
    return Ids(target(given["input"].at.double(), given["output_size"], given["scale_factors"]).long())


# Windows


def _max_pool(n_axes: int) -> Handler:
    def handler(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
        value = given["self"]
        must(value.at.ndim == n_axes + 2, "it has no axis of channels beside the batch")
        if given["ceil_mode"]:
            lowest = int(reader.ids(-math.inf).at)
            value = Ids(torch.constant_pad_nd(value.at, beyond_the_end(node, value, given), lowest))
        return pooled(reader, node, value, given, "max")

    return handler


def window_of(given: dict[str, Any], ndim: int) -> dict[str, tuple[int, int]]:
    """That of a pool."""
    return {
        "kernel": pair(given["kernel_size"], ndim),
        "stride": pair(given["stride"] or given["kernel_size"], ndim),
        "padding": pair(given["padding"], ndim, 0),
        "dilation": pair(given.get("dilation", 1), ndim),
    }


def pooled(reader: Reader, node: fx.Node, value: Ids, given: dict[str, Any], mode: str) -> Ids:
    """Maximum or mean over windows."""
    at, sample = image(reader, value)
    op = Pool(inputs=(at,), mode=mode, **window_of(given, sample.ndim))
    return made(reader, op, in_rows((1, *node.meta["val"].shape[1:]), [1]), FIRST)


def beyond_the_end(node: fx.Node, value: Ids, given: dict[str, Any]) -> list[int]:
    """How far the last windows reach, as F.pad takes it: the last axis first, each with 0 before it."""
    windows = zip(*window_of(given, value.at.ndim).values(), strict=True)
    shapes = zip((1, *node.meta["val"].shape)[-2:], (1, *value.at.shape)[-2:], strict=True)
    reach = [
        max(0, (out - 1) * stride + dilation * (kernel - 1) + 1 - 2 * padding - size)
        for (kernel, stride, padding, dilation), (out, size) in zip(windows, shapes, strict=True)
    ]
    return [part for far in reach[::-1][: value.at.ndim - 2] for part in (0, far)]


HANDLERS: dict[Any, Handler] = {
    **dict.fromkeys([*ACTIVATIONS, *WITH_NUMBERS, aten.gelu.default], _activation),
    aten.add.Tensor: _combination("add"),
    aten.mul.Tensor: _combination("mul"),
    aten.sub.Tensor: _combination("sub"),
    aten.maximum.default: _combination("max"),
    aten.minimum.default: _combination("min"),
    **{
        op: _combination(name)
        for name in COMPARISONS
        for op in (getattr(aten, name).Tensor, getattr(aten, name).Scalar)
    },
    aten.rsub.Scalar: _reversed_subtraction,
    aten.div.Tensor: _division,
    aten.neg.default: _negation,
    aten.clamp.Tensor: _clamped,
    aten.sign.default: _sign,
    aten.pow.Tensor_Scalar: _power,
    aten.isnan.default: _is_nan,
    aten.logical_not.default: _opposite,
    aten.bitwise_not.default: _opposite,
    **dict.fromkeys([aten.logical_and.default, aten.bitwise_and.Tensor], _of_masks("mul")),
    **dict.fromkeys([aten.logical_or.default, aten.bitwise_or.Tensor], _of_masks("max")),
    aten.where.self: _choice,
    aten.masked_fill.Scalar: _filled,
    aten.masked_fill.Tensor: _filled,
    aten.embedding.default: _embedding,
    aten.to.dtype: _cast,
    aten._to_copy.default: _cast,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    **dict.fromkeys([aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec], _nearest),
    **dict.fromkeys([aten._upsample_nearest_exact1d.vec, aten._upsample_nearest_exact2d.vec], _nearest),
    aten.pad.default: _padding,
    aten.constant_pad_nd.default: _padding,
    aten.max_pool1d.default: _max_pool(1),
    aten.max_pool2d.default: _max_pool(2),
}
