"""What goes along rows or along places, whichever way the numbers lie: reductions, norms and softmax."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from lighten.export.native.ids import Batch, Ids, batch_of, by_rows, in_rows, one_sample
from lighten.export.native.operators import activated, combined, is_laid, made
from lighten.export.native.reader import Handler, Reader, must
from lighten.runtime.native.program import Norm, Reduce, Softmax

aten = torch.ops.aten


def _reduction(how: str, dims: str = "dim") -> Handler:
    def handler(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
        return reduced(reader, how, given["self"], given.get(dims), given.get("keepdim", False))

    return handler


def _extreme(how: str) -> Handler:
    """The largest or smallest along an axis; not where it is."""

    def handler(reader: Reader, node: fx.Node, given: dict[str, Any]) -> tuple[Ids, None]:
        must(all(user.args[1] == 0 for user in node.users), f"the place of the {how} is not computed")
        return reduced(reader, how, given["self"], [given["dim"]], given["keepdim"]), None

    return handler


def reduced(reader: Reader, how: str, value: Ids, dims: Sequence[int] | None, keepdim: bool) -> Ids:
    """Along dims, all of them where there are none: of rows where the numbers lie so, else of the places of a row."""
    batch, ndim = batch_of(value), value.at.ndim
    over = [dim % ndim for dim in dims or range(ndim)]
    must(batch.axis not in over, "it mixes the samples of a batch")
    sample = one_sample(value, batch)
    others = [axis for axis in range(ndim) if axis not in over]
    groups = groups_of(reader, sample, others, over)
    shape = [1 if axis in over else size for axis, size in enumerate(sample.shape)]
    if groups is None or is_laid(reader, by_rows(sample, others)):
        op, order = Reduce(inputs=(reader.build.lay(by_rows(sample, others)),), how=how), in_rows(shape, others)
    else:
        x, n_groups = reader.build.lay(by_rows(sample, [*groups, *over])), math.prod(shape[axis] for axis in groups)
        op, order = Reduce(inputs=(x,), how=how, groups=n_groups), in_rows(shape, groups)
    if not keepdim:
        order = order.reshape([shape[axis] for axis in others])
        batch = Batch(batch.axis - sum(dim < batch.axis for dim in over), batch.inner)
    return made(reader, op, order, batch)


def groups_of(reader: Reader, sample: Tensor, others: Sequence[int], over: Sequence[int]) -> Sequence[int] | None:
    """Which of the other axes are groups of rows, before those of `over`, as the numbers lie; None if they do not."""
    choices = (others[:n] for n in range(len(others) + 1))
    return next((each for each in choices if is_laid(reader, by_rows(sample, [*each, *over]))), None)


def _variance(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    x, dims = given["self"], given["dim"] or range(given["self"].at.ndim)
    n = math.prod(x.at.shape[dim] for dim in dims)
    correction = 1 if given["correction"] is None else given["correction"]
    distance = combined(reader, "sub", x, reduced(reader, "mean", x, dims, True))
    mean = reduced(reader, "mean", combined(reader, "mul", distance, distance), dims, given["keepdim"])
    return combined(reader, "mul", mean, n / max(n - correction, 0) if n > correction else math.inf)


def _length(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    """The norm of vectors."""
    x, order = given["self"], given["ord"]
    must(order in (1, 2, math.inf) and given["dtype"] is None, f"ord={order}, dtype={given['dtype']}")
    terms = combined(reader, "mul", x, x) if order == 2 else activated(reader, x, "abs")
    how = "max" if order == math.inf else "sum"
    found = reduced(reader, how, terms, given["dim"], given["keepdim"])
    return activated(reader, found, "sqrt") if order == 2 else found


def _layer_norm(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    return normalized_rows(reader, given, given["eps"], given["bias"])


def _rms_norm(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    eps = torch.finfo(torch.float32).eps if given["eps"] is None else given["eps"]
    return normalized_rows(reader, given, eps, None, centered=False)


def normalized_rows(
    reader: Reader, given: dict[str, Any], eps: float, bias: Tensor | None, centered: bool = True
) -> Ids:
    """Along the last axes, those of normalized_shape."""
    build, batch = reader.build, batch_of(given["input"])
    sample, shape, weight = one_sample(given["input"], batch), given["normalized_shape"], given["weight"]
    axes = [sample.ndim - len(shape) + i for i in range(len(shape))]
    must(batch.axis not in axes, "it mixes the samples of a batch")
    x = build.lay(by_rows(sample, axes))
    tables = [torch.ones(list(shape)) if weight is None else weight, torch.zeros(list(shape)) if bias is None else bias]
    scale, shift = (build.lay(reader.ids(table.reshape(-1, 1)).at) for table in tables)
    op = Norm(inputs=(x, scale, shift), eps=eps, centered=centered)
    return made(reader, op, in_rows(sample.shape, axes), batch)


def _group_norm(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    return normalized_groups(reader, given, given["num_groups"])


def _instance_norm(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    must(given["use_input_stats"], "it normalizes by statistics of training")
    return normalized_groups(reader, given, given["input"].at.shape[1])


def normalized_groups(reader: Reader, given: dict[str, Any], groups: int) -> Ids:
    """Groups of channels, with all of their places, to mean 0 and variance 1; then a scale and a shift a channel."""
    x, shape = given["input"], [1, -1] + [1] * (given["input"].at.ndim - 2)
    distance = combined(reader, "sub", x, mean_of_groups(reader, x, groups))
    variance = mean_of_groups(reader, combined(reader, "mul", distance, distance), groups)
    factor = activated(reader, combined(reader, "add", variance, given["eps"]), "rsqrt")
    if given["weight"] is not None:
        factor = combined(reader, "mul", factor, given["weight"].reshape(shape))
    scaled = combined(reader, "mul", distance, factor)
    return scaled if given["bias"] is None else combined(reader, "add", scaled, given["bias"].reshape(shape))


def mean_of_groups(reader: Reader, x: Ids, groups: int) -> Ids:
    """[n, channels, 1, …] of x [n, channels, …]: first of the places of a channel, which lie in a row."""
    n, channels = x.at.shape[:2]
    means = reduced(reader, "mean", x, range(2, x.at.ndim), True) if x.at.ndim > 2 else x
    if groups == channels:
        return means
    grouped = Ids(means.at.reshape(n, groups, -1))
    mean = reduced(reader, "mean", grouped, [2], True)
    return Ids(mean.at.expand_as(grouped.at).reshape(means.at.shape))


def _softmax(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    return softmax_along(reader, given["self"], given["dim"])


def softmax_along(reader: Reader, value: Ids, dim: int) -> Ids:
    """Which of the other axes are groups of rows, and which are places, is as the numbers lie."""
    batch = batch_of(value)
    sample, dim = one_sample(value, batch), dim % value.at.ndim
    must(batch.axis != dim, "it mixes the samples of a batch")
    groups = groups_of(reader, sample, [axis for axis in range(sample.ndim) if axis != dim], [dim]) or []
    axes = [*groups, dim]
    op = Softmax(inputs=(reader.build.lay(by_rows(sample, axes)),), groups=math.prod(sample.shape[a] for a in groups))
    return made(reader, op, in_rows(sample.shape, axes), batch)


def _log_softmax(reader: Reader, node: fx.Node, given: dict[str, Any]) -> Ids:
    """Not the logarithm of a softmax, whose small values are 0."""
    x, dims = given["self"], [given["dim"]]
    below = combined(reader, "sub", x, reduced(reader, "max", x, dims, True))
    total = reduced(reader, "sum", activated(reader, below, "exp"), dims, True)
    return combined(reader, "sub", below, activated(reader, total, "log"))


HANDLERS: dict[Any, Handler] = {
    **dict.fromkeys([aten.mean.dim, aten.mean.default], _reduction("mean")),
    **dict.fromkeys([aten.sum.dim_IntList, aten.sum.default], _reduction("sum")),
    aten.amax.default: _reduction("max"),
    aten.amin.default: _reduction("min"),
    aten.max.dim: _extreme("max"),
    aten.min.dim: _extreme("min"),
    aten.var.correction: _variance,
    aten.linalg_vector_norm.default: _length,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
    aten.softmax.int: _softmax,
    aten.log_softmax.int: _log_softmax,
}
