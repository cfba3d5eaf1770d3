"""What is looked at: hubs by URL or directory, backups, runs of experiments; and how it is asked.

Everything a page reads from a hub goes through `ask`. The log says when anything changed: an answer is kept until the
hub's `seq` has moved on, which is asked for once in each run of a page, and by all sessions that look live together.

Beyond loopback a visitor brings a token: what the person who started the dashboard may do is not theirs.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import streamlit as st

from fedlab import Hub
from fedlab.errors import AuthenticationError, HubUnavailable, InvalidRequest
from fedlab.net import open_hub
from fedlab.net.tokens import ROLES, Role
from fedlab.retention import KeepForever, RetentionPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedlab.hub.values import HubInfo
    from fedlab.lab.results import Results
    from fedlab.net import SyncConnection

ENVIRONMENT = "FEDLAB_DASHBOARD"
"""The environment variable by which `fedlab dashboard` tells the application what to show."""
REFRESH = 2.0
"""Seconds between two looks at a live hub."""
PATIENCE = 2.0
"""Seconds to go on trying to reach a hub, before the page says that it is away."""
Kind = Literal["hub", "directory", "backup", "run"]


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """How the dashboard was started.

    Args:
        targets: URLs and directories.
        own_rights: Whether who looks has the rights of who started it: on loopback.
    """

    targets: list[str] = []
    own_rights: bool = True


class Source(NamedTuple):
    """One thing that can be looked at.

    Args:
        kind: What it is.
        target: URL or absolute path.
        given: Whether it was named at the start, and not by a visitor.
    """

    kind: Kind
    target: str
    given: bool = True

    @property
    def name(self) -> str:
        """How it is called in the list, and in the address of a view."""
        return self.target if self.kind == "hub" else f"{self.kind} {Path(self.target).name}"


class Opened:
    """A connection that is kept open between the visits of all pages."""

    def __init__(self, source: Source, token: str | None) -> None:
        target = source.target
        with contextlib.ExitStack() as undo:
            if source.kind == "backup":
                # A backup stays as it is: what is looked at is a hub restored from it.
                folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="fedlab-backup-"))) / "hub"
                Hub.restore(target, folder).close()
                target = str(folder)
            self.connection: SyncConnection = undo.enter_context(open_hub(target, token, retry_for=PATIENCE))
            self._stack = undo.pop_all()

    def close(self) -> None:
        """Let go of it."""
        with contextlib.suppress(Exception):
            self._stack.close()


def start() -> Start:
    """What `fedlab dashboard` was asked for."""
    return msgspec.json.decode(os.environ.get(ENVIRONMENT, "{}"), type=Start)


def identify(target: str, *, given: bool = True) -> Source:
    """What a URL or a path is.

    Raises:
        InvalidRequest: If it is nothing that can be shown.
    """
    if "://" in target:
        return Source("hub", target, given)
    path = Path(target).expanduser().resolve()
    try:
        manifest = msgspec.json.decode((path / "manifest.json").read_bytes())
    except (OSError, msgspec.MsgspecError):
        manifest = {}
    if "experiment" in manifest:
        return Source("run", str(path), given)
    if "hub_id" in manifest and "files" in manifest:
        return Source("backup", str(path), given)
    if (path / "hub.db").exists():
        return Source("directory", str(path), given)
    raise InvalidRequest(
        f"{target!r:.200} is nothing that can be shown: give the URL of a hub (ws://… or wss://…), a hub's directory,"
        " a backup, or the directory of a run"
    )


def sources() -> list[Source]:
    """All of this session: those of the start, and those a visitor named."""
    given = [identify(target) for target in start().targets]
    return [*given, *st.session_state.setdefault("own_sources", [])]


def runs() -> dict[str, Source]:
    """The runs of experiments among them, by name."""
    return {each.name: each for each in sources() if each.kind == "run"}


def hubs() -> dict[str, Source]:
    """The others, by name."""
    return {each.name: each for each in sources() if each.kind != "run"}


def current() -> Source | None:
    """The hub that all pages but that of experiments are about; None if there is none."""
    known = hubs()
    return known.get(st.session_state.get("hub", ""), next(iter(known.values()), None))


def token() -> str | None:
    """What this visitor brought for the current hub.

    Raises:
        AuthenticationError: If a token is needed and there is none.
    """
    source = current()
    own: str | None = st.session_state.get("tokens", {}).get(source.target if source else "")
    if own is None and source is not None and not (source.given and start().own_rights):
        raise AuthenticationError(
            "a token is needed for this hub: put it into the field in the side bar (`fedlab token` makes one)"
        )
    return own


def connection() -> SyncConnection:
    """To the current hub.

    Raises:
        InvalidRequest: If there is none.
    """
    return _open(_source(), token()).connection


def _source() -> Source:
    source = current()
    if source is None:
        raise InvalidRequest("there is no hub: name one in the side bar")
    return source


def refresh(*, live: bool = False) -> None:
    """What is asked from now on is asked of a new moment.

    Args:
        live: A moment that all sessions have together that look within the same two seconds: a hub that changes all the
            time counts once for all of them.
    """
    st.session_state.moment = int(time.monotonic() / REFRESH) if live else time.monotonic_ns()


def hub() -> HubInfo:
    """Who the current hub is at this moment, and what this visitor may do there."""
    return _info(_source(), token(), st.session_state.moment)


def may(role: Role) -> bool:
    """Whether this visitor has at least a role at the current hub."""
    return ROLES.index(hub().role) >= ROLES.index(role)


def tenants() -> list[str]:
    """All tenants that this visitor may see, in alphabetical order: they decide the colours."""
    info = hub()
    return [info.tenant_id] if info.tenant_id is not None else sorted(ask("tenants")["tenant_id"])


def policies() -> dict[str, RetentionPolicy]:
    """That of each tenant."""
    own = hub().tenant_id
    if own is not None:
        return {own: ask("retention", own)}
    stored = ask("tenants").select("tenant_id", "retention").iter_rows()
    return {tenant: RetentionPolicy.from_json(text) if text else KeepForever() for tenant, text in stored}


def ask(method: str, *args: Any, **keywords: Any) -> Any:
    """What a method of the hub's connection answers, kept until the hub's log has moved on.

    Args:
        method: Of `fedlab.net.HubConnection`; one that only reads.
        args: Its arguments.
        keywords: Its arguments by name.

    Raises:
        FedlabError: As the method does.
    """
    seq = hub().seq
    asked = repr((method, args, sorted(keywords.items())))
    return _answer(_source(), token(), seq, asked, (method, args, keywords))


def results(source: Source) -> Results:
    """Those of a run, as far as they are there."""
    files = sorted(Path(source.target).rglob("*.parquet"))
    return _results(source.target, len(files), max((file.stat().st_mtime for file in files), default=0.0))


def metrics() -> list[tuple[str, Mapping[str, str], float]]:
    """The samples (name, labels, value) that the current hub's server publishes; none if it is no server."""
    url = connection().url
    return [] if url is None else _metrics(url, int(time.time()))


@st.cache_resource(max_entries=16, ttl=21_600, show_spinner="Opening …", on_release=Opened.close)
def _open(source: Source, own: str | None) -> Opened:
    return Opened(source, own)


@st.cache_data(max_entries=100, show_spinner=False)
def _info(source: Source, own: str | None, moment: int) -> HubInfo:
    return _open(source, own).connection.info()


@st.cache_data(max_entries=400, max_size="150MB", ttl=60, show_spinner=False)  # time alone makes episodes older
def _answer(source: Source, own: str | None, seq: int, asked: str, _call: tuple[str, Any, Any]) -> Any:
    # Policies have a repr that says everything, and Streamlit no way to hash them.
    method, args, keywords = _call
    return getattr(_open(source, own).connection, method)(*args, **keywords)


@st.cache_resource(max_entries=8, show_spinner="Reading the run …")
def _results(path: str, files: int, changed: float) -> Results:
    from fedlab.lab.results import Results

    return Results.open(path)


@st.cache_data(max_entries=32, show_spinner=False)
def _metrics(url: str, second: int) -> list[tuple[str, Mapping[str, str], float]]:
    import urllib.request

    from prometheus_client.parser import text_string_to_metric_families

    try:
        with urllib.request.urlopen(f"http{url.removeprefix('ws')}/metrics", timeout=PATIENCE) as answer:  # noqa: S310
            text = answer.read().decode()
    except OSError as error:
        raise HubUnavailable(f"the metrics of {url} cannot be read: {error}") from None
    return [
        (sample.name, sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
