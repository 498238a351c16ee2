"""`digits`: scikit-learn's handwritten digits and the seed network, trained in seconds on the first use.

Data: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998; 1797 images of 8x8 in 0..16.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lighten.errors import require
from lighten.recover.finetune import FineTuneConfig
from lighten.registry import task
from lighten.task import Task
from lighten.tasks.augment import random_affine
from lighten.tasks.networks import SeedNet
from lighten.tasks.samples import Samples
from lighten.tasks.training import Training, trainable

N_HOLDOUT = 899  # half of the images: the interval of the drop is the claim, and it narrows with n
N_SELECTION = 249
N_CALIBRATION = 256
DEGREES, SHIFT, SCALE = 10.0, 0.06, 0.1  # of random_affine; the shift is two pixels of 32


@dataclass(frozen=True, kw_only=True)
class DigitsConfig:
    """seed: of the split, the first weights and the training. epochs: of training."""

    seed: int = 0
    epochs: int = 40


@trainable("digits", DigitsConfig)
def prepare(config: DigitsConfig) -> Training:
    """The task's data and network before training.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    images, labels = load_images()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))
    n_seen = N_HOLDOUT + N_SELECTION
    holdout, selection, train = order[:N_HOLDOUT], order[N_HOLDOUT:n_seen], order[n_seen:]
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = SeedNet()
    return Training(
        name="digits",
        network=network,
        train=Samples(images[train], labels[train], partial(random_affine, degrees=DEGREES, shift=SHIFT, scale=SCALE)),
        calibration=Samples(images[train[:N_CALIBRATION]]),
        selection=Samples(images[selection], labels[selection]),
        holdout=Samples(images[holdout], labels[holdout]),
        loss=F.cross_entropy,
        train_loss=F.cross_entropy,
        recipe=FineTuneConfig(epochs=config.epochs, lr=0.05, batch_size=32, seed=config.seed),
        ingredients={"degrees": DEGREES, "shift": SHIFT, "scale": SCALE},
    )


@task("digits", DigitsConfig)
def digits(config: DigitsConfig) -> Task:
    """The task, its network trained now or found in the cache."""
    training = prepare(config)
    return training.task(training.stored() or training.run())


def load_images() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 32, 32] float32 in 0..1, enlarged bilinearly, and labels [1797] int64."""
    bunch = require("sklearn.datasets", "demo").load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    return F.interpolate(images, size=32, mode="bilinear", align_corners=False), torch.from_numpy(bunch.target).long()
