"""Union of ids that must go together, kept ready to be asked at any time."""

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from lighten.graph.ids import by_index


class Unions:
    """Sets of ids. The smallest id stands for its set, so that whatever is united with 0 is 0."""

    def __init__(self) -> None:
        self.count = 1
        self._root = np.arange(1)
        self._pending: list[np.ndarray] = []

    def fresh(self, count: int) -> Tensor:
        """[count] new ids, each in a set of its own."""
        first, self.count = self.count, self.count + count
        return torch.arange(first, first + count)

    def unite(self, pairs: Tensor) -> None:
        """pairs [2, n]: the ids of each column go together."""
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.shape[1]:
            self._pending.append((pairs.unique(dim=1) if pairs.shape[1] > 4096 else pairs).numpy())

    def roots(self) -> Tensor:
        """[count] the id that stands for each id's set."""
        if len(self._root) < self.count:
            self._root = np.concatenate([self._root, np.arange(len(self._root), self.count)])
        if self._pending:
            # Only the sets that the new pairs touch are looked at: a network has many ids and few unions at a time.
            pairs = self._root[np.concatenate(self._pending, axis=1)]
            self._pending.clear()
            touched, place = np.unique(pairs, return_inverse=True)
            left, right = place.reshape(pairs.shape)
            links = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(len(touched), len(touched)))
            n_sets, member_of = connected_components(links, directed=False)
            first = np.full(n_sets, self.count, dtype=np.int64)
            np.minimum.at(first, member_of, touched)
            new_root = np.arange(self.count)
            new_root[touched] = first[member_of]
            self._root = new_root[self._root]
        return torch.from_numpy(self._root)


def choices_left(ids: Tensor, axis: int, counted: Tensor | None = None) -> int:
    """How many separate units are left when ids that share an index along axis are united; 0 is none.

    counted: bool, in the shape of ids; only units with such an id count. None = all.
    """
    _, compact = torch.cat([ids.new_zeros(1), ids.reshape(-1)]).unique(return_inverse=True)
    stays, compact = int(compact[0]), compact[1:].view(ids.shape)
    flat = by_index(compact, axis)
    left, right = flat.reshape(-1).numpy(), flat[:, :1].expand_as(flat).reshape(-1).numpy()
    n = max(int(compact.max()), stays) + 1
    links = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(n, n))
    _, member_of = connected_components(links, directed=False)
    of_interest = left if counted is None else left[by_index(counted, axis).reshape(-1).numpy()]
    return len(set(member_of[np.unique(of_interest)].tolist()) - {member_of[stays]})
