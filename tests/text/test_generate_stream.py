"""`generate_stream`: prompts that join and leave, threads, failures of one request, and early ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from jat_engine import JatEngine
from jat_engine.errors import CacheFullError, InputError, SessionError
from jat_engine.testing import golden

Load = Callable[..., JatEngine]


@pytest.fixture
def engine(load: Load) -> JatEngine:
    return load(backend="torch", dtype="float32")


def texts_of(events: Any) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in events:
        texts[event.index] = texts.get(event.index, "") + event.text
    return texts


PROMPTS = [mission[: 3 + 2 * number] for number in range(6) for mission in golden.MISSIONS]


def test_streams_hold_what_generate_returns(engine: JatEngine) -> None:
    options = {"max_new_tokens": 12, "do_sample": True, "seed": 1, "stop_strings": ["a", "the"]}
    texts = engine.generate(PROMPTS, **options)
    events = list(engine.generate_stream(PROMPTS, **options))
    assert texts_of(events) == dict(enumerate(texts))
    last = {event.index: event.finish_reason for event in events}
    assert set(last.values()) <= {"eos", "stop", "length"}
    assert sum(event.finish_reason is not None for event in events) == len(PROMPTS)
    assert texts_of(engine.generate_stream(iter(PROMPTS), **options)) == dict(enumerate(texts))


def test_prompts_join_as_others_finish(engine: JatEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jat_engine.engine.writer._MOST_AT_ONCE", 2)
    taken: list[int] = []

    def prompts() -> Iterator[str]:
        for number, prompt in enumerate(PROMPTS):
            taken.append(number)
            yield prompt

    stream = engine.generate_stream(prompts(), max_new_tokens=3, eos_token_id=None)
    events = []
    assert taken == []
    for event in stream:
        events.append(event)
        finished = sum(one.finish_reason is not None for one in events)
        assert len(taken) <= finished + 2
    assert texts_of(events) == dict(enumerate(engine.generate(PROMPTS, max_new_tokens=3, eos_token_id=None)))


def test_a_bad_prompt_ends_alone(engine: JatEngine) -> None:
    events = list(engine.generate_stream(iter(["go", "", "x" * 99, "to"]), max_new_tokens=3))
    failed = {event.index: event for event in events if event.finish_reason == "error"}
    assert sorted(failed) == [1, 2]
    assert all(isinstance(event.error, InputError) and event.token is None for event in failed.values())
    assert "text[1]: expected at least one token" in str(failed[1].error)
    texts = texts_of(event for event in events if event.error is None)
    assert texts == {0: engine.generate("go", max_new_tokens=3), 3: engine.generate("to", max_new_tokens=3)}


def test_a_failing_object_ends_its_request_alone(engine: JatEngine) -> None:
    def fail(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids[0, 0] == 7 and ids.shape[1] > 3:
            raise KeyError("of the caller")
        return scores

    ids = [[1, 2], [7, 8], [3]]
    events = list(engine.generate_stream(input_ids=ids, logits_processor=[fail], max_new_tokens=5))
    (failed,) = [event for event in events if event.finish_reason == "error"]
    assert failed.index == 1
    assert isinstance(failed.error, KeyError)
    tokens = [event.token for event in events if event.index == 2]
    assert tokens == engine.generate(input_ids=[[3]], max_new_tokens=5)[0][1:].tolist()
    with pytest.raises(KeyError, match="of the caller"):
        engine.generate(input_ids=ids, logits_processor=[fail], max_new_tokens=5)
    assert engine.cache_stats.reserved == 0


@pytest.mark.parametrize("where", ["processor", "criterion", "streamer"])
def test_objects_may_not_call_the_engine_from_its_step(where: str, engine: JatEngine) -> None:
    """Except for streamers, which are called between steps."""

    class Calls:
        def __call__(self, ids: Any, scores: Any, **kwargs: Any) -> Any:
            engine.generate("go", max_new_tokens=1)
            return scores

        def put(self, value: Any) -> None:
            engine.generate("go", max_new_tokens=1)

        def end(self) -> None:
            pass

    if where == "streamer":
        engine.generate("go", streamer=Calls(), max_new_tokens=2)
        return
    name = "logits_processor" if where == "processor" else "stopping_criteria"
    with pytest.raises(SessionError, match="call from within their step"):
        engine.generate("go", max_new_tokens=2, **{name: [Calls()]})
    assert engine.cache_stats.reserved == 0


def test_an_early_end_gives_the_pages_back(engine: JatEngine) -> None:
    stream = engine.generate_stream(PROMPTS, max_new_tokens=12)
    next(stream)
    assert engine.cache_stats.reserved > 0
    stream.close()
    assert engine.cache_stats.reserved == 0
    stream = engine.generate_stream(PROMPTS, max_new_tokens=12)
    next(stream)
    del stream
    assert engine.cache_stats.reserved == 0


def test_texts_wait_for_pages(tiny_folder: Any) -> None:
    options = {"device": "cpu", "backend": "torch", "dtype": "float32"}
    with JatEngine.from_pretrained(tiny_folder, max_cached_tokens=64, **options) as small:
        texts = small.generate(PROMPTS, max_new_tokens=9)
        assert texts == [small.generate(prompt, max_new_tokens=9) for prompt in PROMPTS]
        with small.open_session(), pytest.raises(CacheFullError):
            small.generate("go to", max_new_tokens=20)


def test_threads_share_steps(engine: JatEngine) -> None:
    options = {"max_new_tokens": 10, "do_sample": True, "temperature": 1.2}
    expected = [engine.generate(PROMPTS[i : i + 5], seed=i, **options) for i in range(8)]
    got: list[Any] = [None] * 8

    def write(number: int) -> None:
        if number % 2:
            got[number] = engine.generate(PROMPTS[number : number + 5], seed=number, **options)
        else:
            events = engine.generate_stream(PROMPTS[number : number + 5], seed=number, **options)
            got[number] = list(texts_of(sorted(events, key=lambda event: event.index)).values())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected
    assert engine.cache_stats.reserved == 0


def test_agents_act_meanwhile(engine: JatEngine) -> None:
    episode = next(one for one in golden.EPISODES if one.kind == "continuous")

    def play(steps: int) -> list[Any]:
        with engine.open_session() as session:
            return [session.get_next_action(**episode.observation(t), action_space=episode.space) for t in range(steps)]

    expected = play(8)
    stream = engine.generate_stream(PROMPTS, max_new_tokens=8)
    next(stream)
    assert play(8) == expected
    assert texts_of(stream)


def test_a_closed_engine(tiny_folder: Any) -> None:
    engine = JatEngine.from_pretrained(tiny_folder, device="cpu", backend="torch", dtype="float32")
    stream = engine.generate_stream(PROMPTS, max_new_tokens=8)
    next(stream)
    engine.close()
    with pytest.raises(SessionError, match="got one that was closed"):
        list(stream)
    with pytest.raises(SessionError, match="got one that was closed"):
        engine.generate("go")
