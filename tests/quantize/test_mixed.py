import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lighten.errors import ConfigError, TaskError
from lighten.quantize import quantize
from lighten.quantize.mixed import Option, choose, measure
from lighten.quantize.weight_ops import stored_names

SCHEMES = ("w2-g8", "w3-g8", "w4-g8", "w8")


class Branch(nn.Module):
    """Three layers; what the second makes hardly counts in the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        return self.c(y + 0.02 * self.b(y))


def model_and_data() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    return Branch().eval().requires_grad_(False), [torch.randn(64, 16) for _ in range(2)]


option = st.tuples(st.integers(1, 50), st.floats(0, 1).map(lambda x: round(x, 3)))
tables = st.lists(st.lists(option, min_size=1, max_size=3), min_size=1, max_size=4)


@given(drawn=tables, share=st.floats(0, 1))
def test_no_other_choice_within_the_budget_is_better(drawn, share: float) -> None:
    table = {
        f"layer{i}": tuple(Option(SCHEMES[k], size, s) for k, (size, s) in enumerate(options))
        for i, options in enumerate(drawn)
    }
    every = [(sum(o.size_bytes for o in c), sum(o.sensitivity for o in c)) for c in itertools.product(*table.values())]
    smallest, largest = min(size for size, _ in every), max(size for size, _ in every)
    budget = int(smallest + share * (largest - smallest))
    chosen = choose(table, budget)
    taken = [next(o for o in options if o.scheme == chosen[layer]) for layer, options in table.items()]
    assert sum(o.size_bytes for o in taken) <= budget
    best = min(sensitivity for size, sensitivity in every if size <= budget)
    # HiGHS works to 1e-6 in units of the largest sensitivity, which is at most 1.
    assert sum(o.sensitivity for o in taken) <= best + 1e-6


def test_greedy_would_miss_it() -> None:
    """The best single step per byte takes the budget that two others together use better."""
    steps = {"a": (6, 0.0), "b": (5, 0.02), "c": (5, 0.02)}
    table = {
        k: (Option("w2-g8", 1, s), Option("w8", size, e))
        for k, (size, e) in steps.items()
        for s in ({"a": 1.0, "b": 0.75, "c": 0.75}[k],)
    }
    assert choose(table, 11) == {"*": "w8", "a": "w2-g8", "b": "w8", "c": "w8"}


def test_sensitivities_and_sizes_are_those_of_the_quantized_model() -> None:
    model, batches = model_and_data()
    table = measure(model, SCHEMES, calibration=batches)
    assert list(table) == ["a", "b", "c"]
    exact = torch.cat([model(x) for x in batches]).detach().double()
    for layer, options in table.items():
        assert [o.scheme for o in options] == list(SCHEMES)
        for chosen in options:
            others = [other for other in table if other != layer]
            alone = quantize(model, chosen.scheme, example_inputs=(batches[0],), exclude=others)
            got = torch.cat([alone(x) for x in batches]).double()
            share = (got - exact).square().sum() / len(exact) / exact.var(0).sum()
            assert chosen.sensitivity == pytest.approx(float(share), rel=1e-4)
            stored = [alone.get_buffer(name) for name in stored_names(alone)]
            assert chosen.size_bytes == sum(t.numel() * t.element_size() for t in stored)
    assert table["b"][0].sensitivity < 0.01 * table["a"][0].sensitivity


def test_bits_go_where_they_matter_and_beat_one_scheme_for_all() -> None:
    model, batches = model_and_data()
    table = measure(model, SCHEMES, calibration=batches, method="mse")
    budget = sum(next(o for o in options if o.scheme == "w4-g8").size_bytes for options in table.values())
    chosen = choose(table, budget)
    assert SCHEMES.index(chosen["b"]) < SCHEMES.index("w4-g8") < max(SCHEMES.index(chosen[k]) for k in ("a", "c"))
    exact = model(batches[0]).detach()
    errors = [
        (quantize(model, scheme, method="mse", example_inputs=(batches[0],))(batches[0]) - exact).square().mean()
        for scheme in (chosen, "w4-g8")
    ]
    assert errors[0] < errors[1]


def test_bad_requests_are_refused() -> None:
    model, batches = model_and_data()
    with pytest.raises(ConfigError, match="the smallest options take 7 bytes"):
        choose({"a": (Option("w2-g8", 7, 0.0),)}, 6)
    with pytest.raises(ConfigError, match="no layer to choose for"):
        choose({}, 6)
    with pytest.raises(ConfigError, match="Sensitivities are of weights"):
        measure(model, ("w8a8",), calibration=batches)
    with pytest.raises(ConfigError, match="Sensitivities are of weights"):
        measure(model, (), calibration=batches)
    with pytest.raises(ConfigError, match="methods that need no inputs"):
        measure(model, SCHEMES, calibration=batches, method="gptq")
    with pytest.raises(TaskError, match="got none"):
        measure(model, SCHEMES, calibration=[])
    with pytest.raises(TaskError, match="batch 1 does not fit"):
        measure(model, SCHEMES, calibration=[batches[0], torch.ones(2, 3)])


def test_excluded_layers_are_not_in_the_table() -> None:
    model, batches = model_and_data()
    assert list(measure(model, ("w8",), calibration=batches, exclude=["a"])) == ["b", "c"]
