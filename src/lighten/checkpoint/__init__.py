"""Checkpoints of compressed modules: safetensors and a plan, for going on in PyTorch."""

from lighten.checkpoint.reader import restore
from lighten.checkpoint.writer import save

__all__ = ["restore", "save"]
