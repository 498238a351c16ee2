"""Models that the engine cannot compute alone: how they are divided, and that their parts compute what they do.

What the engine lacks is taken from it here, so that these tests do not change with what it learns.
"""

import operator
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

pytest.importorskip("llvmlite")

import lighten
from lighten.accelerate.drafts import write_drafts
from lighten.errors import CaptureError
from lighten.export.native import read_program, to_native
from lighten.export.native.divide import MEASURED, NO_GAIN, NOT_THE_BATCH, Division, HandOver, Read, Write, divide
from lighten.export.native.mixed import to_parts
from lighten.export.native.reader import RefusalError
from lighten.export.native.regions import Flow, n_numbers, root
from lighten.export.torch import to_torch
from lighten.export.verb import outputs_of
from lighten.graph.capture import capture
from lighten.runtime.artifact import write_artifact
from lighten.runtime.native.parts import sentences
from lighten.search.outcome import parts
from tests.networks import build
from tests.runtime.native.guarded import close, random

aten = torch.ops.aten
FREE = HandOver(macs=0, macs_per_number=0)


def traced(model: nn.Module, *inputs: Tensor) -> fx.GraphModule:
    return to_torch(capture(model, inputs), inputs)[0]


def flow_of(model: nn.Module, *inputs: Tensor) -> Flow:
    return Flow(traced(model, *inputs))


def without(*lacking: Any, read: Read = read_program) -> Read:
    """The engine as if it had not these operators."""

    def read_less(module: fx.GraphModule) -> Write:
        for node in module.graph.nodes:
            if node.target in lacking:
                raise RefusalError(node, "this test took it away")
        return read(module)

    return read_less


def anything(module: fx.GraphModule) -> Write:
    return lambda folder, prefix: None


def divided(flow: Flow, *lacking: Any, saved: dict[str, int] | None = None, hand_over: HandOver = FREE) -> Division:
    """saved: by node, None = one each."""
    work = {node: 1 if saved is None else saved.get(node.name, 0) for node in flow.nodes}
    return divide(flow, without(*lacking, read=anything), work, hand_over)


# Regions


class Scribble(nn.Module):
    """A graph of steps, each an operator and the values that it reads, counted from the last."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for name, i, j in self.steps:
            a, b = values[-1 - i % len(values)], values[-1 - j % len(values)]
            values.append(STEPS[name](a, b))
        return values[-1], values[len(values) // 2], x


STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda a, b: a.relu(),
    "tanh": lambda a, b: a.tanh(),
    "add": lambda a, b: a + b,
    "parts": lambda a, b: torch.cat([*a.chunk(2, 1)[::-1]], 1),
    "zeros": lambda a, b: a + torch.zeros(a.shape[0], 4),
    "turned": lambda a, b: a.transpose(0, 1).sigmoid().transpose(0, 1),
    "flat": lambda a, b: a.reshape(a.shape[0] * 2, 2).neg().view(a.shape),
}
LACKING = st.sets(st.sampled_from([aten.relu.default, aten.tanh.default, aten.sigmoid.default, aten.add.Tensor]))


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=9
    ),
    lacking=LACKING,
)
def test_regions_run_one_after_another_and_compute_the_whole(
    steps: list[tuple[str, int, int]], lacking: set[Any]
) -> None:
    x = random(0, 3, 4)
    module = traced(Scribble(steps), x)
    flow = Flow(module)
    division = divided(flow, *lacking)
    placed = [node for region in division.regions for node in region.nodes]
    assert sorted(placed, key=flow.nodes.index) == list(flow.nodes)
    values: dict[fx.Node, Any] = dict(zip(flow.inputs, [x], strict=True))
    for before, region in zip([-1, *(each.turn for each in division.regions)], division.regions, strict=False):
        assert region.turn > before
        assert all(flow.can_pass(node) for node in region.inputs)
        assert not (region.is_native and {node.target for node in region.nodes} & lacking)
        assert region.is_native == (region in division.written)
        assert region.is_native or all(root(node) in division.refused for node in region.nodes)
        made = flow.module_of(region)[0](*(values[node] for node in region.inputs))  # KeyError: read before it is made
        values |= zip(region.outputs, made, strict=True)
    wanted = module(x)
    for node, each in zip(flow.returned, wanted, strict=True):
        assert torch.equal(values[node], each)


def test_turns_are_as_few_as_can_be() -> None:
    """Two branches of which one is longer: what both leave to ONNX Runtime is in as few regions."""

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.tanh().relu() + (x.relu().tanh().relu().tanh().relu())

    division = divided(flow_of(Branches(), random(0, 2, 4)), aten.tanh.default)
    kinds = [Counter(node.target for node in region.nodes) for region in division.regions]
    relu, tanh, add = aten.relu.default, aten.tanh.default, aten.add.Tensor
    assert kinds == [{relu: 1}, {tanh: 2}, {relu: 2}, {tanh: 1}, {relu: 1, add: 1}]


def test_items_stay_with_what_they_are_items_of() -> None:
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = x.relu().chunk(2, 1)
            return a.tanh() + b

    flow = flow_of(Halves(), random(0, 2, 4))
    split = next(node for node in flow.nodes if node.target is operator.getitem).all_input_nodes[0]
    _, middle, last = divided(flow, split.target).regions
    assert [node.target for node in middle.nodes] == [split.target, operator.getitem, operator.getitem]
    assert [node.target for node in last.nodes] == [aten.tanh.default, aten.add.Tensor]


def test_regions_that_save_too_little_join_their_neighbours() -> None:

    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = x.relu().tanh()
            return x.relu()

    flow = flow_of(Chain(), random(0, 2, 4))
    work = dict(zip([node.name for node in flow.nodes if node.target is aten.relu.default], (5, 1, 2, 9), strict=True))
    for cost, kept in ((0, [5, 1, 2, 9]), (1, [5, 2, 9]), (2, [5, 9]), (4, [5, 9]), (5, [9]), (9, [])):
        division = divided(flow, aten.tanh.default, saved=work, hand_over=HandOver(macs=cost, macs_per_number=0))
        own = [sum(work[node.name] for node in region.nodes) for region in division.regions if region.is_native]
        assert own == kept
        assert Counter(division.refused.values())[NO_GAIN] == 4 - len(kept)


def test_handing_over_costs_by_the_numbers_that_pass() -> None:
    class Middle(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.relu()
            z = y.tanh().relu()
            return z.tanh(), z

    flow = flow_of(Middle(), random(0, 2, 3, 5))
    first, _, middle, _ = divided(flow, aten.tanh.default).regions
    cost = HandOver(macs=1000, macs_per_number=7)
    assert n_numbers(middle.inputs) == 15
    assert cost.cost(flow, first) == 1000 + 7 * 15  # its input comes from the caller in any case
    assert cost.cost(flow, middle) == 1000 + 7 * 30


# Parts


def parts_of(
    model: nn.Module, inputs: tuple[Tensor, ...], folder: Path, *lacking: Any, threads: int = 2
) -> tuple[Any, list[dict[str, Any]]]:
    """A runner of the model without these operators, and the notes on its parts."""
    module, takes, makes = to_torch(capture(model, inputs), inputs)
    write_files, notes = to_parts(module, inputs, without(*lacking), FREE)
    write_artifact(
        folder, runtime="native", options={"threads": threads}, inputs=takes, outputs=makes, write_files=write_files
    )
    return lighten.load(folder), notes


NETWORKS: dict[str, tuple[Any, ...]] = {
    "crnn": (aten.gru.input, aten.permute.default),  # a recurrent layer, whose states have the batch second
    "inception": (aten.cat.default,),  # many tensors pass
    "fpn": (aten.group_norm.default, aten.upsample_nearest2d.vec),
    "bert": (aten.embedding.default, aten.tanh.default),  # integers pass as well
    "conformer": (aten.scaled_dot_product_attention.default, aten.glu.default),  # the batch moves in between
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_parts_agree(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    inputs = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    run, notes = parts_of(model.float(), inputs, tmp_path / "out", *NETWORKS[name])
    assert {note["runtime"] for note in notes} == {"native", "onnxruntime"}
    for n in (1, 3):
        batch = tuple(torch.cat([x, x.flip(-1), x])[:n] for x in inputs)
        got = run(*batch)
        for one, wanted in zip(got if isinstance(got, tuple) else (got,), outputs_of(model, batch), strict=True):
            close(one, wanted)


class Ranked(nn.Module):
    """Enough work for the engine, and then what it does not have: an order of numbers."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(8, width, 3, padding=1), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x)).mean((2, 3))
        return self.head(y.topk(5, 1).values)


def test_export_lists_the_parts_and_why(tmp_path: Path) -> None:
    model, x = Ranked().eval(), random(0, 2, 8, 24, 24)
    artifact = lighten.export(model, (x,), tmp_path / "out", runtime="native")
    close(lighten.load(artifact.path)(x), model(x).detach())
    own, rest = artifact.notes["parts"]
    assert (own["runtime"], rest["runtime"]) == ("native", "onnxruntime")
    assert own["macs"] == 64 * 8 * 9 * 24 * 24
    assert own["operators"]["aten.conv2d.default"] == 1
    assert own["why"] == {}
    assert rest["operators"]["aten.topk.default"] == rest["operators"]["aten.linear.default"] == 1
    (lacking,) = (reason for reason, names in rest["why"].items() if "aten.topk.default" in names)
    assert lacking == "the engine does not have it"
    assert rest["why"][NO_GAIN] == ["aten.linear.default"]
    assert sentences(artifact.notes)[1].startswith(
        "part 1 on onnxruntime: 2 operators, 15 multiplications by weights, 0 of them by zero; "
    )
    assert f"aten.topk.default: {lacking}" in sentences(artifact.notes)[1]
    assert parts(artifact.path)["parts"].count("part ") == 2
    names = {name for part in artifact.notes["parts"] for name in part["nodes"]}
    assert len(names) == sum(sum(part["operators"].values()) for part in artifact.notes["parts"])


def test_zeros_decide_which_parts_are_the_engines(tmp_path: Path) -> None:
    """Of three layers between what the engine lacks, two have zeros, one of those enough. Where none has, all are."""

    class Layers(nn.Module):
        def __init__(self, *densities: float) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in densities)
            for layer, density in zip(self.layers, densities, strict=True):
                layer.weight.data *= torch.arange(32 * 32).reshape(32, 32) >= (1 - density) * 32 * 32

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x).tanh()
            return x

    x, cost = random(0, 2, 32), HandOver(macs=200, macs_per_number=0)
    for densities, own in (((1.0, 0.25, 0.875), [768]), ((1.0, 1.0, 1.0), [0, 0, 0])):
        module = traced(Layers(*densities), x)
        _, notes = to_parts(module, [x], without(aten.tanh.default), cost)
        assert [note["macs_by_zero"] for note in notes if note["runtime"] == "native"] == own


def test_too_little_work_and_no_weight_at_all_are_refused_by_name() -> None:
    x = random(0, 2, 8, 24, 24)
    for model in (Ranked(width=5), nn.Sequential(nn.Softmax(1), nn.Flatten(), Sort())):
        with pytest.raises(CaptureError, match=r"(topk|sort).*does not have it.* multiplications by weights"):
            to_native(capture(model, (x,)), (x,))
    assert MEASURED.macs > 5 * 8 * 9 * 24 * 24


class Sort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1).values


def test_an_output_that_no_input_reaches_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return Sort()(x), torch.ones(3) * 2

    with pytest.raises(CaptureError, match=r"sort.*do not depend on its inputs"):
        to_native(capture(Fixed(), (random(0, 2, 4),)), (random(0, 2, 4),))


def test_an_input_without_a_batch_is_refused() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, by: Tensor) -> Tensor:
            return Sort()(x) * by

    inputs = random(0, 2, 4), torch.tensor(2.0)
    with pytest.raises(CaptureError, match=r"inputs \['by'\] have no batch"):
        to_native(capture(Scaled(), inputs), inputs)


def test_a_model_with_quantized_activations_stays_whole() -> None:
    model, x = nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3)).eval(), random(0, 2, 8, 32, 32)
    quantized = lighten.quantize(model, "w8a8", calibration=[x])
    with pytest.raises(CaptureError, match="it is quantized"):
        to_native(capture(quantized, (x,)), (x,))


def test_weights_that_are_quantized_alone_run_in_parts(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64)).eval(), random(0, 2, 8)
    quantized = lighten.quantize(model, "w4", example_inputs=(x,))
    run, notes = parts_of(quantized, (x,), tmp_path / "out", aten.tanh.default)
    close(run(x), quantized(x).detach())
    assert [note["runtime"] for note in notes] == ["native", "onnxruntime", "native"]


def test_inputs_that_never_meet_have_one_batch() -> None:
    class Towers(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return a.relu().tanh().reshape(a.shape[0], 2, 2), b.relu().tanh().reshape(b.shape[0], 2, 2)

    flow = flow_of(Towers(), random(0, 2, 4), random(1, 2, 4))
    assert len(flow.batch) == 2
    division = divided(flow, aten.tanh.default)
    assert [len(region.nodes) for region in division.regions] == [2, 2, 2]
    assert len(division.written) == 2


def test_a_model_that_the_engine_can_compute_has_no_parts(tmp_path: Path) -> None:
    artifact = lighten.export(nn.Linear(4, 4), (random(0, 2, 4),), tmp_path / "out", runtime="native")
    assert set(artifact.files) == {"plan.json", "weights.safetensors"}
    assert sentences(artifact.notes) == []
    assert parts(artifact.path) == {}


def test_accelerate_says_which_way_is_in_parts(tmp_path: Path) -> None:
    model, x = Ranked().eval(), random(0, 2, 8, 24, 24)
    drafts = [draft for draft in write_drafts(capture(model, (x,)), (x,), None, tmp_path) if draft.runtime == "native"]
    assert [draft.name for draft in drafts] == ["native with onnxruntime"]
    assert drafts[0].artifact is not None
    assert len(drafts[0].artifact.notes["parts"]) == 2


def test_a_batch_that_moved_stays_in_one_runtime() -> None:
    class Moved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu().transpose(0, 1).tanh().transpose(0, 1).relu()

    division = divided(flow_of(Moved(), random(0, 2, 4)), aten.tanh.default)
    assert [[node.target for node in region.nodes] for region in division.regions] == [
        [aten.relu.default],
        [aten.transpose.int, aten.tanh.default, aten.transpose.int],
        [aten.relu.default],
    ]
    assert set(division.refused.values()) == {"this test took it away", NOT_THE_BATCH}
