"""Run the published package for `published.py`: a JSON message a line in, an answer a line out.

Needs numpy, gymnasium, transformers of its time (4.36) and the package `jat`; nothing of jat_engine.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import transformers
from jat.modeling_jat import JatModel  # type: ignore[import-not-found]
from jat.processing_jat import JatProcessor  # type: ignore[import-not-found]


def unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return np.frombuffer(base64.b64decode(value["data"]), value["dtype"]).reshape(value["shape"])


def main() -> None:
    folder = Path(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # what the package prints is no answer
    model = JatModel.from_pretrained(folder).eval()
    names = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token=names["pad_token"]
    )
    processor = JatProcessor(transformers.CLIPImageProcessor(), tokenizer)
    captured: list[Any] = []
    model.register_forward_hook(lambda module, inputs, output: captured.append(output.pred_actions))

    def answer(message: dict[str, Any]) -> Any:
        if "reset" in message:
            model.reset_rl()
            return {}
        if "force" in message:
            is_choice = isinstance(message["force"], int)
            setattr(model, "last_discrete_action" if is_choice else "last_continuous_action", message["force"])
            return {}

        space = message["space"]
        if "n" in space:
            action_space: Any = gymnasium.spaces.Discrete(space["n"])
        else:
            action_space = gymnasium.spaces.Box(-1, 1, tuple(space["shape"]))
        fields = {name: unpacked(value) for name, value in message["fields"].items()}
        captured.clear()
        with torch.no_grad():
            action = model.get_next_action(
                processor, **fields, action_space=action_space, context_window=message["window"]
            )

        size = space["n"] if "n" in space else space["shape"][0]
        return {"action": action, "prediction": captured[-1][0, -1, :size].tolist()}

    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
