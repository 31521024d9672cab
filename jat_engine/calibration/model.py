"""Round the matrices of a model in the order of their use, each for the inputs that the rounded ones before it give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ..checkpoint.quantized import DISCRETE_MIXER, IMAGE_FC, Codes, from_stored_order, matrix_kinds, to_stored_order
from ..checkpoint.weights import block_parameters
from ..config import JatConfig
from ..model.modeling import JatModel
from ..model.transformer import JatBlock, VisibleKeys
from ..training.dataset import scale_frames
from .rounding import SecondMoments, round_plainly, round_with_feedback

Segment = Mapping[str, Tensor]
"""Consecutive steps of an episode: observations, actions and rewards as `JatModel.forward` takes them, [1, L, ...];
frames are uint8."""


def _ignore(name: str) -> None:
    """Do nothing with the name of a matrix."""


@torch.no_grad()
def round_model(
    model: JatModel, kinds: Mapping[str, str], segments: Sequence[Segment], progress: Callable[[str], object] = _ignore
) -> dict[str, Codes]:
    """Round the matrices of a model. Its weights become those that the codes stand for.

    Args:
        model: in float32, on the CPU, in eval mode.
        kinds: kind of matrix -> "int4" or "int8", as in `Quantization`.
        segments: recorded observations; without any, each weight is rounded to the nearest value. So are matrices that
            no segment reaches, such as the image encoder's where there are no images.
        progress: called with the name of each matrix before it is rounded.

    Returns:
        The codes of each matrix by the name of its parameter.
    """
    found: dict[str, Codes] = {}
    config = cast(JatConfig, model.config)
    kind_of = matrix_kinds(config)

    def round_next(names: Sequence[str], steps: Iterable[Callable[[], object]]) -> None:
        """Round matrices that have the same inputs: those of their layers while `steps` run."""
        progress(names[0])
        layers = [cast(nn.Linear, model.get_submodule(name.removesuffix(".weight"))) for name in names]
        moments = SecondMoments(layers[0].in_features)
        hook = layers[0].register_forward_pre_hook(
            lambda _, inputs: moments.add(to_stored_order(names[0], inputs[0].flatten(0, -2)))
        )
        for step in steps:
            step()
        hook.remove()

        for name, layer in zip(names, layers, strict=True):
            weight, dtype = to_stored_order(name, layer.weight.detach()), kinds[kind_of[name]]
            codes = round_with_feedback(weight, moments, dtype) if moments.count else round_plainly(weight, dtype)
            layer.weight.copy_(from_stored_order(name, codes.weight()))
            found[name] = codes

    for name, column in ((DISCRETE_MIXER, "discrete_observations"), (IMAGE_FC, "image_observations")):
        round_next([name], [partial(_embed, model, segment) for segment in segments if column in segment])

    hidden = [_embed(model, segment) for segment in segments]  # [1, T, H] each
    for index, block in enumerate(model.transformer.h):
        run = partial(_run_block, model, cast(JatBlock, block))
        for names in block_parameters(config, index).matrices:
            round_next(names, [partial(run, x) for x in hidden])
        hidden = [run(x) for x in hidden]
    return found


_COLUMNS = (
    "continuous_observations",
    "discrete_observations",
    "image_observations",
    "continuous_actions",
    "discrete_actions",
    "rewards",
)


def _embed(model: JatModel, segment: Segment) -> Tensor:
    """Return the input of the first block, [1, 2 L, H]."""
    columns = {name: segment.get(name) for name in _COLUMNS}
    frames = columns["image_observations"]
    if frames is not None:
        columns["image_observations"] = scale_frames(frames)
    embeddings = model.embed_rl(**columns)
    return embeddings + model.transformer.wpe.weight[: embeddings.shape[1]]


def _run_block(model: JatModel, block: JatBlock, x: Tensor) -> Tensor:
    """Return the output of a block, [1, T, H]."""
    window = model.config.window_size if block.is_local else None
    out: Tensor = block(x, VisibleKeys.of(0, x.shape[1], window, None, x.device))[0]
    return out
