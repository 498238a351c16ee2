from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# A deadline asserts a wall-clock time, which a busy machine breaks.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """The first ONNX Runtime session of a process leaves its thread flushing denormals, Python's floats included."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)
