"""Command `jat-engine quantize`: write a checkpoint with its matrices in 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .. import checkpoint_files
from ..atomic_io import check_writable
from ..backends.select import native_module
from ..checkpoint.quantized import Quantization, dtypes_of, read_quantization
from ..datasets.sources import Source, local_tasks, open_source
from ..dtypes import QUANTIZED_DTYPES
from ..envs import Task
from .agent import check_source, quiet_loading
from .arguments import TaskArguments, note, parse
from .train_data import DataArguments, collected_tasks, folder_of

if TYPE_CHECKING:
    from ..calibration.model import Segment


@dataclass(kw_only=True)
class QuantizeArguments:
    """Arguments of `jat-engine quantize`."""

    model: str = field(metadata={"help": "checkpoint to quantise: folder, name on the hub, or jat-mini"})
    output: str = field(metadata={"help": "folder for the quantised checkpoint"})
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "recorded episodes for the calibration: a folder that `jat-engine collect` wrote, or a dataset on "
            "the hub; without it each weight is rounded to the nearest value"
        },
    )
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "tasks of the dataset to use; by default all of a local dataset"}
    )
    dtype: str = field(
        default="int4",
        metadata={"help": "of the matrices; in int4 some stay int8", "choices": list(reversed(QUANTIZED_DTYPES))},
    )
    num_segments: int = field(
        default=256,
        metadata={"help": "segments of episodes, each up to half the model's positions long, of all tasks together"},
    )
    seed: int = field(default=0, metadata={"help": "seed of the choice of segments"})
    cache_dir: str | None = field(default=None, metadata={"help": "folder for downloads"})

    def check(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range, or has no effect; the message names the flag.
        """
        check_source("--model", self.model)
        if self.num_segments < 1:
            raise ValueError(f"--num_segments: expected at least 1, got {self.num_segments}")
        if self.seed < 0:
            raise ValueError(f"--seed: expected at least 0, got {self.seed}")
        if self.tasks and self.dataset is None:
            raise ValueError("--tasks: expected --dataset with it, got none; plain rounding uses no data")
        if (Path(self.output) / "config.json").exists() or (Path(self.output) / "model.safetensors").exists():
            raise ValueError(
                f"--output: expected a folder without a checkpoint, got {self.output}; nothing is written over: name "
                "another folder, or remove it"
            )
        check_writable("--output", Path(self.output))
        module, missing = native_module()
        if module is None:
            raise ValueError(f"quantize: expected the native module, whose grids it fits; {missing}")


def run(argv: Sequence[str]) -> int:
    """Run `jat-engine quantize` and return its exit code."""
    arguments, choice = parse(
        "quantize",
        "Write a checkpoint with its matrices in 4 or 8 bits, rounded such that recorded observations give nearly the "
        "same outputs.",
        [QuantizeArguments, TaskArguments],
        argv,
    )
    arguments.check()
    from .. import JatModel, JatProcessor
    from ..calibration.data import digest
    from ..calibration.model import round_model
    from ..calibration.write import bits_per_weight, write_checkpoint

    hub: dict[str, Any] = {"cache_dir": arguments.cache_dir}
    source = checkpoint_files.resolve(arguments.model)
    with quiet_loading():
        try:
            if read_quantization(source, hub) is not None:
                raise ValueError("expected floating-point weights, got quantised ones; name the original checkpoint")
            model = JatModel.from_pretrained(source, **hub).float().eval()
            processor = JatProcessor.from_pretrained(source, **hub)
        except (OSError, ValueError) as error:
            raise ValueError(f"--model {arguments.model}: {error}") from error

    segments: list[Segment] = []
    calibration: dict[str, Any] = {}
    if arguments.dataset is not None:
        segments, tasks = load_segments(arguments, choice, model, processor)
        calibration = {"tasks": tasks, "num_segments": len(segments), "sha256": digest(segments)}
        note(f"{len(segments)} segments of {len(tasks)} task(s)")

    kinds = dtypes_of(arguments.dtype)
    config = model.config
    num_rounds = 2 + 4 * config.num_layers  # encoders, and q, k and v at once
    with tqdm(desc="quantize", total=num_rounds, disable=None, leave=False) as bar:
        codes = round_model(model, kinds, segments, lambda name: bar.update())
    write_checkpoint(
        source, hub, Path(arguments.output), config, codes, Quantization(arguments.dtype, kinds, calibration)
    )
    bits = bits_per_weight(codes)
    note(f"wrote {arguments.output}: {len(codes)} matrices with {bits:.2f} bits a weight, scales included")
    return 0


def load_segments(
    arguments: QuantizeArguments, choice: TaskArguments, model: Any, processor: Any
) -> tuple[list[Segment], list[str]]:
    """Draw segments of the dataset.

    Returns:
        The segments, and the names of their tasks.

    Raises:
        ValueError: the dataset does not have a task, or one that does not fit the model.
    """
    from ..calibration.data import draw_segments

    dataset = str(arguments.dataset)
    folder = checkpoint_files.local_path(dataset)
    names = list(arguments.tasks) or (local_tasks(folder) if folder.is_dir() else [])
    if not names:
        where = "a folder with episodes" if folder.is_dir() else "a folder, or --tasks for a dataset on the hub"
        raise ValueError(f"--dataset: expected {where}, got {dataset}")

    tasks: dict[str, Task] = {}
    for name, task in collected_tasks(DataArguments(tasks=names, dataset=dataset), choice).items():
        if task is None:
            raise ValueError(f"--tasks: expected tasks with observations and actions, got the text dataset {name}")
        tasks[name] = task

    sources: dict[str, Source] = {}
    for name, task in tasks.items():
        source = open_source(
            dataset, folder_of(name, task), "train", task=task, cache_dir=arguments.cache_dir, streaming=True
        )
        if source is None:
            raise ValueError(f"--dataset {dataset}: {name}: expected a split train, got none")
        sources[name] = source
    return draw_segments(sources, tasks, arguments.num_segments, arguments.seed, model.config, processor), list(tasks)
