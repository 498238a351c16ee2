"""What each operator becomes: (reader, node, its arguments as values) to the value of what it computes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from lighten.export.native.ids import FIRST, Batch, Ids, batch_of, both_samples, by_rows, in_rows, one_sample
from lighten.export.native.reader import Handler, Reader, must
from lighten.graph.arguments import arguments
from lighten.runtime.native.program import Elements, Embedding, Matmul, Mean, Norm, Op, Pool, Softmax
from lighten.runtime.native.program import Tensor as Sizes

aten = torch.ops.aten
ACTIVATIONS: dict[Any, str] = {
    aten.relu.default: "relu",
    aten.relu6.default: "relu6",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
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


# Elements


def act_of(node: fx.Node) -> str:
    """The activation that the node is; "none" if it is none."""
    if node.target in ACTIVATIONS:
        return ACTIVATIONS[node.target]
    given = arguments(node)
    if node.target is aten.gelu.default:
        return "gelu" if given["approximate"] == "none" else "gelu_tanh"
    if node.target is aten.hardtanh.default and (given["min_val"], given["max_val"]) == (0, 6):
        return "relu6"
    return "none"


def _activation(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    act = act_of(node)
    must(act != "none", "it is another activation than the engine has")
    batch = batch_of(given["self"])
    at, order = laid(reader, one_sample(given["self"], batch))
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
        return combined(reader, op, a, b if alpha == 1 else b * alpha)

    return handler


def combined(reader: Reader, op: str, a: Any, b: Any) -> Ids:
    """a op b, in the order in which the one that was made last lies: the other may be needed in that order again."""
    build = reader.build
    values = [reader.ids(a), reader.ids(b)]
    shape = torch.broadcast_shapes(*(value.at.shape for value in values))
    values = [Ids(value.at.expand(shape)) for value in values]
    batch = batch_of(*values)
    samples = [one_sample(value, batch) for value in values]
    ordered = [sample for sample in samples if build.in_some_order(sample) is not None]
    at, order = laid(reader, max(ordered, key=lambda sample: int(sample.min()), default=samples[0]))
    sizes = build.sizes[at]
    first, second = (sample.flatten()[order.flatten().argsort()].reshape(sizes.rows, -1) for sample in samples)
    if op != "sub" and is_one_a_row(first) and not is_one_a_row(second):
        first, second = second, first
    inputs = build.lay(first, sizes), build.lay(second[:, :1]) if is_one_a_row(second) else build.lay(second, sizes)
    return made(reader, Elements(inputs=inputs, op=op), order, batch)


def is_one_a_row(ids: Tensor) -> bool:
    """Whether all places of a row are the same number."""
    return ids.shape[1] > 1 and bool((ids == ids[:, :1]).all())


def _division(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    must(not isinstance(given["other"], Ids), "it divides by what is not constant")
    return combined(reader, "mul", given["self"], 1 / torch.as_tensor(given["other"], dtype=torch.float32))


def _negation(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    return combined(reader, "mul", given["self"], -1.0)


def _reversed_subtraction(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    must(given["alpha"] == 1, f"alpha={given['alpha']}")
    return combined(reader, "sub", given["other"], given["self"])


def _padding(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    """Moves numbers, one of which is the padding's."""
    must(given.get("mode", "constant") == "constant", f"mode {given.get('mode')}")
    number = int(reader.ids(float(given["value"] or 0)).at)
    return Ids(torch.constant_pad_nd(given["self"].at, given["pad"], number))


def _embedding(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    tokens, table = given["indices"], given["weight"]
    must(isinstance(table, Tensor), "its table is not constant")
    batch = batch_of(tokens)
    sample = one_sample(tokens, batch)
    x = reader.build.lay(sample.reshape(-1, 1))
    entries, rows = table.shape
    op = Embedding(inputs=(x,), table=reader.build.store(table.numpy()), entries=entries, rows=rows)
    return made(reader, op, in_rows((*sample.shape, rows), [-1]), batch)


def _same(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    """A cast: all numbers are float32 as it is."""
    ids: Ids = given["self"]
    return ids


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


# Windows and means


def _pool(mode: str) -> Handler:
    """Maximum or mean over windows."""

    def handler(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
        at, sample = image(reader, given["self"])
        pads = any(pair(given["padding"], sample.ndim, 0))
        is_plain = not given["ceil_mode"] and given.get("divisor_override") is None
        must(is_plain and (mode == "max" or given["count_include_pad"] or not pads), "its windows are cut at the edge")
        window = {
            "kernel": pair(given["kernel_size"], sample.ndim),
            "stride": pair(given["stride"] or given["kernel_size"], sample.ndim),
            "padding": pair(given["padding"], sample.ndim, 0),
            "dilation": pair(given.get("dilation", 1), sample.ndim),
        }
        shape = (1, *node.meta["val"].shape[1:])
        return made(reader, Pool(inputs=(at,), mode=mode, **window), in_rows(shape, [1]), FIRST)

    return handler


def _mean(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    value = given["self"]
    dims = given["dim"] if given["dim"] else range(value.at.ndim)
    return mean_over(reader, value, [dim % value.at.ndim for dim in dims], given["keepdim"])


def _pool_to_one(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    sizes = list(given["output_size"])
    must(all(size == 1 for size in sizes), f"output_size {sizes}")
    ndim = given["self"].at.ndim
    return mean_over(reader, given["self"], list(range(ndim - len(sizes), ndim)), True)


def mean_over(reader: Reader, value: Ids, dims: Sequence[int], keepdim: bool) -> Ids:
    """A row for each number of the result."""
    batch = batch_of(value)
    must(batch.axis not in dims, "it mixes the samples of a batch")
    sample = one_sample(value, batch)
    rows = [a for a in range(sample.ndim) if a not in dims]
    x = reader.build.lay(by_rows(sample, rows))
    shape = [1 if a in dims else sample.shape[a] for a in range(sample.ndim) if keepdim or a not in dims]
    batch = batch if keepdim else Batch(batch.axis - sum(dim < batch.axis for dim in dims), batch.inner)
    return made(reader, Mean(inputs=(x,)), torch.arange(math.prod(shape)).reshape(shape), batch)


# Along the rows of each place, and products of activations


def _layer_norm(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    build, batch = reader.build, batch_of(given["input"])
    sample, shape = one_sample(given["input"], batch), given["normalized_shape"]
    axes = [sample.ndim - len(shape) + i for i in range(len(shape))]
    must(batch.axis not in axes, "it mixes the samples of a batch")
    x = build.lay(by_rows(sample, axes))
    weight, bias = given["weight"], given["bias"]
    tables = [torch.ones(list(shape)) if weight is None else weight, torch.zeros(list(shape)) if bias is None else bias]
    scale, shift = (build.lay(reader.ids(table.reshape(-1, 1)).at) for table in tables)
    op = Norm(inputs=(x, scale, shift), eps=given["eps"])
    return made(reader, op, in_rows(sample.shape, axes), batch)


def _softmax(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    return softmax_along(reader, given["self"], given["dim"])


def softmax_along(reader: Reader, value: Ids, dim: int) -> Ids:
    """Which of the other axes are groups of rows, and which are places, is as the numbers lie."""
    batch = batch_of(value)
    sample, dim = one_sample(value, batch), dim % value.at.ndim
    must(batch.axis != dim, "it mixes the samples of a batch")
    others = [a for a in range(sample.ndim) if a != dim]
    choices = [others[:n] for n in range(len(others) + 1)]
    groups = next((each for each in choices if is_laid(reader, by_rows(sample, [*each, dim]))), [])
    axes = [*groups, dim]
    op = Softmax(inputs=(reader.build.lay(by_rows(sample, axes)),), groups=math.prod(sample.shape[a] for a in groups))
    return made(reader, op, in_rows(sample.shape, axes), batch)


def is_laid(reader: Reader, ids: Tensor) -> bool:
    """Whether there is a tensor with just these rows and places."""
    whole = reader.build.whole(ids)
    return whole is not None and reader.build.sizes[whole].rows == len(ids)


def multiplied(reader: Reader, a: Any, b: Any, scale: float = 1.0) -> Ids:
    """scale · a @ b, for each index of the leading axes."""
    build, values = reader.build, [reader.ids(a), reader.ids(b)]
    lead = torch.broadcast_shapes(*(value.at.shape[:-2] for value in values))
    values = [Ids(value.at.expand(*lead, *value.at.shape[-2:])) for value in values]
    batch = batch_of(*values)
    must(batch.axis < len(lead), "it mixes the samples of a batch")
    left, right = (one_sample(value, batch) for value in values)
    axes = list(range(len(lead)))
    groups, depth, size = math.prod(left.shape[:-2]), left.shape[-1], right.shape[-1]
    x, x_start = build.rows_of(by_rows(left, [*axes, -1]))
    down, across = by_rows(right, [*axes, -2]), by_rows(right, [*axes, -1])
    is_across = build.part(down, is_line=True) is None and build.part(across, is_line=True) is not None
    w, w_start = build.rows_of(across if is_across else down, is_line=True)
    op = Matmul(
        inputs=(x, w),
        starts=(x_start, w_start),
        groups=groups,
        depth=depth,
        size=size,
        across=is_across,
        scale=scale,
    )
    return made(reader, op, in_rows((*left.shape[:-1], size), [*axes, -1]), batch)


def _attention(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    query, key, value, mask = (given[name] for name in ("query", "key", "value", "attn_mask"))
    must(not given["enable_gqa"], "enable_gqa")
    query, key, value = (reader.ids(each) for each in (query, key, value))
    n, m = query.at.shape[-2], key.at.shape[-2]
    if given["is_causal"]:
        mask = torch.ones(n, m, dtype=torch.bool).tril()
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    scale = query.at.shape[-1] ** -0.5 if given["scale"] is None else given["scale"]
    scores = multiplied(reader, query, Ids(key.at.transpose(-1, -2)), scale)
    if mask is not None:
        scores = combined(reader, "add", scores, mask)
    return multiplied(reader, softmax_along(reader, scores, -1), value)


HANDLERS: dict[Any, Handler] = {
    **dict.fromkeys([*ACTIVATIONS, aten.gelu.default, aten.hardtanh.default], _activation),
    aten.add.Tensor: _combination("add"),
    aten.mul.Tensor: _combination("mul"),
    aten.sub.Tensor: _combination("sub"),
    aten.rsub.Scalar: _reversed_subtraction,
    aten.div.Tensor: _division,
    aten.neg.default: _negation,
    aten.embedding.default: _embedding,
    aten.to.dtype: _same,
    aten._to_copy.default: _same,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.upsample_nearest1d.vec: _nearest,
    aten.upsample_nearest2d.vec: _nearest,
    aten.pad.default: _padding,
    aten.constant_pad_nd.default: _padding,
    aten.max_pool1d.default: _pool("max"),
    aten.max_pool2d.default: _pool("max"),
    aten.avg_pool1d.default: _pool("mean"),
    aten.avg_pool2d.default: _pool("mean"),
    aten.adaptive_avg_pool1d.default: _pool_to_one,
    aten.adaptive_avg_pool2d.default: _pool_to_one,
    aten.mean.dim: _mean,
    aten.layer_norm.default: _layer_norm,
    aten.softmax.int: _softmax,
    aten.scaled_dot_product_attention.default: _attention,
}
