"""Requests and replies, as all protocols have them, and the fields by which clients write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..keywords import refuse_unknown
from ..observation import OBSERVATION_KEYS, check_context_window
from .spaces import Space, find_task, is_integer, parse_space, space_of, to_numbers

DEFAULT_SESSION = ""
"""Name of a connection's session where requests name none."""

MOST_NAME_CHARACTERS = 128
"""Most characters of a session's name."""

MOST_TEXT_CHARACTERS = 4096
"""Most characters of a text in an observation. A model reads 64 tokens of it, but all of it has to be split first."""

_SETTINGS = ("task", "action_space", "context_window", "seed", "deterministic")
_OPTIONS = ("action_mask", "temperature", "top_k", "action_clip")
_OF_A_STEP = ("reward", "episode_start", "force_action", "return_prediction")
FIELDS = (*OBSERVATION_KEYS, *_SETTINGS, *_OPTIONS, *_OF_A_STEP, "session_id", "seq", "endpoint")
"""Keys of a request in protocols that leave them open."""


class Options(NamedTuple):
    """Options of the choice of an action, as `JatEngine.get_next_action` has them. An engine checks them."""

    action_mask: Any = None
    temperature: Any = None
    top_k: Any = None
    action_clip: Any = None


NO_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of an episode that a request gives; None for as before in its session.

    Attributes:
        task: name of a published task.
        space: to choose actions from.
        window: how many of the newest cached tokens a step attends to.
        seed: of sampling, from the beginning of an episode on.
        deterministic: take the most likely discrete action.
    """

    task: str | None = None
    space: Space | None = None
    window: int | None = None
    seed: int | None = None
    deterministic: bool | None = None

    @property
    def is_empty(self) -> bool:
        """True if no setting is given."""
        return self is NO_SETTINGS or self == NO_SETTINGS

    def updated(self, given: Settings) -> Settings:
        """Return these settings with those that are given in place of their own."""
        if given.is_empty:
            return self
        names = ("task", "space", "window", "seed", "deterministic")
        return Settings(*(getattr(self if getattr(given, name) is None else given, name) for name in names))


NO_SETTINGS = Settings()


@dataclass(frozen=True, slots=True)
class Act:
    """Request for a step.

    Attributes:
        observation: by `OBSERVATION_KEYS`; an engine checks the values.
        reward: of the action before.
        settings: of the episode.
        options: of the choice.
        begins: the observation is the first of an episode.
        session_id: name of the session within its connection.
        seq: number of the request, which increases within a session; the last one, repeated, gets the same reply and
            takes no step. None for none.
        forced: action that takes the place of the chosen one in the agent's history; None to leave it.
        wants_prediction: also reply with the prediction that the action was chosen from.
    """

    observation: Mapping[str, Any]
    reward: Any = None
    settings: Settings = NO_SETTINGS
    options: Options = NO_OPTIONS
    begins: bool = False
    session_id: str = DEFAULT_SESSION
    seq: int | None = None
    forced: Any = None
    wants_prediction: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """Request to begin an episode; the next step is its first. Attributes: see `Act`."""

    settings: Settings = NO_SETTINGS
    session_id: str = DEFAULT_SESSION
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """Request to end a session."""

    session_id: str = DEFAULT_SESSION


@dataclass(frozen=True, slots=True)
class Resume:
    """Request to go on with the session of a token, or to open one that another connection can go on with.

    Attributes:
        token: secret of the client.
        session_id: name of the session within this connection from now on.
        since: number of the last request that the client cannot repeat: a session that has not carried it out is of no
            use. None if it can repeat all that matter.
    """

    token: str
    session_id: str = DEFAULT_SESSION
    since: int | None = None


Request = Act | Reset | Close | Resume


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer to an `Act`.

    Attributes:
        action: a list of A floats, or an int.
        queue_s: seconds that the request has waited for the step before it to end.
        step_s: seconds of its step.
        batch: number of sessions in that step.
        is_repeat: the step was taken by an earlier request of the same number.
        prediction: float32 [A] or [n]; None if the request did not ask for it.
        snapshot_seq: number of the last request whose result a stored snapshot has; None as long as that is not news.
    """

    action: list[float] | int
    queue_s: float
    step_s: float
    batch: int
    is_repeat: bool = False
    prediction: np.ndarray | None = None
    snapshot_seq: int | None = None

    @property
    def array(self) -> np.ndarray:
        """The action as an array with a leading dimension: float32 [1, A] or int64 [1]."""
        return np.array([self.action], np.int64 if isinstance(self.action, int) else np.float32)


@dataclass(frozen=True, slots=True)
class Resumed:
    """Answer to a `Resume`.

    Attributes:
        status: "resumed": the session was open; "restored": from a snapshot; "new": it begins now.
        seq: number of the last request that it has carried out; None for none.
        has_snapshots: snapshots of it will be stored.
        reason: why a snapshot that is there was not used; empty otherwise.
    """

    status: str
    seq: int | None
    has_snapshots: bool
    reason: str = ""


Answer = Reply | Resumed | None


def parse_resume(fields: Mapping[str, Any]) -> Resume:
    """Return the request to go on with a session that some fields are: `token`, `session_id`, `seq`.

    Raises:
        InputError: a field is unknown or invalid.
    """
    refuse_unknown(map(str, fields), ("token", "session_id", "seq"), "a field of a request to resume")
    token = fields.get("token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise InputError("token: expected 32 to 128 random letters, digits, - and _, got something else")
    return Resume(token, parse_session_id(fields.get("session_id")), since=_seq(fields.get("seq")))


def parse_close(fields: Mapping[str, Any]) -> Close:
    """Return the request to end a session that some fields are: `session_id`.

    Raises:
        InputError: a field is unknown or invalid.
    """
    refuse_unknown(map(str, fields), ("session_id", "seq"), "a field of a request to close")
    return Close(parse_session_id(fields.get("session_id")))


def parse_act(fields: Mapping[str, Any], settings: Settings | None = None, seq: int | None = None) -> Act:
    """Return the request for a step that some fields are, without `endpoint`.

    Args:
        fields: by `FIELDS`; None counts as absent.
        settings: of the episode as far as `fields` gives none.
        seq: of the request, where the protocol numbers them itself.

    Raises:
        InputError: a field is unknown, or invalid as far as that can be told without the model.
    """
    if not fields.keys() <= _KNOWN:
        refuse_unknown(map(str, fields), FIELDS, "a field of a request")
    get = fields.get
    options = NO_OPTIONS
    if not fields.keys().isdisjoint(_OPTIONS):
        options = Options(to_numbers("action_mask", get("action_mask")), *(get(name) for name in _OPTIONS[1:]))
    return Act(
        observation={key: _observed(key, fields[key]) for key in OBSERVATION_KEYS if key in fields},
        reward=_number(to_numbers("reward", get("reward"))),
        settings=parse_settings(fields) if settings is None else settings,
        options=options,
        begins=_flag("episode_start", get("episode_start")) or False,
        session_id=parse_session_id(get("session_id")),
        seq=_seq(get("seq")) if seq is None else seq,
        forced=to_numbers("force_action", get("force_action")),
        wants_prediction=_flag("return_prediction", get("return_prediction")) or False,
    )


def parse_reset(fields: Mapping[str, Any]) -> Reset:
    """Return the request for a new episode that some fields are. Fields of an observation are ignored.

    Raises:
        InputError: see `parse_act`.
    """
    if not fields.keys() <= _KNOWN:
        refuse_unknown(map(str, fields), FIELDS, "a field of a request")
    return Reset(parse_settings(fields), parse_session_id(fields.get("session_id")), _seq(fields.get("seq")))


def parse_settings(fields: Mapping[str, Any]) -> Settings:
    """Return the settings among some fields. A task stands for its action space and window.

    Raises:
        InputError: one is invalid.
    """
    if fields.keys().isdisjoint(_SETTINGS):
        return NO_SETTINGS
    get = fields.get
    name, space, window = get("task"), get("action_space"), check_context_window(get("context_window"))
    if space is not None:
        space = parse_space(space)
    if name is not None:
        task = find_task(name)
        space = space_of(task) if space is None else space
        window = task.context_window if window is None else window
    seed = get("seed")
    if seed is not None and (not is_integer(seed) or not 0 <= seed < 2**64):
        raise InputError(f"seed: expected an integer in [0, 2^64), got {seed!r:.80}")
    return Settings(
        name, space, window, None if seed is None else int(seed), _flag("deterministic", get("deterministic"))
    )


def parse_session_id(value: Any) -> str:
    """Return the name of a session; that of the default one for None. Raises `InputError`."""
    if value is None:
        return DEFAULT_SESSION
    if isinstance(value, str) and 1 <= len(value) <= MOST_NAME_CHARACTERS:
        return value
    raise InputError(f"session_id: expected 1 to {MOST_NAME_CHARACTERS} characters, got {value!r:.80}")


_KNOWN = frozenset(FIELDS)
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,128}")


def _observed(key: str, value: Any) -> Any:
    if isinstance(value, str) and len(value) > MOST_TEXT_CHARACTERS:
        raise InputError(f"{key}: expected at most {MOST_TEXT_CHARACTERS} characters, got {len(value)}")
    return to_numbers(key, value)


def _flag(name: str, value: Any) -> bool | None:
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    raise InputError(f"{name}: expected True or False, got {value!r:.80}")


def _seq(value: Any) -> int | None:
    if value is None:
        return None
    if not is_integer(value) or value < 0:
        raise InputError(f"seq: expected an integer >= 0, got {value!r:.80}")
    return int(value)


def _number(value: Any) -> Any:
    """Return a reward as an engine takes it: environments of others give arrays of one number."""
    if isinstance(value, np.ndarray) and value.size == 1:
        return value.item()
    return value
