"""`JatModel` and `JatProcessor` against the published implementation's recorded answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jat_engine.testing import golden
from jat_engine.testing.golden import INDEX, OUTPUTS, relative_error

pytestmark = pytest.mark.versions

TOLERANCE = 1e-5


@pytest.mark.parametrize("episode", golden.EPISODES, ids=lambda e: e.name)
def test_episode(episode: golden.Episode, tiny_model: Any, tiny_processor: Any) -> None:
    golden.check_episode(tiny_model, tiny_processor, episode, TOLERANCE)


@pytest.mark.parametrize(("case", "inputs"), list(golden.forward_cases()), ids=lambda c: c.get("name", ""))
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_forward(case: dict[str, Any], inputs: dict[str, Any], training: bool, tiny_model: Any) -> None:
    tiny_model.train(training)  # the dropout rates are 0
    try:
        output = tiny_model(**{key: torch.from_numpy(value) for key, value in inputs.items()})
    finally:
        tiny_model.eval()
    for field in ("loss", "observation_loss", "action_loss"):
        if case[field] is None:
            assert field not in output
        else:
            assert output[field].item() == pytest.approx(case[field], rel=TOLERANCE)
    for field in ("pred_actions", "pred_observations", "logits"):
        if case[field] is None:
            assert field not in output
            continue
        actual = output[field].detach()
        assert list(actual.shape) == case[field]
        key = f"{case['name']}.{field}"
        if key in OUTPUTS:
            assert relative_error(actual, OUTPUTS[key]) <= TOLERANCE
        else:  # predicted frames are recorded as means over their last dimension
            assert relative_error(actual.mean(-1), OUTPUTS[f"{key}.mean_last"]) <= TOLERANCE


@pytest.mark.parametrize("case", INDEX["generate"], ids=lambda c: c["name"])
def test_generate(case: dict[str, Any], tiny_model: Any) -> None:
    ids = torch.from_numpy(golden.text_ids()[:1, :8])
    images = {"pixel_values": torch.from_numpy(golden.pixel_values()[:1])} if "vqa" in case["name"] else {}
    tokens = tiny_model.generate(input_ids=ids, **images, max_new_tokens=len(case["tokens"]) - 8, do_sample=False)
    assert tokens[0].tolist() == case["tokens"]


@pytest.mark.parametrize("case", INDEX["processor"], ids=lambda c: c["name"])
def test_processor(case: dict[str, Any], tiny_processor: Any) -> None:
    kwargs = {k: [["go to"]] if v == "[['go to']]" else v for k, v in case["kwargs"].items()}
    if "error" in case:
        kind, message = case["error"].split(": ", 1)
        assert kind == "ValueError"
        with pytest.raises(ValueError) as error:
            tiny_processor(**kwargs)
        assert str(error.value) == message
    else:
        assert dict(tiny_processor(**kwargs)) == case["result"]
