"""Measure: `jat-engine bench`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends.select import choose_backend, native_module
from ..bench import compare as comparisons
from ..bench import report
from ..bench.bandwidth import Bandwidth
from ..bench.pacing import PACES
from ..bench.peers import DTYPES, NAMES
from ..bench.results import Results, disagreeing, machine
from ..bench.runner import Context, Options
from ..bench.suites import (
    batches,
    beside,
    call,
    evaluate,
    generate,
    growth,
    host,
    latency,
    load,
    loop,
    parity,
    soak,
    throughput,
    train,
)
from ..bench.workload import SPACES, check_model
from ..errors import InputError
from .agent import default_device, quiet_loading
from .arguments import TaskArguments, note, parse
from .streams import say
from .tables import print_table

if TYPE_CHECKING:
    from ..envs import Task

SUITES: dict[str, tuple[Callable[[Context], None], ...]] = {
    "latency": (latency.run,),
    "limits": (call.run, batches.run, host.run),
    "call": (call.run,),
    "batches": (batches.run,),
    "host": (host.run,),
    "loop": (loop.run,),
    "throughput": (throughput.run,),
    "load": (load.run,),
    "generate": (generate.run, beside.run),
    "beside": (beside.run,),
    "train": (train.run,),
    "eval": (evaluate.run,),
    "parity": (parity.run,),
    "growth": (growth.run,),
    "soak": (soak.run,),
}

PARTS = ("call", "batches", "host", "beside")
"""Suites that are parts of others."""

_USAGE = f"""usage: jat-engine bench {{{",".join(SUITES)},all}} [options]
       jat-engine bench compare A.json B.json [--threshold SHARE]

  latency      one agent's step, and that of JatModel, the published package, torch.compile, ONNX Runtime and OpenVINO
  limits       how near the engine is to what the machine can do, and to --before, another checkout of it:
               call (one agent, bytes it reads), batches (many agents, arithmetic) and host (what Python costs)
  loop         one agent at a fixed rate, as a robot calls it: p50 to p99.9, missed deadlines, with a busy neighbour;
               --task: in the loop of your own environment
  throughput   1 to 1024 agents in a step
  load         from the start of a process to its first action
  generate     text, with peers that write (JatModel, ONNX Runtime, OpenVINO, llama.cpp): time to the first token and of
               each later one; and beside: an agent's step while a prompt is read
  train        a training step
  eval         steps in real simulators, of jat-mini or another trained model
  parity       no times: how far every backend and dtype is from float32
  growth       a step's time over the tokens in its cache
  soak         sessions that come and go: memory stays flat, no page of the cache is lost
  all          all of these into one file
  compare      two results: what became slower or faster by more than noise; exit code 1 if anything did become slower

`jat-engine bench latency --help` lists the options."""


_WORDS = ("agent", "dtype", "observation", "model", "task", "pace", "neighbour")
"""Columns of words, which are set to the left."""


@dataclass
class BenchArguments:
    """Arguments of all suites."""

    num_iters: int = field(
        default=8,
        metadata={"help": "rounds; in each, every agent takes a turn of several calls; what takes seconds has fewer"},
    )
    num_iters_warmup: int = field(default=3, metadata={"help": "untimed calls of each agent before the first round"})
    output_json: str = field(default="results.json", metadata={"help": "where results go; plots go next to it"})
    batch_size: list[int] = field(
        default_factory=lambda: [1, 16, 256, 1024], metadata={"help": "throughput, batches: agents in a step"}
    )
    models: list[str] = field(
        default_factory=lambda: ["small"],
        metadata={
            "help": "presets with random weights (small, medium), jat-mini, or folders of checkpoints; latency, loop, "
            "parity and growth measure all of them, peers and the other suites the first"
        },
    )
    dtypes: list[str] = field(
        default_factory=lambda: list(DTYPES), metadata={"help": "of the engine and its peers", "choices": list(DTYPES)}
    )
    observations: list[str] = field(
        default_factory=lambda: list(SPACES), metadata={"help": "what agents see", "choices": list(SPACES)}
    )
    windows: list[int] = field(
        default_factory=lambda: [16, 256, 508],
        metadata={
            "help": "latency, loop, limits: tokens an agent looks back on; loop and limits take one of them, loop with "
            "--task the task's own"
        },
    )
    hz: list[int] = field(
        default_factory=lambda: [20, 50, 100, 200], metadata={"help": "loop: calls a second that agents are held to"}
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "loop: between calls the environment of this task steps, by the agent's actions: a published task, "
            "a registered one, or gym:<id>"
        },
    )
    paces: list[str] = field(
        default_factory=list,
        metadata={
            "help": "loop: between calls sleep, or an environment computes, or the real one steps; evicted: back to "
            "back with caches that other data went through. By default all of them; not with --task",
            "choices": list(PACES),
        },
    )
    neighbour: list[str] = field(
        default_factory=lambda: ["none", "busy"],
        metadata={"help": "loop: alone, or with another process busy on one core", "choices": ["none", "busy"]},
    )
    minutes: float = field(
        default=30.0, metadata={"help": "loop, call: what all calls may take together; less means fewer calls"}
    )
    agent_steps: int = field(default=20_000, metadata={"help": "soak: steps of all sessions together"})
    peers: list[str] = field(
        default_factory=lambda: list(NAMES), metadata={"help": "compared with the engine", "choices": list(NAMES)}
    )
    no_peers: bool = field(default=False, metadata={"help": "the engine and the reference alone"})
    upstream: str | None = field(
        default=None, metadata={"help": "a Python in which the published package, `import jat`, works"}
    )
    before: str | None = field(
        default=None,
        metadata={
            "help": "limits: a checkout of another version, with its native module built, whose engine takes part"
        },
    )
    use_cpu: bool = field(default=False, metadata={"help": "run on the CPU, also where there is a GPU"})

    def check(self) -> None:
        """Raise `ValueError` for what cannot be measured."""
        for name, values in (
            ("num_iters", [self.num_iters]),
            ("num_iters_warmup", [self.num_iters_warmup]),
            ("batch_size", self.batch_size),
            ("windows", self.windows),
            ("hz", self.hz),
            ("agent_steps", [self.agent_steps]),
        ):
            for value in values:
                if value < 1:
                    raise ValueError(f"--{name}: expected at least 1, got {value}")

        for window in self.windows:
            if window % 2:
                raise ValueError(f"--windows: expected even numbers, a step being two tokens, got {window}")
        if self.task is not None and self.paces:
            raise ValueError("--paces and --task: expected one of them; with --task its environment is the pace")
        if not 0 < self.minutes < float("inf"):
            raise ValueError(f"--minutes: expected a positive number, got {self.minutes}")
        for model in self.models:
            check_model(model)
        if self.before is not None and not (Path(self.before) / "jat_engine").is_dir():
            raise ValueError(f"--before: expected a folder with the package jat_engine, got {self.before}")

        parent = Path(self.output_json).absolute().parent
        if not parent.is_dir():
            raise ValueError(f"--output_json: there is no folder {parent}")


@dataclass
class CompareArguments:
    """Arguments of `bench compare`."""

    threshold: float = field(
        default=0.05, metadata={"help": "share of the time that is no difference, besides what the spread explains"}
    )


def run(argv: Sequence[str]) -> int:
    """Run suites, or compare two files of results; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        sys.exit(0)
    if argv[0].startswith("-"):
        parse("bench", "Measure.", [BenchArguments], argv)  # so that an unknown flag is told first
        raise ValueError(f"bench: expected one of {', '.join(SUITES)}, all, compare before the options")
    name, rest = argv[0], list(argv[1:])
    if name == "compare":
        return run_compare(rest)
    if name != "all" and name not in SUITES:
        raise ValueError(f"bench: expected one of {', '.join(SUITES)}, all, compare, got {name!r}")
    description = "Measure, in turns with what a user would run instead."
    arguments, choice = parse(f"bench {name}", description, [BenchArguments, TaskArguments], rest)
    names = [suite for suite in SUITES if suite not in PARTS] if name == "all" else [name]
    if arguments.task is not None and "loop" not in names:
        raise ValueError(f"--task: expected the suite loop, which steps its environment, got {name}")
    arguments.check()
    choice.load()
    return run_suites(names, arguments, None if arguments.task is None else choice.find_one(arguments.task))


def run_suites(names: Sequence[str], arguments: BenchArguments, task: Task | None = None) -> int:
    """Run suites into one file, print its tables; returns 1 if outputs were not right.

    Args:
        names: of the suites.
        arguments: of all of them.
        task: whose environment the loop suite steps; None for those of its paces.
    """
    device = str(default_device(arguments.use_cpu))
    dtypes, skipped = supported_dtypes(device, arguments.dtypes)
    options = Options(
        num_iters=arguments.num_iters,
        num_iters_warmup=arguments.num_iters_warmup,
        batch_sizes=tuple(arguments.batch_size),
        models=tuple(arguments.models),
        dtypes=dtypes,
        observations=tuple(arguments.observations),
        windows=tuple(arguments.windows),
        peers=() if arguments.no_peers else tuple(arguments.peers),
        upstream=arguments.upstream,
        device=device,
        hz=tuple(arguments.hz),
        paces=tuple(arguments.paces or PACES) if task is None else (task.name,),
        neighbours=tuple(arguments.neighbour),
        minutes=arguments.minutes,
        agent_steps=arguments.agent_steps,
        task=task,
        before=None if arguments.before is None else Path(arguments.before),
    )
    plain_torch = native_module()[1] if choose_backend(options.device).lacks_native else ""
    if plain_torch:
        note(f"WARNING: JatEngine is measured in PLAIN TORCH, not with its native kernels: {plain_torch}")
    settings = {
        **asdict(replace(options, task=None, before=None)),
        "before": options.before is not None,
        "task": loop.described(task),
        "suites": list(names),
        "upstream": options.upstream is not None,
        "plain_torch": plain_torch,  # why the engine's native kernels are not what is measured; "" where they are
    }
    results = Results(machine(), settings, skipped=skipped)
    bandwidth, path = Bandwidth(options.device), Path(arguments.output_json)

    def save() -> None:
        results.machine["bandwidth GB/s"] = bandwidth.facts()
        results.write(path)

    context = Context(options, results, bandwidth, note, save)
    with quiet_loading():
        for name in names:
            for suite in SUITES[name]:
                suite(context)
                save()
    print_results(results)
    for line in disagreeing(results.rows):
        note(line)
    try:
        for plotted in report.write_plots(results, path):
            note(f"wrote {plotted}")
    except ValueError as error:
        note(f"no plots: {error}")
    note(f"wrote {path}")
    return 1 if disagreeing(results.rows) else 0


def supported_dtypes(device: str, dtypes: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the dtypes that the engine has on a device, and why others are skipped.

    Raises:
        ValueError: there is none.
    """
    found, skipped = [], {}
    for dtype in dtypes:
        try:
            choose_backend(device, dtype)
            found.append(dtype)
        except InputError as error:
            skipped[dtype] = str(error)
    if not found:
        raise ValueError(f"--dtypes: {'; '.join(skipped.values())}")
    return tuple(found), skipped


def print_results(results: Results) -> None:
    """Print a table for each suite, and what was skipped."""
    for suite in results.suites:
        rows = results.of_suite(suite)
        print_table(
            report.title(suite, results.settings),
            report.columns(rows),
            left=_WORDS,
        )
        if suite in report.STANDINGS and (standing := report.standing(rows)):
            print_table("compared with the fastest other agent of its dtype", standing, left=_WORDS)
    speed = results.machine.get("bandwidth GB/s", {})
    if speed:
        say(f"memory: {speed['median']:.1f} GB/s read ({speed['p10']:.1f} to {speed['p90']:.1f})")
    for name, reason in results.skipped.items():
        say(f"skipped {name}: {reason}")


def run_compare(argv: Sequence[str]) -> int:
    """Print what changed from one file of results to another; returns 1 if anything became worse."""
    files = [text for text in argv if text.endswith(".json")]
    rest = [text for text in argv if text not in files]
    if len(files) != 2 and not {"-h", "--help"} & set(rest):
        raise ValueError(f"bench compare: expected two files of results, A.json B.json, got {len(files)}")
    (arguments,) = parse("bench compare A.json B.json", "What changed by more than noise.", [CompareArguments], rest)
    if not 0 <= arguments.threshold < 1:
        raise ValueError(f"--threshold: expected a share in [0, 1), got {arguments.threshold}")

    first, second = (Results.read(Path(name)) for name in files)
    found = comparisons.compare(first, second, arguments.threshold)
    if not found.changes:
        raise ValueError("bench compare: expected runs that share a measurement, got none")

    print_table(
        f"{files[1]} over {files[0]}: times, less is faster",
        _comparison_columns(found.changes),
        left=("what", "verdict"),
    )

    for remark in found.remarks:
        say(remark)
    for title, names in (("only in the first", found.only_first), ("only in the second", found.only_second)):
        for name in names:
            say(f"{title}: {name}")
    return 1 if found.is_worse else 0


def _comparison_columns(changes: Sequence[comparisons.Change]) -> dict[str, list[str]]:
    def interval(value: Any) -> str:
        return "" if value is None else f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"

    return {
        "what": [comparisons.label(change.row) for change in changes],
        "time": [interval(change.time) for change in changes],
        "in relation to the reference": [interval(change.relative) for change in changes],
        "verdict": [change.verdict for change in changes],
    }
