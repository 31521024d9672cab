"""The packed order of weights, by the operands of `mma` as the PTX ISA defines them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from jat_engine.backends.cuda.fragments import pack_layer, pack_outputs, pack_rows
from jat_engine.reference import BlockWeights

DTYPES = [torch.float32, torch.bfloat16]
HIDDEN, NEURONS, HEADS = 48, 20, 2


def words(lanes: Tensor) -> Tensor:
    """Return 16 bytes a lane, [..., 32, 16 bytes], as registers [..., 32, 4, numbers of a register]."""
    return lanes.unflatten(-1, (4, 4 // lanes.element_size()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_b_operands(dtype: torch.dtype) -> None:
    """Multiply by what the lanes hold: column g of B is row g, whatever the order of k, if A has the same."""
    per_word = 4 // dtype.itemsize
    weight = torch.randn(21, 40).to(dtype)
    packed = pack_rows(weight)
    pairs = -(-40 * dtype.itemsize // 64)
    assert packed.shape == (3, pairs, 8, 64 // dtype.itemsize)

    registers = words(packed.reshape(3, pairs, 32, -1)).float()
    x = torch.nn.functional.pad(torch.randn(40), (0, pairs * 16 * per_word - 40)).view(pairs, 16, per_word)
    out = torch.zeros(3, 8)
    for lane in range(32):
        g, t = divmod(lane, 4)
        # The kernel reads 16 adjacent bytes of a row of A, too: words 4 t to 4 t + 3 of each pair.
        out[:, g] += torch.einsum("opwn,pwn->o", registers[:, :, lane], x[:, 4 * t : 4 * t + 4])
    wanted = torch.nn.functional.pad(weight.float() @ x.reshape(-1)[:40], (0, 3)).view(3, 8)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_are_a_operands(dtype: torch.dtype) -> None:
    """Registers 2 j and 2 j + 1 of a lane are rows g and g + 8 of tile j, word t, and hold four adjacent outputs."""
    per_word = 4 // dtype.itemsize
    weight = torch.randn(40, 24).to(dtype)
    packed = pack_outputs(weight)
    halves = 24 * dtype.itemsize // 16
    assert packed.shape == (halves, 2, 32, 16 // dtype.itemsize)

    padded = torch.nn.functional.pad(weight, (0, 0, 0, 24)).view(64, halves, 4, per_word)
    registers = words(packed)
    for tile, half, lane in ((0, 0, 0), (0, 1, 13), (1, halves - 1, 6), (1, 0, 31)):
        g, t = divmod(lane, 4)
        for j, row in ((0, 0), (0, 1), (1, 0), (1, 1)):  # tile of 16 and half of its rows
            output = 32 * tile + 4 * g + 2 * j + row
            assert torch.equal(registers[half, tile, lane, 2 * j + row], padded[output, half, t])


def layer(dtype: torch.dtype) -> BlockWeights[Tensor, Tensor]:
    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns).to(dtype)

    vector = torch.randn(HIDDEN)
    return BlockWeights(
        norm1=(vector, vector),
        qkv=matrix(3 * HIDDEN, HIDDEN),
        out_proj=matrix(HIDDEN, HIDDEN),
        out_proj_bias=vector,
        norm2=(vector, vector),
        mlp_in=matrix(NEURONS, HIDDEN),
        mlp_in_bias=torch.randn(NEURONS),
        mlp_out=matrix(HIDDEN, NEURONS),
        mlp_out_bias=vector,
        window=8,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layer_is_packed_by_head_and_padded(dtype: torch.dtype) -> None:
    block = layer(dtype)
    packed = pack_layer(block, HEADS)
    head_dim, numbers = HIDDEN // HEADS, 64 // dtype.itemsize

    # The first row of v of the second head, 8 numbers of it: group 2 * head_dim / 8, row 0.
    group = packed.qkv[1, 2 * head_dim // 8]
    assert torch.equal(group[0, 0], block.qkv[2 * HIDDEN + head_dim][:numbers])
    second = pack_outputs(block.out_proj[:, head_dim:].contiguous())
    assert torch.equal(packed.out_proj[1], second.transpose(0, 1))

    assert packed.inner == 24
    assert torch.equal(packed.mlp_in_bias[20:], torch.zeros(4))
    assert not packed.mlp_in[2, :, 4:].any()
    assert torch.equal(packed.mlp_out, pack_outputs(torch.nn.functional.pad(block.mlp_out, (0, 4))))
    changed = replace(block, mlp_out=block.mlp_out + 1)
    assert not torch.equal(pack_layer(changed, HEADS).mlp_out, packed.mlp_out)
