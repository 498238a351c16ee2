import pytest
import torch

from lighten.errors import ConfigError
from lighten.quantize.formats import IntegerFormat
from lighten.quantize.methods.hqq import HQQConfig, hqq
from lighten.quantize.methods.rtn import RTNConfig, rtn
from tests.quantize.methods.problems import INT4


def errors(weight, q, size: int, p: float) -> torch.Tensor:
    return (weight - q.dequantize()).abs().pow(p).unflatten(1, (-1, size)).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("p", [0.5, 0.7])
def test_no_group_ends_worse_and_some_end_better(bits: int, symmetric: bool, p: float) -> None:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    form = IntegerFormat(bits=bits, symmetric=symmetric)
    ours = errors(weight, hqq(weight, form, 32, HQQConfig(p=p)), 32, p)
    theirs = errors(weight, rtn(weight, form, 32, RTNConfig()), 32, p)
    assert torch.all(ours <= theirs * (1 + 1e-5))  # float32 sums of 32 terms
    assert (ours < theirs).double().mean() > 0.2


def test_the_squared_error_falls_as_well() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    ours, theirs = (
        (weight - q.dequantize()).square().mean()
        for q in (hqq(weight, INT4, 32, HQQConfig()), rtn(weight, INT4, 32, RTNConfig()))
    )
    assert ours < theirs


@pytest.mark.parametrize("setting", [{"p": 0.0}, {"p": 1.0}, {"beta": 0.0}, {"kappa": 0.9}, {"iterations": 0}])
def test_settings_are_checked(setting: dict) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))}="):
        HQQConfig(**setting)
