"""Round a matrix to 4 or 8 bits, column by column, and correct later columns for the error of earlier ones.

The output of a layer changes by (W - Q) x. For inputs x with second moments H = E[x x^T], the best correction of the
columns that are not rounded yet follows from the Cholesky factor of H^-1 (Frantar et al., GPTQ, arXiv 2210.17323).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import _cpu
from ..checkpoint.quantized import GROUP_SIZE, MINIMUM_UNIT, Codes
from ..reference import quantize_int8

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal of second moments."""

MAX_BLOCK = 4096
"""Most columns whose second moments are kept together; errors are not carried from one block to the next. The image
encoder's last layer has 15,488 columns, whose second moments would take a gigabyte."""


class SecondMoments:
    """The mean of x x^T over inputs x of a layer, in blocks of up to `MAX_BLOCK` columns.

    Args:
        num_columns: size of an input.
    """

    def __init__(self, num_columns: int) -> None:
        self.count = 0
        self._bounds = [(first, min(first + MAX_BLOCK, num_columns)) for first in range(0, num_columns, MAX_BLOCK)]
        self.blocks = [torch.zeros(end - first, end - first) for first, end in self._bounds]

    def add(self, inputs: Tensor) -> None:
        """Add the mean over some inputs, float32 [T, num_columns]; each call counts the same, whatever T is."""
        self.count += 1
        for (first, end), moments in zip(self._bounds, self.blocks, strict=True):
            part = inputs[:, first:end]
            moments.addmm_(part.T, part, beta=(self.count - 1) / self.count, alpha=1 / (self.count * len(inputs)))


def round_plainly(weight: Tensor, dtype: str) -> Codes:
    """Round each weight of a matrix to the nearest value.

    Args:
        weight: float32 [O, I].
        dtype: "int4" or "int8".
    """
    if dtype == "int4":
        codes, scales, minima, row_scales = map(torch.from_numpy, _cpu.round_int4(_numpy(weight)))
        return Codes(codes, row_scales, scales, minima)
    return Codes(*quantize_int8(weight))


def round_with_feedback(weight: Tensor, moments: SecondMoments, dtype: str) -> Codes:
    """Round a matrix such that its outputs change little for inputs with these second moments.

    Args:
        weight: float32 [O, I].
        moments: of the inputs, in the order of the columns.
        dtype: "int4" or "int8".
    """
    rest = weight.clone()
    grid = _Grid(weight, dtype)
    first = 0
    for block in moments.blocks:
        factor = _feedback(block)
        end = first + len(block)
        _round_block(rest[:, first:end], factor, grid, first)
        first = end
    return grid.finish()


def _feedback(moments: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of damped second moments, [columns, columns]."""
    damped = moments.double()
    diagonal = damped.diagonal()
    mean = diagonal.mean()
    diagonal += DAMPING * mean if mean > 0 else 1.0
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor.float()


def _round_block(rest: Tensor, factor: Tensor, grid: _Grid, offset: int) -> None:
    """Round the columns of a block in place.

    Args:
        rest: weights [O, columns]; each column is corrected until it is rounded.
        factor: see `_feedback`.
        grid: takes the codes.
        offset: number of the block's first column in the matrix, a multiple of 32.
    """
    for first in range(0, rest.shape[1], GROUP_SIZE):
        end = min(first + GROUP_SIZE, rest.shape[1])
        grid.begin_group(rest[:, first:end])
        errors = torch.empty(len(rest), end - first)
        for column in range(first, end):
            error = (rest[:, column] - grid.round(rest[:, column], offset + column)) / factor[column, column]
            rest[:, column + 1 : end] -= error[:, None] * factor[column, column + 1 : end]
            errors[:, column - first] = error
        rest[:, end:] -= errors @ factor[first:end, end:]


class _Grid:
    """The values that a matrix's codes can take, and its codes as they are chosen.

    Args:
        weight: float32 [O, I], from which the row scales follow.
        dtype: "int4" or "int8".
    """

    def __init__(self, weight: Tensor, dtype: str) -> None:
        plain = round_plainly(weight, dtype)
        self._codes = torch.zeros_like(plain.codes)
        self._row_scales = plain.row_scales
        self._is_int4 = dtype == "int4"
        self._groups: list[tuple[Tensor, Tensor]] = []
        self._lowest, self._highest = (0, 15) if self._is_int4 else (-127, 127)
        self._step, self._offset = self._row_scales, torch.zeros_like(self._row_scales)

    def begin_group(self, weights: Tensor) -> None:
        """Fit the scales and minima of the next 32 columns, [O, up to 32], as they are now."""
        if not self._is_int4:
            return
        scales, minima = map(torch.from_numpy, _cpu.fit_int4(_numpy(weights), _numpy(self._row_scales)))
        self._groups.append((scales, minima))
        self._step = self._row_scales * scales
        self._offset = self._row_scales * (MINIMUM_UNIT * minima.float())

    def round(self, weights: Tensor, column: int) -> Tensor:
        """Choose the codes of a column, [O], and return the weights that they stand for."""
        codes = ((weights + self._offset) / self._step.clamp(min=1e-37)).round_().clamp_(self._lowest, self._highest)
        self._codes[:, column] = codes.to(self._codes.dtype)
        return codes * self._step - self._offset

    def finish(self) -> Codes:
        """Return the codes of all columns."""
        if not self._is_int4:
            return Codes(self._codes, self._row_scales)
        scales, minima = (torch.stack(parts, dim=1) for parts in zip(*self._groups, strict=True))
        return Codes(self._codes, self._row_scales, scales, minima)


def _numpy(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.numpy())
