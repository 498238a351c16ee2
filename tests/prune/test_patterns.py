import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lighten.errors import ConfigError
from lighten.prune.allocate import counts_gone
from lighten.prune.patterns import keep_mask, n_of_m_mask, parse_pattern

tied = st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=30).map(torch.tensor)


def test_hand_worked_2_of_4() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 0.0, 5.0, 5.0, 5.0, 5.0]])
    assert n_of_m_mask(scores, 2, 4).tolist() == [[False, True, True, False, False, False, True, True]]


def test_hand_worked_blocks() -> None:
    pattern = parse_pattern("block:2x1")
    scores = torch.tensor([[1.0, 5.0], [1.0, 0.0], [9.0, 0.0], [0.0, 1.0]])
    units = pattern.units(scores)
    assert units.tolist() == [[2.0, 5.0], [9.0, 1.0]]
    assert pattern.spread(keep_mask(units, 2)).tolist() == [[False, True]] * 2 + [[True, False]] * 2


@given(scores=tied, data=st.data())
def test_keep_mask_prunes_exactly_k_whatever_the_ties(scores: torch.Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(scores)))
    mask = keep_mask(scores, k)
    assert (~mask).sum() == k
    if 0 < k < len(scores):
        assert scores[~mask].max() <= scores[mask].min()


@given(
    layers=st.lists(tied, min_size=1, max_size=4),
    ratio=st.floats(0, 0.999),
    scope=st.sampled_from(["layer", "global", "erk"]),
)
def test_counts_are_exact_and_no_layer_is_emptied(layers: list, ratio: float, scope: str) -> None:
    shapes = [torch.Size((1, len(units))) for units in layers]
    counts = counts_gone(layers, shapes, ratio, scope)
    sizes = [len(units) for units in layers]
    assert all(0 <= gone < size for gone, size in zip(counts, sizes, strict=True))
    if scope == "layer":
        assert counts == [min(round(ratio * size), size - 1) for size in sizes]
    else:
        assert sum(counts) == min(round(ratio * sum(sizes)), sum(sizes) - len(sizes))


def test_erk_density_follows_the_shape() -> None:
    shapes = [torch.Size((16, 16, 3, 3)), torch.Size((64, 64, 3, 3))]
    gone = counts_gone([torch.ones(s) for s in shapes], shapes, 0.9, "erk")
    density = [1 - g / s.numel() for g, s in zip(gone, shapes, strict=True)]
    by_hand = [(16 + 16 + 6) / (16 * 16 * 9), (64 + 64 + 6) / (64 * 64 * 9)]
    assert density[0] / density[1] == pytest.approx(by_hand[0] / by_hand[1], rel=0.01)


def test_erk_fills_thin_layers_before_it_exceeds_them() -> None:
    shapes = [torch.Size((2, 2)), torch.Size((100, 100))]
    assert counts_gone([torch.ones(s) for s in shapes], shapes, 0.5, "erk") == [0, 5002]


@pytest.mark.parametrize("name", ["2:4", "block:4x2", "element"])
def test_a_matrix_goes_back_where_it_came_from(name: str) -> None:
    weight = torch.randn(8, 4, 3, 3)
    pattern = parse_pattern(name)
    assert torch.equal(pattern.restore(pattern.matrix(weight), weight.shape), weight)


def test_runs_of_n_of_m_lie_along_the_input_channels() -> None:
    weight = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 2, 2)
    assert parse_pattern("2:4").matrix(weight)[0, :8].tolist() == list(range(8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("4:2", "keeps 4 of every 2"),
        ("0:4", "keeps 0 of every 4"),
        ("block:0x1", "empty block"),
        ("block:4", "not available for single weights. Available: element, n:m"),
    ],
)
def test_bad_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_pattern(name)
