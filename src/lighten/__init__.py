"""lighten makes a trained PyTorch model smaller and faster, and proves what it cost.

The public verbs are imported on first use, so that ``import lighten`` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lighten.accelerate import accelerate as accelerate
    from lighten.checkpoint import restore as restore
    from lighten.checkpoint import save as save
    from lighten.export import export as export
    from lighten.metric import ACCURACY as ACCURACY
    from lighten.metric import Metric as Metric
    from lighten.plan import LayerPlan as LayerPlan
    from lighten.plan import Plan as Plan
    from lighten.prune import prune as prune
    from lighten.quantize import quantize as quantize
    from lighten.runtime.runner import load as load
    from lighten.search.loop import compress as compress
    from lighten.task import Task as Task
    from lighten.task import load_task as load_task

__version__ = "0.1.0"

_HOME = {
    "ACCURACY": "lighten.metric",
    "LayerPlan": "lighten.plan",
    "Metric": "lighten.metric",
    "Plan": "lighten.plan",
    "Task": "lighten.task",
    "compress": "lighten.search.loop",
    "load": "lighten.runtime.runner",
    "load_task": "lighten.task",
    "restore": "lighten.checkpoint",
    "save": "lighten.checkpoint",
}
_VERB_PACKAGES = ("accelerate", "export", "prune", "quantize")  # callable packages, see lighten.verb
__all__ = ["__version__", *_HOME, *_VERB_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _VERB_PACKAGES:
        return importlib.import_module(f"lighten.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'lighten' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
