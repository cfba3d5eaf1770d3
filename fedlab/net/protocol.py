"""The wire as data: what can be asked (`METHODS`), how it is written in MessagePack and in JSON. No I/O.

A client sends `Request`s, a server answers each with an `Answer` that carries its id: a result (a frame
comes as several pages, all but the last marked `more`) or a fault. There is nothing else: a subscription is
a chain of `watch` requests, so that it can neither overflow nor lose its place.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from fedlab.episode import Episode, Memory, Vector, decode_vector, encode_vector
from fedlab.errors import BY_CODE, FedlabError, InvalidEpisode, InvalidRequest
from fedlab.hub.manifest import BackupManifest, ForkReport
from fedlab.hub.values import (
    Change,
    Delta,
    Ending,
    ErasureReport,
    HubInfo,
    Life,
    RetentionPreview,
    RetentionReport,
    Schedule,
    Stats,
    VerifyReport,
)
from fedlab.net.malformed import examine
from fedlab.net.pages import Page, read_vector
from fedlab.net.tokens import Role
from fedlab.recall import MAX_IDS, RecallPolicy

MAX_WHOLE = 2**53 - 1
Whole = Annotated[int, Meta(ge=0, le=MAX_WHOLE)]
"""A whole number that JSON, MessagePack and SQLite all carry unchanged."""
Groups = Annotated[tuple[str, ...], Meta(max_length=10)]


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a method is asked with. The fields are the arguments of the same method of `HubConnection`."""


class ForTenant(Params, frozen=True, kw_only=True):
    """Params that name the tenant they are about."""

    tenant_id: str


class ForAnyTenant(Params, frozen=True, kw_only=True):
    """Params that may name a tenant."""

    tenant_id: str | None = None


class Put(Params, frozen=True, kw_only=True):  # noqa: D101
    episodes: list[Episode]


class Recall(ForTenant, frozen=True, kw_only=True):
    """The query is a text, a vector, or neither."""

    text: str | None = None
    vector: Vector | None = None
    k: Whole = 10
    policy: RecallPolicy | None = None
    min_reward: float | None = None
    since: Whole | None = None
    until: Whole | None = None
    task: str | None = None
    agent_id: str | None = None
    vectors: bool = False


class Embed(Params, frozen=True, kw_only=True):  # noqa: D101
    texts: Annotated[list[str], Meta(max_length=100_000)]


class SpawnAgent(ForTenant, frozen=True, kw_only=True):  # noqa: D101
    agent_id: str
    lifetime: float
    resume: bool = False
    nonce: Annotated[str, Meta(max_length=100)] = ""  # made with each spawn: whose life it is that is resumed


class SyncAgent(ForTenant, frozen=True, kw_only=True):  # noqa: D101
    agent_id: str
    episodes: list[Episode] = []
    after: Whole
    limit: Whole = 100
    ending: Ending | None = None
    recalled: Whole = 0
    nonce: Annotated[str, Meta(max_length=100)] = ""
    epoch: Whole = 0


class Forget(ForTenant, frozen=True, kw_only=True):  # noqa: D101
    ids: list[str]
    reason: str


class Episodes(ForAnyTenant, frozen=True, kw_only=True):  # noqa: D101
    ids: Annotated[list[str], Meta(max_length=MAX_IDS)] | None = None
    since: Whole | None = None
    until: Whole | None = None
    task: str | None = None
    agent_id: str | None = None
    min_reward: float | None = None
    after: Whole = 0
    limit: Whole | None = None
    vectors: bool = False
    sources: bool = False


class Agents(ForAnyTenant, frozen=True, kw_only=True):  # noqa: D101
    status: str | None = None


class Changes(ForAnyTenant, frozen=True, kw_only=True):  # noqa: D101
    after: Whole = 0
    kind: str | None = None
    limit: Whole | None = None


class Watch(ForAnyTenant, frozen=True, kw_only=True):
    """Answered as soon as there are changes after `after`, or with none after `wait` seconds."""

    after: Whole
    epoch: Whole = 0  # the hub's when `after` was its seq: without it, a restore is not noticed
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000
    wait: Annotated[float, Meta(ge=0, le=60)] = 20.0


class Policy(ForTenant, frozen=True, kw_only=True):
    """The policy is written as `RetentionPolicy.to_json` writes it."""

    policy: Annotated[str, Meta(max_length=100_000)]


class EraseTenant(ForTenant, frozen=True, kw_only=True):  # noqa: D101
    reason: str
    even_held: bool = False


class EraseAgent(EraseTenant, frozen=True, kw_only=True):  # noqa: D101
    agent_id: str


class EraseEpisodes(EraseTenant, frozen=True, kw_only=True):  # noqa: D101
    ids: list[str]


class BackupName(Params, frozen=True, kw_only=True):
    """A name in the server's directory for backups."""

    name: Annotated[str, Meta(max_length=200)]


class Backup(BackupName, frozen=True, kw_only=True):  # noqa: D101
    base: Annotated[str, Meta(max_length=200)] | None = None


class Fork(BackupName, frozen=True, kw_only=True):  # noqa: D101
    at: Whole | datetime | None = None


class Preview(ForTenant, frozen=True, kw_only=True):
    """As `Policy`; the tenant's own if none is given, and how much later than now."""

    policy: Annotated[str, Meta(max_length=100_000)] | None = None
    after: timedelta = timedelta(0)


class Hold(ForTenant, frozen=True, kw_only=True):  # noqa: D101
    ids: list[str] | None = None
    reason: str
    task: str | None = None
    agent_id: str | None = None
    min_reward: float | None = None
    since: Whole | None = None
    until: Whole | None = None


class Growth(ForAnyTenant, frozen=True, kw_only=True):  # noqa: D101
    since: Whole | None = None
    until: Whole | None = None
    bins: Whole = 100
    by: str = "tenant"
    top: Whole = 20


class Forgetting(ForAnyTenant, frozen=True, kw_only=True):  # noqa: D101
    since: Whole | None = None
    until: Whole | None = None
    bins: Whole = 100


class RewardSummary(ForAnyTenant, frozen=True, kw_only=True):  # noqa: D101
    by: Groups = ("tenant",)
    periods: Whole = 20
    limit: Whole = 1_000
    min_reward: float | None = None
    since: Whole | None = None
    until: Whole | None = None
    task: str | None = None
    agent_id: str | None = None


class Rewards(RewardSummary, frozen=True, kw_only=True):  # noqa: D101
    bins: Whole = 40


class Lives(ForAnyTenant, frozen=True, kw_only=True):  # noqa: D101
    since: Whole | None = None
    until: Whole | None = None
    limit: Whole = 2_000


class Credit(ForTenant, frozen=True, kw_only=True):  # noqa: D101
    by: str = "generation"
    limit: Whole = 1_000


class Lineage(ForTenant, frozen=True, kw_only=True):  # noqa: D101
    episode_id: str
    depth: Whole = 3
    limit: Whole = 200


class Sample(ForTenant, frozen=True, kw_only=True):  # noqa: D101
    n: Whole = 2_000
    seed: Whole = 0
    vectors: bool = True
    min_reward: float | None = None
    since: Whole | None = None
    until: Whole | None = None
    task: str | None = None
    agent_id: str | None = None


class Tail(ForAnyTenant, frozen=True, kw_only=True):  # noqa: D101
    kinds: Annotated[tuple[str, ...], Meta(max_length=50)] | None = None
    actor: str | None = None
    since: Whole | None = None
    until: Whole | None = None
    before: Whole | None = None
    limit: Whole = 100


class Method(msgspec.Struct, frozen=True):
    """One thing that can be asked of a hub.

    Args:
        params: Type of the params.
        result: Type of the result; a `Page` is one of several.
        role: The least role that may ask it.
        writes: Whether it changes the hub.
        slow: Whether it may well take minutes.
        whole_hub: Whether it is about all tenants at once.
    """

    params: type[Params]
    result: Any
    role: Role = "observer"
    writes: bool = False
    slow: bool = False
    whole_hub: bool = False


METHODS: dict[str, Method] = {
    "info": Method(Params, HubInfo),
    "put": Method(Put, int, "agent", writes=True),
    "recall": Method(Recall, list[Memory]),
    "embed": Method(Embed, list[Vector], slow=True),
    "spawn_agent": Method(SpawnAgent, Life, "agent", writes=True),
    "sync_agent": Method(SyncAgent, Delta, "agent", writes=True),
    "forget": Method(Forget, int, "admin", writes=True),
    "episodes": Method(Episodes, Page, slow=True),
    "agents": Method(Agents, Page, slow=True),
    "tenants": Method(Params, Page, slow=True),
    "changes": Method(Changes, Page, slow=True),
    "tail": Method(Tail, Page, slow=True),
    "watch": Method(Watch, list[Change]),
    "stats": Method(ForAnyTenant, Stats, slow=True),
    "growth": Method(Growth, Page, slow=True),
    "forgetting": Method(Forgetting, Page, slow=True),
    "rewards": Method(Rewards, Page, slow=True),
    "reward_summary": Method(RewardSummary, Page, slow=True),
    "lives": Method(Lives, Page, slow=True),
    "credit": Method(Credit, Page, slow=True),
    "lineage": Method(Lineage, Page, slow=True),
    "sample": Method(Sample, Page, slow=True),
    "backup": Method(Backup, BackupManifest, "admin", slow=True, whole_hub=True),
    "backups": Method(Params, Page, "admin", slow=True, whole_hub=True),
    "verify_backup": Method(BackupName, BackupManifest, "admin", slow=True, whole_hub=True),
    "fork": Method(Fork, ForkReport, "admin", slow=True, whole_hub=True),
    "schedule": Method(Params, Schedule, "admin", whole_hub=True),
    "verify": Method(Params, VerifyReport, "admin", slow=True, whole_hub=True),
    "set_retention": Method(Policy, int, "admin", writes=True),
    "retention": Method(ForTenant, str),
    "preview_retention": Method(Preview, RetentionPreview, slow=True),
    "apply_retention": Method(ForAnyTenant, RetentionReport, "admin", writes=True, slow=True),
    "erase_tenant": Method(EraseTenant, ErasureReport, "admin", writes=True, slow=True),
    "erase_agent": Method(EraseAgent, ErasureReport, "admin", writes=True, slow=True),
    "erase_episodes": Method(EraseEpisodes, ErasureReport, "admin", writes=True, slow=True),
    "erasures": Method(Params, Page, "admin", slow=True, whole_hub=True),
    "hold": Method(Hold, int, "admin", writes=True, slow=True),
    "release": Method(Hold, int, "admin", writes=True, slow=True),
    "holds": Method(ForTenant, Page, slow=True),
}
"""What can be asked, by name: the names of `HubConnection`."""


class Request(msgspec.Struct, frozen=True):
    """What a client sends.

    Args:
        id: Unique among the requests under way on this connection.
        method: A name in `METHODS`.
        params: As the method's params type says.
    """

    id: Whole
    method: str
    params: Any = {}


class _Envelope(msgspec.Struct, frozen=True):
    # Decoded first, so that a request with bad params still gets an answer with its own id.
    id: Whole
    method: str
    params: Raw = Raw()


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error on the wire: `fedlab.errors` has the codes."""

    code: str
    message: str
    details: dict[str, Any] = {}

    @classmethod
    def of(cls, error: FedlabError) -> Fault:
        """An error as data; details that are no data are left out."""
        details = {}
        for name, value in error.details.items():
            try:
                msgspec.json.encode(value)
            except (TypeError, ValueError, OverflowError, RecursionError):
                continue
            details[name] = value
        return cls(error.code, _clean(error.message), details)

    def to_error(self) -> FedlabError:
        """The exception that the hub raised."""
        error = BY_CODE.get(self.code, FedlabError)(self.message)
        error.details = self.details  # not as keywords: a newer hub may name one that our __init__ knows
        return error


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a server sends: a result or a fault; the id is None where the request's could not be read."""

    id: int | None
    result: Any | UnsetType = UNSET
    fault: Fault | None = None
    more: bool = False


class _Reply(msgspec.Struct, frozen=True):
    id: int | None
    result: Raw = Raw()
    fault: Fault | None = None
    more: bool = False


C = TypeVar("C", bound="msgspec.msgpack.Encoder | msgspec.json.Encoder")


class Format(Generic[C]):
    """One way to write messages; stateless, shared by all connections.

    Args:
        subprotocol: Its name in the WebSocket handshake.
        encoder: Writes.
        module: Where its `Decoder` is.
        text: Whether messages are text frames.
    """

    def __init__(self, subprotocol: str, encoder: C, module: Any, *, text: bool) -> None:
        self.subprotocol = subprotocol
        self.text = text
        self._encode = encoder.encode
        self._envelope = module.Decoder(_Envelope)
        self._reply = module.Decoder(_Reply)
        self._params = {n: module.Decoder(m.params, dec_hook=decode_vector) for n, m in METHODS.items()}
        self._results = {n: module.Decoder(m.result, dec_hook=read_vector) for n, m in METHODS.items()}

    def encode(self, message: Request | Answer) -> bytes:
        """A message as bytes.

        Raises:
            InvalidRequest: If it holds something that can not be written, a lone surrogate for example.
        """
        try:
            return self._encode(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidRequest(f"this can not be sent: {_clean(str(error)):.300}") from None

    def decode_request(self, data: bytes | bytearray | memoryview) -> tuple[int, str, Raw]:
        """The id, the method and the params, still as bytes, of a message from anyone.

        Raises:
            InvalidRequest: If it is no request; whatever the bytes are, nothing else is raised.
        """
        try:
            envelope = self._envelope.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
            raise InvalidRequest(f"no request {{id, method, params}}: {_clean(str(error)):.300}") from None
        return envelope.id, envelope.method, envelope.params

    def decode_params(self, method: str, params: Raw) -> Any:
        """The params of a method that exists.

        Raises:
            InvalidRequest: Saying which of them is wrong; InvalidEpisode or InvalidVector where it is one.
        """
        try:
            return self._params[method].decode(params if memoryview(params).nbytes else self._encode({}))
        except msgspec.ValidationError as error:
            raise _invalid(method, error) from None
        except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
            raise InvalidRequest(f"{method}: {_clean(str(error)):.300}") from None

    def explain(self, data: bytes | bytearray | memoryview, error: Exception) -> tuple[int | None, Exception]:
        """Of a message that is no request: its id, where that can be read, and what is wrong with it, known better."""
        if not self.text:
            return None, error
        number, fault = examine(data)
        if fault:
            error = _placed(f"{fault[1]} - at `{_clean(fault[0]):.200}`")
        return number, error

    def decode_answer(self, data: bytes | bytearray | memoryview) -> tuple[int | None, Raw, Fault | None, bool]:
        """The id, the result (still as bytes), the fault and `more` of an answer.

        Raises:
            InvalidRequest: If it is none.
        """
        try:
            reply = self._reply.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
            raise InvalidRequest(f"this is no answer of a hub: {_clean(str(error)):.300}") from None
        return reply.id, reply.result, reply.fault, reply.more

    def decode_result(self, method: str, result: Raw) -> Any:
        """The typed result of a method.

        Raises:
            InvalidRequest: If it is not of that type.
        """
        try:
            return self._results[method].decode(result)
        except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
            raise InvalidRequest(f"this is no result of {method}: {_clean(str(error)):.300}") from None


_IN_EPISODE = re.compile(r"\$\.episodes\[\d+\](?:\.(\w+))?")
_MISSING = re.compile(r"missing required field `(\w+)`")


def _invalid(method: str, error: msgspec.ValidationError) -> InvalidRequest:
    message = f"{method}: {_clean(str(error)):.500}"
    if "unknown field" in message:
        fields = (Episode if "$.episodes[" in message else METHODS[method].params).__struct_fields__
        message += f"; the fields are {', '.join(fields) or 'none'}"
    cause = error.__cause__
    if isinstance(cause, InvalidRequest):
        return type(cause)(message, **cause.details)
    return _placed(message)


def _placed(message: str) -> InvalidRequest:
    """The error of a message that says where in the params it found something."""
    missing = _MISSING.search(message)
    place = _IN_EPISODE.search(message)
    if place:
        return InvalidEpisode(message, field=place[1] or (missing[1] if missing else ""))
    return InvalidRequest(message, **({"field": missing[1]} if missing else {}))


def _clean(text: str) -> str:
    # What an error quotes may hold lone surrogates, and those can not be sent.
    return text if text.isascii() else text.encode(errors="replace").decode()


MSGPACK = Format("fedlab.v1.msgpack", msgspec.msgpack.Encoder(enc_hook=encode_vector), msgspec.msgpack, text=False)
JSON = Format("fedlab.v1.json", msgspec.json.Encoder(enc_hook=encode_vector), msgspec.json, text=True)
FORMATS: dict[str, Format[Any]] = {form.subprotocol: form for form in (MSGPACK, JSON)}
"""By subprotocol, the preferred first."""
