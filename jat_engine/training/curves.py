"""Learning curves of a training as a picture."""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..atomic_io import write_bytes

CURVES_FILE = "curves.png"
"""File in the output folder with the curves."""

_PAUSE, _DRAW_SHARE = 5.0, 20
"""Seconds from one drawing to the next, at least; and that many times the duration of a drawing."""

_MOST_TASKS = 8
"""Number of tasks up to which each has a curve of its own."""

Curve = tuple[list[int], list[float]]
"""Steps and values."""


class CurvesCallback(TrainerCallback):
    """Draw the learning curves into the output folder while training, by the Trainer's history of logs.

    The history is part of a checkpoint, so that a resumed training shows the whole curve.

    Args:
        tell: function that is called with a sentence if the curves cannot be drawn. Training goes on.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._drawn, self._pause = time.monotonic(), _PAUSE
        self._fails = False

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw, unless that was done a moment ago."""
        if time.monotonic() - self._drawn >= self._pause:
            self.draw(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the whole curves."""
        self.draw(args, state)

    def draw(self, args: Any, state: Any) -> None:
        """Draw the curves so far, in one of the processes of a training.

        Args:
            args: arguments of the training.
            state: the Trainer's state.
        """
        if self._fails or not state.is_world_process_zero or not curves_of(state.log_history):
            return
        began = time.monotonic()
        try:
            write_curves(state.log_history, Path(args.output_dir) / CURVES_FILE)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            self._fails = True
            self._tell(f"learning curves are not drawn: {error}")
        self._drawn = time.monotonic()
        self._pause = max(_PAUSE, _DRAW_SHARE * (self._drawn - began))


def curves_of(history: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """Return all numbers of a history of logs by name, without those that are not finite.

    Args:
        history: `log_history` of the Trainer's state.

    Returns:
        Name, such as `loss`, `loss/<task>`, `eval_loss`, `eval_return` -> steps and values.
    """
    curves: dict[str, Curve] = {}
    for entry in history:
        for name, value in entry.items():
            if _SHOWN.match(name) and isinstance(value, int | float) and math.isfinite(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(int(entry["step"]))
                values.append(float(value))
    return curves


_SHOWN = re.compile(r"loss(/.+)?$|eval_(.+_)?(loss|return|score)$")


def write_curves(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw losses, and returns if episodes were played, into a PNG file, which is replaced as a whole.

    Args:
        history: `log_history` of the Trainer's state, with at least one loss or return.
        path: the file.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    if util.find_spec("matplotlib") is None:
        raise ImportError("matplotlib is not installed here; pip install 'jat-engine[train]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = curves_of(history)
    panels = [panel for panel in (_losses(curves), _returns(curves)) if panel[1]]
    figure = Figure(figsize=(6.4 * len(panels), 4.4), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for label, (steps, values), main in lines:
            style = {"linewidth": 2.0, "zorder": 3} if main else {"linewidth": 0.9, "alpha": 0.7}
            axes.plot(steps, values, label=label, marker="." if len(steps) <= 60 else None, **style)
        numbers = [value for _, (_, values), _ in lines for value in values]
        if min(numbers) > 0 and max(numbers) > 5 * min(numbers) and "loss" in title:
            axes.set_yscale("log")
        axes.set(title=title, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)

    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    write_bytes(path, picture.getvalue())


Line = tuple[str, Curve, bool]
"""Label, curve, and whether it is the mean of others."""


def _losses(curves: dict[str, Curve]) -> tuple[str, list[Line]]:
    lines: list[Line] = [
        (label, curves[name], True) for name, label in (("loss", "training"), ("eval_loss", "test")) if name in curves
    ]
    tasks = [(name.removeprefix("loss/"), curve, False) for name, curve in curves.items() if name.startswith("loss/")]
    return "loss", lines + tasks if 2 <= len(tasks) <= _MOST_TASKS else lines


def _returns(curves: dict[str, Curve]) -> tuple[str, list[Line]]:
    kinds = {kind: [name for name in curves if re.fullmatch(f"eval_.+_{kind}", name)] for kind in ("return", "score")}
    if len(kinds["return"]) == 1:  # the environment's own numbers say more than normalised ones
        (name,) = kinds["return"]
        return "mean return", [(name[len("eval_") : -len("_return")], curves[name], True)]
    if "eval_return" not in curves:
        return "mean return", []

    kind = "score" if kinds["score"] else "return"
    title = "return, 0: random, 1: expert" if kinds["score"] else "mean return"
    lines: list[Line] = [("mean", curves["eval_return"], True)]
    if len(kinds[kind]) <= _MOST_TASKS:
        lines += [(name[len("eval_") : -len(kind) - 1], curves[name], False) for name in kinds[kind]]
    return title, lines
