import torch
from torch import Tensor, nn

from lighten.graph.capture import capture
from lighten.graph.groups import find_groups, matches, rows_of_units
from lighten.graph.labels import Slot, propagate


class Unknown(nn.Module):
    """cumsum over channels: no rule says what happens to a channel there."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(6, 6)
        self.c = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.cumsum(self.a(x), -1))))


def test_what_is_not_understood_freezes_its_channels_and_says_so() -> None:
    labels = propagate(capture(Unknown(), (torch.ones(2, 4),)), (torch.ones(2, 4),))
    assert [group.producers for group in find_groups(labels)] == [("b",)]
    assert "cumsum" in labels.frozen["a"]
    assert labels.frozen["c"] == "its channels are an output of the model"


def test_excluded_layers_keep_their_inputs_and_outputs() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    labels = propagate(capture(model, (torch.ones(2, 4),)), (torch.ones(2, 4),))
    assert [g.name for g in find_groups(labels)] == ["0", "2"]
    assert [g.name for g in find_groups(labels, ["4"])] == ["0"]
    assert find_groups(labels, ["2"]) == []


def test_patterns_match_the_layer_or_a_module_around_it() -> None:
    assert matches("layer1.0.conv1", ["layer1"])
    assert matches("layer1.0.conv1", ["*.conv1"])
    assert not matches("layer10.conv", ["layer1"])


def test_rows_of_units_hand_worked() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    slot = Slot("w", 1, "input", torch.tensor([7, 9, 7, 0]))
    rows = rows_of_units(weight, slot, torch.tensor([7, 9]))
    assert rows.tolist() == [[1.0, 5.0, 3.0, 7.0], [2.0, 6.0, 0.0, 0.0]]
