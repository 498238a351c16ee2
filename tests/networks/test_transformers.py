"""The classes of transformers themselves, tiny and random: what users bring."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lighten.graph.capture import capture
from lighten.graph.count import count_parameters
from lighten.prune import prune

transformers = pytest.importorskip(
    "transformers", reason="transformers is an extra: pip install 'lighten[transformers]'"
)

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CAUSAL = {**SMALL, "max_position_embeddings": 32, "num_key_value_heads": 2, "use_cache": False}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "use_cache": False,
        "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**CAUSAL)),
    "t5-encoder": lambda: transformers.T5EncoderModel(transformers.T5Config(**T5)),
}


class First(nn.Module):
    """The first output alone, for the others are None or caches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)[0]


@pytest.mark.parametrize("name", MODELS)
def test_channels_and_heads_go(name: str) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 50, (2, 9))
    captured = capture(First(MODELS[name]()).eval(), (tokens,))
    for granularity in ("channel", "head"):
        # prune itself holds the result against the model with the same units zeroed.
        pruned = prune(copy.deepcopy(captured), 0.5, scope="layer", granularity=granularity, example_inputs=(tokens,))
        assert count_parameters(pruned) < 0.9 * count_parameters(captured)
        pruned(tokens).square().sum().backward()
