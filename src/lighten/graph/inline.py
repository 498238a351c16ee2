"""Inline the regions that torch.export sets apart: `with torch.no_grad()` and `with torch.autocast`."""

import operator

import torch
from torch import fx

aten = torch.ops.aten
REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


def inline_regions_(module: fx.GraphModule) -> None:
    """Put the operators of every such region into the graph itself, in place.

    What a no_grad region computes is detached. An autocast region that is switched off, as around rotary embeddings, is
    the plain computation; one that is switched on stays as it is.
    """
    while region := next((n for n in module.graph.nodes if _can_inline(n)), None):
        _inline_one(module, region)


def _can_inline(node: fx.Node) -> bool:
    kind = getattr(node.target, "__name__", "")
    if node.op != "call_function" or kind not in REGIONS:
        return False
    enabled = node.args[2] if kind == "wrap_with_autocast" else False
    return not enabled


def _inline_one(module: fx.GraphModule, region: fx.Node) -> None:
    n_settings = 1 if getattr(region.target, "__name__", "") == "wrap_with_set_grad_enabled" else 4
    body_node = region.args[n_settings]
    assert isinstance(body_node, fx.Node)
    body = module.get_submodule(str(body_node.target))
    assert isinstance(body, fx.GraphModule)
    inputs = (node for node in body.graph.nodes if node.op == "placeholder")
    places = dict(zip(inputs, region.args[n_settings + 1 :], strict=True))
    with module.graph.inserting_before(region):
        results = module.graph.graph_copy(body.graph, places)
        results = list(results) if isinstance(results, (tuple, list)) else [results]
        if n_settings == 1 and region.args[0] is False:
            results = [module.graph.call_function(aten.detach.default, (r,)) if isinstance(r, fx.Node) else r
                       for r in results]  # fmt: skip
    for user in list(region.users):
        assert user.target is operator.getitem
        result = results[int(str(user.args[1]))]
        assert isinstance(result, fx.Node)
        user.replace_all_uses_with(result)
        module.graph.erase_node(user)
    module.graph.erase_node(region)
    if not body_node.users:
        module.graph.erase_node(body_node)
        module.delete_submodule(str(body_node.target))
