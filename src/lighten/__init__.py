"""lighten makes a trained PyTorch model smaller and faster, and proves what it cost.

The public verbs are imported on first use, so that ``import lighten`` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lighten.metric import ACCURACY as ACCURACY
    from lighten.metric import Metric as Metric
    from lighten.plan import LayerPlan as LayerPlan
    from lighten.plan import Plan as Plan
    from lighten.task import Task as Task
    from lighten.task import load_task as load_task

__version__ = "0.1.0"

_HOME = {
    "ACCURACY": "lighten.metric",
    "LayerPlan": "lighten.plan",
    "Metric": "lighten.metric",
    "Plan": "lighten.plan",
    "Task": "lighten.task",
    "load_task": "lighten.task",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lighten' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
