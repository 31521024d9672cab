"""`JatConfig`, the configuration of a model, and the constants that no configuration changes.

The numbers come from arXiv 2402.09844 and from the configuration files of its published checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .checkpoint_files import find_file, read_json, resolve, take_hub_options
from .errors import CheckpointError

MISSION_LENGTH = 64
"""Number of tokens a text observation is padded or cut to. They are the last entries of a discrete observation."""

FRAME_SHAPE = (84, 84, 4)
"""Height, width and stacked frames of an image observation (uint8, channel last)."""

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu", "swish", "tanh")
"""Values of `JatConfig.activation_function`. Published checkpoints use "gelu_new", and engines take no other."""

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Floating-point types of a `JatModel`."""

_MAX_LAYERS = 10_000
_MAX_LABELS = 100_000

PRESETS: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "max_position_embeddings": 512},
    "medium": {"hidden_size": 2048, "num_layers": 24, "num_heads": 16, "max_position_embeddings": 1024},
    "large": {"hidden_size": 2560, "num_layers": 32, "num_heads": 20, "max_position_embeddings": 2048},
}
"""The published sizes. `small` is the published checkpoint `jat-project/jat` (192.7 M parameters)."""

_SIZES = (
    "vocab_size",
    "max_position_embeddings",
    "hidden_size",
    "num_layers",
    "num_heads",
    "window_size",
    "max_continuous_size",
    "max_discrete_value",
    "image_size",
    "patch_size",
    "num_channels",
)

QUANTIZATION_FIELD = "jat_quantization"
"""Field of a `config.json` that says how the checkpoint's weights are stored (`jat_engine.checkpoint.quantized`)."""

_IGNORED = (
    QUANTIZATION_FIELD,
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "compile_config",
    "transformers_weights",
    "attribute_map",
)
"""Fields for transformers that name code (of the checkpoint, or kernels on the hub), another weight file, or other
names of fields, and the one about a checkpoint's own weights. A model has none of them."""

_NESTED = ("text_config", "text_encoder", "decoder", "generator")
"""Fields in which transformers looks for the configuration of a part; a JAT model has none."""


@strict
class JatConfig(PreTrainedConfig):
    r"""Configuration of a `JatModel`: transformer, encoders and losses. The defaults are the preset "small".

    Fields are checked when the configuration is made; a wrong one raises an error that names it.

    Args:
        vocab_size (`int`, defaults to 50257): number of tokens. Discrete actions and observations are looked up in the
            same embedding, so they must be smaller.
        max_position_embeddings (`int`, defaults to 512): longest sequence, in tokens. One time step is two tokens.
        hidden_size (`int`, defaults to 768): width of an embedding; a multiple of `num_heads`, at least 50.
        num_layers (`int`, defaults to 12): number of transformer layers.
        num_heads (`int`, defaults to 12): number of attention heads per layer.
        attention_types (`list`, defaults to `[[["global", "local"], num_layers // 2]]`): groups of layers. Each group
            lists the kinds of its layers and how often the group is repeated. A global layer sees all tokens.
        window_size (`int`, defaults to 256): number of tokens that a local layer sees, including the newest.
        intermediate_size (`int`, defaults to `4 * hidden_size`): width inside the MLPs.
        activation_function (`str`, defaults to `"gelu_new"`): activation inside the MLPs; one of `ACTIVATIONS`.
        resid_dropout (`float`, defaults to 0): dropout rate after attention and MLP, in training.
        embed_dropout (`float`, defaults to 0): dropout rate of the embeddings, in training.
        attention_dropout (`float`, defaults to 0): dropout rate of the attention weights, in training.
        layer_norm_epsilon (`float`, defaults to 1e-5): number added to variances in layer norms.
        initializer_range (`float`, defaults to 0.02): standard deviation of new weights.
        max_continuous_size (`int`, defaults to 377): width of continuous inputs. Observations, with their reward
            appended, and actions are repeated cyclically up to this width.
        max_discrete_value (`int`, defaults to 212): number of integers in a discrete observation, including the
            `MISSION_LENGTH` tokens of a mission.
        image_size (`int`, defaults to 224): height and width of the images of the text tasks, in pixels.
        patch_size (`int`, defaults to 16): height and width of an image patch, in pixels.
        num_channels (`int`, defaults to 3): channels of the images of the text tasks.
        observation_loss_coef (`float`, defaults to 0.005): weight of the observation loss. With 0, observations are
            not predicted.
        action_loss_coef (`float`, defaults to 0.995): weight of the action loss.

    Example:
        >>> config = JatConfig(hidden_size=192, num_layers=4, num_heads=6)
        >>> config.attention_layers
        ['global', 'local', 'global', 'local']
    """

    model_type = "jat"
    attribute_map = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}  # noqa: RUF012

    vocab_size: int = 50257
    max_position_embeddings: int = 512
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    attention_types: list[Any] | tuple[Any, ...] | None = None
    window_size: int = 256
    intermediate_size: int | None = None
    activation_function: str = "gelu_new"
    resid_dropout: float | int = 0.0
    embed_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True
    max_continuous_size: int = 377
    max_discrete_value: int = 212
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    observation_loss_coef: float = 0.005
    action_loss_coef: float = 0.995

    def __post_init__(self, **kwargs: Any) -> None:
        for name in _IGNORED:
            kwargs.pop(name, None)
        if self.attention_types is None and isinstance(self.num_layers, int):
            self.attention_types = [[["global", "local"], self.num_layers // 2]]
        labels = kwargs.get("num_labels", 0)  # PreTrainedConfig makes a name for each
        if isinstance(labels, bool) or not isinstance(labels, int) or not 0 <= labels <= _MAX_LABELS:
            raise ValueError(f"num_labels: expected an integer of at most {_MAX_LABELS}, got {labels!r:.40}")
        saved_layers = kwargs.pop("attention_layers", None)  # older files hold what follows from attention_types
        super().__post_init__(**kwargs)
        self.attention_layers = _expand_attention_types(self.attention_types)
        self._check_sizes()
        if saved_layers is not None and saved_layers != self.attention_layers:
            raise ValueError(
                f"attention_layers: expected {self.attention_layers}, which follows from attention_types, "
                f"got {saved_layers}; remove the field that is wrong"
            )

    def _check_sizes(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
        if self.hidden_size < 50 or self.hidden_size % self.num_heads:
            raise ValueError(
                "hidden_size: expected at least 50 and a multiple of "
                f"num_heads={self.num_heads}, got {self.hidden_size}"
            )

        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"activation_function: expected one of {', '.join(ACTIVATIONS)}, got {self.activation_function!r}"
            )
        for name in ("resid_dropout", "embed_dropout", "attention_dropout"):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a rate in [0, 1), got {getattr(self, name)!r}")
        for name in ("initializer_range", "observation_loss_coef", "action_loss_coef"):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)!r}")
        if not _is_number(self.layer_norm_epsilon) or not 0 < self.layer_norm_epsilon < 1:
            raise ValueError(f"layer_norm_epsilon: expected a number in (0, 1), got {self.layer_norm_epsilon!r}")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            given = getattr(self, name)
            for one in given if name == "eos_token_id" and isinstance(given, list) else [given]:
                if isinstance(one, bool) or not isinstance(one, int | None):
                    raise ValueError(f"{name}: expected a token's number or null, got {one!r}")
        if self.use_cache not in (None, True, False):
            raise ValueError(f"use_cache: expected true or false, got {self.use_cache!r}")
        inner = self.intermediate_size
        if inner is not None and (isinstance(inner, bool) or not isinstance(inner, int) or inner < 1):
            raise ValueError(f"intermediate_size: expected an integer >= 1 or null for 4 * hidden_size, got {inner!r}")

        if self.image_size % self.patch_size:
            raise ValueError(f"image_size: expected a multiple of patch_size={self.patch_size}, got {self.image_size}")
        if self.max_discrete_value <= MISSION_LENGTH:
            raise ValueError(
                f"max_discrete_value: expected more than the {MISSION_LENGTH} tokens of a mission, "
                f"got {self.max_discrete_value}"
            )
        if self.max_position_embeddings < 5:
            raise ValueError(
                f"max_position_embeddings: expected at least the 5 of one step, got {self.max_position_embeddings}"
            )

        if len(self.attention_layers) != self.num_layers:
            raise ValueError(
                f"attention_types: expected one attention for each of num_layers={self.num_layers}, "
                f"got {self.attention_layers}"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load the `config.json` of a checkpoint.

        Args:
            pretrained_model_name_or_path: a folder, a repository id on the hub, or "jat-mini".
            **kwargs: fields to replace, and transformers' options for finding files (`revision`, `subfolder`, ...).
                `trust_remote_code` is accepted and ignored: code in a checkpoint is never run.

        Returns:
            The configuration. With `return_unused_kwargs=True`, `(configuration, unused)`, where `unused` holds the
            `kwargs` that are not fields.

        Raises:
            CheckpointError: there is no `config.json`, it belongs to another model, or a field is wrong.
        """
        kwargs.pop("trust_remote_code", None)
        return_unused = kwargs.pop("return_unused_kwargs", False)
        hub = take_hub_options(kwargs)
        config = read_config(resolve(pretrained_model_name_or_path, hub.get("subfolder")), hub, kwargs)
        config.name_or_path = str(pretrained_model_name_or_path)
        return (config, kwargs) if return_unused else config

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> JatConfig:
        """Return the configuration of a published size.

        Args:
            name: "small", "medium" or "large".
            **overrides: fields to replace.

        Raises:
            ValueError: there is no preset of this name, or a field is wrong.

        Example:
            >>> JatConfig.from_preset("small", max_position_embeddings=256).hidden_size
            768
        """
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def max_context_tokens(self) -> int:
        """Tokens that an agent can keep at most: a step adds up to four, and each needs a position."""
        return int(self.max_position_embeddings) - 4

    @property
    def num_image_tokens(self) -> int:
        """Number of patches of an image of the text tasks. Each patch is one token."""
        return int((self.image_size // self.patch_size) ** 2)

    @property
    def discrete_feature_size(self) -> int:
        """Number of features that each integer of a discrete observation is reduced to."""
        return int(self.hidden_size // 50)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_config(source: str | os.PathLike[str], hub: dict[str, Any], options: dict[str, Any]) -> JatConfig:
    """Read and check the `config.json` of a checkpoint.

    Args:
        source: a folder, or a repository id on the hub.
        hub: options for finding files, out of `HUB_OPTIONS`.
        options: fields to replace. They are removed from this dict; other entries stay.

    Raises:
        CheckpointError: the file is missing or a field is wrong; the message names both.
    """
    path = find_file(source, "config.json", hub, required=True)
    assert path is not None  # required
    fields = read_json(path)
    if fields.get("model_type") != "jat":
        raise CheckpointError(f"{path}: model_type: expected 'jat', got {fields.get('model_type')!r}")
    if fields.get("quantization_config") is not None:
        raise CheckpointError(
            f"{path}: quantization_config: expected none, got one; load the checkpoint that was quantised"
        )
    for name in _NESTED:
        if fields.get(name) is not None:
            raise CheckpointError(f"{path}: {name}: expected none, got one; it belongs to another kind of model")
    for name in ("dtype", "torch_dtype"):
        if fields.get(name) == "auto":  # as the weights are stored
            del fields[name]
        elif fields.get(name) is not None:
            try:
                fields[name] = parse_dtype(fields[name])
            except ValueError as error:
                raise CheckpointError(f"{path}: {name}: {error}") from None
    for alias, name in JatConfig.attribute_map.items():
        if alias in fields and fields.get(name, fields[alias]) != fields[alias]:
            raise CheckpointError(f"{path}: {alias}: expected {name}={fields[name]!r}, got {fields[alias]!r}")

    known = {field.name for field in dataclasses.fields(JatConfig)} - {"dtype"}
    replaced = {name: options.pop(name) for name in sorted(known & set(options))}
    if replaced.keys() & {"num_layers", "attention_types"}:
        fields.pop("attention_layers", None)  # follows from the two
    try:
        config = JatConfig.from_dict({**fields, **replaced})
    except Exception as error:  # transformers' checks of fields raise many classes
        raise CheckpointError(f"{path}: {error}") from error
    assert isinstance(config, JatConfig)
    return config


def parse_dtype(value: Any) -> str:
    """Return the name of a floating-point type, such as "float32", of a name of it or a torch dtype.

    Raises:
        ValueError: the model cannot be computed in this type; the message begins with what is expected.
    """
    name = str(value).removeprefix("torch.") if isinstance(value, str | torch.dtype) else None
    if name not in DTYPES:
        raise ValueError(f"expected one of {', '.join(DTYPES)}, got {value!r}")
    return name


def _expand_attention_types(attention_types: Any) -> list[str]:
    """Return the kind of attention of each layer: `[[["global", "local"], 2]]` -> `["global", "local"] * 2`."""
    try:
        if sum(len(kinds) * repeats for kinds, repeats in attention_types) > _MAX_LAYERS:
            raise ValueError("too many layers")
        layers = [kind for kinds, repeats in attention_types for _ in range(repeats) for kind in kinds]
    except (TypeError, ValueError):
        raise ValueError(
            f"attention_types: expected groups like [['global', 'local'], 6], got {attention_types!r}"
        ) from None
    unknown = [kind for kind in layers if kind not in ("global", "local")]
    if unknown:
        raise ValueError(f"attention_types: expected 'global' and 'local' layers, got {unknown[0]!r}")
    return layers
