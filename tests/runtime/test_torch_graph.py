import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lighten.errors import ArtifactError, CaptureError
from lighten.runtime import torch_graph as module
from lighten.runtime.torch_graph import GRAPH, WEIGHTS, load_graph, save_graph


class Net(nn.Module):
    """Views with a constant, batch norm, tied weights, two outputs, infinities, slices and a dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4 * 9, 36)
        self.tied = nn.Linear(36, 36)
        self.tied.weight = self.linear.weight

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.conv(x))).view(-1, 36)
        x = self.tied(torch.nn.functional.gelu(self.linear(x), approximate="tanh"))
        scores = torch.einsum("bi,bj->bij", x, x).masked_fill(torch.ones(36, 36).tril() == 0, float("-inf"))
        return {"scores": torch.softmax(scores, -1).to(torch.float64), "half": x[:, : x.shape[1] // 2]}


def export(model: nn.Module, *example: Tensor) -> fx.GraphModule:
    batch = torch.export.Dim("batch", min=2)
    shapes = [{0: batch}] * len(example)
    return torch.export.export(model.eval(), example, dynamic_shapes=shapes).module()  # type: ignore[return-value]


def graph_of(*targets: Any, **kwargs: Any) -> fx.GraphModule:
    """x -> target(x, **kwargs) -> …"""
    graph = fx.Graph()
    node = graph.placeholder("x")
    for target in targets:
        node = graph.call_function(target, (node,), kwargs)
    graph.output(node)
    return fx.GraphModule(nn.Module(), graph)


def rewrite(folder: Path, change: Any) -> None:
    data = json.loads((folder / GRAPH).read_text())
    change(data)
    (folder / GRAPH).write_text(json.dumps(data))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_graph_comes_back_the_same(tmp_path: Path, n: int, channels_last: bool) -> None:
    model = Net()
    traced = export(model, torch.randn(2, 2, 5, 5))
    save_graph(traced, tmp_path)
    x = torch.randn(n, 2, 5, 5)
    loaded = load_graph(tmp_path, channels_last=channels_last)
    found, expected = loaded(x), model(x)
    # Layout and alignment of the weights choose the kernel, and with it the order of float32 sums of up to 36 terms.
    torch.testing.assert_close(found, [expected["scores"], expected["half"]], rtol=1e-4, atol=1e-5)
    assert not list(loaded.parameters())
    assert {weight.is_contiguous() for weight in loaded.buffers() if weight.ndim == 4} == {not channels_last}


def test_a_shared_weight_is_stored_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    save_graph(export(model, torch.randn(2, 8)), tmp_path)
    assert len(load_file(tmp_path / WEIGHTS)) == 1


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (graph_of(torch.ops.aten.relu_.default), "changes its arguments"),
        (graph_of(torch.relu), "is not an ATen operator"),
        (graph_of(torch.ops.prims.sin.default), "is not an ATen operator"),
        (graph_of(torch.ops.aten.to.device, device=torch.device("meta"), dtype=torch.float32), "placed on 'meta'"),
        (fx.symbolic_trace(nn.Sequential(nn.ReLU())), "it is a call_module"),
    ],
    ids=["in-place", "a function", "another namespace", "a device", "a module"],
)
def test_what_is_no_pure_operator_is_not_written(tmp_path: Path, module: fx.GraphModule, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        save_graph(module, tmp_path)


@pytest.mark.parametrize(
    ("op", "why"),
    [
        ("aten.from_file.default", "takes a str 'filename'"),
        ("aten.save.default", "takes|returns nothing"),
        ("aten.relu_.default", "changes its arguments"),
        ("aten.relu.out", "changes its arguments"),
        ("aten._unsafe_index.Tensor", "is private"),
        ("aten.record_stream.default", "Stream|changes|returns nothing"),
        ("aten.__class__.mro", "no operator"),
        ("aten.relu", "is not an ATen operator"),
        ("aten.relu.default.__call__", "is not an ATen operator"),
        ("aten.nonsense.default", "no operator"),
        ("profiler._record_function_enter.default", "is not an ATen operator"),
        ("os.system", "is not an ATen operator"),
        ("operator.attrgetter", "is not an ATen operator"),
        ("operator.setitem", "is not an ATen operator"),
        ("", "is not an ATen operator"),
        (7, "int"),
        (None, "NoneType"),
    ],
)
def test_a_file_cannot_name_anything_else(tmp_path: Path, op: Any, why: str) -> None:
    save_graph(graph_of(torch.ops.aten.relu.default), tmp_path)
    rewrite(tmp_path, lambda data: data["nodes"][1].update(op=op))
    with pytest.raises(ArtifactError, match=why):
        load_graph(tmp_path)


def set_args(args: Any) -> Any:
    return lambda data: data["nodes"][1].update(args=args)


@pytest.mark.parametrize(
    "change",
    [
        set_args([{"node": 1}]),
        set_args([{"node": -1}]),
        set_args([{"node": True}]),
        set_args([{"device": "cuda"}]),
        set_args([{"dtype": "Tensor"}]),
        set_args([{"float": "1"}]),
        set_args([{"code": "print()"}]),
        set_args([{"node": 0, "dtype": "int8"}]),
        set_args(3),
        lambda data: data["nodes"][1].update(kwargs={"a=print(1), b": 1}),
        lambda data: data["nodes"].append({"op": "weight", "name": "absent"}),
        lambda data: data.pop("outputs"),
        lambda data: data.update(version=2),
        lambda data: data.update(nodes="abc"),
    ],
)
def test_a_malformed_graph_is_refused(tmp_path: Path, change: Any) -> None:
    save_graph(graph_of(torch.ops.aten.relu.default), tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ArtifactError, match=r"graph\.json"):
        load_graph(tmp_path)


def test_names_in_the_file_never_reach_the_source(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("__import__('os')", nn.Linear(2, 2))
    traced = graph_of(torch.ops.aten.relu.default)
    save_graph(traced, tmp_path)
    assert set(json.loads((tmp_path / GRAPH).read_text())["nodes"][0]) == {"op"}
    assert "w0" not in load_graph(tmp_path).code


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    save_graph(export(nn.Linear(2, 2), torch.randn(2, 2)), tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"\xff" * 20)
    with pytest.raises(ArtifactError, match="Export again"):
        load_graph(tmp_path)


def test_a_huge_graph_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_graph(graph_of(torch.ops.aten.relu.default), tmp_path)
    monkeypatch.setattr(module, "MAX_GRAPH_BYTES", 100)
    (tmp_path / GRAPH).write_text(" " * 101)
    with pytest.raises(ArtifactError, match="larger than 100 bytes"):
        load_graph(tmp_path)


def test_a_write_that_nobody_reads_is_not_dropped(tmp_path: Path) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(torch.ops.aten.fill_.Scalar, (x, 7))
    graph.output(x)
    with pytest.raises(CaptureError, match="changes its arguments"):
        save_graph(fx.GraphModule(nn.Module(), graph), tmp_path)
