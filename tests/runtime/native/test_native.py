"""The native engine against the float module, and what it does with files that are not what lighten wrote."""

import copy
import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("llvmlite")

import lighten
from lighten.errors import ArtifactError, CaptureError, ConfigError
from lighten.export.native import to_native
from lighten.graph.capture import capture
from lighten.runtime.native import depthwise as depthwise_layers
from lighten.runtime.native.emit import network
from lighten.runtime.native.packed import index_type, pack, read_packed
from lighten.runtime.native.program import Conv, Elements, Pool, Program, Reduce
from lighten.runtime.native.program import Tensor as Sizes
from lighten.runtime.native.schedule import Target, tile
from lighten.runtime.native.stored import Stored
from tests.runtime.native.guarded import TOLERANCE, close, damage_and_run, run


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, object], int, int]:
    pair = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(2))  # noqa: E731
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    n_in, n_out = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 9))
    kernel, stride, padding, dilation = pair(1, 5), pair(1, 3), pair(0, 3), pair(1, 2)
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 14))
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    make = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    weight = torch.randn(n_out, n_in // groups, *kernel, generator=make)
    weight[torch.rand(weight.shape, generator=make) >= draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))] = 0
    x = torch.randn(draw(st.integers(1, 3)), n_in, *size, generator=make)
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    return x, weight, window, groups, draw(st.sampled_from([1, 2, 4, 8, 16]))


@st.composite
def depthwise(draw: st.DrawFn) -> tuple[Tensor, Tensor, dict[str, object], int, int]:
    """Wide enough for several vectors, with some zeros; windows of up to 42 weights, some in registers, some not."""
    n, kernel = draw(st.integers(1, 20)), (draw(st.integers(1, 7)), draw(st.integers(1, 6)))
    stride, padding, dilation = ((draw(st.integers(low, 3)), draw(st.integers(low, 3))) for low in (1, 0, 1))
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), most))
        for k, p, d, most in zip(kernel, padding, dilation, (30, 70), strict=True)
    ]
    make = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    weight = torch.randn(n, 1, *kernel, generator=make)
    weight[torch.rand(weight.shape, generator=make) >= draw(st.sampled_from([0.2, 0.8, 1.0]))] = 0
    window = {"stride": stride, "padding": padding, "dilation": dilation}
    return torch.randn(draw(st.integers(1, 2)), n, *size, generator=make), weight, window, n, 1


@settings(max_examples=100, deadline=None)
@given(
    case=st.one_of(convolutions(), depthwise()),
    lanes=st.sampled_from([4, 8, 16]),
    residual=st.booleans(),
    threads=st.sampled_from([1, 2, 3, 8]),
)
def test_any_convolution_is_the_modules(
    case: tuple[Tensor, Tensor, dict[str, object], int, int], lanes: int, residual: bool, threads: int
) -> None:
    x, weight, window, groups, block = case
    bias = torch.linspace(-1, 1, weight.shape[0])
    wanted = F.conv2d(x, weight, bias, groups=groups, **window)  # type: ignore[arg-type]
    conv = Conv(inputs=(0,), weight="w", rows=len(weight), block=block, kernel=tuple(weight.shape[2:]), **window)  # type: ignore[arg-type]
    ops = [conv]
    if residual:  # its own output, so the second convolution adds the first
        ops.append(dataclasses.replace(conv, inputs=(0, 1), act="relu"))
        wanted = F.relu(wanted + wanted)
    program = Program((Sizes(*x.shape[1:]),), tuple(ops), (len(ops),))
    packed = pack(weight.numpy(), bias.numpy(), block, groups)
    program = Program.from_json(program.to_json())
    close(run(program, Stored({"w": packed}), x, tuple(wanted.shape[1:]), lanes, (1, threads)), wanted)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    block=st.sampled_from([1, 4, 8]),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    size=st.integers(3, 20),
    threads=st.sampled_from([1, 2, 3, 8]),
    cached=st.sampled_from([1, 2000]),
)
def test_a_wide_layer_made_some_rows_at_a_time_is_the_same(
    n: int, block: int, kernel: int, stride: int, size: int, threads: int, cached: int
) -> None:
    """Widened, depthwise with a stride, narrowed and added to, as an inverted bottleneck is; to the last bit."""
    make = torch.Generator().manual_seed(n)
    x, wide, own, narrow = (
        torch.randn(*shape, generator=make)
        for shape in ((2, 3, size, size + 2), (n, 3, kernel, kernel), (n, 1, 3, 3), (3, n, 1, 1))
    )
    wide[torch.rand(wide.shape, generator=make) < 0.7] = 0
    same = {"kernel": (kernel,) * 2, "padding": (kernel // 2,) * 2}
    ops = (
        Conv(inputs=(0,), weight="wide", rows=n, block=block, act="relu6", stride=(stride,) * 2, **same),
        Conv(inputs=(1,), weight="own", rows=n, block=1, kernel=(3, 3), padding=(1, 1), stride=(2, 2), act="relu"),
        Conv(inputs=(2,), weight="narrow", rows=3, block=1),
    )
    program = Program((Sizes(*x.shape[1:]),), ops, (3,))
    blocks = {"wide": (wide, block, 1), "own": (own, 1, n), "narrow": (narrow, 1, 1)}
    stored = Stored({name: pack(w.numpy(), np.ones(len(w), "float32"), b, g) for name, (w, b, g) in blocks.items()})
    y = F.conv2d(x, wide, torch.ones(n), stride, kernel // 2).clamp(0, 6)
    wanted = F.conv2d(F.conv2d(y, own, torch.ones(n), 2, 1, groups=n).relu(), narrow, torch.ones(3))
    found = {}
    for is_chained in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(depthwise_layers, "CACHED", cached)
            assert depthwise_layers.find_chains(program, stored, {1: stored.weights["own"]})
            if not is_chained:
                patch.setattr(network, "find_chains", lambda *_: {})
            found[is_chained] = run(program, stored, x, tuple(wanted.shape[1:]), 8, (1, threads))
    close(found[True], wanted)
    assert torch.equal(*found.values())


@pytest.mark.parametrize("width", [1, 5, 16, 18])
def test_margins_after_the_last_line_are_zeros(width: int) -> None:
    """Of one line, whose last vector may end beyond its places, written by one product and read by the next."""
    x, weight, bias = torch.randn(2, 3, 1, width), torch.randn(3, 3, 3, 3), torch.ones(3)
    window = {"kernel": (3, 3), "padding": (1, 1)}
    ops = tuple(Conv(inputs=(i,), weight="w", rows=3, block=1, **window) for i in range(2))  # type: ignore[arg-type]
    stored = Stored({"w": pack(weight.numpy(), bias.numpy(), 1)})
    wanted = F.conv2d(F.conv2d(x, weight, bias, padding=1), weight, bias, padding=1)
    close(run(Program((Sizes(3, 1, width),), ops, (2,)), stored, x, (3, 1, width)), wanted)


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from(["max", "mean"]),
    kernel=st.sampled_from([1, 2, 3, 4, 6]),
    stride=st.integers(1, 3),
    pads=st.booleans(),
    size=st.integers(6, 20),
    seed=st.integers(0, 99),
)
def test_any_pool_is_the_modules(mode: str, kernel: int, stride: int, pads: bool, size: int, seed: int) -> None:
    x = torch.randn(2, 3, size, size + 1, generator=torch.Generator().manual_seed(seed)) - 5  # zeros would win
    padding = kernel // 2 if pads else 0
    wanted = {"max": F.max_pool2d, "mean": F.avg_pool2d}[mode](x, kernel, stride, padding)
    op = Pool(inputs=(0,), mode=mode, kernel=(kernel,) * 2, stride=(stride,) * 2, padding=(padding,) * 2)
    close(run(Program((Sizes(*x.shape[1:]),), (op,), (1,)), Stored(), x, tuple(wanted.shape[1:])), wanted)


ACTS = {
    **{name: getattr(F, name) for name in ("relu", "relu6", "hardswish", "hardsigmoid", "silu", "gelu")},
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def test_erf_is_as_exact_as_it_says() -> None:
    x = torch.linspace(-6, 6, 20001)[None]
    got = run(Program((Sizes(20001, 1, 1),), (Elements(inputs=(0,), act="erf"),), (1,)), Stored(), x, (20001,))
    assert float((got.double() - torch.erf(x.double())).abs().max()) < 2.7e-7


@pytest.mark.parametrize("act", ACTS)
def test_activations_keep_nan_and_infinity(act: str) -> None:
    x = torch.cat([torch.linspace(-30, 30, 97), torch.tensor([float("nan"), 200.0, -80.0, float("inf"), 0.0])])[None]
    program = Program((Sizes(x.shape[1], 1, 1),), (Elements(inputs=(0,), act=act),), (1,))
    got, wanted = (
        run(program, Stored(), x, (x.shape[1],)),
        ACTS[act](x.double()).float(),
    )  # float kernels of torch differ at infinity
    assert torch.equal(got.isnan(), wanted.isnan())
    finite = wanted.isfinite()
    torch.testing.assert_close(got[finite], wanted[finite], rtol=1e-5, atol=5e-6)  # erf: 1.5e-7 · 30
    assert got[~finite & ~wanted.isnan()].isinf().all()


def test_nan_spreads_as_in_a_dense_module() -> None:
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(4, 2, 3, 3)
    x[0, 1, 2, 2], x[0, 0, 0, 0] = float("nan"), float("inf")
    op = Conv(inputs=(0,), weight="w", rows=4, block=4, kernel=(3, 3), padding=(1, 1), act="relu")
    got = run(Program((Sizes(2, 5, 5),), (op,), (1,)), Stored({"w": pack(weight.numpy(), None, 4)}), x, (4, 5, 5))
    close(got, F.relu(F.conv2d(x, weight, padding=1)))


def test_denormals_are_zeros_and_the_callers_stay() -> None:
    program = Program((Sizes(1, 4, 4),), (Reduce(inputs=(0,)),), (1,))
    assert run(program, Stored(), torch.full((1, 1, 4, 4), 1e-40), (1,)).item() == 0
    assert (np.array([1e-40], "float32") * np.array([0.5], "float32"))[0] > 0


class Mixed(nn.Module):
    """Depthwise, squeeze and excitation, concatenation, strides, every way to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12)
        self.depth, self.point = nn.Conv2d(12, 12, 5, 1, 2, groups=12), nn.Conv2d(12, 20, 1)
        self.down, self.up = nn.Conv2d(20, 4, 1), nn.Conv2d(4, 20, 1)
        self.fc = nn.Linear(32 * 4 * 4, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.hardswish(self.norm(self.stem(x)))
        y = self.point(F.relu6(self.depth(x)))
        y = y * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        x = F.avg_pool2d(torch.cat([x, F.silu(y)], 1), 2)
        return self.fc(x.flatten(1)), x.mean((2, 3))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_network_exports_loads_and_agrees(tmp_path: Path, threads: int) -> None:
    model, x = Mixed().eval(), torch.randn(3, 3, 16, 16)
    artifact = lighten.export(model, (x,), tmp_path / "out", runtime="native", threads=threads)
    assert artifact.notes["max_difference"] < TOLERANCE
    assert sorted(artifact.files) == ["plan.json", "weights.safetensors"]
    for n in (0, 1, 5):
        x = torch.randn(n, 3, 16, 16)
        for got, wanted in zip(lighten.load(tmp_path / "out")(x), model(x), strict=True):
            close(got, wanted.detach())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_starts_threads_of_its_own(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    lighten.export(model, (x,), tmp_path / "out", runtime="native", threads=2)
    runner = lighten.load(tmp_path / "out")
    expected = runner(x.numpy())
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a call that waits for the parent's threads would never end
        os._exit(0 if np.array_equal(runner(x.numpy()), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_zeros_are_not_stored(tmp_path: Path) -> None:
    model = nn.Conv2d(16, 16, 3)
    sizes = []
    for ratio in (0.0, 0.9):
        pruned = (
            lighten.prune(model, ratio, granularity="block:4x1", example_inputs=(torch.ones(1, 16, 8, 8),))
            if ratio
            else model
        )
        export = lighten.export(pruned, (torch.randn(1, 16, 8, 8),), tmp_path / str(ratio), runtime="native")
        sizes.append(export.files["weights.safetensors"].size_bytes)
    assert sizes[1] < 0.3 * sizes[0]


def test_what_it_cannot_compute_is_named() -> None:
    layers = ((nn.Conv3d(2, 2, 3), "conv3d"), (nn.MaxPool3d(2), "max_pool3d"), (nn.GRU(6, 3, batch_first=True), "gru"))
    for model, name in layers:
        x = torch.randn(2, 2, 6) if name == "gru" else torch.randn(2, 2, 6, 6, 6)
        with pytest.raises(CaptureError, match=name):
            to_native(capture(model, (x,)), (x,))


def test_tiles_cover_all_columns_once_and_fit_the_registers() -> None:
    for target in (Target(16, 32), Target(8, 16), Target(4, 32)):
        for block in (1, 2, 4, 8, 16):
            for n in (1, 15, 16, 17, 144, 1000):
                found = tile(n, block, target)
                vectors = found.v * found.n_full + found.v_last
                assert vectors == -(-n // target.lanes)
                assert found.v == 1 or block * found.v + found.v + 1 < target.registers


def plan() -> Program:
    conv = Conv(inputs=(0,), weight="w", rows=6, block=4, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    pool = Pool(inputs=(1,), mode="max", kernel=(3, 3), stride=(1, 1), padding=(1, 1))
    return Program(
        (Sizes(3, 9, 9),),
        (conv, pool, Conv(inputs=(2, 1), weight="v", rows=6, block=1, bits=3), Reduce(inputs=(3,))),
        (4,),
    )


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_damaged_plan_is_an_error_or_a_plan(data: st.DataObject) -> None:
    arrays = {k: v for n, w in WEIGHTS.items() for k, v in w.to_arrays(n, COLUMNS[n], BITS[n]).items()}
    damage_and_run(data, plan(), arrays)


WEIGHTS = {
    "w": pack(np.ones((6, 3, 3, 3), np.float32), None, 4),
    "v": pack(np.ones((6, 6, 1, 1), np.float32), None, 1).on_grid(np.ones(6, np.float32)),
}
COLUMNS = {"w": 27, "v": 6}
BITS = {"w": 32, "v": 3}


@settings(max_examples=60, deadline=None)
@given(part=st.sampled_from(["ptr", "index"]), at=st.integers(0, 53), value=st.integers(-(2**31), 2**31 - 1))
def test_a_damaged_index_never_reaches_native_code(part: str, at: int, value: int) -> None:
    arrays = {key: array.copy() for key, array in WEIGHTS["w"].to_arrays("w", 27).items()}
    array = arrays[f"w.{part}"]
    array[at % len(array)] = np.array(value).astype(array.dtype)
    try:
        packed = read_packed(arrays, "w", rows=6, block=4, n_columns=27)
    except ArtifactError:
        return
    assert (np.diff(packed.ptr) >= 0).all()
    assert (packed.ptr[0], packed.ptr[-1]) == (0, len(packed.index))
    assert ((packed.index >= 0) & (packed.index < 27)).all()


@given(
    bits=st.integers(2, 8),
    block=st.sampled_from([1, 4, 8]),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 300)),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 99),
)
def test_values_on_a_grid_are_stored_as_codes(
    bits: int, block: int, shape: tuple[int, int], density: float, seed: int
) -> None:
    make = np.random.default_rng(seed)
    code = make.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape) * (make.random(shape) < density)
    scale = make.choice([0.0, 1e-3, 0.3, 700.0], len(code)).astype(np.float32)
    floats = pack((code * scale[:, None]).astype(np.float32), scale, block)
    packed = floats.on_grid(scale)
    np.testing.assert_array_equal(packed.floats.value, floats.value)
    arrays = packed.to_arrays("w", shape[1], bits)
    assert arrays["w.code"].nbytes == -(-packed.value.size * bits // 8)
    assert arrays["w.index"].itemsize == (1 if shape[1] <= 256 else 2) == index_type(shape[1]).itemsize
    read = read_packed(arrays, "w", rows=len(code), block=block, n_columns=shape[1], bits=bits)
    for part in ("ptr", "index", "value", "bias", "scale"):
        np.testing.assert_array_equal(getattr(read, part), getattr(packed, part))
    for cut in ("code", "scale"):
        longer = arrays | {f"w.{cut}": np.append(arrays[f"w.{cut}"], arrays[f"w.{cut}"].dtype.type(0))}
        with pytest.raises(ArtifactError, match="is not a packed matrix"):
            read_packed(longer, "w", rows=len(code), block=block, n_columns=shape[1], bits=bits)


@pytest.mark.parametrize(("scheme", "bits"), [("w8", 8), ("w4", 4), ("w4-g32", 32), ("nf4-g64", 32)])
def test_quantized_weights_run_and_are_stored_small(scheme: str, bits: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 64)
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    sparse = lighten.prune(net, 0.8, granularity="block:4x1", example_inputs=(x,))
    quantized = lighten.quantize(sparse, scheme, example_inputs=(x,))
    artifact = lighten.export(quantized, (x,), tmp_path / "out", runtime="native")
    close(lighten.load(artifact.path)(x), quantized(x).detach())  # the codes' own values, not float ones
    program = Program.from_json((artifact.path / "plan.json").read_bytes())
    assert [op.bits for op in program.ops if isinstance(op, Conv)] == [bits, bits]
    plain = lighten.export(sparse, (x,), tmp_path / "float", runtime="native")
    saved = plain.size_bytes - artifact.size_bytes
    n_values = sum(int((p != 0).sum()) for p in sparse.parameters() if p.ndim > 1)
    assert saved > 0.9 * n_values * (32 - bits) / 8 - 4 * (16 + 64 + 4) - 1000  # scales, the plan's words


def test_bfloat16_weights_are_rounded_and_take_half_the_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 64)).eval()
    x, folders = torch.randn(2, 3, 8, 8), [tmp_path / "float32", tmp_path / "bfloat16"]
    whole, half = (lighten.export(net, (x,), each, runtime="native", values=each.name) for each in folders)
    n_weights = 16 * 27 + 64 * 576
    assert whole.size_bytes - half.size_bytes > 1.9 * n_weights
    rounded = copy.deepcopy(net)
    for layer in (rounded[0], rounded[3]):
        layer.weight.data = layer.weight.data.bfloat16().float()  # its bias stays as it is
    close(lighten.load(half.path)(x), rounded(x).detach())
    assert 0 < half.notes["rms_difference"] < 2**-8  # 2^-9 at most, in each of two layers


@pytest.mark.parametrize(("runtime", "values"), [("onnxruntime", "bfloat16"), ("auto", "bfloat16"), ("native", "f8")])
def test_values_that_a_runtime_does_not_have_are_refused(runtime: str, values: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'{runtime}' with values='{values}'.*float32, bfloat16"):
        lighten.export(nn.Linear(4, 4), (torch.ones(1, 4),), tmp_path / "out", runtime=runtime, values=values)


@given(
    block=st.sampled_from([1, 2, 4, 8]), groups=st.sampled_from([1, 2, 3]), seed=st.integers(0, 99), n=st.integers(1, 5)
)
def test_packing_keeps_every_weight(block: int, groups: int, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((n * groups, 2, 3)) * (rng.random((n * groups, 2, 3)) < 0.3)).astype("float32")
    dense = pack(weight, None, block, groups).dense(groups * 6)[: n * groups]
    for row in range(n * groups):
        wanted = np.zeros(groups * 6, "float32")
        wanted[row // n * 6 : row // n * 6 + 6] = weight[row].ravel()
        np.testing.assert_array_equal(dense[row], wanted)
