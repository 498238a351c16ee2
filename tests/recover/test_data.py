import torch.nn.functional as F

from lighten.recover.data import recovery_data
from tests.tiny import tiny_task


def test_labels_are_used_where_there_are_some() -> None:
    task = tiny_task()
    assert recovery_data(task, 0.25) == (task.train, F.cross_entropy, 0.25)


def test_calibration_inputs_do_where_there_are_none() -> None:
    task = tiny_task(train=None, loss=None)
    assert recovery_data(task, 0.25) == (task.calibration, None, 1.0)
