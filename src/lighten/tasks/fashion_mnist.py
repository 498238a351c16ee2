"""`fashion-mnist`: 70 000 grey images of clothes in ten classes, and a ResNet-20 trained by `lighten train`.

`fashion-mnist-mobilenetv2` and `fashion-mnist-vit` are the same images with other networks.

Source: Xiao et al., "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
arXiv:1708.07747. The 10 000 test images are the holdout set; a twelfth of the training images is the selection set.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lighten.errors import TaskError
from lighten.recover.finetune import FineTuneConfig
from lighten.registry import task
from lighten.task import Task
from lighten.tasks.augment import random_flip, random_shift
from lighten.tasks.idx import read_idx
from lighten.tasks.networks import MobileNetV2, ResNet20, ViT
from lighten.tasks.samples import Samples
from lighten.tasks.training import Training, trainable

DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
SELECTION_SHARE = 12  # one in so many: 5 000 of 60 000
N_CALIBRATION = 512
MEAN, STD = 0.2860, 0.3530  # of the 60 000 training images in 0..1
SHIFT = 2
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True, kw_only=True)
class FashionMnistConfig:
    """data: folder of the four IDX files; None = $LIGHTEN_DATA, else where Debian's package puts them.

    seed: of the split, the first weights and the training. epochs: of training, None = as many as the network needs.
    """

    data: Path | None = None
    seed: int = 0
    epochs: int | None = None


@dataclass(frozen=True)
class _Kind:
    make: Callable[[], nn.Module]
    recipe: FineTuneConfig


KINDS = {
    "fashion-mnist": _Kind(ResNet20, FineTuneConfig(epochs=6, lr=0.2, warmup=0.2, batch_size=128)),
    "fashion-mnist-mobilenetv2": _Kind(MobileNetV2, FineTuneConfig(epochs=8, lr=0.1, warmup=0.2, batch_size=128)),
    "fashion-mnist-vit": _Kind(ViT, FineTuneConfig.adamw(epochs=16, lr=1e-3, warmup=0.1, batch_size=128)),
}


def prepare(name: str, config: FashionMnistConfig) -> Training:
    """The data and the network before training of the task of that name.

    Raises:
        TaskError: the data is missing or damaged.
    """
    folder = data_dir(config.data)
    images, labels = load_images(folder, "train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))
    n_selection = len(order) // SELECTION_SHARE
    selection, train = order[:n_selection], order[n_selection:]
    kind = KINDS[name]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = kind.make()
    calibration = images[train[:N_CALIBRATION]]
    return Training(
        name=name,
        # ResNet-20's training step at batch 128, on 2 cores: 165 ms in channels_last, 233 ms in the plain layout.
        network=network.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        train=Samples(images[train], labels[train], augment),
        calibration=Samples(calibration, transform=normalize),
        selection=Samples(images[selection], labels[selection], normalize),
        holdout=Samples(*load_images(folder, "t10k"), normalize),
        loss=F.cross_entropy,
        train_loss=partial(F.cross_entropy, label_smoothing=LABEL_SMOOTHING),
        recipe=replace(kind.recipe, epochs=config.epochs or kind.recipe.epochs, seed=config.seed),
        ingredients={"label_smoothing": LABEL_SMOOTHING, "shift": SHIFT, "flip": True},
    )


def trained(name: str, config: FashionMnistConfig) -> Task:
    """The task around the network that `lighten train NAME` left in the cache.

    Raises:
        TaskError: the data is missing or damaged, or the network was not trained yet.
    """
    training = prepare(name, config)
    model = training.stored()
    if model is None:
        defaults = FashionMnistConfig()
        options = f" --data {config.data}" if config.data else ""
        options += "".join(
            f" --{option} {getattr(config, option)}"
            for option in ("epochs", "seed")
            if getattr(config, option) != getattr(defaults, option)
        )
        raise TaskError(
            f"Task '{name}' has no trained network yet: there is no '{training.checkpoint}'. "
            f"Train it once, {training.recipe.epochs} epochs on the CPU: lighten train {name}{options}"
        )
    return training.task(model)


for _name in KINDS:
    trainable(_name, FashionMnistConfig)(partial(prepare, _name))
    task(_name, FashionMnistConfig)(partial(trained, _name))


def data_dir(chosen: Path | None) -> Path:
    """The folder to read: chosen, else $LIGHTEN_DATA, else Debian's.

    Raises:
        TaskError: it is not there.
    """
    folder = Path(chosen or os.environ.get("LIGHTEN_DATA") or DEBIAN_DIR)
    if not folder.is_dir():
        raise TaskError(
            f"There is no Fashion-MNIST data at '{folder}'. Install Debian's package dataset-fashion-mnist, or name "
            "the folder of the four IDX .gz files with --data DIR or LIGHTEN_DATA."
        )
    return folder


def load_images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images [n, 1, 28, 28] uint8 and labels [n] int64 of part, "train" or "t10k".

    Raises:
        TaskError: a file is missing or damaged, or the two do not belong together.
    """
    paths = [folder / f"{part}-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1")]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise TaskError(
            f"'{folder}' lacks {', '.join(missing)}. Install Debian's package dataset-fashion-mnist, or name a folder "
            "that holds the four IDX .gz files with --data DIR."
        )
    images, labels = (read_idx(path) for path in paths)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise TaskError(
            f"'{paths[0]}' has shape {list(images.shape)}, not [n, 28, 28]. Check that it is Fashion-MNIST."
        )
    if labels.shape != images.shape[:1]:
        raise TaskError(
            f"'{folder}' has {len(images)} {part} images but labels of shape {list(labels.shape)}. "
            "The two files do not belong together; fetch both again."
        )
    if len(labels) and int(labels.max()) > 9:
        raise TaskError(f"'{paths[1]}' holds the label {int(labels.max())}; Fashion-MNIST's are 0..9. Fetch it again.")
    return images[:, None], labels.long()


def normalize(images: Tensor) -> Tensor:
    """Images uint8 in 0..255 as float32 with zero mean and unit variance over the training set."""
    return (images.float() / 255 - MEAN) / STD


def augment(images: Tensor) -> Tensor:
    """Images uint8, flipped and shifted at random, then normalized."""
    return normalize(random_shift(random_flip(images), SHIFT))
