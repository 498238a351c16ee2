from pathlib import Path

import pytest
import torch

from lighten.errors import TaskError
from lighten.task import load_task
from lighten.tasks import fashion_mnist
from lighten.tasks.fashion_mnist import FashionMnistConfig, normalize, prepare
from tests.tasks.idx_files import write, write_fashion


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIGHTEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIGHTEN_DATA", raising=False)
    return write_fashion(tmp_path / "data")


def test_the_parts(data: Path) -> None:
    training = prepare("fashion-mnist", FashionMnistConfig(data=data))
    assert (len(training.train), len(training.selection), len(training.holdout)) == (110, 10, 30)
    rows = torch.cat([part.inputs.flatten(1) for part in (training.train, training.selection)])
    assert len(rows.unique(dim=0)) == 120
    assert torch.equal(training.calibration.inputs, training.train.inputs)  # fewer than 512 here
    assert training.holdout[0][0].shape == (1, 28, 28)
    assert training.holdout.targets is not None
    assert training.holdout.targets.tolist() == [i % 10 for i in range(30)]


def test_the_seed_decides_the_split(data: Path) -> None:
    first, again, other = (prepare("fashion-mnist", FashionMnistConfig(data=data, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.selection.inputs, again.selection.inputs)
    assert not torch.equal(first.selection.inputs, other.selection.inputs)
    assert torch.equal(first.holdout.inputs, other.holdout.inputs)
    assert not torch.equal(first.network.conv1.weight, other.network.conv1.weight)


def test_inputs_are_normalized_and_only_training_is_augmented(data: Path) -> None:
    black, white = normalize(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    assert (black, white) == pytest.approx((-0.2860 / 0.3530, 0.7140 / 0.3530))
    training = prepare("fashion-mnist", FashionMnistConfig(data=data))
    assert torch.equal(training.selection[0][0], normalize(training.selection.inputs[0]))
    assert torch.equal(training.calibration[0], normalize(training.train.inputs[0]))
    torch.manual_seed(0)
    batch = torch.stack([inputs for inputs, _ in training.train.__getitems__(list(range(8)))])
    assert not torch.equal(batch, normalize(training.train.inputs[:8]))


def test_the_folder_is_the_option_then_the_variable_then_debians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    debian, variable, option = (write_fashion(tmp_path / name, 24, n) for name, n in (("a", 1), ("b", 2), ("c", 3)))
    monkeypatch.delenv("LIGHTEN_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", debian)
    assert len(prepare("fashion-mnist", FashionMnistConfig()).holdout) == 1
    monkeypatch.setenv("LIGHTEN_DATA", str(variable))
    assert len(prepare("fashion-mnist", FashionMnistConfig()).holdout) == 2
    assert len(prepare("fashion-mnist", FashionMnistConfig(data=option)).holdout) == 3


def test_missing_data_names_the_package_and_the_option(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"gone'\. Install Debian's package dataset-fashion-mnist, .*--data DIR"):
        load_task("fashion-mnist", data=tmp_path / "gone")
    (data / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(TaskError, match=r"lacks t10k-labels-idx1-ubyte\.gz.*dataset-fashion-mnist.*--data DIR"):
        load_task("fashion-mnist", data=data)


@pytest.mark.parametrize(
    ("name", "elements", "words"),
    [
        ("train-labels-idx1", torch.zeros(119), r"has 120 train images but labels of shape \[119\]"),
        ("t10k-labels-idx1", torch.full((30,), 10), "holds the label 10; Fashion-MNIST's are 0..9"),
        ("train-images-idx3", torch.zeros(120, 14, 14), r"has shape \[120, 14, 14\], not \[n, 28, 28\]"),
        ("train-images-idx3", torch.zeros(120), r"has shape \[120\]"),
    ],
    ids=["count", "label", "size", "axes"],
)
def test_files_that_do_not_fit_are_refused(data: Path, name: str, elements: torch.Tensor, words: str) -> None:
    write(data / f"{name}-ubyte.gz", elements.to(torch.uint8))
    with pytest.raises(TaskError, match=words):
        prepare("fashion-mnist", FashionMnistConfig(data=data))


def test_a_damaged_file_is_refused(data: Path) -> None:
    path = data / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TaskError, match="damaged or cut short"):
        prepare("fashion-mnist", FashionMnistConfig(data=data))


def test_an_untrained_task_names_the_command_with_its_options(data: Path) -> None:
    with pytest.raises(TaskError, match=r"lighten train fashion-mnist --data \S+data --epochs 2 --seed 3$"):
        load_task("fashion-mnist", data=data, epochs=2, seed=3)
    with pytest.raises(TaskError, match=r"lighten train fashion-mnist --data \S+data$"):
        load_task("fashion-mnist", data=data)


@pytest.mark.parametrize("name", fashion_mnist.KINDS)
def test_each_network_trains_and_becomes_a_task(data: Path, name: str) -> None:
    with pytest.raises(TaskError, match=rf"lighten train {name} --data \S+data --epochs 1$"):
        load_task(name, data=data, epochs=1)
    prepare(name, FashionMnistConfig(data=data, epochs=1)).run()
    task = load_task(name, data=data, epochs=1)
    assert task.name == name
    assert task.model(*task.example_inputs).shape == (1, 10)


def test_the_networks_have_checkpoints_of_their_own(data: Path) -> None:
    found = {prepare(name, FashionMnistConfig(data=data)).checkpoint for name in fashion_mnist.KINDS}
    assert len(found) == len(fashion_mnist.KINDS) == 3
