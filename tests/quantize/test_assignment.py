import pytest
import torch
from torch import nn

from lighten.errors import ConfigError
from lighten.plan import LayerPlan
from lighten.quantize import quantize
from lighten.quantize.assignment import Assignment, parse_assignment
from lighten.quantize.scheme import parse_scheme

STRING = "w4-g128; head=w8; blocks.*.up=w2-g32"
MAPPING = {"*": "w4-g128", "head": parse_scheme("w8"), "blocks.*.up": "w2-g32"}


def test_a_string_and_a_mapping_say_the_same_and_round_trip() -> None:
    assert parse_assignment(STRING) == parse_assignment(MAPPING)
    assert parse_assignment(STRING).name == STRING
    assert parse_assignment(parse_scheme("w8a8")) == parse_assignment("w8a8") == Assignment(parse_scheme("w8a8"))


def test_the_last_pattern_that_fits_counts_and_covers_what_is_inside() -> None:
    chosen = parse_assignment("w4; encoder=w8; *.head=w2; encoder.x=w3")
    names = {"stem": "w4", "encoder": "w8", "encoder.y": "w8", "encoder.head": "w2", "encoder.x.head": "w3"}
    assert {name: chosen.of(name).name for name in names} == names
    assert chosen.of("stem", "encoder").name == "w8"


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("w4; head", "must be one scheme, then pattern=scheme"),
        ("w4; =w8", "must be one scheme, then pattern=scheme"),
        ("w4; head=w9", "There is no scheme 'w9'"),
        ({"head": "w8"}, r"needs '\*', for all other layers. Got: head"),
        ({}, "Got: none"),
        ("w8a8; head=w4", "w8a8 is activations by calibrated ranges, and w4, for 'head', is weights alone"),
        ("w8a8; head=w8a8-dynamic", "One model cannot be both"),
    ],
)
def test_what_cannot_be_is_refused(scheme, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_assignment(scheme)


def two() -> tuple[nn.Sequential, list[torch.Tensor]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8)).eval(), [torch.randn(64, 32)]


def test_weights_alone_get_what_their_layer_is_assigned() -> None:
    model, batches = two()
    mixed, low, high = (quantize(model, s, example_inputs=(batches[0],)) for s in ("w2-g16; 2=w8", "w2-g16", "w8"))
    assert mixed.plan.layers == {
        "0": LayerPlan(scheme="w2-g16", method="rtn"),
        "2": LayerPlan(scheme="w8", method="rtn"),
    }
    assert (mixed.plan.scheme, mixed.plan.weight_bits) == ("w2-g16; 2=w8", None)
    state = mixed.state_dict()
    assert torch.equal(state["0.weight_packed"], low.state_dict()["0.weight_packed"])
    assert torch.equal(state["2.weight_packed"], high.state_dict()["2.weight_packed"])


def test_an_activation_is_as_wide_as_its_widest_reader_asks() -> None:
    model, batches = two()
    mixed = quantize(model, "w4a4; 2=w8a8", calibration=batches)
    most = [node.args[1] for node in mixed.graph.nodes if node.target == torch.ops.lighten.limit.default]
    assert most == [15]
    assert mixed.plan.layers["2"].scheme == "w8a8"
    codes = [mixed.get_buffer(f"{layer}.weight_codes").abs().max() for layer in ("0", "2")]
    assert codes == [7, 127]


def test_weight_bits_cap_every_layer() -> None:
    model, batches = two()
    mixed = quantize(model, "w4a8; 2=w8a8", calibration=batches, weight_bits=7)
    assert [mixed.get_buffer(f"{layer}.weight_codes").abs().max() for layer in ("0", "2")] == [7, 63]
