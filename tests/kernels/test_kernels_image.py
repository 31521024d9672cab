"""The image encoder's kernels against the model's module with the published parameters."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from helpers.kernel_cases import DEVICE, HALVES, HAS_GPU, INT8, WEIGHT_DTYPES, Random, addresses, agrees, poisoned

from jat_engine.kernels import image_encoder
from jat_engine.kernels.image_weights import MAX_CHUNK
from jat_engine.kernels.launch import compute_dtype
from jat_engine.model.modules import ImageEncoder

pytestmark = [pytest.mark.gpu] if HAS_GPU else []

HIDDEN = 64


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(HIDDEN).to(DEVICE).requires_grad_(False)


def frames(count: int) -> torch.Tensor:
    """Return random frames, with one of a single value (its variance is 0) and all-black and all-white parts."""
    out = Random().integers(0, 256, count, 84, 84, 4).to(torch.uint8)
    out[0, :40] = 0
    out[0, 40:60] = 255
    return out


def test_reference_is_the_module(encoder: ImageEncoder) -> None:
    batch = frames(2)
    state = dict(encoder.state_dict())
    pixels = ((batch.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    ours = image_encoder.encode_images_reference(batch, state, torch.float32)
    torch.testing.assert_close(ours, encoder(pixels), rtol=1e-5, atol=1e-5)


def check_frames(encoder: ImageEncoder, dtype: torch.dtype, count: int, used: list[int]) -> None:
    """Encode `used` of so many frames, the others being padding, with poisoned scratch memory."""
    state = dict(encoder.state_dict())
    weights = image_encoder.pack_image_weights(state, dtype, compute_dtype(dtype))
    batch, rows = frames(count), poisoned(count, HIDDEN)
    scratch = image_encoder.make_image_scratch(count, weights)
    for tensor in (*scratch.activations, scratch.partial):
        tensor.fill_(torch.nan)
    targets = addresses(*[rows[i] if i in used else None for i in range(count)])
    image_encoder.encode_images(batch, targets, weights, scratch)
    assert rows[[i for i in range(count) if i not in used]].isnan().all()

    if weights.scale is not None:
        unpacked = weights.fc.double() * weights.scale.double()[:, None]
        state["fc.weight"] = unpacked.view(HIDDEN, 121, 128).transpose(1, 2).flatten(1)

    def reference(fc: torch.Tensor) -> torch.Tensor:
        return image_encoder.encode_images_reference(batch[used], {**state, "fc.weight": fc}, fc.dtype)

    agrees(rows[used], reference, state["fc.weight"], dtype=dtype)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_frames(encoder: ImageEncoder, dtype: torch.dtype) -> None:
    """Three frames, with padding in the middle and at the end."""
    check_frames(encoder, dtype, 5, [0, 2, 3])


@pytest.mark.parametrize("dtype", [*HALVES, INT8])
def test_tiles_for_more_frames(encoder: ImageEncoder, dtype: torch.dtype) -> None:
    check_frames(encoder, dtype, 40, [0, 17, 39])


@pytest.mark.parametrize("dtype", HALVES[:1])
def test_several_chunks(encoder: ImageEncoder, dtype: torch.dtype) -> None:
    check_frames(encoder, dtype, MAX_CHUNK + 4, [1, 130, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 3])


def test_scratch_memory_does_not_grow_with_the_batch(encoder: ImageEncoder) -> None:
    weights = image_encoder.pack_image_weights(dict(encoder.state_dict()), torch.float32, torch.float32)
    many = image_encoder.make_image_scratch(1024, weights)
    assert many.num_bytes == image_encoder.make_image_scratch(MAX_CHUNK, weights).num_bytes
    few = image_encoder.make_image_scratch(2, weights)
    targets = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="room for 3 frames, got 2"):
        image_encoder.encode_images(frames(3), targets, weights, few)


def test_frames_of_one_value(encoder: ImageEncoder) -> None:
    """A black screen: the first stage's InstanceNorm sees variance at the borders only."""
    weights = image_encoder.pack_image_weights(dict(encoder.state_dict()), torch.float32, torch.float32)
    batch, rows = torch.zeros(1, 84, 84, 4, dtype=torch.uint8, device=DEVICE), poisoned(1, HIDDEN)
    image_encoder.encode_images(batch, addresses(rows[0]), weights, image_encoder.make_image_scratch(1, weights))
    state = dict(encoder.state_dict())
    agrees(
        rows, lambda fc: image_encoder.encode_images_reference(batch, state, fc.dtype), weights.fc, dtype=torch.float32
    )


def test_packing_drops_only_what_cancels(encoder: ImageEncoder) -> None:
    """Convolution biases do not change the result; every other parameter is packed."""
    state = dict(encoder.state_dict())
    batch = frames(1)
    moved = {name: p + 3 if name.startswith("conv") and name.endswith("bias") else p for name, p in state.items()}
    exact = image_encoder.encode_images_reference(batch, state)
    torch.testing.assert_close(image_encoder.encode_images_reference(batch, moved), exact, rtol=1e-9, atol=1e-9)
    packed = image_encoder.pack_image_weights(state, torch.float32, torch.float32)
    assert packed.num_bytes == sum(
        p.nbytes for name, p in state.items() if not (name.startswith("conv") and "bias" in name)
    )
