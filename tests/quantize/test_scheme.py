import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighten.errors import ConfigError
from lighten.quantize.scheme import EXAMPLES, FLOAT_TYPES, Scheme, parse_scheme


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("w8a8", Scheme(weight_bits=8, activation_bits=8)),
        ("w4a8", Scheme(weight_bits=4, activation_bits=8, symmetric=True)),
        ("w8a8-tensor", Scheme(weight_bits=8, activation_bits=8, per_tensor=True)),
        ("w8a8-dynamic", Scheme(weight_bits=8, activation_bits=8, dynamic=True)),
        ("w8", Scheme(weight_bits=8, symmetric=True)),
        ("w4-g128", Scheme(weight_bits=4, group_size=128, symmetric=False)),
        ("w4-g128-sym", Scheme(weight_bits=4, group_size=128, symmetric=True)),
        ("w8-g64", Scheme(weight_bits=8, group_size=64, symmetric=True)),
        ("w4-asym", Scheme(weight_bits=4, symmetric=False)),
        ("nf4", Scheme(weight_bits=4, group_size=64, weight_type="nf4")),
        ("nf4-g32", Scheme(weight_bits=4, group_size=32, weight_type="nf4")),
        ("fp8", Scheme(weight_bits=8, weight_type="fp8-e4m3")),
        ("fp8-e5m2", Scheme(weight_bits=8, weight_type="fp8-e5m2")),
        ("mxfp4", Scheme(weight_bits=4, group_size=32, weight_type="mxfp4")),
        ("nvfp4", Scheme(weight_bits=4, group_size=16, weight_type="nvfp4")),
    ],
)
def test_a_string_says_what_a_scheme_says(name: str, scheme: Scheme) -> None:
    assert parse_scheme(name) == scheme
    assert scheme.name == name


@pytest.mark.parametrize(
    ("said", "name"), [("nf4-g64", "nf4"), ("fp8-e4m3", "fp8"), ("w4-sym", "w4"), ("w3-g64-asym", "w3-g64")]
)
def test_what_goes_without_saying_may_be_said(said: str, name: str) -> None:
    assert parse_scheme(said).name == name


@given(
    bits=st.integers(2, 8),
    group_size=st.none() | st.integers(1, 1024),
    symmetric=st.none() | st.booleans(),
    kind=st.sampled_from(["int", "nf4", "fp8-e4m3", "fp8-e5m2"]),
)
def test_the_name_of_a_scheme_is_that_scheme(bits, group_size, symmetric, kind: str) -> None:
    if kind != "int":
        bits, symmetric = FLOAT_TYPES[kind][0], None
        group_size = group_size or FLOAT_TYPES[kind][1]
    scheme = Scheme(weight_bits=bits, group_size=group_size, symmetric=symmetric, weight_type=kind)
    assert parse_scheme(scheme.name) == scheme


def test_a_scheme_passes_through() -> None:
    scheme = Scheme(weight_bits=6, activation_bits=8)
    assert parse_scheme(scheme) is scheme


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_a_scheme(name: str) -> None:
    assert isinstance(parse_scheme(name), Scheme)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w4g128", r"no scheme 'w4g128'\. Did you mean 'w4-g128'\? A scheme is w<bits 2\.\.8>\[a<bits 2\.\.8>\]"),
        ("fp4", r"Did you mean '\w+4'"),
        ("int8", "A scheme is w<bits"),
        ("", r"no scheme ''\. A scheme is"),
        ("w9a8", "no scheme 'w9a8': weight_bits=9 is outside 2..8"),
        ("w1", "weight_bits=1 is outside 2..8"),
        ("w8a9", "activation_bits=9 is outside 2..8"),
        ("w8a1", "activation_bits=1 is outside 2..8"),
        ("w4a4-dynamic", "dynamic schemes have activations of 8 bits"),
        ("w4-g0", "group_size=0 is below 1"),
        ("w4a8-g128", "one scale a channel, which w4a8-g128 does not ask for. Drop a8"),
        ("w8a8-asym", "symmetric integer weights .* Drop a8"),
        ("w8-dynamic", "dynamic and per_tensor .* Use w8a8-dynamic"),
        ("w8-tensor", "dynamic and per_tensor .* Use w8a8-dynamic or w8a8-tensor"),
        ("w8a8-dynamic-tensor", "Drop -tensor"),
        ("mxfp4-g64", "mxfp4 has 4 bits in groups of 32, not 4 in 64"),
    ],
)
def test_what_is_no_scheme_is_refused_with_a_way_out(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_scheme(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_bits": 4, "weight_type": "fp4"}, "no weight_type 'fp4'. Known: int, nf4"),
        ({"weight_bits": 8, "weight_type": "nf4"}, "nf4 has 4 bits, not 8"),
        ({"weight_bits": 4, "weight_type": "nf4", "symmetric": False}, "nf4 has its zero built in"),
    ],
)
def test_a_scheme_is_checked_where_it_is_made(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scheme(**fields)
