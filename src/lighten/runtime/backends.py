"""The table of runtimes. A runtime is a module with ``compile`` and ``describe``, imported when first asked for."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, cast

from lighten.errors import ArtifactError, ConfigError
from lighten.runtime.artifact import Artifact
from lighten.runtime.cpu import usable_cores
from lighten.runtime.spec import Array

Compiled = Callable[[Sequence[Array]], list[Array]]
"""Takes one array for each input of the artifact, already checked; returns one for each output. Thread-safe."""

BACKENDS = {
    "onnxruntime": "lighten.runtime.onnxruntime",
    "openvino": "lighten.runtime.openvino",
    "torch": "lighten.runtime.torch",
    "native": "lighten.runtime.native",
}


@dataclass(frozen=True)
class Description:
    """A runtime that is installed: its name, its version, and the devices or execution providers it offers here."""

    name: str
    version: str
    devices: tuple[str, ...]


class Backend(Protocol):
    """What the module of a runtime offers."""

    def compile(self, artifact: Artifact, threads: int) -> Compiled:
        """Load the model files of artifact for the given number of threads."""

    def describe(self) -> Description:
        """What is installed."""


def backend(name: str) -> Backend:
    """The runtime of that name.

    Raises:
        ConfigError: there is none. MissingExtraError: its package is not installed.
    """
    if name not in BACKENDS:
        raise ConfigError(f"There is no runtime '{name}'. Known: {', '.join(BACKENDS)}.")
    return cast(Backend, importlib.import_module(BACKENDS[name]))


def compile_artifact(artifact: Artifact, threads: int | None = None) -> Compiled:
    """Compile artifact on its runtime. threads: None = what the artifact asks for, or else every usable core.

    Raises:
        ConfigError: threads is not a count. ArtifactError: the artifact asks for a runtime that there is not, or its
        model cannot be loaded. MissingExtraError: the runtime is not installed.
    """
    if artifact.runtime not in BACKENDS:
        raise ArtifactError(
            f"'{artifact.path}' is for the runtime '{artifact.runtime}'. This lighten knows {', '.join(BACKENDS)}."
        )
    module, n_threads = backend(artifact.runtime), _threads(artifact, threads)
    # Some runtimes make the thread that loads a model treat denormals as zero, for good. Not the caller's thread.
    with ThreadPoolExecutor(1) as another:
        return another.submit(module.compile, artifact, n_threads).result()


def only_options(artifact: Artifact, known: Mapping[str, type]) -> dict[str, Any]:
    """The options of artifact that a runtime knows, each of its type; a file is not trusted to hold just those.

    Every runtime knows threads, and workers, which only a Pool heeds.

    Raises:
        ArtifactError: an unknown option, or a value of another type.
    """
    for key, value in artifact.options.items():
        if type(value) is not {"threads": int, "workers": int, **known}.get(key):
            raise ArtifactError(
                f"'{artifact.path}' has the option {key}={value!r}, which the runtime '{artifact.runtime}' does not "
                f"know. Known: threads, workers{''.join(', ' + name for name in known)}."
            )
    return dict(artifact.options)


def _threads(artifact: Artifact, threads: int | None) -> int:
    if threads is None:
        threads = artifact.options.get("threads", usable_cores())
    if type(threads) is not int or not 1 <= threads <= 1024:
        raise ConfigError(f"threads={threads!r} is not a count between 1 and 1024. Start with {usable_cores()}.")
    return threads
