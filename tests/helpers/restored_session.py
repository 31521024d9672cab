"""Go on with a session from its snapshot, in a process of its own: FOLDER SNAPSHOT EPISODE BEGIN END."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from helpers.engines import EPISODE, play
from jat_engine import JatEngine

folder, snapshot, name, begin, end = sys.argv[1:]
engine = JatEngine.from_pretrained(folder, device="cpu", backend="cpu", dtype="bfloat16")
session = engine.restore(Path(snapshot).read_bytes())
steps = range(int(begin), int(end))
print(json.dumps([play(session, EPISODE[name], t)[1].view(np.int32).tolist() for t in steps]))
