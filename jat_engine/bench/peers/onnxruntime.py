"""Run the static step by ONNX Runtime on the CPU: float32, and int8 by its dynamic quantization."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ... import JatConfig, JatProcessor
from ...machine import available_cores
from . import static_step
from .base import Unavailable
from .static_step import ENCODERS, Host, RunTrunk, StaticPeer, Trunk, encoder_example, load_model, trunk_example

INSTALL = "pip install onnx onnxscript onnxruntime"


def open_peer(folder: Path, dtype: str) -> StaticPeer:
    """Export a checkpoint, unless that was done before, and open it.

    Raises:
        Unavailable: a package is missing, or the dtype is not float32 or int8.
    """
    if dtype not in ("float32", "int8"):
        raise Unavailable(f"onnxruntime has no {dtype} kernels on a CPU; use float32 or int8")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed; {INSTALL}") from None
    model = load_model(folder)
    runtime = OnnxRuntime(exported(model, folder, dtype))
    return StaticPeer("onnxruntime", dtype, Host(model, JatProcessor.from_pretrained(folder)), runtime)


class OnnxRuntime:
    """Run the exported graphs; inputs and outputs are bound to numpy arrays once, so nothing is copied."""

    cache_dtype = np.float32

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: dict[str, Any] = {}

    def _session(self, name: str) -> Any:
        import onnxruntime

        if name not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = available_cores()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            options.log_severity_level = 3
            # Else threads of the encoder would go on spinning on the cores that the trunk needs.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            path = str(self._folder / f"{name}.onnx")
            self._sessions[name] = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        return self._sessions[name]

    def open_trunk(self, caches: np.ndarray) -> RunTrunk:
        session = self._session("trunk")
        names = [each.name for each in session.get_inputs()]
        num_tensors, num_agents, num_heads, window, head_dim = caches.shape
        rows = static_step.ROWS
        x = np.empty((num_agents, rows, num_heads * head_dim), np.float32)
        mask_global, mask_local = (np.empty((rows, window + rows), np.float32) for _ in range(2))
        hidden = np.empty((num_agents, num_heads * head_dim), np.float32)
        new = np.empty((num_tensors, num_agents, num_heads, rows, head_dim), np.float32)
        binding = session.io_binding()
        for name, array in zip(names, (x, mask_global, mask_local, *caches), strict=True):
            binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for each, array in zip(session.get_outputs(), (hidden, new), strict=True):
            binding.bind_output(each.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

        def run(*inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            for bound, given in zip((x, mask_global, mask_local), inputs, strict=True):
                np.copyto(bound, given)
            session.run_with_iobinding(binding)
            return hidden, new

        return run

    def open_encoder(self, kind: str, num_agents: int) -> Callable[..., np.ndarray]:
        session = self._session(kind)
        names = [each.name for each in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


# ---- export ----------------------------------------------------------------------------------------------------------


def exported(model: Any, folder: Path, dtype: str) -> Path:
    """Return the folder of the graphs, next to the checkpoint; made once for each state of it, of torch and of onnx."""
    import onnx

    weights = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors"))
    sources = [Path(path).read_bytes() for path in (__file__, static_step.__file__)]
    key = hashlib.sha256(repr((torch.__version__, onnx.__version__, weights, sources)).encode()).hexdigest()[:12]
    place = folder.parent if os.access(folder.parent, os.W_OK) else Path(tempfile.gettempdir())
    target = place / f"{folder.name}-onnx-{key}-{dtype}"
    if not target.exists():
        made = Path(tempfile.mkdtemp(dir=place, prefix=f"{folder.name}-onnx-"))
        try:
            if dtype == "float32":
                export(model, made)
            else:
                quantize(exported(model, folder, "float32"), made)
            os.rename(made, target)  # noqa: PTH104 -- Path.rename replaces on some systems
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    return target


def export(model: Any, target: Path) -> None:
    """Write trunk.onnx, and an encoder for each modality. B and N stay dynamic."""
    agents, slots = torch.export.Dim("agents", max=4096), torch.export.Dim("slots", max=1 << 16)
    masks, cache = {1: slots + static_step.ROWS}, {0: agents, 2: slots}
    config: JatConfig = model.config
    example = trunk_example(config, 2, 8, torch.float32)
    shapes = ({0: agents}, masks, masks, tuple(cache for _ in example[3:]))
    _export(Trunk(model).eval(), example, shapes, target / "trunk.onnx")
    for kind, encoder in ENCODERS.items():
        example = encoder_example(config, kind, 2)
        _export(encoder(model).eval(), example, tuple({0: agents} for _ in example), target / f"{kind}.onnx")


def _export(module: torch.nn.Module, example: tuple[Any, ...], shapes: Any, path: Path) -> None:
    torch.onnx.export(
        module, example, path, dynamo=True, dynamic_shapes=shapes, opset_version=20, external_data=True, verbose=False
    )


def quantize(source: Path, target: Path) -> None:
    """Write the graphs with matrix products in int8: one scale per channel; activations to uint8 as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for path in source.glob("*.onnx"):
        quantize_dynamic(
            path,
            target / path.name,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
