"""Encode images and integers in plain torch: what the kernels' results are compared with, and replaced by if wrong."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...kernels.discrete_encoder import encode_discrete_reference
from ...kernels.image_encoder import encode_images_reference
from ..base import Group
from .weights import CudaWeights


@torch.no_grad()
def encode(weights: CudaWeights, group: Group) -> Tensor:
    """Return the embeddings of a group's images or integers, float32 [N, H] on the device, computed in float64."""
    observations, device = group.observations, weights.device
    values = np.stack(list(observations.values))
    if observations.modality == "image":
        parameters = weights.image_parameters()
        return encode_images_reference(torch.from_numpy(values).to(device), parameters, torch.float64).float()

    if group.missions is not None:
        values = np.concatenate((values, np.stack(list(group.missions))), axis=1)
    return encode_discrete_reference(
        torch.from_numpy(values).to(device),
        torch.tensor(np.asarray(observations.rewards), dtype=torch.float64, device=device),
        weights.discrete_table.double(),
        *weights.discrete_mixer.tensors,
        weights.discrete_bias.double(),
    ).float()
