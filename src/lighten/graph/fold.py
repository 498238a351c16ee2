"""Fold batch norm into the convolution or linear layer before it: exact in eval mode, and free at run time.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
arXiv:1712.05877, sec. 3.2.
"""

import torch
from torch import Tensor, fx, nn

from lighten.graph.arguments import arguments, set_argument_
from lighten.graph.capture import CapturedModule, get_tensor, set_tensor_

aten = torch.ops.aten
FOLDABLE = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
)


def fold_batch_norm_(captured: CapturedModule) -> list[str]:
    """Fold every batch norm that alone reads a convolution or linear layer, in place; captured must be in eval mode.

    Returns the names of the layers that took one in. A weight shared by two layers is left alone: each would need its
    own.
    """
    folded = []
    for node in list(captured.graph.nodes):
        if node.target != aten.batch_norm.default:
            continue
        source = node.args[0]
        if isinstance(source, fx.Node) and source.target in FOLDABLE and _is_private(source):
            folded.append(_fold_one(captured, source, node))
    captured.graph.eliminate_dead_code()
    captured.delete_all_unused_submodules()
    captured.recompile()
    return folded


def folded_weight(weight: Tensor, bias: Tensor | None, norm: list[Tensor | None], eps: float) -> tuple[Tensor, Tensor]:
    """weight [out, …] and bias [out] with norm = (gamma, beta, mean, variance), each [out], folded in."""
    gamma, beta, mean, variance = norm
    assert mean is not None
    assert variance is not None
    factor = (variance.double() + eps).rsqrt()
    if gamma is not None:
        factor = factor * gamma.double()
    shift = -mean.double() * factor
    if bias is not None:
        shift = shift + bias.double() * factor
    if beta is not None:
        shift = shift + beta.double()
    scaled = weight.double() * factor.view(-1, *[1] * (weight.ndim - 1))
    return scaled.to(weight.dtype), shift.to(weight.dtype)


def _is_private(layer: fx.Node) -> bool:
    given = arguments(layer)
    parameters = [given[name] for name in ("weight", "bias") if given[name] is not None]
    return len(layer.users) == 1 and all(p.op == "get_attr" and len(p.users) == 1 for p in parameters)


def _fold_one(captured: CapturedModule, layer: fx.Node, norm: fx.Node) -> str:
    def value(node: fx.Node | None) -> Tensor | None:
        return None if node is None else get_tensor(captured, str(node.target)).detach()

    given, normed = arguments(layer), arguments(norm)
    weight = value(given["weight"])
    assert weight is not None
    norm_tensors = [value(normed[name]) for name in ("weight", "bias", "running_mean", "running_var")]
    weight, bias = folded_weight(weight, value(given["bias"]), norm_tensors, normed["eps"])
    name = str(given["weight"].target)
    owner = name.rpartition(".")[0]
    set_tensor_(captured, name, weight)
    if given["bias"] is not None:
        set_tensor_(captured, str(given["bias"].target), bias)
    else:
        trains = get_tensor(captured, name).requires_grad
        captured.get_submodule(owner).register_parameter("bias", nn.Parameter(bias, requires_grad=trains))
        with captured.graph.inserting_after(given["weight"]):
            bias_node = captured.graph.get_attr(f"{owner}.bias".lstrip("."))
            bias_node.meta = dict(given["weight"].meta)
        set_argument_(layer, "bias", bias_node)
    norm.replace_all_uses_with(layer)
    captured.graph.erase_node(norm)
    return owner
