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
from urllib.parse import urlsplit

import msgspec
import streamlit as st

from fedlab import Hub
from fedlab.errors import AuthenticationError, HubUnavailable, InvalidRequest, PermissionDenied
from fedlab.net import open_hub
from fedlab.net.discovery import check_url, is_loopback
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


def start() -> Start:
    """What `fedlab dashboard` was asked for."""
    return msgspec.json.decode(os.environ.get(ENVIRONMENT, "{}"), type=Start)


def identify(target: str, *, given: bool = True) -> Source:
    """What a URL or a path is.

    Raises:
        InvalidRequest: If it is nothing that can be shown.
    """
    if "://" in target:
        return Source("hub", check_url(target), given)
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


def add(target: str) -> str:
    """Take what a visitor named, or the address of a view, among the sources of this session; its name.

    Raises:
        InvalidRequest: If it is nothing that can be shown.
        PermissionDenied: If it is no hub's URL, and who looks is not who started the dashboard.
    """
    source = identify(target, given=False)
    if source.kind != "hub" and not start().own_rights:
        raise PermissionDenied("directories are open only to who started this dashboard: give the URL of a hub")
    if source.target not in [each.target for each in sources().values()]:
        st.session_state.own_sources.append(source)
    return next(name for name, each in sources().items() if each.target == source.target)


def sources() -> dict[str, Source]:
    """All of this session by name: those of the start, and those a visitor named."""
    found: dict[str, Source] = {}
    for each in [*map(_given, start().targets), *st.session_state.setdefault("own_sources", [])]:
        found[each.target if each.name in found else each.name] = each
    return found


def _given(target: str) -> Source:
    try:
        return identify(target)
    except InvalidRequest:
        return Source("directory", target)  # it has gone since: the others can still be looked at


def runs() -> dict[str, Source]:
    """The runs of experiments among them."""
    return {name: each for name, each in sources().items() if each.kind == "run"}


def hubs() -> dict[str, Source]:
    """The others."""
    return {name: each for name, each in sources().items() if each.kind != "run"}


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
    if own is None and source is not None and not _is_own(source):
        raise AuthenticationError(
            "a token is needed for this hub: put it into the field in the side bar (`fedlab token` makes one)"
        )
    return own


def _is_own(source: Source) -> bool:
    """Whether who looks may open it as who started the dashboard: what that one named, and what is on this machine."""
    here = source.given or source.kind != "hub" or is_loopback(urlsplit(source.target).hostname)
    return start().own_rights and here


def connection() -> SyncConnection:
    """To the current hub.

    Raises:
        InvalidRequest: If there is none.
    """
    return _open(_source(), token())[0]


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


def whole() -> bool:
    """Whether this visitor may ask about all of the current hub, and have it do things."""
    return hub().role == "admin" and hub().tenant_id is None


def tenants() -> list[str]:
    """All tenants that this visitor may see, in alphabetical order: they decide the colours."""
    info = hub()
    return [info.tenant_id] if info.tenant_id is not None else sorted(ask("tenants")["tenant_id"])


def policies() -> dict[str, RetentionPolicy | str]:
    """That of each tenant; what there is to say of one whose class is not known here."""
    own = hub().tenant_id
    if own is None:
        return {tenant: _parsed(text) for tenant, text in ask("tenants").select("tenant_id", "retention").iter_rows()}
    try:
        return {own: ask("retention", own)}
    except InvalidRequest as error:
        return {own: error.message}


def _parsed(policy: str | None) -> RetentionPolicy | str:
    try:
        return RetentionPolicy.from_json(policy) if policy else KeepForever()
    except InvalidRequest:
        return policy or ""


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


def _close(opened: tuple[SyncConnection, contextlib.ExitStack]) -> None:
    with contextlib.suppress(Exception):
        opened[1].close()


@st.cache_resource(max_entries=16, ttl=21_600, show_spinner="Opening …", on_release=_close)
def _open(source: Source, own: str | None) -> tuple[SyncConnection, contextlib.ExitStack]:
    """A connection that is kept open between the visits of all pages, and what closes it."""
    target = source.target
    with contextlib.ExitStack() as undo:
        if source.kind == "backup":
            # A backup stays as it is: what is looked at is a hub restored from it.
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="fedlab-backup-"))) / "hub"
            Hub.restore(target, folder).close()
            target = str(folder)
        return undo.enter_context(open_hub(target, own, retry_for=PATIENCE)), undo.pop_all()


@st.cache_data(max_entries=100, show_spinner=False)
def _info(source: Source, own: str | None, moment: int) -> HubInfo:
    return _open(source, own)[0].info()


@st.cache_data(max_entries=400, max_size="150MB", ttl=60, show_spinner=False)  # time alone makes episodes older
def _answer(source: Source, own: str | None, seq: int, asked: str, _call: tuple[str, Any, Any]) -> Any:
    # Policies have a repr that says everything, and Streamlit no way to hash them.
    method, args, keywords = _call
    return getattr(_open(source, own)[0], method)(*args, **keywords)


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
