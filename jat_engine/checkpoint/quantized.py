"""Matrices in 4 or 8 bits: what their codes stand for, and how a checkpoint holds them.

A quantised checkpoint has the field `jat_quantization` in its `config.json`, and for each quantised matrix [O, I]:

    int4  <name>.codes       uint8 [O, ceil(I / 2)]   two codes a byte, the first in the lower 4 bits
          <name>.scales      uint8 [O, ceil(I / 32)]  s of each group of 32 columns
          <name>.minima      uint8 [O, ceil(I / 32)]  m of each group
          <name>.row_scales  float32 [O]
          weight = row_scale * (s * code - 16 * m)
    int8  <name>.codes       int8 [O, I], at least -127
          <name>.row_scales  float32 [O]
          weight = row_scale * code

Columns have the order of the parameter, except those of the image encoder's last layer: they are (pixel, channel), the
order of the activations on a CPU, whereas the parameter has (channel, pixel).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checkpoint_files import find_file, read_json
from ..config import QUANTIZATION_FIELD, JatConfig
from ..dtypes import QUANTIZED_DTYPES
from ..errors import CheckpointError

VERSION = 1
"""Version of the layout that this module describes."""

GROUP_SIZE = 32
"""Columns of an int4 matrix that share a scale and a minimum."""

MINIMUM_UNIT = 16
"""Row scales that a unit of an int4 group's minimum stands for."""

LARGEST_SAFE_SCALE = torch.finfo(torch.float32).max / (255 * MINIMUM_UNIT)
"""Up to this magnitude of a row scale, weights are finite whatever the codes, scales and minima are."""

STORED_PARTS = (".codes", ".scales", ".minima", ".row_scales")
"""Ends of the names of tensors that hold a quantised matrix."""

KINDS = ("qkv", "out_proj", "mlp_in", "mlp_out", "image_encoder", "discrete_encoder")
"""Kinds of matrices that int4 and int8 quantise: four of each block, and the last layers of two encoders."""

INT8_IN_INT4 = frozenset({"discrete_encoder"})
"""Kinds of matrices that stay int8 with dtype "int4": 1 % of the weights or less, and the largest error of BabyAI's
predictions by far. `docs/quantization.md` has the error of each kind."""

_BLOCK_SUFFIXES = {
    "qkv": ("attn.attention.q_proj.weight", "attn.attention.k_proj.weight", "attn.attention.v_proj.weight"),
    "out_proj": ("attn.attention.out_proj.weight",),
    "mlp_in": ("mlp.c_fc.weight",),
    "mlp_out": ("mlp.c_proj.weight",),
}

IMAGE_FC = "image_encoder.module.fc.weight"
DISCRETE_MIXER = "multi_discrete_encoder.4.weight"
_IMAGE_CHANNELS = 128


def matrix_kinds(config: JatConfig) -> dict[str, str]:
    """Return the kind of each matrix that int4 and int8 quantise, by the name of its parameter."""
    kinds = {DISCRETE_MIXER: "discrete_encoder", IMAGE_FC: "image_encoder"}
    for index in range(config.num_layers):
        for kind, suffixes in _BLOCK_SUFFIXES.items():
            kinds |= dict.fromkeys((f"transformer.h.{index}.{suffix}" for suffix in suffixes), kind)
    return kinds


def dtypes_of(dtype: str) -> dict[str, str]:
    """Return how an engine's dtype stores each kind of matrix."""
    return {kind: "int8" if dtype == "int4" and kind in INT8_IN_INT4 else dtype for kind in KINDS}


def to_stored_order(name: str, weight: Tensor) -> Tensor:
    """Return a matrix with its columns in the order in which codes are stored."""
    if name != IMAGE_FC:
        return weight
    by_channel: Tensor = weight.unflatten(1, (_IMAGE_CHANNELS, -1))
    return by_channel.transpose(1, 2).flatten(1)


def from_stored_order(name: str, weight: Tensor) -> Tensor:
    """Return a matrix with its columns in the order of the parameter; the inverse of `to_stored_order`."""
    if name != IMAGE_FC:
        return weight
    by_pixel: Tensor = weight.unflatten(1, (-1, _IMAGE_CHANNELS))
    return by_pixel.transpose(1, 2).flatten(1)


@dataclass(frozen=True)
class Codes:
    """A quantised matrix [O, I].

    Attributes:
        codes: [O, I], one a byte: uint8 from 0 to 15, or int8.
        row_scales: float32 [O].
        scales, minima: of int4 groups, uint8 [O, ceil(I / 32)]; None for int8.
    """

    codes: Tensor
    row_scales: Tensor
    scales: Tensor | None = None
    minima: Tensor | None = None

    @property
    def dtype(self) -> str:
        """Return "int4" or "int8"."""
        return "int8" if self.scales is None else "int4"

    def weight(self) -> Tensor:
        """Return the weights that the codes stand for, float32 [O, I]."""
        whole = self.codes.float()
        if self.scales is not None and self.minima is not None:
            columns = whole.shape[1]
            scales, minima = (
                x.float().repeat_interleave(GROUP_SIZE, 1)[:, :columns] for x in (self.scales, self.minima)
            )
            whole = whole * scales - MINIMUM_UNIT * minima  # exact: integers below 2^24
        return whole * self.row_scales[:, None]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint that hold the matrix of this name."""
        if self.scales is None or self.minima is None:
            return {f"{name}.codes": self.codes, f"{name}.row_scales": self.row_scales}
        return {
            f"{name}.codes": _pack(self.codes),
            f"{name}.scales": self.scales,
            f"{name}.minima": self.minima,
            f"{name}.row_scales": self.row_scales,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], num_columns: int) -> Codes:
        """Return the matrix that tensors of a checkpoint hold.

        Args:
            tensors: by the last part of their names: "codes", "row_scales", and for int4 "scales" and "minima".
            num_columns: I.
        """
        if "scales" not in tensors:
            return cls(tensors["codes"], tensors["row_scales"])
        codes = _unpack(tensors["codes"], num_columns)
        return cls(codes, tensors["row_scales"], tensors["scales"], tensors["minima"])


def _pack(codes: Tensor) -> Tensor:
    """Return codes [O, I] two a byte, [O, ceil(I / 2)]."""
    padded = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2))
    return padded[:, ::2] | padded[:, 1::2] << 4


def _unpack(packed: Tensor, num_columns: int) -> Tensor:
    """Return codes two a byte as [O, num_columns]; the inverse of `_pack`."""
    return torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)[:, :num_columns].contiguous()


def stored_parts(name: str, shape: tuple[int, ...], dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the tensors of a checkpoint that hold a quantised matrix: name -> shape and safetensors' type."""
    rows, columns = shape
    if dtype == "int8":
        return {f"{name}.codes": (shape, "I8"), f"{name}.row_scales": ((rows,), "F32")}
    groups = -(-columns // GROUP_SIZE)
    return {
        f"{name}.codes": ((rows, -(-columns // 2)), "U8"),
        f"{name}.scales": ((rows, groups), "U8"),
        f"{name}.minima": ((rows, groups), "U8"),
        f"{name}.row_scales": ((rows,), "F32"),
    }


@dataclass(frozen=True)
class Quantization:
    """The field `jat_quantization` of a `config.json`.

    Attributes:
        dtype: "int4" or "int8", which loads the codes as they are.
        kinds: kind of matrix -> "int4" or "int8".
        calibration: facts about the data that the rounding was fitted to, for people; empty after plain rounding.
    """

    dtype: str
    kinds: Mapping[str, str]
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, bits_per_weight: float) -> dict[str, Any]:
        """Return the field's value.

        Args:
            bits_per_weight: of the quantised matrices, scales included; for people.
        """
        return {
            "version": VERSION,
            "dtype": self.dtype,
            "group_size": GROUP_SIZE,
            "matrices": dict(self.kinds),
            "bits_per_weight": round(bits_per_weight, 3),
            "calibration": dict(self.calibration),
        }

    @classmethod
    def parse(cls, found: Any) -> Quantization:
        """Check the field's value.

        Raises:
            CheckpointError: it is not one that this release can read; the message names the part.
        """
        if not isinstance(found, dict):
            raise CheckpointError(f"expected an object, got {found!r:.80}")
        version = found.get("version")
        if version != VERSION or isinstance(version, bool):
            raise CheckpointError(
                f"version: expected {VERSION}, got {version!r:.40}; load it with the release that wrote it, or "
                "quantise the checkpoint again"
            )
        dtype, kinds, calibration = found.get("dtype"), found.get("matrices"), found.get("calibration")
        if dtype not in QUANTIZED_DTYPES:
            raise CheckpointError(f"dtype: expected one of {', '.join(QUANTIZED_DTYPES)}, got {dtype!r:.40}")
        if found.get("group_size") != GROUP_SIZE:
            raise CheckpointError(f"group_size: expected {GROUP_SIZE}, got {found.get('group_size')!r:.40}")
        if not isinstance(kinds, dict) or set(kinds) != set(KINDS):
            raise CheckpointError(f"matrices: expected an object with {', '.join(KINDS)}, got {kinds!r:.200}")
        for kind, stored in kinds.items():
            if stored not in QUANTIZED_DTYPES:
                raise CheckpointError(
                    f"matrices: {kind}: expected one of {', '.join(QUANTIZED_DTYPES)}, got {stored!r}"
                )
        return cls(dtype, kinds, calibration if isinstance(calibration, dict) else {})


def read_quantization(source: str | os.PathLike[str], hub: dict[str, Any]) -> Quantization | None:
    """Read how the matrices of a checkpoint are quantised; None if they are not, or there is no `config.json`.

    Args:
        source: a folder, or a repository id on the hub.
        hub: options for finding files, out of `HUB_OPTIONS`.

    Raises:
        CheckpointError: the field is not one that this release can read; the message names file and part.
    """
    path = find_file(source, "config.json", hub)
    found = None if path is None else read_json(path).get(QUANTIZATION_FIELD)
    if found is None:
        return None
    try:
        return Quantization.parse(found)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {QUANTIZATION_FIELD}: {error}") from None
