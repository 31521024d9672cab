"""Command line `jat-engine`: one module per subcommand, imported when the subcommand is used."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from ..errors import one_line
from ..keywords import did_you_mean
from . import streams

COMMANDS = {
    "play": "watch or record an agent on one task",
    "eval": "score an agent on tasks, as published, or its language model on texts",
    "serve": "serve an agent to robots and evaluators, over websockets",
    "replay": "play the record of a server again, and say which actions differ",
    "generate": "continue texts, or write about images",
    "lm-eval": "evaluate the language model on tasks of EleutherAI's lm-eval",
    "report": "write the result files, tables and figures of a run",
    "verify": "play episodes of a run again, and say which differ",
    "compare-agents": "compare two agents, or two runs, on the same seeds",
    "collect": "collect expert episodes as a dataset",
    "import": "import demonstrations from Minari, LeRobot, npz or Parquet as a dataset",
    "train": "train an agent on a dataset, as published",
    "quantize": "write a checkpoint with its matrices in 4 or 8 bits",
    "bench": "measure the engine and its peers, or compare two measurements",
    "check": "load a checkpoint, compare engine and model on recorded observations, play",
    "tasks": "list the tasks, or check that they run here",
    "info": "versions, device, compiled extensions, simulators",
    "demo": "jat-mini plays one task of every domain, in about a minute",
}

_MODULES = {
    "play": "jat_engine.cli.play",
    "eval": "jat_engine.cli.evaluate",
    "serve": "jat_engine.cli.serve",
    "replay": "jat_engine.cli.replay",
    "generate": "jat_engine.cli.generate",
    "lm-eval": "jat_engine.cli.lm_eval",
    "report": "jat_engine.cli.report",
    "verify": "jat_engine.cli.verify",
    "compare-agents": "jat_engine.cli.compare_agents",
    "collect": "jat_engine.cli.collect",
    "import": "jat_engine.cli.import_data",
    "train": "jat_engine.cli.train",
    "quantize": "jat_engine.cli.quantize",
    "bench": "jat_engine.cli.bench",
    "check": "jat_engine.cli.check",
    "tasks": "jat_engine.cli.tasks",
    "info": "jat_engine.cli.info",
    "demo": "jat_engine.cli.demo",
}

_USAGE_ERROR, _INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `jat-engine <argv>` and return its exit code.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        0 on success, 1 if a check failed, 2 for wrong arguments or input, 130 after Ctrl-C.
    """
    streams.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            streams.refused = ""
            code = _run(arguments)
            return _fail(f"standard output: {streams.refused}") if streams.refused else code
        finally:  # also after `--help`, which raises
            streams.flush()
    except KeyboardInterrupt:
        print("jat-engine: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        streams.settle()
        return 0
    except (ValueError, ImportError, OSError) as error:
        if not isinstance(error, OSError) and not _is_ours(error):
            raise
        streams.settle()
        return _fail(one_line(error))


def _run(arguments: list[str]) -> int:
    """Run the subcommand that the first argument names."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        from .. import __version__

        print(f"jat-engine {__version__}")
        return 0

    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS, f"expected one of {', '.join(COMMANDS)}")
        return _fail(f"unknown command {name!r}; {hint}")

    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame prints it among the results
    command = importlib.import_module(_MODULES[name])
    return int(command.run(arguments[1:]))


def _is_ours(error: Exception) -> bool:
    """Return whether this package raised the error. Its message is then for the user, who needs no traceback."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] == __name__.partition(".")[0]


def _fail(message: str) -> int:
    print(f"jat-engine: error: {message}", file=sys.stderr)
    return _USAGE_ERROR


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jat-engine <command> [options]",
            "",
            "Run a JAT agent.",
            "",
            *lines,
            "",
            "jat-engine <command> --help says more; jat-engine --version.",
        ]
    )
