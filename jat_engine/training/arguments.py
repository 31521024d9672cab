"""transformers' training arguments, checked, with the settings that batches of a single task need."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import util
from typing import Any

import torch
from transformers import TrainingArguments

from ..datasets.requirements import require_train_extra
from .flags import check_training_flags

_LOGS, _EVALUATIONS = 50, 10
"""Lines of the log, and evaluations, in a whole training, by default."""

_SAVE_STEPS = 500
"""Default of transformers' `save_steps`."""


@dataclass
class JatTrainingArguments(TrainingArguments):
    """transformers' training arguments, and `eval_episodes`. Flags that would have no effect are refused.

    On a machine without a GPU, training is on the CPU without `use_cpu`, with `bf16` as autocast if that is given.

    Defaults differ from transformers' so that short runs have curves, too: 50 lines of the log and 10 evaluations in a
    whole training, and TensorBoard if it is installed. With `eval_episodes` the training is evaluated without
    `eval_strategy`, checkpoints are saved at evaluations, and the one with the best `eval_return` is kept, unless
    `save_strategy` is "no" or `load_best_model_at_end` is False.

    Attributes:
        eval_episodes: episodes of each task that are played at each evaluation.

    Raises:
        ValueError: a flag has no effect here, a value is out of range, or this machine does not support it.
        ImportError: a package that a flag needs is missing.
    """

    # A share of all steps, since their number is known only with the data.
    logging_steps: float = field(default=1 / _LOGS, metadata={"help": "steps between lines of the log"})
    report_to: None | str | list[str] = field(  # noqa: RUF036  # HfArgumentParser takes the second type
        default=None, metadata={"help": "where to send logs; by default to TensorBoard, if it is installed"}
    )
    load_best_model_at_end: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "keep the best model; by default with --eval_episodes", "nargs": "?", "const": True},
    )
    eval_episodes: int = field(
        default=0,
        metadata={
            "help": "play this number of episodes of each trained task at each evaluation, by default ten times in a "
            "training, and keep the model with the best mean of the returns, normalised by the published expert or, of "
            "a task that has none, by its demonstrator; seeds from 500,000"
        },
    )

    def __post_init__(self) -> None:
        require_train_extra()
        if not self.output_dir:
            raise ValueError("--output_dir: expected a folder for checkpoints, got none")
        self._choose_defaults()
        check_training_flags(self)
        if self.eval_episodes and (self.fsdp or self.deepspeed):
            raise ValueError(
                "--eval_episodes: expected no --fsdp and no --deepspeed with it, since a single process plays, with "
                "all weights; leave it out, and evaluate checkpoints with jat-engine eval"
            )

        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.use_cpu and self.fp16:
            raise ValueError("--fp16: expected a GPU, got the CPU; write --bf16, or leave it out")
        if self.use_cpu and self.tf32:
            raise ValueError("--tf32: expected an NVIDIA GPU from Ampere on, got the CPU; leave it out")
        if self.use_cpu and self.fsdp:
            raise ValueError("--fsdp: expected GPUs, got the CPU, where accelerate does not shard; leave --fsdp out")

        try:
            super().__post_init__()
        except (ValueError, OSError, ImportError, TypeError, KeyError, NotImplementedError) as error:
            # Flags that exclude each other, that this machine does not support, or files that cannot be read.
            raise ValueError(str(error) or type(error).__name__) from error

        if self.fsdp and self.world_size == 1:
            raise ValueError("--fsdp: expected several processes (`torchrun`, `accelerate launch`), got one")
        if self.torch_compile and self.torch_compile_backend not in torch.compiler.list_backends(exclude_tags=()):
            shown = ", ".join(torch.compiler.list_backends())
            raise ValueError(f"--torch_compile_backend: expected one of {shown}, got {self.torch_compile_backend}")
        if not isinstance(self.lr_scheduler_kwargs, dict | None):
            raise ValueError(
                f"--lr_scheduler_kwargs: expected JSON such as '{{\"min_lr\": 1e-6}}', got {self.lr_scheduler_kwargs}"
            )
        metric = str(self.metric_for_best_model)
        by_metric = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if by_metric and not metric.endswith("loss") and (self.lr_scheduler_kwargs or {}).get("mode") != "max":
            raise ValueError(
                f'--lr_scheduler_type {self.lr_scheduler_type}: expected --lr_scheduler_kwargs \'{{"mode": "max"}}\' '
                f"with --metric_for_best_model {metric}, of which more is better; or --metric_for_best_model loss"
            )
        if self.train_sampling_strategy not in ("random", "group_by_length"):
            raise ValueError(
                f"--train_sampling_strategy: expected random or group_by_length, got {self.train_sampling_strategy}"
            )
        loading: Any = self.accelerator_config
        if loading.split_batches or loading.dispatch_batches:
            raise ValueError(
                "--accelerator_config: expected split_batches and dispatch_batches false, got true: every process "
                "makes its own batches"
            )

        self.remove_unused_columns = False  # the collator already makes the arguments of `forward`
        self.logging_nan_inf_filter = False  # it would log a loss that is not a number as 0
        loading.even_batches = False  # batches differ in size, and their number already fits the processes
        loading.split_batches = loading.dispatch_batches = False
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = True  # a batch of one task leaves the other encoders out

    def _choose_defaults(self) -> None:
        """Set what was not given by what was."""
        if self.report_to is None:
            self.report_to = "tensorboard" if util.find_spec("tensorboard") else "none"

        plays = self.eval_episodes > 0
        if plays and self.eval_strategy == "no":
            self.eval_strategy = "epoch" if self.save_strategy == "epoch" else "steps"
        if plays and self.eval_strategy == "epoch" and self.save_strategy == "steps":
            self.save_strategy = "epoch"
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = plays and self.save_strategy != "no"
        if plays and self.metric_for_best_model is None and self.load_best_model_at_end:
            self.metric_for_best_model = "eval_return"

        # The best model can be kept only if it is saved: there is a checkpoint at evaluations.
        if self.eval_strategy == "steps":
            saves = self.load_best_model_at_end and self.save_strategy == "steps"
            if self.eval_steps is None:
                self.eval_steps = self.save_steps if saves and self.save_steps != _SAVE_STEPS else 1 / _EVALUATIONS
            if saves and self.save_steps == _SAVE_STEPS:
                self.save_steps = self.eval_steps

    @property
    def device(self) -> torch.device:
        """Device of this process. accelerate names the CPU "cpu:0", to which torch cannot load a checkpoint."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


def check_optimizer(arguments: TrainingArguments, model: Any) -> None:
    """Check that the optimizer and the schedule of the learning rate can be made, before any data is prepared.

    Args:
        arguments: arguments of the training.
        model: the model to train.

    Raises:
        ValueError: an option is unknown, missing, or has no effect.
        ImportError: a package that the optimizer needs is missing.
    """
    from transformers import Trainer, get_scheduler

    names = arguments.to_dict()
    flag = f"--optim {names['optim']}"
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        if not {"params", "model", "optimizer_dict"} & options.keys():  # they need what the Trainer makes
            kind([torch.nn.Parameter(torch.zeros(2, 2))], **options)
        if arguments.optim_args:
            arguments.optim_args, given = None, arguments.optim_args
            _, without = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
            arguments.optim_args = given
            if options == without:
                raise ValueError(f"--optim_args {given} has no effect")
    except ImportError as error:
        raise ImportError(f"{flag}: {error}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{flag}: {error}") from error

    options = arguments.lr_scheduler_kwargs
    assert isinstance(options, dict | None), "JatTrainingArguments checks it"
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate),
            num_warmup_steps=0,
            num_training_steps=100,
            scheduler_specific_kwargs=options,
        )
    except (ValueError, TypeError) as error:
        given_options = f", --lr_scheduler_kwargs {options}" if options else ""
        raise ValueError(f"--lr_scheduler_type {names['lr_scheduler_type']}{given_options}: {error}") from error
