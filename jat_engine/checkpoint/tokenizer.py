"""Check that the tokenizer files of a checkpoint agree with each other."""

from __future__ import annotations

import os
from typing import Any

from ..checkpoint_files import find_file, read_json
from ..errors import CheckpointError


def check_tokenizer_files(source: str | os.PathLike[str], hub: dict[str, Any]) -> None:
    """Check that all files that describe the tokenizer of a checkpoint agree.

    `vocab.json`, `merges.txt` and `tokenizer_config.json` are compared with `tokenizer.json`, and the padding token of
    `tokenizer_config.json` with that of `special_tokens_map.json`. If two files disagree, there is no way to tell which
    one is right.

    Args:
        source: a folder, or a repository id on the hub.
        hub: options for finding files, out of `HUB_OPTIONS`.

    Raises:
        CheckpointError: two files disagree, name a part in another repository, or have a field of a wrong type; the
            message names them.
    """
    _refuse_audio(source, hub)
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
        _check_prefix_space(source, hub, fields.get("pre_tokenizer"))
        _check_special_tokens(source, hub, {**_vocabulary(model), **_contents(fields.get("added_tokens"))})

    pads = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = find_file(source, name, hub)
        fields = read_json(path) if path is not None else {}
        pad, limit = fields.get("pad_token"), fields.get("model_max_length")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 1):
            raise CheckpointError(f"{path}: model_max_length: expected a number of tokens or null, got {limit!r:.40}")
        if pad is not None:
            content = pad.get("content") if isinstance(pad, dict) else pad
            if not isinstance(content, str):
                raise CheckpointError(f"{path}: pad_token: expected a token's text or null, got {pad!r:.40}")
            pads[name] = content
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


def _check_prefix_space(source: str | os.PathLike[str], hub: dict[str, Any], splitter: Any) -> None:
    """Check that both files say the same about a space before a text: transformers follows one, engines the other."""
    path = find_file(source, "tokenizer_config.json", hub)
    wanted = read_json(path).get("add_prefix_space") if path is not None else None
    if isinstance(wanted, bool) and isinstance(splitter, dict):
        for part in splitter.get("pretokenizers", [splitter]):
            if isinstance(part, dict) and part.get("add_prefix_space", wanted) != wanted:
                raise _disagreement(source, "tokenizer_config.json", "tokenizer.json", "values of add_prefix_space")


def _check_special_tokens(source: str | os.PathLike[str], hub: dict[str, Any], known: dict[str, Any]) -> None:
    """Check that `tokenizer.json` has the special tokens: transformers would add them, and engines would not."""
    path = find_file(source, "tokenizer_config.json", hub)
    fields = read_json(path) if path is not None else {}
    tokens = [fields.get(f"{kind}_token") for kind in ("bos", "eos", "unk", "sep", "cls", "mask")]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = fields.get(name) or []
        tokens += more.values() if isinstance(more, dict) else more
    for token in tokens:
        content = token.get("content") if isinstance(token, dict) else token
        if content is not None and content not in known:
            raise _disagreement(source, "tokenizer_config.json", "tokenizer.json", "special tokens")


def _vocabulary(model: dict[str, Any]) -> dict[str, Any]:
    vocabulary = model.get("vocab")
    return vocabulary if isinstance(vocabulary, dict) else {}


def _contents(added: Any) -> dict[str, Any]:
    tokens = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    return {str(token.get("content")): token.get("id") for token in tokens}


def _refuse_audio(source: str | os.PathLike[str], hub: dict[str, Any]) -> None:
    """Refuse what makes transformers load a model from another repository along with a processor."""
    path = find_file(source, "processor_config.json", hub)
    if path is not None and "audio_tokenizer" in read_json(path):
        raise CheckpointError(
            f"{path}: audio_tokenizer: expected none, got one, which is a model of another repository"
        )
    path = find_file(source, "audio_tokenizer_config.json", hub)
    if path is not None:
        raise CheckpointError(f"{path}: expected no such file; it names a model of another repository")


def _disagreement(source: str | os.PathLike[str], *names: str) -> CheckpointError:
    *files, what = names
    return CheckpointError(
        f"{source}: expected {' and '.join(files)} of one tokenizer, got different {what}; remove the file that is out "
        "of date"
    )
