"""Coverage of structured pruning: which networks lose half of their channels and still compute what they should.

    python benchmarks/coverage.py                         every network in tests/networks, lighten and Torch-Pruning
    python benchmarks/coverage.py --timm --tool lighten   the smallest architecture of every family in timm
    python benchmarks/coverage.py --timm-all              every architecture in timm
    python benchmarks/coverage.py swin timm:resnet18      these alone

Each case runs in a process of its own, with a time limit. The oracle knows neither tool: all parameters are made
distinct numbers in float64, so what a tool kept can be read off the pruned parameters; everything else is set to zero
in the original (running variances to one, tables left as they are), and both must then compute the same. Torch-Pruning
is called as its README says, with the layers that make the outputs ignored and no other hint.
"""

import argparse
import contextlib
import copy
import json
import multiprocessing
import resource
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/ is not installed

RATIO = 0.5
OUTCOMES = ("pruned", "nothing", "refused", "crashed", "timeout", "differs")


def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network in eval mode and float64, all parameters distinct, and its example inputs."""
    torch.manual_seed(0)
    if name.startswith("timm:"):
        import timm

        model = timm.create_model(name.removeprefix("timm:"))
        size = model.default_cfg["input_size"]
        inputs: tuple[Any, ...] = (torch.randn(2, *size, dtype=torch.float64),)
    else:
        from tests import networks

        model, inputs = networks.build(name)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # ones and zeros become distinct, the scale stays
            parameter.add_(torch.randn_like(parameter) * max(0.02 * float(parameter.abs().mean()), 0.01))
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model, inputs


def prune_with_lighten(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    from lighten.prune import prune

    return prune(model, RATIO, scope="layer", example_inputs=inputs)


def prune_with_torch_pruning(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    import torch_pruning

    outputs = makers_of_outputs(model, inputs)
    model = copy.deepcopy(model)
    ignored = [module for key, module in model.named_modules() if key in outputs]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, inputs, importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=RATIO,
        ignored_layers=ignored,
    )  # fmt: skip
    pruner.step()
    return model


def makers_of_outputs(model: nn.Module, inputs: tuple[Any, ...]) -> set[str]:
    from lighten.errors import LightenError
    from lighten.graph.capture import capture
    from lighten.graph.labels import propagate

    try:
        frozen = propagate(capture(model, inputs), inputs).frozen
    except LightenError:
        return {[key for key, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]}
    return {layer for layer, reason in frozen.items() if "output of the model" in reason}


TOOLS = {"lighten": prune_with_lighten, "torch-pruning": prune_with_torch_pruning}


def run_one(tool: str, name: str) -> dict[str, Any]:
    """The outcome of one case."""
    from lighten.errors import LightenError

    warnings.simplefilter("ignore")
    model, inputs = build(name)
    try:
        pruned = TOOLS[tool](model, inputs).eval()
        got = outputs_of(pruned, inputs)
    except LightenError as error:
        return {"outcome": "refused", "why": str(error)[:300]}
    except Exception as error:  # noqa: BLE001  whatever a tool raises is its outcome
        return {"outcome": "crashed", "why": f"{type(error).__name__}: {error}"[:300]}
    before, after = (len_of(m) for m in (model, pruned))
    if after == before:
        return {"outcome": "nothing"}
    want = outputs_of(zero_what_is_gone(model, pruned), inputs)
    shapes = [w.shape == g.shape for w, g in zip(want, got, strict=True)]
    error = max((float((w - g).abs().max() / w.abs().max()) for w, g in zip(want, got, strict=True)), default=0.0) \
        if all(shapes) else float("inf")  # fmt: skip
    return {"outcome": "pruned" if error < 1e-6 else "differs", "error": error, "kept": after / before}


def zero_what_is_gone(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """A copy of model in which everything that pruned no longer has is zero, found by value."""
    zeroed, left = copy.deepcopy(model), dict(pruned.named_parameters(remove_duplicate=False))
    left |= dict(pruned.named_buffers(remove_duplicate=False))
    seen: set[int] = set()
    with torch.no_grad():
        running = [(key, buffer) for key, buffer in zeroed.named_buffers() if ".running_" in f".{key}"]
        for key, tensor in (*zeroed.named_parameters(), *running):  # other buffers (tables) may repeat their values
            small = left.get(key)
            if small is None or id(tensor) in seen or small.shape == tensor.shape:
                continue
            seen.add(id(tensor))
            blank = torch.ones_like(tensor) if key.endswith("running_var") else torch.zeros_like(tensor)
            order = tensor.flatten().argsort()
            places = order[torch.searchsorted(tensor.flatten()[order], small.flatten())]
            blank.view(-1)[places] = small.flatten()
            if key.endswith("weight.original1"):  # weight norm g · v / |v|: g is 0 already, and 0 / 0 is nothing
                blank[blank.flatten(1).abs().sum(1) == 0] = 1
            tensor.copy_(blank)
    return zeroed


def outputs_of(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [x for x in pytree.tree_leaves(model(*inputs)) if isinstance(x, Tensor) and x.is_floating_point()]


def len_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def names(arguments: argparse.Namespace) -> list[str]:
    if arguments.networks:
        return list(arguments.networks)
    if not (arguments.timm or arguments.timm_all):
        from tests.networks import NETWORKS

        return list(NETWORKS)
    import timm

    if arguments.timm_all:
        return [f"timm:{name}" for name in timm.list_models()]
    smallest = []
    for module in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=module):
            try:
                with torch.device("meta"):
                    sizes[name] = len_of(timm.create_model(name))
            except Exception:  # noqa: BLE001  some cannot be built without data; they are not counted
                continue
        small = min(sizes, key=sizes.__getitem__, default=None)
        if small is not None and sizes[small] <= arguments.max_parameters:
            smallest.append(f"timm:{small}")
    return smallest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names of tests/networks, or timm:ARCHITECTURE")
    parser.add_argument("--tool", action="append", choices=sorted(TOOLS), help="default: all that are installed")
    parser.add_argument("--timm", action="store_true")
    parser.add_argument("--timm-all", action="store_true")
    parser.add_argument("--max-parameters", type=float, default=12e6, help="leave out timm families that start larger")
    parser.add_argument("--limit-s", type=int, default=60, help="of processor time")
    arguments = parser.parse_args()
    tools = arguments.tool or sorted(TOOLS)
    cases = names(arguments)
    preload = ["lighten.prune", "timm" if cases[0].startswith("timm:") else "tests.networks"]
    preload += ["torch_pruning"] if "torch-pruning" in tools else []
    multiprocessing.set_forkserver_preload(preload)  # once, and not in every process
    counts = {tool: Counter[str]() for tool in tools}
    for name in cases:
        for tool in tools:
            result = in_a_process(tool, name, arguments.limit_s)
            counts[tool][result["outcome"]] += 1
            print(json.dumps({"tool": tool, "network": name, **result}), flush=True)
    print(f"\n| tool | {' | '.join(OUTCOMES)} |\n|---|{'---|' * len(OUTCOMES)}")
    for tool in tools:
        print(f"| {tool} | {' | '.join(str(counts[tool][outcome]) for outcome in OUTCOMES)} |")


def in_a_process(tool: str, name: str, limit_s: int) -> dict[str, Any]:
    """The outcome, within limit_s seconds of processor time: how busy the machine is elsewhere must not matter."""
    context = multiprocessing.get_context("forkserver")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, tool, name, limit_s))
    process.start()
    send.close()
    try:
        return receive.recv() if receive.poll(20 * limit_s) else {"outcome": "timeout"}
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return {"outcome": "timeout"}
        return {"outcome": "crashed", "why": f"the process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _child(send: Any, tool: str, name: str, limit_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 5))
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        send.send(run_one(tool, name))


if __name__ == "__main__":
    main()
