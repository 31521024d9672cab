"""Run the static step by ONNX Runtime on the CPU: float32, int8 by its dynamic quantization, int4 by `MatMulNBits`."""

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
from .static_step import (
    ENCODERS,
    GROUP_SIZE,
    Host,
    RunTrunk,
    StaticPeer,
    Trunk,
    encoder_example,
    load_model,
    trunk_example,
)

INSTALL = "pip install onnx onnxscript onnxruntime"


def open_peer(folder: Path, dtype: str, group_size: int = GROUP_SIZE) -> StaticPeer:
    """Export a checkpoint, unless that was done before, and open it.

    Args:
        folder: of the checkpoint.
        dtype: of the weights.
        group_size: columns of a row that share a scale in int4.

    Raises:
        Unavailable: a package is missing, or the dtype is not float32, int8 or int4.
    """
    if dtype not in ("float32", "int8", "int4"):
        raise Unavailable(f"onnxruntime has no {dtype} kernels on a CPU; use float32, int8 or int4")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed; {INSTALL}") from None
    model = load_model(folder)
    runtime = OnnxRuntime(exported(model, folder, dtype, group_size))
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


def exported(model: Any, folder: Path, dtype: str, group_size: int = GROUP_SIZE) -> Path:
    """Return the folder of the graphs, next to the checkpoint; made once for each state of it, of torch and of onnx."""
    import onnx
    import onnxruntime

    weights = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.glob("*.safetensors"))
    sources = [Path(path).read_bytes() for path in (__file__, static_step.__file__)]
    versions = torch.__version__, onnx.__version__, onnxruntime.__version__
    key = hashlib.sha256(repr((versions, weights, sources)).encode()).hexdigest()[:12]
    place = folder.parent if os.access(folder.parent, os.W_OK) else Path(tempfile.gettempdir())
    target = place / f"{folder.name}-onnx-{key}-{dtype}{f'-{group_size}' if dtype == 'int4' else ''}"
    if not target.exists():
        made = Path(tempfile.mkdtemp(dir=place, prefix=f"{folder.name}-onnx-"))
        try:
            if dtype == "float32":
                export(model, made)
            elif dtype == "int8":
                quantize(exported(model, folder, "float32"), made)
            else:
                quantize_to_4_bits(exported(model, folder, "float32"), made, group_size)
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


_INT8_PRODUCTS = 4
"""Accuracy level of `MatMulNBits` at which it rounds activations to int8: several times faster than in float32."""


def quantize_to_4_bits(source: Path, target: Path, group_size: int) -> None:
    """Write the graphs with matrix products in int4: one scale for a group of columns; activations to int8.

    Symmetric: as fast as with zero points, and nearer to the weights.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    for path in source.glob("*.onnx"):
        model = onnx.load(path)
        _split_products(model.graph)
        quantizer = MatMulNBitsQuantizer(model, block_size=group_size, is_symmetric=True, accuracy_level=_INT8_PRODUCTS)
        quantizer.process()
        onnx.save_model(
            quantizer.model.model, target / path.name, save_as_external_data=True, location=f"{path.name}.data"
        )


def _split_products(graph: Any) -> None:
    """Write each Gemm with a weight [rows, columns] as a MatMul, which alone can have 4 bits, and an Add."""
    from onnx import helper, numpy_helper

    weights = {each.name: each for each in graph.initializer}
    nodes = []
    for node in graph.node:
        transposed = {attribute.name: attribute for attribute in node.attribute}.get("transB")
        if node.op_type != "Gemm" or node.input[1] not in weights or transposed is None or not transposed.i:
            nodes.append(node)
            continue
        x, weight, *bias = node.input
        array = np.ascontiguousarray(numpy_helper.to_array(weights[weight]).T)
        weights[weight].CopyFrom(numpy_helper.from_array(array, weight))
        product = f"{node.output[0]}.product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [x, weight], [product], name=f"{node.name}.product"))
        if bias:
            nodes.append(helper.make_node("Add", [product, *bias], node.output, name=node.name))
    del graph.node[:]
    graph.node.extend(nodes)
