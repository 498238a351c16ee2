import getpass
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import lighten
from lighten.errors import CaptureError
from lighten.export.onnx import tensor_specs, to_onnx
from tests.export.models import (
    Axes,
    Branches,
    Constants,
    FixedBatch,
    Keyed,
    Logits,
    Outlandish,
    Several,
    Words,
)


def specs(model: nn.Module, *inputs: object) -> tuple[dict, dict]:
    """Shape and dtype of inputs and outputs by name, of a file that passes ONNX's own checks."""
    proto = to_onnx(model, inputs)
    onnx.checker.check_model(proto, full_check=True)
    takes, gives = tensor_specs(proto)
    return tuple({spec.name: (spec.shape, spec.dtype) for spec in side} for side in (takes, gives))


def test_inputs_are_named_as_in_forward_and_the_batch_is_free() -> None:
    takes, gives = specs(Logits(), torch.ones(1, 4))
    assert takes == {"features": (("batch", 4), "float32")}
    assert gives == {"output": (("batch", 3), "float32")}


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()), Branches])
def test_the_file_holds_nothing_but_the_computation(make) -> None:
    x = torch.ones(2, 4) if make is Branches else torch.ones(2, 1, 5, 5)
    proto = to_onnx(make(), (x,))
    raw = proto.SerializeToString()
    homes = [str(Path(file).parent) for file in (__file__, torch.__file__, lighten.__file__)]
    for word in [*homes, "site-packages", ".py", "forward", "nn.Module", "fx.", "namespace", "Traceback"]:
        assert word.encode() not in raw, word
    assert f"/{getpass.getuser()}/".encode() not in raw

    def parts(graph: onnx.GraphProto):
        yield from (graph, *graph.node, *graph.input, *graph.output, *graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from parts(attribute.g)

    for part in (proto, *parts(proto.graph)):
        assert not part.doc_string
        assert not part.metadata_props
    assert not proto.functions
    assert not proto.graph.value_info


def test_batch_norm_is_folded_away() -> None:
    proto = to_onnx(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), (torch.ones(2, 1, 5, 5),))
    assert [node.op_type for node in proto.graph.node] == ["Conv"]


def test_names_stay_unique_when_inputs_outputs_and_inner_tensors_meet() -> None:
    takes, gives = specs(Several(), torch.ones(2, 4), torch.ones(2, 3))
    assert list(takes) == ["output", "linear"]
    assert list(gives) == ["output_1", "output_2", "output_3", "output_4"]  # "output" is taken by an input
    assert [shape for shape, _ in gives.values()] == [("batch", 3)] * 3 + [()]


def test_names_are_changed_inside_branches_too() -> None:
    takes, gives = specs(Branches(), torch.ones(2, 4))
    assert (list(takes), list(gives)) == (["linear"], ["output"])


def test_the_batch_is_named_wherever_it_occurs() -> None:
    takes, gives = specs(Axes(), torch.ones(2, 3, 4), torch.ones(2, 5))
    assert [shape for shape, _ in takes.values()] == [("batch", 3, 4), ("batch", 5)]
    assert [shape for shape, _ in gives.values()] == [("3*batch", 4), (3, "batch", 4), ("batch", 5)]


def test_a_fixed_batch_stays_fixed() -> None:
    takes, gives = specs(FixedBatch(), torch.ones(2, 12))
    assert takes == {"x": ((2, 12), "float32")}
    assert gives == {"output": ((2, 12), "float32")}


def test_a_dict_becomes_one_input_a_key() -> None:
    takes, _ = specs(Keyed(), {"left": torch.ones(2, 3), "right": torch.ones(2, 3)})
    assert list(takes) == ["x_left", "x_right"]


def test_numbers_and_none_become_constants() -> None:
    assert list(specs(Constants(), torch.ones(2, 3), 3, None)[0]) == ["x"]
    assert list(specs(Constants(), torch.ones(2, 3), 3, torch.ones(2, 3))[0]) == ["x", "mask"]


def test_integer_inputs_keep_their_type() -> None:
    assert specs(Words(), torch.zeros(2, 5, dtype=torch.int64))[0] == {"ids": (("batch", 5), "int64")}


def test_an_operator_without_counterpart_is_named_with_its_layer() -> None:
    with pytest.raises(CaptureError, match=r"airy_ai.* It stands in layer 'airy'\. Replace") as caught:
        to_onnx(Outlandish(), (torch.ones(2, 4),))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_types_without_kernels_are_refused_with_the_way_out(dtype: torch.dtype) -> None:
    with pytest.raises(CaptureError, match=rf"{dtype}, which runtimes have too few .* Export model.float\(\)"):
        to_onnx(Logits().to(dtype), (torch.ones(2, 4, dtype=dtype),))


def test_the_model_is_not_modified_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    model = Logits().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    to_onnx(model, (torch.ones(2, 4),))
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [1, (3, 2, 1)])
def test_adaptive_pooling_of_volumes_is_written_where_windows_are_equal(size: int | tuple[int, ...]) -> None:
    model, x = nn.AdaptiveAvgPool3d(size), torch.randn(2, 3, 6, 4, 5)
    session = onnxruntime.InferenceSession(to_onnx(model, (x,)).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x))


def test_adaptive_pooling_of_volumes_with_unequal_windows_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"\[6, 4, 5\] to \[4, 2, 1\]"):
        to_onnx(nn.AdaptiveAvgPool3d((4, 2, 1)), (torch.randn(2, 3, 6, 4, 5),))
