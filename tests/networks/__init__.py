"""Small networks of every family that pruning must handle, written as users write theirs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lighten.tasks.networks import ResNet20, SeedNet
from tests.networks import branching, language, mobile, plain, products, residual, sequences, vision_transformers


@dataclass(frozen=True)
class Network:
    """make: builds it. inputs: builds example inputs in float64."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]


def _random(*shape: int) -> Callable[[], tuple[Any, ...]]:
    def inputs() -> tuple[Any, ...]:
        return (torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64),)

    return inputs


def _tokens(*lengths: int, below: int = language.VOCABULARY) -> Callable[[], tuple[Any, ...]]:
    def inputs() -> tuple[Any, ...]:
        make = torch.Generator().manual_seed(1)
        return tuple(torch.randint(0, below, (2, length), generator=make) for length in lengths)

    return inputs


def _masked_tokens() -> tuple[Tensor, Tensor]:
    return (*_tokens(7)(), torch.tensor([[1] * 7, [1] * 5 + [0] * 2]))


_IMAGE = _random(1, 3, 32, 32)
NETWORKS: dict[str, Network] = {
    "seed": Network(SeedNet, _random(1, 1, 32, 32)),
    "lenet": Network(plain.LeNet, _random(1, 1, 32, 32)),
    "alexnet": Network(plain.AlexNet, _random(1, 3, 64, 64)),
    "vgg": Network(plain.VGG, _IMAGE),
    "resnet20": Network(ResNet20, _random(1, 1, 28, 28)),
    "resnet50": Network(residual.resnet50, _IMAGE),
    "resnext": Network(residual.resnext, _IMAGE),
    "regnet": Network(residual.regnet, _IMAGE),
    "group-norm": Network(residual.group_normalized, _IMAGE),
    "instance-norm": Network(residual.instance_normalized, _IMAGE),
    "densenet": Network(branching.DenseNet, _IMAGE),
    "inception": Network(branching.Inception, _IMAGE),
    "unet": Network(branching.UNet, _IMAGE),
    "fpn": Network(branching.FPN, _IMAGE),
    "mobilenet-v1": Network(mobile.MobileNetV1, _IMAGE),
    "mobilenet-v2": Network(mobile.mobilenet_v2, _IMAGE),
    "mobilenet-v3": Network(mobile.mobilenet_v3, _IMAGE),
    "shufflenet-v2": Network(mobile.ShuffleNetV2, _IMAGE),
    "efficientnet": Network(mobile.efficientnet, _IMAGE),
    "convnext": Network(mobile.ConvNeXt, _IMAGE),
    "vit": Network(vision_transformers.ViT, _IMAGE),
    "swin": Network(vision_transformers.Swin, _IMAGE),
    "mixer": Network(vision_transformers.Mixer, _IMAGE),
    "bert": Network(language.Bert, _masked_tokens),
    "gpt2": Network(language.GPT2, _tokens(9)),
    "llama": Network(language.Llama, _tokens(9)),
    "llama-inverse": Network(partial(language.Llama, "inverse"), _tokens(9)),
    "llama-integer": Network(partial(language.Llama, "integer"), _tokens(9)),
    "encoder-decoder": Network(language.EncoderDecoder, _tokens(8, 6)),
    "lstm-tagger": Network(sequences.Tagger, _tokens(7, below=30)),
    "gru": Network(sequences.GRUClassifier, _random(2, 5, 6)),
    "crnn": Network(sequences.CRNN, _random(1, 1, 16, 32)),
    "conformer": Network(sequences.Conformer, _random(1, 20, 19)),
    "wavenet": Network(sequences.WaveNet, _random(1, 1, 24)),
    "net3d": Network(sequences.Net3d, _random(1, 1, 6, 6, 6)),
    "products": Network(products.Products, _random(2, 6, 12)),
    "linear-attention": Network(products.LinearAttention, _random(2, 6, 12)),
    "cosine-attention": Network(products.CosineAttention, _random(2, 6, 12)),
}


def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network in float64 and eval mode, with statistics and biases as after training, and its example inputs."""
    torch.manual_seed(0)
    model = NETWORKS[name].make().double().eval()
    with torch.no_grad():
        for key, tensor in (*model.named_buffers(), *model.named_parameters()):
            if key.endswith("running_mean") or (key.endswith("bias") and tensor.is_floating_point()):
                tensor.normal_(0, 0.1)
            elif key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return model, NETWORKS[name].inputs()
