"""Train with transformers' Trainer on batches of one task each."""

from __future__ import annotations

import contextlib
import math
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..errors import describe_error, one_line
from .dataset import TASK, TaskDataset, as_batch, scale_frames
from .play import Player
from .resume import newest_whole, write_record
from .sampler import InOrderBatchSampler, TaskBatchSampler
from .stream import TaskStream

_SUMS = ("count", "loss", "rl_count", "action_loss", "observation_loss")


class TrainingError(RuntimeError):
    """Training that cannot go on: a loss is not a number, no checkpoint can be written, or an episode fails."""


class JatTrainer(Trainer):
    """Train a `JatModel` with the loss that the model itself computes.

    Logs, in addition to the Trainer's own: `action_loss`, `observation_loss`, and `loss/<task>` for each task since the
    last log. Evaluation reports `eval_<task>_loss` for each task and their mean, `eval_loss`, and with a player
    `eval_<task>_return` for each task that it plays, and `eval_return`.

    Args:
        model: a `JatModel`.
        args: transformers' training arguments.
        train_dataset: the segments of all tasks, or a stream of their batches.
        eval_dataset: task -> its test segments.
        processor: saved with each checkpoint.
        sampling_weights: task -> how often it is drawn, relative to others; 1 if left out. Not used for a stream.
        batch_sizes: task -> segments per batch; `per_device_train_batch_size` if left out. Not used for a stream.
        action_shuffle: share of actions, in [0, 1], that are replaced by another step's action in the model's input.
            The actions to predict stay. An agent that sees its own last action can learn to repeat it, which scores
            well on demonstrations and badly in play (arXiv 1905.11979).
        player: plays episodes at each evaluation, also without `eval_dataset`; None plays none.
        record: what the training is made with, written into each checkpoint; see `write_record`. None writes none.
        options: further arguments of transformers' Trainer.

    Attributes:
        writing: the folder of the checkpoint that is being written; None between checkpoints.
    """

    train_dataset: TaskDataset | TaskStream
    processing_class: Any

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        train_dataset: TaskDataset | TaskStream,
        eval_dataset: Mapping[str, TaskDataset] | None = None,
        processor: Any = None,
        sampling_weights: Mapping[str, float] | None = None,
        batch_sizes: Mapping[str, int] | None = None,
        action_shuffle: float = 0.0,
        player: Player | None = None,
        record: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=dict(eval_dataset or {}) if eval_dataset or player else None,
            processing_class=processor,
            data_collator=as_batch,
            **options,
        )
        self._action_shuffle = action_shuffle
        self._player = player
        self._record = record
        self.writing: Path | None = None
        self.add_callback(_WrittenCallback(self))

        self.sampler: TaskBatchSampler | None = None
        if isinstance(train_dataset, TaskStream):
            self._tasks = [task.name for task in train_dataset.tasks]
        else:
            self._tasks = [segments.task for segments in train_dataset.tasks]
            weights, sizes = sampling_weights or {}, batch_sizes or {}
            self.sampler = TaskBatchSampler(
                [len(segments) for segments in train_dataset.tasks],
                [sizes.get(task, args.per_device_train_batch_size) for task in self._tasks],
                [weights.get(task, 1.0) for task in self._tasks],
                seed=args.data_seed if args.data_seed is not None else args.seed,
                num_processes=args.world_size,
                lengths=_lengths(train_dataset) if args.train_sampling_strategy == "group_by_length" else None,
                same_task=self.is_fsdp_enabled,  # FSDP2 sums gradients of the parameters that one process has used
            )
            # accelerate reaches the sampler only if nothing is wrapped around it, as when several processes resume.
            self.add_callback(_EpochCallback(self.sampler))

        for name in ("logging_steps", "eval_steps", "save_steps"):  # as checkpoints have them
            value = getattr(args, name)
            if value is not None and value < 1:
                setattr(args, name, math.ceil(self.num_steps * value - 1e-6))
        self._sums: Tensor | None = None  # [tasks, len(_SUMS)], since the last log

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        if self.args.max_steps > 0 or self.sampler is None:
            return int(self.args.max_steps)
        batches = len(self.sampler) / self.args.world_size
        steps: int = math.ceil(batches / self.args.gradient_accumulation_steps)  # of an epoch
        return math.ceil(float(self.args.num_train_epochs) * steps)

    def run(self, resume_from_checkpoint: str | None = None) -> None:
        """Train, and save the model, the Trainer's state and the metrics in the output folder.

        A checkpoint that cannot be written is removed.

        Args:
            resume_from_checkpoint: folder of the checkpoint to go on from; None begins.

        Raises:
            TrainingError: a checkpoint cannot be written, or the loss is not a number.
        """
        try:
            result = self.train(resume_from_checkpoint=resume_from_checkpoint)
            self.writing = Path(str(self.args.output_dir))
            self.save_model()
            self.save_state()
            self.log_metrics("train", result.metrics)
            self.save_metrics("train", result.metrics)
        except Exception as error:
            if self.writing is None or isinstance(error, TrainingError):
                raise
            output, reason = Path(str(self.args.output_dir)), one_line(error)
            free_mb = shutil.disk_usage(output).free >> 20
            if self.writing != output:
                shutil.rmtree(self.writing, ignore_errors=True)
            on = " with --resume_from_checkpoint latest" if newest_whole(output) else ""
            raise TrainingError(
                f"step {self.state.global_step}: expected to write {self.writing}, got an error with {free_mb} MB of "
                f"the disk free: {reason}. Make room, then run the same command again{on}; {self._last()}"
            ) from error

    def _last(self) -> str:
        last = newest_whole(Path(str(self.args.output_dir)))
        return f"the last whole checkpoint is {last}" if last else "there is no checkpoint yet"

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model, processor and the record of the training.

        Args:
            output_dir: folder; None takes that of the training.
            _internal_call: as in the Trainer.

        Raises:
            TrainingError: a weight is not a finite number.
        """
        self._check_weights()
        folder = Path(output_dir or str(self.args.output_dir))
        if output_dir is not None:
            self.writing = folder  # until `_WrittenCallback` sees that the rest of the checkpoint is written, too
        super().save_model(output_dir, _internal_call)
        if self._record is not None and self.args.should_save:
            write_record(folder, self._record)

    def _check_weights(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # every process has only a part of them
            return
        model: Any = self.model
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise self._diverged(f"{name} is not finite any more")

    def _diverged(self, what: str) -> TrainingError:
        rates = {f"{group['lr']:g}" for group in self.optimizer.param_groups} if self.optimizer is not None else {"?"}
        return TrainingError(
            f"{what}, with a learning rate of {', '.join(sorted(rates))}; nothing more is saved. Scale or leave out "
            "data that are far larger than others, or begin another training with a lower --learning_rate, more "
            f"--warmup_steps or a smaller --max_grad_norm; {self._last()}"
        )

    # ---- batches -------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of training batches; each is a dict of `gather`'s tensors and the task's name."""
        if isinstance(self.train_dataset, TaskStream):  # batches already, of this process's own rows
            return DataLoader(
                self.train_dataset,
                batch_size=None,
                collate_fn=as_batch,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                prefetch_factor=self.args.dataloader_prefetch_factor if self.args.dataloader_num_workers else None,
            )
        return self._loader(self.train_dataset, self.sampler)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return the loader of one task's test segments, in order.

        Args:
            eval_dataset: a `TaskDataset`, or the name of a task in `self.eval_dataset`.

        Raises:
            ValueError: anything else.
        """
        datasets: Any = self.eval_dataset
        dataset = datasets[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        if not isinstance(dataset, TaskDataset):
            raise ValueError(f"eval_dataset: expected a TaskDataset of one task, got {type(dataset).__name__}")
        sampler = InOrderBatchSampler(len(dataset), self.args.per_device_eval_batch_size, self.args.world_size)
        return self._loader(dataset, sampler)

    def _loader(self, dataset: TaskDataset, batch_sampler: Any) -> DataLoader[Any]:
        workers = self.args.dataloader_num_workers
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=as_batch,
            num_workers=workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=workers > 0 and self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    # ---- loss ----------------------------------------------------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return the loss of one batch, after adding its gradients.

        Args:
            model, inputs, num_items_in_batch: as in the Trainer.

        Raises:
            TrainingError: the loss is NaN or infinite; weights are those of the step before.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            largest = max((value.abs().max().item() for value in inputs.values() if _is_float(value)), default=0)
            raise self._diverged(
                f"step {self.state.global_step + 1}: the loss on {inputs[TASK]} is {loss.item()}, the largest number "
                f"in the batch {largest:g}"
            )
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the model's loss for one batch, and with `return_outputs` a tuple of loss and output.

        Args:
            model: in training mode, the batch's losses are added to those of the next log.
            inputs: a batch of `TaskDataset` or `TaskStream`; frames may be uint8.
            return_outputs: see above.
            num_items_in_batch: not used; the loss is a mean.
        """
        inputs = dict(inputs)
        task = inputs.pop(TASK)
        frames = inputs.get("image_observations")
        if frames is not None and frames.dtype == torch.uint8:
            inputs["image_observations"] = scale_frames(frames)
        if model.training and self._action_shuffle:
            inputs["action_inputs"] = _shuffle_actions(inputs, self._action_shuffle)
        outputs = model(**inputs, loss_only=True)
        if model.training:
            self._add(task, outputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _add(self, task: str, outputs: Any) -> None:
        """Add one batch's losses to the sums of the next log, on the device: reading a loss would wait for it."""
        loss = outputs.loss.detach().float()
        if self._sums is None:
            self._sums = torch.zeros(len(self._tasks), len(_SUMS), device=loss.device)
        values = [torch.ones_like(loss), loss]
        if outputs.action_loss is not None:
            values += [torch.ones_like(loss), outputs.action_loss.detach().float(), outputs.observation_loss.detach()]
        self._sums[self._tasks.index(task), : len(values)] += torch.stack(values)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log numbers, and the mean losses since the last log along with a training loss.

        Args:
            logs: name -> number; changed in place.
            start_time: as in the Trainer.
        """
        if "loss" in logs and self._sums is not None:
            sums = self.accelerator.reduce(self._sums, reduction="sum").cpu()
            self._sums = None

            total = dict(zip(_SUMS, sums.sum(0).tolist(), strict=True))
            if total["rl_count"]:
                for name in ("action_loss", "observation_loss"):
                    logs[name] = total[name] / total["rl_count"]
            for task, (count, loss, *_) in zip(self._tasks, sums.tolist(), strict=True):
                if count:
                    logs[f"loss/{task}"] = loss / count
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as the Trainer does, add the mean over tasks, and play episodes if there is a player.

        Random numbers of the training stay as without the evaluation.

        Args:
            eval_dataset, ignore_keys, metric_key_prefix: as in the Trainer. Episodes are played if `eval_dataset` is
                None.

        Returns:
            The Trainer's metrics; `<prefix>_loss`, the mean of `<prefix>_<task>_loss`; and the player's metrics, each
            with the prefix.

        Raises:
            TrainingError: a loss is NaN or infinite, and the best model is chosen by losses; or an episode fails.
        """
        with _random_state_kept():
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        for name, value in metrics.items():
            best_loss = (self.args.metric_for_best_model or "").endswith("loss")
            if best_loss and name.endswith("_loss") and not math.isfinite(value):
                raise TrainingError(
                    f"step {self.state.global_step}: {name} is {value}, by which no best model can be chosen. Scale or "
                    "leave out test data that are far larger than others, or go on without --load_best_model_at_end "
                    f"and --metric_for_best_model; {self._last()}"
                )
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        more: dict[str, float] = {}
        if isinstance(datasets, dict) and datasets:
            losses = [metrics[f"{metric_key_prefix}_{task}_loss"] for task in datasets]
            more["loss"] = sum(losses) / len(losses)
        if self._player is not None and eval_dataset is None:
            with _random_state_kept():
                more |= self._play(self._player)
        if more:
            more = {f"{metric_key_prefix}_{name}": value for name, value in more.items()}
            self.log(dict(more))
            metrics.update(more)
        if datasets == {}:  # else the Trainer has said so for each: without it, it evaluates again after the last step
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _play(self, player: Player) -> dict[str, float]:
        """Return the metrics of played episodes. The first process plays, and the others wait for its result."""
        self._check_weights()
        outcome: list[Any] = [None]
        if self.is_world_process_zero():
            try:
                outcome[0] = player.play(self.model, self.processing_class, self.args.device)
            except Exception as error:  # of a simulator, or of the agent for a simulator's output: any class
                outcome[0] = describe_error(error)
        broadcast_object_list(outcome)
        if isinstance(outcome[0], str):
            raise TrainingError(
                f"step {self.state.global_step}: --eval_episodes: an episode failed: {outcome[0]}. Go on without "
                f"--eval_episodes; {self._last()}"
            )
        metrics: dict[str, float] = outcome[0]
        return metrics


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Give the global generators the state after the `with` block that they had before it."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _lengths(dataset: TaskDataset) -> np.ndarray:
    """Return the steps of all segments, int64 [segments]."""
    return np.concatenate([segments.lengths for segments in dataset.tasks])


def _shuffle_actions(inputs: dict[str, Any], share: float) -> Tensor | None:
    """Return the batch's actions [B, L, ...] with a share of them replaced by those of other steps; None for texts."""
    actions: Tensor | None = inputs.get("continuous_actions", inputs.get("discrete_actions"))
    if actions is None:
        return None
    flat = actions.flatten(0, 1)
    others = flat[torch.randperm(len(flat), device=flat.device)].view_as(actions)
    chosen = torch.rand(actions.shape[:2], device=actions.device) < share
    return torch.where(chosen.unsqueeze(-1) if actions.ndim == 3 else chosen, others, actions)


class _EpochCallback(TrainerCallback):
    """Tell the sampler the number of each epoch that begins."""

    def __init__(self, sampler: TaskBatchSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch))


class _WrittenCallback(TrainerCallback):
    """Tell the trainer that a checkpoint is written."""

    def __init__(self, trainer: JatTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.writing = None
