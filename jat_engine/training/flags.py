"""Tables of flags: those of the published training, and those of transformers' Trainer that have no effect here."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import field, fields, make_dataclass
from importlib import util
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from ..keywords import did_you_mean

_FALSE = ("false", "no", "0", "f", "n")
_TRUE = ("true", "yes", "1", "t", "y")

PUBLISHED: dict[str, tuple[tuple[str, ...], str]] = {
    "adafactor": (_FALSE, "write --optim adafactor"),
    "dispatch_batches": (_FALSE, "every process makes its own batches"),
    "evaluation_strategy": ((), "write --eval_strategy"),
    "fp16_backend": (("auto",), "mixed precision is PyTorch's; leave it out"),
    "fp16_opt_level": (("o1",), "mixed precision is PyTorch's, without apex; leave it out"),
    "fsdp_min_num_params": (("0",), "write it into --fsdp_config"),
    "fsdp_transformer_layer_cls_to_wrap": ((), "write it into --fsdp_config"),
    "group_by_length": (_FALSE, "write --train_sampling_strategy group_by_length"),
    "half_precision_backend": (("auto",), "mixed precision is PyTorch's; leave it out"),
    "include_inputs_for_metrics": (_FALSE, "no metrics are computed besides losses"),
    "include_tokens_per_second": (_FALSE, "tokens are not counted; logs have samples per second"),
    "jit_mode_eval": (_FALSE, "evaluation runs without TorchScript"),
    "logging_dir": ((), "set the environment variable TENSORBOARD_LOGGING_DIR"),
    "mp_parameters": (("",), "SageMaker's model parallelism is not supported"),
    "no_cuda": (_FALSE, "write --use_cpu"),
    "overwrite_output_dir": ((*_FALSE, *_TRUE), ""),  # a folder with a training is refused in any case
    "past_index": (("-1",), "outputs are not fed to the next batch"),
    "per_gpu_eval_batch_size": ((), "write --per_device_eval_batch_size"),
    "per_gpu_train_batch_size": ((), "write --per_device_train_batch_size"),
    "preprocess_num_proc": (("1",), "data is prepared in one process"),
    "push_to_hub_model_id": ((), "write --hub_model_id"),
    "push_to_hub_organization": ((), "write --hub_model_id OWNER/NAME"),
    "push_to_hub_token": ((), "write --hub_token"),
    "ray_scope": (("last",), "there is no search of hyperparameters"),
    "save_safetensors": (_TRUE, "checkpoints are safetensors files, the only ones that are read"),
    "split_batches": (_FALSE, "every process has batches of --per_device_train_batch_size"),
    "torchdynamo": ((), "write --torch_compile_backend"),
    "tpu_metrics_debug": (_FALSE, "TPUs are not supported"),
    "tpu_num_cores": ((), "TPUs are not supported"),
    "use_ipex": (_FALSE, "Intel's extension is not used"),
    "use_legacy_prediction_loop": (_FALSE, "there is one loop of evaluation"),
    "use_mps_device": (_FALSE, "an Apple GPU is used where there is one"),
    "warmup_ratio": (("0", "0.0"), "write --warmup_steps; a number below 1 is a share of all steps"),
}
"""Flag of the published scripts that transformers no longer has -> values that hold here in any case, and what to do
for another value."""

NO_EFFECT = {
    "auto_find_batch_size": "batches are drawn before the first one is tried; lower --per_device_train_batch_size",
    "average_tokens_across_devices": "the loss is a mean over steps, not a sum over tokens",
    "batch_eval_metrics": "evaluation computes losses only",
    "bf16_full_eval": "evaluation has the training's precision; write --bf16",
    "dataloader_drop_last": "batches of training are full, and evaluation takes every segment",
    "dataloader_in_order": "a resumed training needs batches in their order",
    "dataloader_multiprocessing_context": "workers are started in PyTorch's own way",
    "ddp_static_graph": "batches of different tasks use different parameters",
    "do_predict": "there is nothing to predict; evaluate with jat-engine eval",
    "eval_accumulation_steps": "evaluation computes losses only",
    "eval_do_concat_batches": "evaluation computes losses only",
    "eval_use_gather_object": "evaluation computes losses only",
    "fp16_full_eval": "evaluation has the training's precision; write --fp16",
    "include_for_metrics": "evaluation computes losses only",
    "include_num_input_tokens_seen": "tokens are not counted",
    "label_names": "the model computes its loss itself",
    "label_smoothing_factor": "the model computes its loss itself, without smoothing",
    "length_column_name": "lengths are those of the segments",
    "liger_kernel_config": "Liger has no kernels for this model",
    "neftune_noise_alpha": "noise would reach tokens only, not observations that are numbers or images",
    "parallelism_config": "the model is not split over GPUs; write --fsdp",
    "prediction_loss_only": "evaluation computes losses only, in any case",
    "use_cache": "training has no cache of keys and values",
    "use_liger_kernel": "Liger has no kernels for this model",
}
"""Flag of transformers' Trainer that does nothing here, or breaks the training -> the reason."""

HELP: dict[str, dict[str, tuple[str, str]]] = {
    "length and learning rate, by transformers' Trainer": {
        "output_dir": ("FOLDER", "folder for the model, checkpoints, curves.png and logs"),
        "max_steps": ("N", "steps to train; -1 for --num_train_epochs"),
        "num_train_epochs": ("X", "passes over the data"),
        "per_device_train_batch_size": ("N", "segments per batch and process; see also --batch_sizes"),
        "gradient_accumulation_steps": ("N", "batches per step"),
        "learning_rate": ("X", "highest learning rate"),
        "lr_scheduler_type": ("NAME", "linear, cosine, constant, constant_with_warmup, ..."),
        "warmup_steps": ("N", "steps until the highest learning rate; below 1 a share of all steps"),
        "weight_decay": ("X", "weight decay of AdamW"),
        "max_grad_norm": ("X", "gradients are scaled down to this norm"),
        "train_sampling_strategy": ("NAME", "random, or group_by_length: batches of segments of similar length"),
        "seed": ("N", "seed of new weights and of the order of the data"),
    },
    "device": {
        "use_cpu": ("BOOL", "train on the CPU even if there is a GPU; without a GPU it is not needed"),
        "bf16": ("BOOL", "compute in bfloat16 where that is safe; weights stay float32"),
        "dataloader_num_workers": ("N", "processes that make batches; 0 makes them in the training process"),
    },
    "evaluation": {
        "eval_strategy": ("NAME", "no, steps or epoch: when to compute losses on the test split, and to play"),
        "eval_steps": ("N", "steps between evaluations; below 1 a share of all steps; by default a tenth of them"),
        "eval_on_start": ("BOOL", "also evaluate before the first step"),
        "per_device_eval_batch_size": ("N", "segments per batch"),
        "load_best_model_at_end": (
            "BOOL",
            "keep the model with the best --metric_for_best_model, not the last; by default with --eval_episodes",
        ),
        "metric_for_best_model": (
            "NAME",
            "loss, return, TASK_loss or TASK_return; by default return with --eval_episodes, else loss",
        ),
    },
    "checkpoints and logs": {
        "logging_steps": ("N", "steps between lines of the log; below 1 a share of all steps"),
        "report_to": ("NAME", "tensorboard, wandb, ..., or none; by default tensorboard if it is installed"),
        "save_strategy": ("NAME", "no, steps, epoch or best"),
        "save_steps": ("N", "steps between checkpoints; if the best model is kept, by default as --eval_steps"),
        "save_total_limit": ("N", "keep this number of checkpoints; by default all"),
        "resume_from_checkpoint": ("NAME", "latest, or the folder of a checkpoint"),
        "disable_tqdm": ("BOOL", "no progress bars"),
    },
}
"""Section of `jat-engine train --help` -> flag of transformers' Trainer -> metavar and help."""

Range = tuple[str, Callable[[Any], bool]]

_POSITIVE: Range = ("a number above 0", lambda value: value > 0)
_AT_LEAST_0: Range = ("a finite number of at least 0", lambda value: value >= 0)
_AT_LEAST_1: Range = ("at least 1", lambda value: value >= 1)
_BELOW_1: Range = ("a number of at least 0, below 1", lambda value: 0 <= value < 1)
_SEED: Range = ("a whole number from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32)

_RANGES: dict[str, Range] = {
    "seed": _SEED,
    "data_seed": _SEED,
    "max_steps": ("at least 1, or -1 for whole epochs", lambda value: value >= 1 or value == -1),
    "learning_rate": ("a number from 0 to 1e30", lambda value: 0 <= value <= 1e30),  # float32 has no larger steps
    "adam_beta1": _BELOW_1,
    "adam_beta2": _BELOW_1,
    **dict.fromkeys(("num_train_epochs", "logging_steps", "eval_steps", "save_steps", "adam_epsilon"), _POSITIVE),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "warmup_steps", "eval_delay", "eval_episodes"), _AT_LEAST_0),
    **dict.fromkeys(("dataloader_num_workers", "dataloader_prefetch_factor"), _AT_LEAST_0),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), _AT_LEAST_1),
    **dict.fromkeys(("gradient_accumulation_steps", "save_total_limit", "torch_empty_cache_steps"), _AT_LEAST_1),
}

_EVALUATES = ("--eval_strategy steps or epoch", lambda given: given.eval_strategy != "no")
_PUSHES = ("--push_to_hub", lambda given: given.push_to_hub)
_CHECKPOINTS = ("--gradient_checkpointing", lambda given: _is_set(given, "gradient_checkpointing"))
_TRACKIO = ("--report_to trackio", lambda given: "trackio" in reports(given.report_to))

_NEEDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("do_eval", "eval_steps", "eval_delay", "eval_on_start", "load_best_model_at_end"), _EVALUATES),
    **dict.fromkeys(("metric_for_best_model", "greater_is_better"), _EVALUATES),
    **dict.fromkeys(
        ("hub_model_id", "hub_token", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"), _PUSHES
    ),
    **dict.fromkeys(("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"), _CHECKPOINTS),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "project"), _TRACKIO),
    "fsdp_config": ("--fsdp", lambda given: bool(given.fsdp)),
}
"""Flag that has an effect only with another one -> the other, and whether it is given."""

_OBJECTS = (
    *("accelerator_config", "activation_checkpointing_kwargs", "deepspeed", "fsdp_config"),
    *("gradient_checkpointing_kwargs", "lr_scheduler_kwargs"),
)
"""Flags that take a JSON object, or a file with one."""

_REPORTS = {
    "azure_ml": ("azureml", "azureml-core"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub mlflow"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "kubeflow": ("transformers", "transformers"),  # posts to a server, without a package of its own
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}
"""Value of --report_to -> module that it imports, and what pip installs for it."""


PublishedArguments = make_dataclass(
    "PublishedArguments",
    [
        # A flag without a value stands for true, as for every flag that is true or false. Not shown by --help.
        (name, str | None, field(default=None, metadata={"nargs": "?", "const": "true", "help": argparse.SUPPRESS}))
        for name in PUBLISHED
        if name not in {known.name for known in fields(TrainingArguments)}
    ],
)
"""Flags of the published scripts that the installed transformers does not have."""


def check_published(given: Any) -> None:
    """Check that flags of the published scripts have values that hold here in any case.

    Args:
        given: a `PublishedArguments`.

    Raises:
        ValueError: one of them has another value.
    """
    for known in fields(given):
        value = getattr(given, known.name)
        accepted, remedy = PUBLISHED[known.name]
        if value is not None and value.lower() not in accepted:
            expected = f"expected {accepted[0]} or no such flag" if accepted else "not a flag here"
            raise ValueError(f"--{known.name}: {expected}, got {value}: {remedy}")


def check_training_flags(given: Any) -> None:
    """Check the values of transformers' training arguments, as they were given.

    Args:
        given: a `TrainingArguments` whose values have not been replaced by others.

    Raises:
        ValueError: a flag has no effect here, or a number is out of its range.
        ImportError: a package that a flag needs is missing.
    """
    for name, reason in NO_EFFECT.items():
        if _is_set(given, name):
            raise ValueError(f"--{name} {getattr(given, name)} has no use here: {reason}")

    for name, (expected, holds) in _RANGES.items():
        value = getattr(given, name, None)
        if value is not None and not (math.isfinite(value) and holds(value)):
            raise ValueError(f"--{name}: expected {expected}, got {value}")

    for report in reports(given.report_to):
        if report not in _REPORTS:
            hint = did_you_mean(report, _REPORTS, "write one of them")
            raise ValueError(f"--report_to: expected none, all or one of {', '.join(_REPORTS)}, got {report}; {hint}")
        _require(f"--report_to {report}", *_REPORTS[report])
    if given.deepspeed:
        _require("--deepspeed", "deepspeed", "deepspeed")

    for name in _OBJECTS:
        value = getattr(given, name, None)
        if isinstance(value, str):
            try:
                json.loads(value if value.startswith("{") else Path(value).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"--{name}: expected a JSON object, or a file with one, got {value}: {error}"
                ) from None

    for name, (other, holds) in _NEEDS.items():
        if _is_set(given, name) and not holds(given):
            raise ValueError(f"--{name}: expected {other} with it, got none; it has no effect alone")
    metric = given.metric_for_best_model or "loss"
    if given.greater_is_better is not None and given.greater_is_better == metric.endswith("loss"):
        expected, kind = ("false", "a loss") if given.greater_is_better else ("true", "not a loss")
        raise ValueError(
            f"--greater_is_better: expected {expected} or no such flag, got {str(given.greater_is_better).lower()}: "
            f"{metric} is {kind}"
        )
    if given.save_strategy == "best" and given.eval_strategy == "no":
        raise ValueError("--save_strategy best: expected --eval_strategy steps or epoch with it, got no")
    if given.save_strategy == "best" and not (given.metric_for_best_model or given.load_best_model_at_end):
        raise ValueError("--save_strategy best: expected --metric_for_best_model, such as loss, with it, got none")


def reports(report_to: Any) -> list[str]:
    """Return the names in a value of --report_to, without "none" and "all"."""
    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    return [name for name in names if name not in ("none", "all")]


def _is_set(given: Any, name: str) -> bool:
    """Return whether a flag has another value than its default. All values that turn a flag off are equal."""
    default = {known.name: known.default for known in fields(TrainingArguments)}.get(name)
    value = getattr(given, name, None)
    off: tuple[Any, ...] = (None, False, 0, "", "no", [])
    return bool(value != default) and not (value in off and (default in off or not isinstance(default, str | bool)))


def _require(flag: str, module: str, package: str) -> None:
    if util.find_spec(module) is None:
        raise ImportError(f"{flag}: expected {package}, not installed here; pip install {package}")
