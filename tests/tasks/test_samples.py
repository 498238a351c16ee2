import torch
from torch import Tensor

from lighten.task import batches
from lighten.tasks.samples import Samples


def test_pairs_and_bare_inputs() -> None:
    pairs = Samples(torch.arange(6).reshape(3, 2), torch.tensor([7, 8, 9]))
    inputs, target = pairs[1]
    assert (len(pairs), inputs.tolist(), target.item()) == (3, [2, 3], 8)
    assert Samples(pairs.inputs)[2].tolist() == [4, 5]


def test_the_transform_sees_whole_batches() -> None:
    seen: list[int] = []

    def double(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return batch * 2

    data = Samples(torch.arange(5), torch.arange(5), double)
    assert [inputs.tolist() for inputs, _ in batches(data, 3)] == [[0, 2, 4], [6, 8]]
    assert seen == [3, 2]
    assert data.inputs.tolist() == [0, 1, 2, 3, 4]
