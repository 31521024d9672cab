"""Texts on the CUDA backend: on a GPU compiled, elsewhere with kernels interpreted on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engines import EPISODE, TOLERANCE, play

from jat_engine import JatEngine, JatModel
from jat_engine.backends.base import TextRows
from jat_engine.testing.golden import CONFIG, relative_error

pytest.importorskip("triton", reason="the CUDA backend's kernels are Triton's")

from jat_engine.backends.cuda import text as text_step
from jat_engine.backends.cuda import text_staging
from jat_engine.backends.cuda.text_staging import text_shape

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = [pytest.mark.gpu] if ON_GPU else []

Load = Callable[..., JatEngine]


def make_engine(folder: Any, **options: Any) -> JatEngine:
    options = {"dtype": "float32", "persistent": False, "max_cached_tokens": 768, **options}
    return JatEngine.from_pretrained(folder, device=DEVICE, backend="cuda", **options)


@pytest.fixture(scope="module")
def engine(tiny_folder: Any) -> JatEngine:
    return make_engine(tiny_folder)


@pytest.fixture
def expected(load: Load) -> Iterator[Texts]:
    """The same texts on the torch backend, a whole prompt at once."""
    with Texts(load(backend="torch", dtype="float32")) as texts:
        yield texts


class Texts:
    """Texts that are read on the pages of an engine, by its backend."""

    def __init__(self, engine: JatEngine) -> None:
        self._runner: Any = engine._runner
        self.backend: Any = engine._backend
        self._pages: dict[str, Any] = {}
        self._num_rows: dict[str, int] = {}

    def __enter__(self) -> Texts:
        return self

    def __exit__(self, *_: object) -> None:
        for pages in self._pages.values():
            pages.close()

    def rows(self, name: str, tokens: Any, num_predicted: int, patches: Any = None) -> TextRows:
        """Return the next rows of a text, which is new or goes on."""
        if name not in self._pages:
            with self._runner.lock:
                self._pages[name] = self._runner.open_text(CONFIG["max_position_embeddings"])
        begin = self._num_rows.get(name, 0)
        table = self._pages[name].empty.table
        rows = TextRows(patches, np.asarray(tokens, np.int64), begin, table, num_predicted)
        self._num_rows[name] = begin + rows.num_rows
        return rows

    def run(self, *texts: TextRows) -> list[np.ndarray]:
        with self._runner.lock:
            logits: list[np.ndarray] = self.backend.run_text(texts)
        assert [rows.shape for rows in logits] == [(text.num_predicted, CONFIG["vocab_size"]) for text in texts]
        return logits


def tokens_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CONFIG["vocab_size"], count)


@pytest.mark.parametrize("length", [1, 2, 7, 15, 16, 17, 48])
def test_a_prompt(length: int, engine: JatEngine, expected: Texts) -> None:
    """One token, odd numbers, page edges, the position limit; windows of 12 tokens are full from 13 on."""
    tokens = tokens_of(length, length)
    with Texts(engine) as texts:
        (logits,) = texts.run(texts.rows("a", tokens, length))
    (whole,) = expected.run(expected.rows("a", tokens, length))
    assert relative_error(logits, whole) <= TOLERANCE


@pytest.mark.parametrize("chunks", [(3, 13, 1, 1, 5), (17, 2, 20)])
def test_chunks_with_a_picture(chunks: tuple[int, ...], engine: JatEngine, expected: Texts) -> None:
    """A chunk ends within the patches, at their end or behind it; what is predicted is some of its rows."""
    pixels = np.random.default_rng(0).standard_normal((3, 32, 32)).astype(np.float32)
    tokens = tokens_of(0, sum(chunks) - 16)
    (whole,) = expected.run(expected.rows("a", tokens, sum(chunks), expected.backend.embed_picture(pixels)))

    found, begin = [], 0
    with Texts(engine) as texts:
        patches = texts.backend.embed_picture(pixels)
        for count in chunks:
            end = begin + count
            own = patches[begin:end] if begin < 16 else None
            rows = texts.rows("a", tokens[max(begin - 16, 0) : max(end - 16, 0)], min(count, 4), own)
            found.append(texts.run(rows)[0])
            begin = end
    ends = np.cumsum(chunks)
    right = np.concatenate([whole[end - min(count, 4) : end] for end, count in zip(ends, chunks, strict=True)])
    assert relative_error(np.concatenate(found), right) <= TOLERANCE


def test_texts_join_and_leave(engine: JatEngine, expected: Texts) -> None:
    """Prompts are read while other texts are written, none or all of a step's rows are predicted from."""
    lengths = {"a": 30, "b": 21, "c": 5}
    tokens = {name: tokens_of(index, length) for index, (name, length) in enumerate(lengths.items())}
    whole = {name: expected.run(expected.rows(name, tokens[name], length))[0] for name, length in lengths.items()}
    plan: list[dict[str, tuple[int, int]]] = [  # of each step, by text: rows, predictions
        {"a": (11, 0)},
        {"a": (14, 1), "b": (18, 0)},
        {"a": (1, 1), "b": (1, 1)},
        {"b": (1, 0), "a": (1, 0)},
        {"a": (1, 1), "c": (3, 3), "b": (1, 1)},
        {"c": (1, 1), "a": (1, 1)},
        {"a": (1, 1), "c": (1, 0)},
    ]
    done = dict.fromkeys(lengths, 0)
    with Texts(engine) as texts:
        for step in plan:
            rows = []
            for name, (count, predicted) in step.items():
                rows.append(texts.rows(name, tokens[name][done[name] : done[name] + count], predicted))
                done[name] += count
            for name, logits in zip(step, texts.run(*rows), strict=True):
                right = whole[name][done[name] - step[name][1] : done[name]]
                if len(right):
                    assert relative_error(logits, right) <= TOLERANCE


def test_a_prompt_of_several_parts(engine: JatEngine, expected: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later queries of a prompt read keys that the same step has written, also where windows have moved on."""
    monkeypatch.setattr(text_staging, "MAX_PROMPT_QUERIES", 7)
    tokens, more = tokens_of(3, 39), tokens_of(4, 3)
    with Texts(engine) as texts:
        first, other = texts.run(texts.rows("a", tokens[:30], 4), texts.rows("b", more, 1))
        (second,) = texts.run(texts.rows("a", tokens[30:], 9))
    (whole,) = expected.run(expected.rows("a", tokens, 39))
    (right,) = expected.run(expected.rows("b", more, 1))
    assert relative_error(np.concatenate((first, second)), whole[26:]) <= TOLERANCE
    assert relative_error(other, right) <= TOLERANCE


def test_agents_and_texts_take_turns(engine: JatEngine, expected: Texts) -> None:
    """Their pages are of one pool, and each is as it would be alone."""
    episode, tokens = EPISODE["continuous_cw9"], tokens_of(5, 20)
    found = []
    with engine.open_session(9) as session, Texts(engine) as texts:
        for t, count in enumerate((9, 1, 10)):
            begin = sum((9, 1, 10)[:t])
            found += texts.run(texts.rows("a", tokens[begin : begin + count], count))
            assert relative_error(play(session, episode, t)[1], episode.predictions[t]) <= TOLERANCE
    (whole,) = expected.run(expected.rows("a", tokens, 20))
    assert relative_error(np.concatenate(found), whole) <= TOLERANCE


@pytest.mark.parametrize("with_image", [False, True], ids=["text", "image"])
def test_generation(with_image: bool, engine: JatEngine, tiny_model: JatModel) -> None:
    """Greedy tokens are those of `JatModel`."""
    prompts = [tokens_of(seed, length) for seed, length in ((11, 9), (12, 3))]
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32))
    for tokens in prompts:
        image = {"pixel_values": pixels} if with_image else {}
        ids = torch.from_numpy(tokens)[None]
        expected = tiny_model.generate(ids, **image, max_new_tokens=4, eos_token_id=None)
        found = engine.generate(input_ids=ids, **image, max_new_tokens=4, eos_token_id=None)
        assert torch.equal(found, expected)


def test_an_engine_that_acts_loads_no_weights_of_texts(tiny_folder: Any) -> None:
    engine = make_engine(tiny_folder, max_cached_tokens=256)
    before = engine.memory
    episode = EPISODE["continuous_cw9"]
    with engine.open_session(9) as session:
        play(session, episode, 0)
    assert engine.weight_bytes == before["weights"]

    with Texts(engine) as texts:
        texts.run(texts.rows("a", [1, 2, 3], 1))
    vocab, hidden, patch = CONFIG["vocab_size"], CONFIG["hidden_size"], 3 * CONFIG["patch_size"] ** 2
    after = engine.memory
    assert after["weights"] == engine.weight_bytes == before["weights"] + 4 * hidden * (2 * vocab + patch + 1)
    assert after["scratch"] > before["scratch"]


def test_neighbours_change_nothing_within_a_bucket(engine: JatEngine) -> None:
    """A text's rows are computed independently of the others': results are bitwise equal."""
    found = []
    for seed in (1, 2):
        with Texts(engine) as texts:
            first = texts.run(texts.rows("a", tokens_of(0, 9), 1), texts.rows("b", tokens_of(seed, 20), 1))
            second = texts.run(texts.rows("a", [5], 1), texts.rows("b", [seed], 1), texts.rows("c", [seed], 0))
            found.append((first[0], second[0]))
    assert np.array_equal(found[0], found[1])


def test_contents_of_unused_memory_do_not_matter(engine: JatEngine) -> None:
    found = []
    for poison in (False, True):
        if poison:
            backend: Any = engine._backend
            backend._cache.pages[:, : engine.cache_stats.total].fill_(torch.nan)
        with Texts(engine) as texts:
            found.append([texts.run(texts.rows("a", tokens_of(0, 19), 2)), texts.run(texts.rows("a", [7], 1))])
    assert np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("options", "bound"), [({"dtype": "int8"}, 4e-2), ({"dtype": "bfloat16"}, 4e-2), ({"dtype": "float16"}, 4e-3)]
)
def test_other_dtypes(options: dict[str, str], bound: float, tiny_folder: Any, expected: Texts) -> None:
    """The error is that of rounding weights and activations."""
    tokens = tokens_of(6, 21)
    with Texts(make_engine(tiny_folder, max_cached_tokens=256, **options)) as texts:
        found = texts.run(texts.rows("a", tokens[:20], 20)) + texts.run(texts.rows("a", tokens[20:], 1))
        head = texts.backend._texts._text_weights.head
    (whole,) = expected.run(expected.rows("a", tokens, 21))
    assert relative_error(np.concatenate(found), whole) <= bound
    assert str(head.weight.dtype) == f"torch.{options['dtype']}"


needs_float8 = pytest.mark.skipif(
    ON_GPU and torch.cuda.get_device_capability() < (8, 9), reason="float8 needs compute capability 8.9"
)


@needs_float8
def test_float8_keys_and_values(tiny_folder: Any, expected: Texts) -> None:
    """A prompt's parts quantise their keys one after the other: as if the rows were fed one by one."""
    tokens, more = tokens_of(7, 19), tokens_of(8, 6)
    with Texts(make_engine(tiny_folder, kv_dtype="float8_e4m3", max_cached_tokens=256)) as texts:
        found, other = texts.run(texts.rows("a", tokens, 19), texts.rows("b", more, 6))
        one_by_one = [texts.run(texts.rows("c", [token], 1))[0] for token in tokens[:7]]
    (whole,) = expected.run(expected.rows("a", tokens, 19))
    (right,) = expected.run(expected.rows("b", more, 6))
    assert 1e-4 < relative_error(found, whole) <= 6e-2
    assert relative_error(other, right) <= 6e-2
    assert relative_error(np.concatenate(one_by_one), found[:7]) <= TOLERANCE


def test_graphs_are_bounded(engine: JatEngine, expected: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    """More predictions than there was memory for, and more buckets than are kept."""
    monkeypatch.setattr(text_step, "_MAX_GRAPHS", 2)
    tokens = tokens_of(9, 40)
    found, begin = [], 0
    with Texts(engine) as texts:
        texts.run(texts.rows("b", [1], 1))
        texts.backend._texts._steps.clear()  # of the tests before
        for count in (1, 5, 1, 33):
            found += texts.run(texts.rows("a", tokens[begin : begin + count], count))
            begin += count
            assert len(texts.backend._texts._steps) <= 2
    (whole,) = expected.run(expected.rows("a", tokens, 40))
    assert relative_error(np.concatenate(found), whole) <= TOLERANCE


class _NoKernel:
    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *arguments, **options: None


def test_a_step_allocates_nothing(engine: JatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated within a capture would be used by others while the graph still works on it."""
    with Texts(engine) as texts:
        texts.run(texts.rows("a", tokens_of(0, 9), 2), texts.rows("b", [1], 1))
        texts.run(texts.rows("a", [2], 1))
        steps = list(texts.backend._texts._steps.values())
    for module in [module for name, module in sys.modules.items() if name.startswith("jat_engine.kernels.")]:
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, _NoKernel())
    with torch.profiler.profile(profile_memory=True) as profile:
        for step in steps:
            step._run()
    operations = {event.name for event in profile.events()}
    assert {"aten::copy_", "aten::index_select"} <= operations
    assert not {name for name in operations if "empty" in name or "clone" in name or "zeros" in name}


@pytest.mark.parametrize("kv_dtype", ["auto", pytest.param("float8_e4m3", marks=needs_float8)])
def test_kernels_that_compute_something_else_show(
    kv_dtype: str, tiny_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, a new bucket's first predictions are compared with plain torch."""
    pixels = np.random.default_rng(0).standard_normal((3, 32, 32)).astype(np.float32)
    tokens = tokens_of(10, 9)
    with Texts(make_engine(tiny_folder, max_cached_tokens=256, kv_dtype=kv_dtype)) as texts:
        texts.backend._verifies_graphs = True
        patches = texts.backend.embed_picture(pixels)
        texts.run(texts.rows("a", tokens[:5], 2, patches), texts.rows("b", tokens, 1))
        texts.run(texts.rows("a", tokens[5:6], 1), texts.rows("b", [3], 1))

        right = text_step.norm_linear

        def wrong(x: torch.Tensor, *arguments: Any, **options: Any) -> None:
            right(x.roll(1, dims=1), *arguments, **options)

        monkeypatch.setattr(text_step, "norm_linear", wrong)
        with pytest.raises(RuntimeError, match="text: its kernels do not compute what plain torch does"):
            texts.run(texts.rows("a", tokens[6:7], 1))


def test_buckets() -> None:
    def shape(*counts: tuple[int, int], is_kv_quantized: bool = False) -> tuple[int, ...]:
        table = np.arange(33, dtype=np.int32)
        texts = [TextRows(None, np.zeros(rows, np.int64), 0, table, predicted) for rows, predicted in counts]
        return text_shape(texts, is_kv_quantized)

    assert shape((1, 1)) == (1, 1, 1, 1, 1)
    assert shape(*[(1, 1)] * 20) == (32, 1, 32, 1, 32)
    assert shape((1, 0)) == (1, 1, 1, 1, 0)
    assert shape((2, 1)) == (16, 64, 4, 1, 1)
    assert shape((256, 0)) == (256, 64, 4, 1, 0)
    assert shape((200, 200), (1, 1)) == (256, 64, 8, 1, 208)
    assert shape((9, 1), (1, 1), is_kv_quantized=True) == (16, 4, 2, 4, 2)
