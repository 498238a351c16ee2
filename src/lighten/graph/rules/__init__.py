"""What each operator does to ids: one file an operator family.

A rule is a function of (state, node) that returns the ids of what the node computes. Data movement has a single rule:
the real operator runs on the ids. An operator without a rule freezes all that reaches it (`not_understood`).
"""

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from lighten.graph.rules import convolution, elements, linear, movement, normalization, planes, reduction
from lighten.graph.rules.common import Rule, not_understood, outputs_stay, overloads

__all__ = ["outputs_stay", "rule_for"]
aten = torch.ops.aten

RULES: dict[Any, Rule] = {
    **convolution.RULES,
    **elements.RULES,
    **linear.RULES,
    **movement.RULES,
    **normalization.RULES,
    **planes.RULES,
    **reduction.RULES,
    **dict.fromkeys(overloads(aten.sym_size), lambda state, node: state.sizes[node]),
}


def rule_for(node: fx.Node) -> Rule:
    """The rule of the node's operator; `not_understood` where there is none."""
    if node.target in RULES:
        return RULES[node.target]
    is_pure = isinstance(node.target, OpOverload) and not node.target._schema.is_mutable
    if is_pure and torch.Tag.pointwise in node.target.tags:  # type: ignore[union-attr]
        return elements.element_wise
    return not_understood
