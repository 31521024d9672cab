"""Hold the pages of the KV cache on a GPU, in the dtype of the activations or quantised to float8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...config import JatConfig
from ...kernels.quantized_attention import dequantize_pages, quantize_pages
from ..base import PAGE_SIZE


class KVPages:
    """Keys and values of all layers.

    Attributes:
        pages: [layers, num_pages, 2, heads, 16, head_dim]; in float8 a head's values are [head_dim, 16].
        scales: uint8 [layers, num_pages, heads, 2, 16], with float8 pages; see `paged_attention`.
    """

    def __init__(self, config: JatConfig, num_pages: int, dtype: torch.dtype, device: torch.device) -> None:
        layers, heads = config.num_layers, config.num_heads
        shape = layers, num_pages, 2, heads, PAGE_SIZE, config.hidden_size // heads
        self.pages = torch.empty(shape, dtype=dtype, device=device)
        self.scales: Tensor | None = None
        if dtype == torch.float8_e4m3fn:
            self.pages.view(torch.uint8).zero_()  # finite
            self.scales = torch.empty((layers, num_pages, heads, 2, PAGE_SIZE), dtype=torch.uint8, device=device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Iterate over the layers' pages and scales."""
        for layer, pages in enumerate(self.pages):
            yield pages, None if self.scales is None else self.scales[layer]

    @property
    def num_pages(self) -> int:
        """Return the number of pages."""
        return self.pages.shape[1]

    @property
    def nbytes(self) -> int:
        """Return the bytes on the device."""
        return self.pages.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def write(self, page: int, values: np.ndarray) -> None:
        """Write a page of all layers. values: float32 [layers, 2, heads, 16, head_dim]."""
        tensor = torch.from_numpy(values).to(self.pages.device)
        if self.scales is None:
            self.pages[:, page] = tensor.to(self.pages.dtype)
            return
        self.pages[:, page], self.scales[:, page] = quantize_pages(tensor)

    def to_bytes(self, pages: Tensor) -> np.ndarray:
        """Return a copy of pages, all layers and their scales, uint8 [n, bytes], of page numbers int64 [n]."""
        parts = [self.pages.view(torch.uint8), *([] if self.scales is None else [self.scales])]
        pages = pages.to(self.pages.device)
        rows = [part[:, pages].movedim(1, 0).reshape(len(pages), -1) for part in parts]
        found: np.ndarray = torch.cat(rows, dim=1).cpu().numpy()
        return found

    def from_bytes(self, pages: Tensor, data: np.ndarray) -> None:
        """Write what `to_bytes` has returned."""
        parts = [self.pages.view(torch.uint8), *([] if self.scales is None else [self.scales])]
        sizes = [part[:, 0].numel() for part in parts]
        rows = torch.from_numpy(data.copy()).to(self.pages.device).split(sizes, dim=1)
        for part, values in zip(parts, rows, strict=True):
            layers, _, *shape = part.shape
            part[:, pages.to(part.device)] = values.reshape(len(pages), layers, *shape).movedim(0, 1)

    def read(self, layer: int, pages: Tensor) -> Tensor:
        """Return pages of a layer as numbers, float32 [..., 2, heads, 16, head_dim], of page numbers [...], int64."""
        found = self.pages[layer][pages]
        if self.scales is None:
            return found.float()
        return dequantize_pages(found, self.scales[layer][pages])


def page_bytes(config: JatConfig, dtype: torch.dtype) -> int:
    """Return the bytes of a page, all layers, scales included."""
    scales = config.num_heads if dtype == torch.float8_e4m3fn else 0
    return config.num_layers * 2 * PAGE_SIZE * (config.hidden_size * dtype.itemsize + scales)


def fill(cache: KVPages, pages: Sequence[int] | np.ndarray) -> None:
    """Write random keys and values."""
    random = np.random.default_rng(0)
    layers, _, *shape = cache.pages.shape
    for page in pages:
        cache.write(int(page), random.standard_normal((layers, *shape), np.float32) * np.float32(0.5))
