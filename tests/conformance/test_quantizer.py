"""What every registered rounding method promises, for any weight and format that it takes."""

from dataclasses import asdict, fields, replace

import pytest
import torch
from torch import Tensor

from lighten.quantize import methods as _methods  # noqa: F401  fills the registry
from lighten.quantize.formats import Format, IntegerFormat, QuantizedWeight, format_of
from lighten.quantize.methods.config import MethodConfig
from lighten.quantize.moments import output_errors
from lighten.quantize.scheme import parse_scheme
from lighten.registry import quantizer
from tests.quantize.methods.problems import moments_of

pytestmark = pytest.mark.parametrize("entry", quantizer, ids=lambda entry: entry.name)

RANDOM = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
INPUTS = torch.randn(50, 20, generator=torch.Generator().manual_seed(1)).relu() * torch.linspace(0.1, 5, 20)
WEIGHTS = {
    "random": RANDOM,
    "zeros": torch.zeros(3, 20),
    "a row of zeros": torch.cat([RANDOM[:2], torch.zeros(1, 20)]),
    "constant": torch.full((3, 20), 3.0),
    "negative constant": torch.full((3, 20), -0.7),
    "one row": RANDOM[:1],
    "bfloat16": RANDOM.bfloat16(),
    "float16": RANDOM.half(),
    "tiny": torch.full((2, 20), 1e-44),
    "large": RANDOM.sign() * 1e30,
    "not contiguous": torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).t(),
}
FORMATS = ["w4-g8", "w2-g8-sym", "w8", "nf4-g8", "fp8", "mxfp4"]
# Another value for each setting; a problem on which it makes a difference.
OTHER = {
    "hqq": {"p": 0.9, "beta": 1.0, "kappa": 2.0, "iterations": 1},
    "gptq": {"damping": 1.0, "act_order": False, "block_size": 1, "narrow": False},
    "awq": {"candidates": 3},
    "adaround": {
        "steps": 20,
        "learning_rate": 0.5,
        "weight_of_ends": 0.01,
        "first_beta": 3.0,
        "last_beta": 15.0,
        "sweeps": 0,
    },
    "signround": {"steps": 5, "learning_rate": 0.5, "sweeps": 0, "damping": 1.0},
    "standardized": {"k": 0.5},
    "mse": {"candidates": 2, "narrowest": 0.9},
    "rtn": {},
}
NO_EFFECT_ON_THE_RESULT = {("gptq", "block_size")}  # it only says how much is done at once; see its oracle


def quick(config: MethodConfig) -> MethodConfig:
    return replace(config, steps=25) if hasattr(config, "steps") else config


def run(entry, weight: Tensor, scheme: str = "w4-g8", config: MethodConfig | None = None) -> QuantizedWeight:
    parsed = parse_scheme(scheme)
    config = quick(entry.config()) if config is None else config
    return entry.function(weight, format_of(parsed), parsed.group_size, config, moments_of(INPUTS))


def takes(entry, form: Format) -> bool:
    return isinstance(form, IntegerFormat) or not entry.config.integers_only


def test_config_has_defaults_and_survives_a_dict(entry) -> None:
    config = entry.config()
    assert isinstance(config, MethodConfig)
    assert entry.config(**asdict(config)) == config


@pytest.mark.parametrize("scheme", FORMATS)
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_codes_and_scales_are_what_they_should_be(entry, weight: Tensor, scheme: str) -> None:
    form = format_of(parse_scheme(scheme))
    if not takes(entry, form):
        pytest.skip("evenly spaced codes only")
    before, state = weight.clone(), torch.get_rng_state()
    q = run(entry, weight, scheme)
    assert torch.equal(weight, before)
    assert torch.equal(torch.get_rng_state(), state)
    groups = -(-20 // q.group_size)
    assert (q.codes.shape, q.codes.dtype, q.grid.scale.shape) == (weight.shape, torch.uint8, (len(weight), groups))
    assert torch.all(q.codes.int() < 2**q.format.bits)
    assert torch.all(q.grid.scale > 0)
    assert torch.equal(q.grid.scale, q.grid.scale.to(q.format.scale_dtype).float())
    if q.grid.zero_point is not None:
        assert torch.equal(q.grid.zero_point, q.grid.zero_point.round().clamp(0, 2**q.format.bits - 1))
    restored = q.effective()
    assert restored.isfinite().all()
    rows = (weight == 0).all(1)
    assert torch.all(restored[rows] == 0)
    again = run(entry, weight, scheme)
    assert torch.equal(q.codes, again.codes)
    assert torch.equal(q.grid.scale, again.grid.scale)


@pytest.mark.parametrize("scheme", [*FORMATS, "w3", "w4-g8-sym"])
def test_pruned_weights_stay_pruned(entry, scheme: str) -> None:
    form = format_of(parse_scheme(scheme))
    if not takes(entry, form):
        pytest.skip("evenly spaced codes only")
    kept = torch.rand(RANDOM.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    restored = run(entry, RANDOM * kept, scheme).effective()
    assert torch.all(restored[~kept] == 0)
    assert restored[kept].count_nonzero() > kept.sum() / 4


def test_eight_bits_are_near_the_weight(entry) -> None:
    """Within 2 % of the spread: 8 bits over 6 standard deviations are steps of 2.4 %; clipping at 3 is rare."""
    restored = run(entry, RANDOM, "w8").effective()
    assert (restored - RANDOM).square().mean().sqrt() < 0.02 * RANDOM.std() + 0.05 * (entry.name == "standardized")


@pytest.mark.parametrize("scheme", ["w4-g8", "w3-g8-sym", "w4"])
@pytest.mark.parametrize("settings", [{}, {"act_order": False, "block_size": 8}], ids=["defaults", "other"])
def test_parts_at_once_are_what_each_part_is_alone(entry, scheme: str, settings: dict[str, object]) -> None:
    """Of a grouped convolution, one of whose parts has dead inputs. float32 sums are made in another order: what is
    next to a tie may fall to the other side, so errors are compared, and as good as all codes."""
    known = {f.name for f in fields(entry.config)}
    if not entry.config.needs_inputs or entry.config.scales_inputs or not known.issuperset(settings):
        pytest.skip("knows no parts, or none of these settings")
    make = torch.Generator().manual_seed(4)
    inputs = torch.randn(5, 50, 20, generator=make).relu() * torch.linspace(0.1, 5, 20)
    inputs = inputs @ torch.randn(5, 20, 20, generator=make)
    inputs[2] = 0
    weight, parsed = torch.randn(20, 20, generator=make), parse_scheme(scheme)
    config = quick(entry.config(**settings))
    form, size = format_of(parsed), parsed.group_size
    whole = entry.function(weight, form, size, config, moments_of(inputs))
    alone = [entry.function(w, form, size, config, moments_of(x)) for w, x in zip(weight.chunk(5), inputs, strict=True)]
    codes = torch.cat([q.codes for q in alone])
    assert (whole.codes == codes).float().mean() > 0.98
    errors = output_errors(weight, whole, moments_of(inputs).hessian)
    each = [output_errors(w, q, moments_of(x).hessian) for w, q, x in zip(weight.chunk(5), alone, inputs, strict=True)]
    assert float(errors.sum()) == pytest.approx(float(torch.cat(each).sum()), rel=0.02)


def test_every_setting_is_noticed(entry) -> None:
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(3))
    weight[:, 0] *= 4
    assert {f.name for f in fields(entry.config)} == set(OTHER[entry.name]), "a setting without a test"
    plain = quick(entry.config())
    for name, value in OTHER[entry.name].items():
        if (entry.name, name) in NO_EFFECT_ON_THE_RESULT:
            continue
        results = [run(entry, weight, "w3-g8", c).dequantize() for c in (plain, replace(plain, **{name: value}))]
        assert not torch.equal(*results), name
