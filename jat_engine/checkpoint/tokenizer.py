"""Check that the tokenizer files of a checkpoint agree with each other."""

from __future__ import annotations

import os
from typing import Any

from ..checkpoint_files import find_file, read_json
from ..errors import CheckpointError


def check_tokenizer_files(source: str | os.PathLike[str], hub: dict[str, Any]) -> None:
    """Check that all files that describe the tokenizer of a checkpoint agree.

    `vocab.json` and `merges.txt` are compared with `tokenizer.json`, and the padding token of `tokenizer_config.json`
    with that of `special_tokens_map.json`. If two files disagree, there is no way to tell which one is right.

    Args:
        source: a folder, or a repository id on the hub.
        hub: options for finding files, out of `HUB_OPTIONS`.

    Raises:
        CheckpointError: two files disagree; the message names them.
    """
    tokenizer = find_file(source, "tokenizer.json", hub)
    if tokenizer is not None:
        fields = read_json(tokenizer)
        model = fields.get("model")
        if not isinstance(model, dict):
            raise CheckpointError(f"{tokenizer}: model: expected an object, got {model!r:.40}")
        vocabulary, merges = find_file(source, "vocab.json", hub), find_file(source, "merges.txt", hub)
        if vocabulary is not None and read_json(vocabulary) != model.get("vocab"):
            raise _disagreement(source, "vocab.json", "tokenizer.json", "tokens")
        if merges is not None:
            lines = merges.read_text(encoding="utf-8", errors="replace").splitlines()
            pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
            if pairs != [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])]:
                raise _disagreement(source, "merges.txt", "tokenizer.json", "merges")

        _check_added_tokens(source, hub, fields.get("added_tokens"))

    pads = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = find_file(source, name, hub)
        pad = read_json(path).get("pad_token") if path is not None else None
        if pad is not None:
            pads[name] = str(pad.get("content") if isinstance(pad, dict) else pad)
    if len(set(pads.values())) > 1:
        raise _disagreement(source, *pads, "padding tokens")


def _check_added_tokens(source: str | os.PathLike[str], hub: dict[str, Any], added: Any) -> None:
    """Check that the added tokens of `tokenizer_config.json`, if it has any, are those of `tokenizer.json`."""
    path = find_file(source, "tokenizer_config.json", hub)
    decoder = read_json(path).get("added_tokens_decoder") if path is not None else None
    if not isinstance(decoder, dict) or not isinstance(added, list):
        return
    contents = {str(token.get("id")): token.get("content") for token in added if isinstance(token, dict)}
    for number, token in decoder.items():
        if not isinstance(token, dict) or contents.get(number) != token.get("content"):
            raise _disagreement(source, "tokenizer_config.json", "tokenizer.json", "added tokens")


def _disagreement(source: str | os.PathLike[str], *names: str) -> CheckpointError:
    *files, what = names
    return CheckpointError(
        f"{source}: expected {' and '.join(files)} of one tokenizer, got different {what}; remove the file that is out "
        "of date"
    )
