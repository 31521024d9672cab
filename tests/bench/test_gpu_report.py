"""benchmarks/gpu_report.py where there is no GPU, or in its reduced form; and what it reads from tools' outputs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT

from jat_engine.testing import golden

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.gpu import build, counters, markdown, parity, predictions, report, sanitizer, suite, trace
from benchmarks.gpu.compiled_peer import DenseAgent, load_model
from benchmarks.gpu.section import SectionRun
from jat_engine import JatProcessor
from jat_engine.backends.select import BACKENDS

NEEDS_GPU = ["trace", "texts", "kernels", "geometries", "counters", "sanitizer", "resources", "tiles"]
SECTIONS = ["machine", "parity", "latency", "throughput", *NEEDS_GPU]


@pytest.fixture(scope="module")
def without_simulators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which simulators cannot be imported: a machine with a GPU need not have them."""
    refused = tmp_path_factory.mktemp("refused")
    (refused / "sitecustomize.py").write_text(f"""
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {suite.SIMULATORS!r}:
            raise ModuleNotFoundError("there is no " + name)
sys.meta_path.insert(0, Refused())
""")
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(refused), os.environ.get("PYTHONPATH", "")))}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, without_simulators: dict[str, str]) -> Path:
    """A report of the sections that neither compile nor collect tests, run as a user runs it, from elsewhere."""
    out = tmp_path_factory.mktemp("report")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/gpu_report.py"), "--out", str(out), "--quick", "--only", *SECTIONS],
        capture_output=True,
        text=True,
        check=False,
        cwd=out,
        timeout=500,
        env=without_simulators,
    )
    assert done.returncode == 0, done.stderr
    assert "parity      torch float32" in done.stdout
    return out


def test_no_section_imports_a_simulator(without_simulators: dict[str, str]) -> None:
    """Sections that need a GPU as well, which are not run here."""
    pytest.importorskip("triton", reason="needs triton")
    names = sorted(path.stem for path in (ROOT / "benchmarks" / "gpu").glob("*.py"))
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module('benchmarks.gpu.' + name)"
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=without_simulators)
    assert done.returncode == 0, done.stderr

    refused = subprocess.run(
        [sys.executable, "-c", "import gymnasium"], capture_output=True, check=False, env=without_simulators
    )
    assert b"there is no gymnasium" in refused.stderr


def test_report_is_complete_and_claims_no_gpu(written: Path) -> None:
    data = json.loads((written / "report.json").read_text())
    sections = data["sections"]
    assert list(sections) == SECTIONS
    assert {name: s["status"] for name, s in sections.items() if s["status"] in ("failed", "timed out")} == {}
    assert len(list(written.iterdir())) <= 8
    assert sum(path.stat().st_size for path in written.iterdir()) < 1e6
    if torch.cuda.is_available():
        return
    assert data["measured on a GPU"] is False
    assert all(s.get("on", "CPU") == "CPU" for s in sections.values())
    for name in NEEDS_GPU:
        assert sections[name]["status"] == "not run"
        assert sections[name]["reason"] == "there is no NVIDIA GPU"
    assert sections["latency"]["result"]["device"] == {"not run": "needs a GPU"}
    assert "nothing below was measured on one" in (written / "report.md").read_text()


def test_report_finds_the_errors_of_every_path(written: Path) -> None:
    result = json.loads((written / "report.json").read_text())["sections"]["parity"]["result"]
    assert result["reference, float64"]["relative error to the recorded answers (float32)"] < 3e-6
    torch_path = result["paths"]["torch float32"]
    assert torch_path["within"] is True
    assert torch_path["tiny"]["episodes"] == len(golden.EPISODES)
    assert 1e-8 < torch_path["tiny"]["relative error"] < 1e-5
    assert result["paths"]["JatModel bfloat16"]["tiny"]["relative error"] > 1e-3
    if "cuda" in BACKENDS and util.find_spec("triton"):
        interpreted = result["paths"]["graphs float32"]
        assert interpreted["within"] is True, interpreted
        assert interpreted["tiny"]["relative error"] < 1e-5
    rows = json.loads((written / "report.json").read_text())["sections"]["latency"]["result"]["steps"]
    assert {(row["observation"], row["mode"]) for row in rows} == {
        (kind, mode) for kind in ("continuous", "babyai", "atari") for mode in ("1 ms pause", "back to back")
    }
    assert all(0 < row["p50 us"] <= row["p99 us"] for row in rows)
    agents = json.loads((written / "report.json").read_text())["sections"]["throughput"]["result"]["agents"]
    assert [(row["api"], row["agents"]) for row in agents] == [
        (api, n) for api in ("batch", "sessions") for n in (1, 2, 4)
    ]


def _running(command: bytes) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == command:
                return True
    return False


HANG = "import subprocess, sys; subprocess.run(['sleep', '987'], start_new_session=True)"


BODIES = {
    "machine": "raise KeyError('lost')",
    "build": HANG,
    "parity": "import os; os.abort()",
    "latency": "context.record('after', 3)",
}


def test_sections_that_fail_hang_or_die_take_nothing_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records made before the failure are kept, the next section gets its own time, and the report is written."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys, types
import benchmarks.gpu.section as section
def run(context):
    context.record("before", [1, 2])
    exec({BODIES!r}[sys.argv[1]])
sys.modules["benchmarks.gpu." + sys.argv[1]] = types.SimpleNamespace(run=run)
sys.exit(section.main())
""")
    monkeypatch.setattr(report, "python_module", lambda _, *arguments: [sys.executable, str(script), *arguments])
    out = report.Report(tmp_path, tmp_path, gpu=False, quick=True)
    sections = [report.Section(name, name, 5, 5) for name in BODIES]
    report.run_all(sections, out, time.time() + 20)
    deadline = time.monotonic() + 10  # a killed process is gone soon, not at once
    while _running(b"sleep\x00987\x00"):
        assert time.monotonic() < deadline, "what the section had started runs on"
        time.sleep(0.05)

    found = json.loads((tmp_path / "report.json").read_text())["sections"]
    assert [entry["status"] for entry in found.values()] == ["failed", "timed out", "failed", "reduced"]
    assert all(entry["result"]["before"] == [1, 2] for entry in found.values())
    assert "lost" in found["machine"]["reason"]
    assert found["latency"]["result"]["after"] == 3
    assert "timed out" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("quick", "gpu"), [(False, True), (True, True), (True, False)])
def test_sections_have_less_time_than_the_report(quick: bool, gpu: bool) -> None:
    total = (report.TOTAL_REDUCED_SECONDS if quick else report.TOTAL_SECONDS) - report.LAST_SECONDS
    assert report.seconds_of(report.SECTIONS, quick, gpu) < total


def test_two_calls_have_all_sections() -> None:
    calls = [[section for section in report.SECTIONS if report.is_in(section, call)] for call in (1, 2)]
    assert {section.name for call in calls for section in call} == {section.name for section in report.SECTIONS}
    for sections in calls:
        assert report.seconds_of(sections, quick=False, gpu=True) < report.CALL_SECONDS - report.LAST_SECONDS
    assert 2 * report.CALL_SECONDS <= 15 * 60


def test_the_commit_is_the_caller_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPU_REPORT_COMMIT", "83cffa2")
    assert report.Report(tmp_path, tmp_path, gpu=False, quick=True).data["commit"] == "83cffa2"


def test_a_section_gets_its_time_and_what_is_left_over() -> None:
    first, second = report.Section("a", "a", 10, 1), report.Section("b", "b", 20, 2)
    assert report.budget([first, second], 50, quick=False, gpu=True) == 30
    assert report.budget([first, second], 25, quick=False, gpu=True) == 10
    assert report.budget([second], 5, quick=False, gpu=True) == 5


def test_a_gpu_that_does_not_answer_is_none(tmp_path: Path) -> None:
    assert report.look_for_gpu(tmp_path, seconds=0.05) == (
        False,
        "torch did not say within 0 s whether there is a GPU",
    )


def test_no_time_left_is_no_failure_of_a_path(tmp_path: Path) -> None:
    section = SectionRun(str(tmp_path), str(tmp_path / "out.json"), False, time.time(), True, {})
    parity.run(section)
    assert {row["not run"] for row in section.result["paths"].values()} == {"no time left"}
    assert {markdown.verdict(row) for row in section.result["paths"].values()} == {"not run"}
    assert section.result["failed"] == {}


def test_predictions_stand_next_to_readings(tmp_path: Path) -> None:
    sections = {
        "machine": {"gpu": {"name": "NVIDIA H200"}},
        "latency": {"steps": [{"agent": "persistent bfloat16", "observation": "continuous", "device us": 150.0}]},
        "throughput": {"agents": [{"agents": 64, "graphs ms": 0.4}]},
    }
    data = {"sections": {name: {"result": result} for name, result in sections.items()}}
    table = {
        "persistent": [
            {"name": "persistent, 1 agent", "us": {"H100": 120.0, "H200": 100.0}},
            {"name": "persistent, 1 agent, 120 blocks", "us": {"H200": 105.0}},
        ],
        "graphs": [
            {"name": "graphs, 64 agents", "us": {"H200": 390.0}},
            {"name": "images, 1024 frames", "us": {"H200": 500.0}},
        ],
    }
    (tmp_path / "table.json").write_text(json.dumps(table))
    rows = predictions.comparison(data, predictions.predictions(tmp_path / "table.json"))
    assert [row["verdict"] for row in rows] == ["off by +50%", "as predicted", "no reading"]
    assert predictions.predictions(tmp_path / "none.json") == []


def test_phases_are_read_from_the_trace() -> None:
    step = [(0, 0, 1000), (0, 1, 3000), (0, 0, 4000), (32, 0, 1000), (32, 1, 6000), (32, 0, 8000)]
    first, second = trace.table([step])
    assert (first["phase"], first["times a step"], first["us a step"]) == (trace.PHASES[0], 1.0, 3.5)
    assert (second["us each, longest"], trace.span_us(step)) == (2.0, 7.0)


@pytest.mark.parametrize("name", ["continuous_cw9", "babyai_greedy_full", "atari_sampled_cw8", "discrete_only"])
def test_dense_step_is_the_published_step(name: str, tiny_folder: Path, tiny_processor: JatProcessor) -> None:
    """The float64 reference, and with it the compiled peer: odd windows, local ones, every kind of observation."""
    episode = next(e for e in golden.EPISODES if e.name == name)
    agent = DenseAgent(load_model(tiny_folder, torch.float64, "cpu"), tiny_processor, episode.context_window)
    predictions = []
    for t in range(episode.steps):
        _, prediction = agent.get_next_action(
            **episode.observation(t),
            action_space=episode.space,
            reward=episode.reward(t),
            deterministic=True,
            return_prediction=True,
        )
        predictions.append(prediction)
        if episode.actions is not None:
            agent.force_action(episode.actions[t])
    assert predictions[0].dtype == np.float64
    assert golden.relative_error(predictions, episode.predictions) < 3e-6


def test_kernel_cases_are_launches_of_the_real_kernels() -> None:
    pytest.importorskip("triton", reason="needs triton")
    pytest.importorskip("jat_engine.kernels.head", reason="needs the Triton kernels")
    code = """
import torch
from benchmarks.gpu import tiles
from benchmarks.gpu.kernels import cases, images, integers
from jat_engine import JatConfig
config = JatConfig(hidden_size=64, num_layers=2, num_heads=4, max_position_embeddings=48, window_size=12,
                   vocab_size=257, bos_token_id=0, eos_token_id=0)
names = []
for sessions in (1, 6):
    for case in cases(config, sessions, "float32", torch.device("cpu"), 33):
        case.launch(0, pdl=False)
        names.append(case.name)
        if case.name == "norm_qkv" and sessions == 1:
            from unittest import mock
            from jat_engine.kernels import linear
            tile = next(tiles.candidates(3, tiles.products(config)["qkv"]))
            with mock.patch.object(linear, "tile_of", lambda *_, **__: tile):
                case.launch(0, pdl=False)
images(config, 1, torch.device("cpu")).launch(0, pdl=False)
for count in (1, 5):
    integers(config, count, torch.device("cpu")).launch(0, pdl=False)
print(len(names), sum(name.startswith("paged_attention") for name in names))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["16", "4"]  # of two steps; the attention with two windows


def test_primitives_compile_and_say_why_they_do_not_run(tmp_path: Path) -> None:
    import shutil

    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    program = tmp_path / "primitives"
    source = ROOT / "benchmarks/gpu/primitives.cu"
    command = ["nvcc", "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if torch.cuda.is_available():
        return
    found: dict[str, Any] = json.loads(
        subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    )
    assert list(found) == ["skipped"]
    assert found["skipped"]


def test_resources_are_read_from_ptxas() -> None:
    output = """ptxas info    : Compiling entry function '_Z4stepPf' for 'sm_90a'
ptxas info    : Function properties for _Z4stepPf
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 1024 bytes smem
"""
    (row,) = build.resources(output)
    row.pop("kernel")
    assert row == {"arch": "sm_90a", "spill_stores": 8, "spill_loads": 12, "registers": 168, "shared_bytes": 1024}


def test_verdicts_are_read_from_the_sanitizer() -> None:
    output = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at step+0x10
========= ERROR SUMMARY: 1 error
"""
    row = sanitizer.verdict(86, output, 1.0)
    assert row["verdict"] == "ERROR SUMMARY: 1 error"
    assert row["first errors"] == ["Invalid __global__ read of size 4 bytes"]
    assert sanitizer.verdict(None, "nothing", 1.0)["verdict"] == "no verdict"


def test_rows_are_read_from_ncu() -> None:
    stall = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
    names = [
        "ID",
        "Kernel Name",
        "Grid Size",
        "gpu__time_duration.sum",
        "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    ]
    names += [stall.format(reason) for reason in ("barrier", "no_instruction", "drain")]
    rows = [
        names,
        ["", "", "", "us", "%", "inst", "inst", "inst"],
        ["0", "step", "(128, 1, 1)", "61.5", "71.2", "1.5", "2.25", "0.01"],
    ]
    output = "==PROF== Connected\n" + "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows)
    assert counters.parse(output) == [
        {
            "kernel": "step",
            "grid": "(128, 1, 1)",
            "duration us": "61.5",
            "DRAM %": "71.2",
            "warps stalled": "no_instruction 2.25, barrier 1.50",
        }
    ]
    assert counters.parse("==ERROR== no") == []


def test_suite_leaves_out_what_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, left_out = suite.files()
    names = {path.name for path in chosen}
    assert {"test_kernels.py", "test_cuda_persistent.py"} <= names
    assert not {"test_cli.py", "test_gpu_report.py", "test_ptx.py"} & names, "none of their tests is marked gpu"
    assert left_out == {}

    marked = "import pytest\npytestmark = pytest.mark." + "gpu\n"
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text(f"import gymnasium\n{marked}")
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert suite.files() == ([], {"test_one.py": "needs gymnasium"})


def test_suite_counts_what_cannot_be_collected_apart(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("import no_simulator_has_this_name\n")
    (tmp_path / "test_two.py").write_text("def test_right(): pass\ndef test_wrong(): assert not 3\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    subprocess.run([*command, f"--junitxml={tmp_path}/x.xml", str(tmp_path)], capture_output=True, check=False)
    found = suite.counts(tmp_path / "x.xml")
    assert (found["tests"], found["failures"], found["errors"]) == (2, 1, 0)
    assert ["test_wrong" in failure["test"] for failure in found["failed"]] == [True]
    assert ["no_simulator_has_this_name" in why for why in found["not collected"]] == [True]
