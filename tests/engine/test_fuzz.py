"""Random arguments and files at the public interface: each is accepted, or refused with the package's own error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jat_engine import CheckpointError, InputError, JatConfig
from jat_engine.action_options import parse_options
from jat_engine.checkpoint.weights import CheckpointWeights, checkpoint_shapes
from jat_engine.observation import Limits, check_context_window, parse_action_space, parse_observation
from jat_engine.testing import golden

CONFIG = JatConfig(vocab_size=257, max_discrete_value=70, hidden_size=64, num_heads=4, num_layers=2)
LIMITS = Limits.of(CONFIG)

plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
arrays = hnp.arrays(dtype=hnp.scalar_dtypes(), shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=8))
tensors = arrays.filter(lambda a: a.dtype.kind in "iuf" and a.dtype.isnative and a.dtype.itemsize < 16).map(
    lambda a: torch.from_numpy(np.ascontiguousarray(a))
)
values = st.recursive(
    plain | arrays | tensors, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=2), x), max_leaves=6
)
settings.register_profile("boundary", max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("boundary")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "continuous_observation": values,
            "discrete_observation": values | st.lists(st.integers(-5, 300), min_size=6, max_size=6),
            "text_observation": values,
            "image_observation": values,
            "reward": values,
        },
    )
)
@example({"continuous_observation": [10**400]})
@example({"continuous_observation": np.array(["2020-01-01"], dtype="datetime64[D]")})
@example({"discrete_observation": [2**70] * 70})
@example({"discrete_observation": np.full(70, 2**63, np.uint64)})
@example({"continuous_observation": torch.ones(3, dtype=torch.complex64)})
@example({"continuous_observation": [1.0], "reward": 10**400})
@example({"continuous_observation": [1.0], "reward": torch.tensor(2.0, dtype=torch.bfloat16)})
def test_observations(fields: dict[str, Any]) -> None:
    try:
        reward = fields.get("reward")
        observation = parse_observation(LIMITS, {key: fields[key] for key in fields.keys() - {"reward"}}, reward)
    except InputError as error:
        assert "expected" in str(error)
        return
    (values,) = observation.values
    assert np.isfinite(values.astype(np.float64)).all()
    assert np.isfinite(observation.rewards).all()
    if observation.modality == "continuous":
        assert values.dtype == np.float32
        assert 1 <= values.size <= 376
    elif observation.modality != "image":
        assert values.shape == ((6,) if observation.texts is not None else (70,))
        assert values.dtype == np.int64
        assert values.min() >= 0
        assert values.max() < 257


@given(
    values
    | st.builds(spaces.Discrete, st.integers(1, 400), start=st.integers(-2, 2))
    | st.builds(lambda shape: spaces.Box(-1, 1, shape), hnp.array_shapes(min_dims=0, max_dims=3, max_side=400))
    | st.sampled_from([spaces.MultiBinary(3), spaces.Text(4), spaces.Dict(), spaces.Tuple(()), spaces.Discrete])
)
def test_action_spaces(space: Any) -> None:
    try:
        parsed = parse_action_space(LIMITS, space)
    except InputError as error:
        assert "action_space: expected" in str(error)
        return
    assert 1 <= parsed.size <= 377


@given(
    values | st.lists(st.booleans(), min_size=3, max_size=3) | hnp.arrays(np.int8, 3, elements=st.integers(0, 1)),
    values | st.floats(0, 10),
    values | st.integers(1, 5),
    values,
    st.sampled_from([spaces.Discrete(3), spaces.Box(-1, 1, (3,))]),
)
def test_action_options(mask: Any, temperature: Any, top_k: Any, clip: Any, space: Any) -> None:
    try:
        options = parse_options(mask, temperature, top_k, clip)
        rule = None if options is None else options.bind(parse_action_space(LIMITS, space), space)
    except InputError as error:
        assert "expected" in str(error)
        return
    if rule is not None and rule.allowed is not None:
        assert rule.allowed.shape == (1, 3)
        assert rule.allowed.any()
    if rule is not None:
        assert rule.temperature == 0 or 1e-30 <= rule.temperature <= 1e30
        assert rule.top_k is None or rule.top_k in (1, 2)


@given(values)
def test_context_windows(window: Any) -> None:
    try:
        parsed = check_context_window(window)
    except InputError:
        return
    assert parsed is None or (isinstance(parsed, int) and parsed >= 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path, JatConfig]:
    folder = golden.write_checkpoint(tmp_path_factory.mktemp("fuzz"))
    config = JatConfig.from_pretrained(folder)
    return (folder / "model.safetensors").read_bytes(), folder / "damaged.safetensors", config


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_headers(checkpoint: tuple[bytes, Path, JatConfig], data: st.DataObject) -> None:
    """After random writes to the header, refuse the file or read every parameter, finite and in shape."""
    raw, file, config = checkpoint
    header_size = 8 + int.from_bytes(raw[:8], "little")
    damaged = bytearray(raw)
    for position, byte in data.draw(
        st.lists(st.tuples(st.integers(0, header_size - 1), st.integers(0, 255)), min_size=1, max_size=8)
    ):
        damaged[position] = byte
    file.write_bytes(damaged)
    try:
        weights = CheckpointWeights([file], config).all_stored()
    except CheckpointError as error:
        assert str(file) in str(error)
        return
    assert {name: tuple(w.shape) for name, w in weights.items()} == checkpoint_shapes(config)
    assert all(torch.isfinite(w).all() for w in weights.values())
