"""Granularity: which of the groups that labels find are the ones that were asked for.

"channel" takes every group: filters, hidden units, and of attention the dimensions of its heads. "head" takes attention
heads as a whole, of queries, keys, values and the output projection at once; under grouped queries a key and value head
goes with all of its query heads. "head_dim" takes the dimensions of heads and nothing else.
"""

from collections.abc import Iterable

import torch

from lighten.errors import ConfigError
from lighten.graph.groups import Group, find_groups
from lighten.graph.labels import Labels

STRUCTURED = ("channel", "head", "head_dim")


def groups_of(labels: Labels, granularity: str, exclude: Iterable[str]) -> list[Group]:
    """The groups of labels that granularity names; labels were propagated with `keep=granularity`.

    Raises:
        ConfigError: attention heads were asked for, and there are none that can go.
    """
    groups = find_groups(labels, exclude)
    if granularity == "channel":
        return groups
    asked = [group for group in groups if bool(torch.isin(group.units, labels.found).all())]
    if not asked:
        raise ConfigError(
            f"granularity='{granularity}': no attention heads were found that could go. Heads are recognized where two "
            "activations are multiplied (q·k, scores·v). Use granularity='channel' for everything else."
        )
    return asked
