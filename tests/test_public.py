"""The public verbs stay reachable and callable, whatever was imported before."""

import importlib
import inspect
import subprocess
import sys

import pytest

import lighten

VERBS = ["accelerate", "quantize", "prune", "export", "load", "compress"]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_callable_before_and_after_its_modules_are_imported(verb: str) -> None:
    code = (
        f"import lighten; assert callable(lighten.{verb}); import lighten.search.loop; assert callable(lighten.{verb})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_callable_package_is_still_a_package_and_has_the_signature_of_its_verb() -> None:
    ops = importlib.import_module("lighten.quantize.ops")
    assert lighten.quantize.ops is ops
    assert list(inspect.signature(lighten.quantize).parameters)[:2] == ["model", "scheme"]


def test_importing_lighten_brings_neither_torch_nor_a_runtime() -> None:
    code = "import lighten, sys; assert not {'torch', 'onnxruntime', 'numpy'} & set(sys.modules), list(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'squeeze'"):
        _ = lighten.squeeze
