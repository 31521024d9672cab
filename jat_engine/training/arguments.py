"""transformers' training arguments, checked, with the settings that batches of a single task need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments

from ..datasets.requirements import require_train_extra
from .flags import check_training_flags


@dataclass
class JatTrainingArguments(TrainingArguments):
    """transformers' training arguments. Flags that would have no effect are refused.

    On a machine without a GPU, training is on the CPU without `use_cpu`, with `bf16` as autocast if that is given.

    Raises:
        ValueError: a flag has no effect here, a value is out of range, or this machine does not support it.
        ImportError: a package that a flag needs is missing.
    """

    def __post_init__(self) -> None:
        require_train_extra()
        if not self.output_dir:
            raise ValueError("--output_dir: expected a folder for checkpoints, got none")
        check_training_flags(self)

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
