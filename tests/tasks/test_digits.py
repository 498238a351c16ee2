import pytest
import torch

from lighten.errors import MissingExtraError
from lighten.metric import ACCURACY
from lighten.task import evaluate, load_task
from lighten.tasks import digits
from lighten.tasks.digits import DigitsConfig, load_images, prepare


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_images_are_enlarged_and_scaled() -> None:
    images, labels = load_images()
    assert (images.shape, images.dtype, labels.dtype) == ((1797, 1, 32, 32), torch.float32, torch.int64)
    assert (images.min(), images.max()) == (0, 1)
    assert labels.unique().tolist() == list(range(10))


def test_the_parts_are_disjoint_and_make_up_the_whole() -> None:
    training = prepare(DigitsConfig())
    parts = [training.holdout, training.selection, training.train]
    assert [len(part) for part in parts] == [899, 249, 649]
    # No two of the 1797 images are equal, so equal rows would be shared samples.
    rows = torch.cat([part.inputs.flatten(1) for part in parts])
    assert len(rows.unique(dim=0)) == len(rows) == 1797
    assert torch.equal(training.calibration.inputs, training.train.inputs[:256])


def test_the_seed_decides_the_split_and_the_first_weights() -> None:
    first, again, other = (prepare(DigitsConfig(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.holdout.inputs, again.holdout.inputs)
    assert torch.equal(first.network.conv1.weight, again.network.conv1.weight)
    assert not torch.equal(first.holdout.inputs, other.holdout.inputs)
    assert not torch.equal(first.network.conv1.weight, other.network.conv1.weight)
    assert first.checkpoint == again.checkpoint != other.checkpoint


def test_training_inputs_are_augmented_and_the_others_are_not() -> None:
    training = prepare(DigitsConfig())
    assert not torch.equal(training.train[0][0], training.train.inputs[0])
    assert torch.equal(training.holdout[0][0], training.holdout.inputs[0])
    assert torch.equal(training.calibration[0], training.train.inputs[0])


def test_it_trains_to_975_in_1000_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("digits")
    assert evaluate(task.model, task.holdout, ACCURACY, 256).interval.value >= 0.975

    def again(*args: object, **more: object) -> None:
        raise AssertionError("trained a second time")

    monkeypatch.setattr("lighten.tasks.training.fine_tune", again)
    found = load_task("digits")
    assert torch.equal(found.model(found.holdout[0][0][None]), task.model(task.holdout[0][0][None]))


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr("lighten.errors.importlib.import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'lighten\[demo\]'"):
        digits.prepare(DigitsConfig())
