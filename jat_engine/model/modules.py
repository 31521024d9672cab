"""Encoders and decoders of `JatModel`: observations to embeddings, and hidden states to predicted observations.

Parameter names are those of the published checkpoints, so submodule names ("1", "4", `module`, `fc`) are fixed.

Letters in shapes: B batch, L time steps, H hidden size, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import JatConfig

_GRID = 11  # an 84 x 84 frame after three convolutions of stride 2
_IMAGE_FEATURES = 128 * _GRID * _GRID


def cyclic_expand(x: Tensor, size: int) -> Tensor:
    """Repeat the last dimension of `x` [..., X] cyclically to `size`: `out[..., i] = x[..., i % X]`.

    Raises:
        ValueError: X > `size`.
    """
    if x.shape[-1] > size:
        raise ValueError(f"continuous size: expected at most {size} features, got {x.shape[-1]}")
    return x[..., torch.arange(size, device=x.device) % x.shape[-1]]


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: scale each channel of x [B, C, height, width] by a gate, computed from all means."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(num_channels, num_channels // 8, bias=False),
            nn.ReLU(),
            nn.Linear(num_channels // 8, num_channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc(x.mean(dim=(2, 3)))
        return x * gate[:, :, None, None]


class ImageEncoder(nn.Module):
    """Encoder of frames: [B, 4, 84, 84] -> embeddings [B, H]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 32, kernel_size=3, stride=2, padding=1)
        self.norm1 = nn.InstanceNorm2d(32)
        self.att1 = SqueezeExcite(32)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1)
        self.norm2 = nn.InstanceNorm2d(64)
        self.att2 = SqueezeExcite(64)
        self.conv3 = nn.Conv2d(64, 128, kernel_size=3, stride=2, padding=1)
        self.norm3 = nn.InstanceNorm2d(128)
        self.att3 = SqueezeExcite(128)
        self.fc = nn.Linear(_IMAGE_FEATURES, hidden_size)

    def features(self, x: Tensor) -> Tensor:
        """Return the inputs of the last layer, [B, 128 * 11 * 11], for frames [B, 4, 84, 84]."""
        x = self.att1(F.leaky_relu(self.norm1(self.conv1(x))))  # [B, 32, 42, 42]
        x = self.att2(F.leaky_relu(self.norm2(self.conv2(x))))  # [B, 64, 21, 21]
        x = self.att3(F.leaky_relu(self.norm3(self.conv3(x))))  # [B, 128, 11, 11]
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.features(x))
        return out


class ImageDecoder(nn.Module):
    """Decoder of frames: hidden states [B, H] -> frames [B, 4, 84, 84] in (-1, 1). Only the training loss uses it."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(hidden_size, _IMAGE_FEATURES)
        self.deconv1 = nn.ConvTranspose2d(128, 64, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.norm1 = nn.InstanceNorm2d(64)
        self.att1 = SqueezeExcite(64)
        self.deconv2 = nn.ConvTranspose2d(64, 32, kernel_size=3, stride=2, padding=1, output_padding=1)
        self.norm2 = nn.InstanceNorm2d(32)
        self.att2 = SqueezeExcite(32)
        self.deconv3 = nn.ConvTranspose2d(32, 4, kernel_size=3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x).unflatten(1, (128, _GRID, _GRID))
        x = F.leaky_relu(self.norm1(self.deconv1(x)))  # [B, 64, 22, 22]
        x = self.att1(F.interpolate(x, size=(21, 21)))
        x = self.att2(F.leaky_relu(self.norm2(self.deconv2(x))))  # [B, 32, 42, 42]
        return torch.tanh(self.deconv3(x))


class PerStep(nn.Module):
    """Wrapper that applies a module for [B, ...] to sequences [B, L, ...]."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x.flatten(0, 1))
        return out.reshape(*x.shape[:2], *out.shape[1:])


class DiscreteEncoder(nn.Module):
    """Encoder of integers: [B, L, X] -> features [B, L, H - 1]. `JatModel` appends the reward as the last feature."""

    def __init__(self, config: JatConfig) -> None:
        super().__init__()
        features = config.discrete_feature_size
        self.add_module("1", nn.Linear(config.hidden_size, features))
        self.add_module("4", nn.Linear(config.max_discrete_value * features, config.hidden_size - 1))

    def forward(self, integers: Tensor, embedding: nn.Embedding) -> Tensor:
        reduce, mix = self.get_submodule("1"), self.get_submodule("4")
        if integers.numel() <= embedding.num_embeddings:
            features = F.relu(reduce(embedding(integers)))  # [B, L, X, F]
        else:  # cheaper: reduce every row of the embedding once, then look up small rows
            features = F.embedding(integers, F.relu(reduce(embedding.weight)))
        out: Tensor = mix(features.flatten(2))
        return out


def discrete_decoder(config: JatConfig) -> nn.Sequential:
    """Return the published decoder of discrete observations. Checkpoints hold its weights, but nothing uses it."""
    features = config.discrete_feature_size
    return nn.Sequential(
        nn.Linear(config.hidden_size, config.max_discrete_value * features),
        nn.Unflatten(dim=2, unflattened_size=(config.max_discrete_value, features)),
        nn.ReLU(),
        nn.Linear(features, config.hidden_size),
        nn.ReLU(),
        nn.Linear(config.hidden_size, 8, bias=False),
    )


class PatchEncoder(nn.Module):
    """Encoder of images: [B, C, S, S] -> patch embeddings [B, (S / patch)^2, H], without class token or positions."""

    def __init__(self, config: JatConfig) -> None:
        super().__init__()
        self.expected = (config.num_channels, config.image_size, config.image_size)
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        if tuple(pixel_values.shape[1:]) != self.expected:
            raise ValueError(
                f"pixel_values: expected shape [batch, {', '.join(map(str, self.expected))}], "
                f"got {list(pixel_values.shape)}"
            )
        out: Tensor = self.projection(pixel_values)
        return out.flatten(2).transpose(1, 2)
