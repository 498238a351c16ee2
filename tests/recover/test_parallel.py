import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lighten.errors import ConfigError
from lighten.recover import parallel
from lighten.recover.weights import named_tensors
from tests.recover.two_processes import pruned, train


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, Tensor]]:
    """The tensors that each process ended with, by case and rank."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = ["-m", "tests.recover.two_processes", str(folder), "plain", "norm", "changed", "resumed", "pruned"]
    done = subprocess.run(command + script, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return lambda case, rank: safetensors.torch.load_file(folder / f"{case}-{rank}.safetensors")


def test_two_processes_with_half_batches_are_one_with_whole_ones(
    results: Callable[[str, int], dict[str, Tensor]],
) -> None:
    for case, alone in (("plain", train(norm=False).model), ("pruned", pruned())):
        for name, tensor in named_tensors(alone).items():
            torch.testing.assert_close(results(case, 0)[name], tensor)  # sums in another order


@pytest.mark.parametrize("case", ["plain", "norm", "changed", "resumed", "pruned"])
def test_all_end_with_the_same(results: Callable[[str, int], dict[str, Tensor]], case: str) -> None:
    first, second = results(case, 0), results(case, 1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_before_step_changes_is_that_of_the_first(results: Callable[[str, int], dict[str, Tensor]]) -> None:
    assert float(results("changed", 1)["0.bias"].abs().max()) < 1e-6


def test_processes_go_on_together(results: Callable[[str, int], dict[str, Tensor]]) -> None:
    whole, resumed = results("norm", 0), results("resumed", 0)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_shares_have_to_be_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    parallel.check_shares(3, 4)
    monkeypatch.setattr(parallel, "place", lambda: (0, 3))
    parallel.check_shares(9, 6)
    with pytest.raises(ConfigError, match="batch_size=4 of 9 samples cannot be shared by 3 processes"):
        parallel.check_shares(9, 4)
    with pytest.raises(ConfigError, match="Choose a multiple of 3 that is not above 5"):
        parallel.check_shares(5, 6)
