"""Checkpoints of a training: which of them are whole, whether they belong to it, and the lock on their folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments

from ..atomic_io import check_writable, hold, write_json
from ..checkpoint.reader import find_weight_files
from ..checkpoint.trained_tasks import write_trained_tasks
from ..checkpoint_files import read_json
from ..config import JatConfig
from ..errors import one_line
from ..zip_damage import ZIP_DAMAGE

RECORD_FILE = "jat_training.json"
"""File in a checkpoint with what it was trained with: `settings` and `data`."""

PROCESSES = "number of processes"
"""Name of the only setting that is not a flag."""

_STATE_FILE = "trainer_state.json"
_SETTINGS = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy", "seed", "data_seed"),
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm", "weight_decay"),
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "fp16"),
)
"""Training arguments that change a run: resumed with others it would be neither the old run nor a new one."""

_OF_THE_TRAINER = ("optimizer", "scheduler", "scaler", "rng_state", "pytorch_model_fsdp", "global_step")
"""Beginnings of the names of a checkpoint's files that are needed only to go on training."""

_held: set[int] = set()
"""Descriptors of the locks of this process. A forked worker of a data loader must not keep them."""


# ---- the output folder ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claim(folder: Path, tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep other trainings out of a folder while the `with` block runs. A killed process leaves no lock.

    The folder is created. If it is still empty at the end, it is removed again.

    Args:
        folder: the output folder of a training.
        tell: called with a sentence if the file system has no locks.

    Raises:
        ValueError: it is no folder, cannot be written, or another training runs in it.
    """
    existed = folder.exists()
    check_writable("--output_dir", folder)  # an error now instead of at the first checkpoint
    folder.mkdir(parents=True, exist_ok=True)

    try:
        descriptor = hold(folder, wait=False)
    except BlockingIOError:
        raise ValueError(
            f"--output_dir: expected a folder that no other training uses, got {folder}, where one is running; wait "
            "for it, or name another folder"
        ) from None
    except OSError:
        descriptor = None
        if tell is not None:
            tell(f"the file system of {folder} has no locks: take care that no other training uses this folder")

    try:
        if descriptor is not None:
            _held.add(descriptor)
        yield
    finally:
        if not existed:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if descriptor is not None:
            _held.discard(descriptor)
            os.close(descriptor)


def _release_in_child() -> None:
    while _held:
        os.close(_held.pop())


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_release_in_child)


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in the output folder of a training, the newest first, whole or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def newest_whole(folder: Path, tell: Any = None) -> Path | None:
    """Return the newest whole checkpoint in the output folder of a training; None if there is none.

    Args:
        folder: the output folder.
        tell: called with a sentence about each newer checkpoint that is not whole.
    """
    for path in checkpoints(folder):
        damage = damage_of(path)
        if damage is None:
            return path
        if tell is not None:
            tell(f"passing over {path}, which is not whole: {damage}")
    return None


# ---- one checkpoint ------------------------------------------------------------------------------------------------


def damage_of(checkpoint: Path) -> str | None:
    """Return what is missing or damaged in a checkpoint; None if a training can go on from it.

    A training that is killed, or that runs out of disk space, leaves files that are missing or cut off.
    """
    if not state_of(checkpoint):
        return f"{_STATE_FILE} is missing or cut off"  # the last file that the Trainer writes
    if (checkpoint / "checkpoint-is-incomplete.txt").exists():  # of --enable_jit_checkpoint
        return "its process ended while it was written"
    try:
        read_json(checkpoint / "config.json")
        if any(any(checkpoint.glob(f"{name}*")) for name in ("pytorch_model_fsdp", "global_step")):
            return None  # in pieces of FSDP or DeepSpeed, which only they can read
        for file in find_weight_files(checkpoint, None, {}):
            with safe_open(file, "pt"):
                pass  # it compares the length with the header's
    except (OSError, ValueError, SafetensorError) as error:
        return one_line(error)

    record = _record(checkpoint)
    if record is None:
        return f"{RECORD_FILE} is damaged or cut off"

    numbers = record["settings"].get(PROCESSES, 1)
    states = [f"rng_state_{number}.pth" for number in range(numbers)] if numbers > 1 else ["rng_state.pth"]
    for name in ("optimizer.pt", "scheduler.pt", *states):
        file = checkpoint / name
        if not file.exists():
            return f"{name} is missing"
        if not _is_whole_archive(file):
            return f"{name} is damaged or cut off"
    return None


def _is_whole_archive(file: Path) -> bool:
    """Return whether a file of `torch.save` has all its records, with the checksums that are stored with them."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except ZIP_DAMAGE:
        return False


def state_of(folder: Path) -> dict[str, Any]:
    """Return the Trainer's state of a checkpoint or of a finished training; empty if it is missing or damaged."""
    try:
        state = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = isinstance(state, dict) and all(isinstance(state.get(name), int) for name in ("global_step", "max_steps"))
    return state if known else {}


def _record(checkpoint: Path) -> dict[str, dict[str, Any]] | None:
    """Return what a checkpoint was trained with; empty parts if it does not say so, None if the file is damaged."""
    file = checkpoint / RECORD_FILE
    if not file.exists():
        return {"settings": {}, "data": {}}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        parts = {part: record[part] for part in ("settings", "data")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return parts if all(isinstance(values, dict) for values in parts.values()) else None


# ---- what it was trained with --------------------------------------------------------------------------------------


def settings_of(arguments: TrainingArguments, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that change a run, by flag, as JSON keeps them.

    Args:
        arguments: arguments of the training.
        more: name of a flag -> value, for flags that are not transformers'.
    """
    values = arguments.to_dict()
    settings = {f"--{name}": values[name] for name in _SETTINGS if name in values}
    if arguments.load_best_model_at_end:  # a best value so far is compared with later ones of the same kind
        metric = str(arguments.metric_for_best_model).removeprefix("eval_")
        settings["--metric_for_best_model"] = metric
        if not metric.endswith("loss"):
            settings["--eval_episodes"] = values["eval_episodes"]
    settings |= {f"--{name}": value for name, value in more.items()}
    settings[PROCESSES] = arguments.world_size
    kept: dict[str, Any] = json.loads(json.dumps(settings))
    return kept


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write what a checkpoint was trained with into its folder.

    Args:
        folder: of the checkpoint.
        record: `settings`, from `settings_of`; `data`, task -> digest of its segments; and `tasks`, from
            `jat_engine.checkpoint.trained_tasks.to_json`.
    """
    write_json(folder / RECORD_FILE, {part: record[part] for part in record if part != "tasks"}, indent=1)
    if "tasks" in record:
        write_trained_tasks(folder, record["tasks"])


def check_record(checkpoint: Path, part: str, values: Mapping[str, Any]) -> None:
    """Check that a checkpoint was trained with what the training is to go on with.

    Args:
        checkpoint: its folder. One without a record passes.
        part: "settings" or "data".
        values: of this training.

    Raises:
        ValueError: something differs; the message names it.
    """
    record = _record(checkpoint)
    if record is None:
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: {RECORD_FILE} is damaged or cut off; copy it again")
    recorded = record[part]
    for name in values:
        if name not in recorded or recorded[name] == values[name]:
            continue
        if part == "data":
            raise ValueError(
                f"--resume_from_checkpoint {checkpoint}: expected the data that it was trained on, got other data of "
                f"{name}; give the same --dataset, or begin another training in another --output_dir"
            )
        before, now = _difference(recorded[name], values[name])
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: expected {name} {before}, as it was trained with, got {now}; "
            "give the same, or begin another training in another --output_dir"
        )


def check_config(checkpoint: Path, config: JatConfig) -> None:
    """Check that a checkpoint has the configuration of the model to train.

    Raises:
        ValueError: a field differs; the message names it.
    """
    before, now = JatConfig.from_pretrained(checkpoint), config
    names = [name for name in JatConfig.__annotations__ if name not in _NOT_COMPARED]
    for name in names:
        if _plain(getattr(before, name, None)) != _plain(getattr(now, name, None)):
            raise ValueError(
                f"--resume_from_checkpoint {checkpoint}: expected a model with {name} {getattr(before, name)}, as it "
                f"has, got {getattr(now, name)}; name the model that this training began with"
            )


_NOT_COMPARED = ("use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
"""Fields of a configuration that the Trainer sets, some of them to the tokenizer's values."""


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: a tuple equals a list."""
    return json.loads(json.dumps(value)) if isinstance(value, list | tuple) else value


def _difference(before: Any, now: Any) -> tuple[str, str]:
    """Return two different values in words; of mappings and lists only entries that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(name for name in (*before, *now) if before.get(name) != now.get(name))
        return f"{name}={before.get(name, 'none')}", f"{name}={now.get(name, 'none')}"
    if isinstance(before, list) and isinstance(now, list):
        return _short(before), _short(now)
    return str(before), str(now)


def _short(values: list[Any]) -> str:
    shown = " ".join(map(str, values[:5]))
    return f"{shown} and {len(values) - 5} more" if len(values) > 5 else shown or "none"


# ---- a finished training -------------------------------------------------------------------------------------------


def has_model(folder: Path) -> bool:
    """Return whether a folder has a whole model, as a finished training leaves it."""
    try:
        for file in find_weight_files(folder, None, {}):
            with safe_open(file, "pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return (folder / "config.json").is_file()


def steps_taken(folder: Path) -> int:
    """Return the steps after which the whole model in an output folder was saved; 0 if there is none."""
    return int(state_of(folder).get("global_step", 0)) if has_model(folder) else 0


def complete_output(checkpoint: Path, folder: Path, *, best: bool) -> None:
    """Copy the model of a finished training's checkpoint to its output folder, unless it is there already.

    Args:
        checkpoint: the last one.
        folder: the output folder.
        best: take the best checkpoint that the last one names, if it exists.
    """
    state = state_of(checkpoint)
    if steps_taken(folder) >= state["global_step"]:
        return

    source = checkpoint
    if best and state.get("best_model_checkpoint"):
        named = Path(state["best_model_checkpoint"])
        for found in (checkpoint.with_name(named.name), named):  # the folder may have been moved since
            if damage_of(found) is None:
                source = found
                break
    files = [path for path in source.iterdir() if path.is_file() and not path.name.startswith(_OF_THE_TRAINER)]
    files = [path for path in files if path.name != _STATE_FILE] + [checkpoint / _STATE_FILE]  # as the last one
    for file in files:
        temporary = folder / f".{file.name}.{os.getpid()}.tmp"
        try:
            shutil.copyfile(file, temporary)
            temporary.replace(folder / file.name)
        finally:
            temporary.unlink(missing_ok=True)
