"""Runner: an artifact that is loaded and called like a function."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lighten.errors import ArtifactError, ConfigError
from lighten.runtime.artifact import Artifact, read_artifact
from lighten.runtime.backends import Compiled, compile_artifact
from lighten.runtime.spec import BATCH, Array, TensorSpec, check_arrays


class Runner:
    """Calls an artifact's model. Thread-safe; takes any batch size where the batch axis is free.

    Inputs are NumPy arrays or torch tensors, in order or by name: ``runner(x)``, ``runner(a, b)``,
    ``runner({"image": x})``, ``runner(image=x)``. One output comes back as it is, several as a tuple, as torch
    tensors where an input was one and as NumPy arrays otherwise.

    Raises:
        ConfigError: an input is missing, unknown, or has another shape or dtype than the model takes. ArtifactError:
        the runtime failed.
    """

    def __init__(self, artifact: Artifact, compiled: Compiled) -> None:
        self.artifact = artifact
        self._compiled = compiled

    def __call__(self, *inputs: Any, **by_name: Any) -> Any:
        """Run the model; see the class."""
        values = self._in_order(inputs, by_name)
        to_torch = any(_is_torch(value) for value in values)
        arrays = [_to_array(value, spec.name) for value, spec in zip(values, self.artifact.inputs, strict=True)]
        outputs = self._run(arrays, check_arrays(self.artifact.inputs, arrays))
        if to_torch:
            outputs = [sys.modules["torch"].from_numpy(output) for output in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def __repr__(self) -> str:
        takes = ", ".join(f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in self.artifact.inputs)
        return f"Runner({self.artifact.runtime}, {takes})"

    def _run(self, arrays: list[Array], sizes: Mapping[str, int]) -> list[Array]:
        """An empty batch runs as one of one, for the shapes alone: not every kernel survives an axis of size 0."""
        is_empty = sizes.get(BATCH) == 0
        if is_empty:
            pairs = zip(self.artifact.inputs, arrays, strict=True)
            arrays = [np.zeros(_with_batch(spec, array.shape, 1), array.dtype) for spec, array in pairs]
        try:
            outputs = self._compiled(arrays)
        except Exception as error:  # each runtime has its own
            shapes = [list(array.shape) for array in arrays]
            raise ArtifactError(
                f"The runtime '{self.artifact.runtime}' failed on inputs of shape {shapes}: {error}"
            ) from error
        if is_empty:
            results = zip(self.artifact.outputs, outputs, strict=True)
            outputs = [np.empty(_with_batch(spec, output.shape, 0), output.dtype) for spec, output in results]
        return outputs

    def _in_order(self, inputs: tuple[Any, ...], by_name: Mapping[str, Any]) -> Sequence[Any]:
        only = inputs[0] if len(inputs) == 1 else None
        if isinstance(only, Mapping):
            inputs, by_name = (), {**only, **by_name}
        elif isinstance(only, (tuple, list)):
            inputs = tuple(only)
        names = [spec.name for spec in self.artifact.inputs]
        if len(inputs) > len(names):
            raise ConfigError(f"Got {len(inputs)} inputs, but the model takes {len(names)}: {', '.join(names)}.")
        values = {**dict(zip(names, inputs, strict=False)), **by_name}
        if set(values) != set(names) or len(inputs) + len(by_name) != len(names):
            raise ConfigError(
                f"Got {len(inputs)} inputs in order and {sorted(by_name)} by name, but the model takes each of "
                f"{names} once."
            )
        return [values[name] for name in names]


def load(out_dir: Path | str, *, threads: int | None = None) -> Runner:
    """Check the artifact in out_dir and load it. threads: None = what the artifact asks for, else every usable core.

    Raises:
        ArtifactError: it is damaged, of another version, or its runtime refuses it. ConfigError: threads is not a
        count. MissingExtraError: its runtime is not installed.
    """
    artifact = read_artifact(Path(out_dir))
    return Runner(artifact, compile_artifact(artifact, threads))


def _with_batch(spec: TensorSpec, shape: tuple[int, ...], n: int) -> list[int]:
    return [n if size == BATCH else got for size, got in zip(spec.shape, shape, strict=True)]


def _is_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")  # who has not imported it cannot hold a tensor
    return torch is not None and isinstance(value, torch.Tensor)


def _to_array(value: Any, name: str) -> Array:
    if _is_torch(value):
        tensor = value.detach().cpu()
        if tensor.dtype == sys.modules["torch"].bfloat16:
            raise ConfigError(f"Input '{name}' is bfloat16, which no runtime here takes. Convert it: x.float().")
        value = tensor.numpy()
    if not isinstance(value, (np.ndarray, np.generic)):
        raise ConfigError(f"Input '{name}' is a {type(value).__name__}. Give a NumPy array or a torch tensor.")
    return np.asarray(value, order="C")
