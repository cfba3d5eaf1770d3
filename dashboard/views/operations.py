"""Operations: is the hub well, what is it asked, what does it do by itself, and what happened."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl
import streamlit as st

from dashboard import figures, look, rates, sources
from fedlab.hub.values import CHANGE_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedlab.hub.values import HubInfo, Schedule

# Changes that a text is searched in, and what is shown of them.
SEARCHED, SHOWN = 5_000, 200
DAY_MS = 86_400_000
REPLICAS = (
    "A hub has no replicas, so there is no lag to show: one process answers everything. Its copies are its backups, and"
    " how old the newest is stands in the section Backups."
)


def page() -> None:
    """One section at a time; those that the hub would refuse are not offered."""
    info = sources.hub()
    sections: dict[str, Callable[[HubInfo], None]] = {"Requests": _requests, "Log": _log, "Retention": _retention}
    if sources.whole():
        sections |= {"Backups": _backups, "Erasures": _erasures}
    if sources.connection().url is None:
        del sections["Requests"]  # nobody asks an embedded hub from elsewhere
    sections[look.choose("Section", sections, key="section", label_visibility="collapsed")](info)
    st.caption(REPLICAS)


@look.live
def _requests(_info: HubInfo) -> None:
    history: rates.History = st.session_state.setdefault(f"history {sources.current()}", rates.History())
    history.add(rates.look(sources.metrics(), time.time()))
    first, new = history.looks[0], history.looks[-1]
    over = f"Over the last {new.at - first.at:,.0f} s."
    frame = rates.between(first, new)
    why = ", ".join(f"{count:,.0f} with HTTP {status}" for status, count in new.refused.items())
    look.metrics(
        {
            "Requests a second": f"{frame['per_second'].sum():,.1f}",
            "Failed": f"{frame['failed'].sum():,}",
            "Connections": f"{new.connections:,}",
            "Connections refused": f"{sum(new.refused.values()):,.0f}",
        },
        {
            "Requests a second": over,
            "Failed": f"Requests that were answered with an error. {over}",
            "Connections refused": why or "None since the server began.",
        },
    )
    steps = history.steps()
    if len(steps):
        look.chart(
            figures.requests(steps, zone=look.zone().key),
            steps,
            "requests",
            "Requests a second and the 95 % quantile of their latency by method.",
        )
    else:
        st.caption("No request since this page was opened: a chart of the next ones grows here as long as it is open.")
    number = st.column_config.NumberColumn
    columns = {
        "per_second": number("per second", format="%.2f"),
        "p50_ms": number("p50, ms", format="%.2f"),
        "p95_ms": number("p95, ms", format="%.2f"),
        "requests": number("since the server began", format="localized"),
    }
    look.table(frame, key="methods", columns=columns)


def _log(info: HubInfo) -> None:
    """The end of the log, live."""
    columns = st.columns(4)
    tenant = columns[0].selectbox(
        "Tenant", sources.tenants(), index=None, placeholder="All", key="log-tenant", **look.KEPT
    )
    kinds = columns[1].multiselect("Kind", CHANGE_KINDS, placeholder="All", key="log-kinds", **look.KEPT)
    actor = columns[2].text_input("Actor", placeholder="Anyone", key="log-actor", help="The whole name.", **look.KEPT)
    text = columns[3].text_input(
        "Text", placeholder="Anything", key="log-text", help="In the id, the actor or the reason.", **look.KEPT
    )
    _tail(tenant or info.tenant_id, tuple(kinds) or None, actor or None, text)


@look.live
def _tail(tenant: str | None, kinds: tuple[str, ...] | None, actor: str | None, text: str) -> None:
    frame = sources.ask("tail", tenant, kinds=kinds, actor=actor, limit=SEARCHED if text else SHOWN)
    if text:
        said = pl.concat_str("subject", "actor", "reason", separator="\n").str.to_lowercase()
        frame = frame.filter(said.str.contains(text.lower(), literal=True)).head(SHOWN)
        st.caption(f"Searched in the last {SEARCHED:,} changes that the other filters let pass.")
    if frame.is_empty():
        look.note("No change passes these filters: clear one of them.")
        return
    look.table(frame, key="log-tail", height=min(600, 36 * (len(frame) + 1)))


def _retention(info: HubInfo) -> None:
    """Which policy each tenant has, and when it was applied last."""
    schedule: Schedule | None = sources.connection().schedule() if sources.whole() else None
    if schedule is not None:
        _tell_retention(schedule)
    policies = sources.policies()
    if not policies:
        look.note("This hub has no tenant yet.")
        return
    day = (int(time.time()) // 60 * 60 * 1000) - DAY_MS
    ever, today = (
        sources.ask("forgetting", info.tenant_id, since=since, bins=1)
        .group_by("tenant_id")
        .agg(pl.col("last_at").max(), pl.col("forgotten").sum())
        for since in (None, day)
    )
    went = dict(ever.select("tenant_id", "last_at").iter_rows())
    gone = dict(today.select("tenant_id", "forgotten").iter_rows())
    report = schedule.retention_last if schedule else None
    last, failed = (report.removed, report.failed) if report else ({}, {})
    rows = [
        (tenant, str(policy), went.get(tenant), last.get(tenant), gone.get(tenant, 0), failed.get(tenant))
        for tenant, policy in policies.items()
    ]
    texts, counts = ("tenant", "policy"), ("forgotten by the last run", "forgotten in the last 24 hours")
    schema = dict.fromkeys(texts, pl.String) | dict.fromkeys(("last_forgotten_at", *counts), pl.Int64)
    look.table(pl.DataFrame(rows, schema | {"failed": pl.String}, orient="row"), key="policies")
    st.page_link("views/retention.py", label="Try another policy in the retention lab", icon=":material/science:")


def _tell_retention(schedule: Schedule) -> None:
    if schedule.retention_interval is None:
        look.note(
            "Nobody applies the policies by itself: serve the hub with --retention-interval, or apply them by hand."
        )
        return
    last = look.when(schedule.retention_last_at) or "not yet"
    st.markdown(
        f"The policies are applied every **{schedule.retention_interval:,g} s**;"
        f" last: **{last}**, next: **{look.when(schedule.retention_next_at)}**."
    )


def _backups(_info: HubInfo) -> None:
    """Those there are; take one, verify one."""
    schedule = sources.connection().schedule()
    if schedule.backup_directory is None:
        look.note(
            "This hub has no directory for backups. A server has one with `fedlab hub --backup-dir DIR"
            " --backup-interval SECONDS`; by hand, `fedlab backup HUB DEST` copies a hub, also one that is running."
        )
        return
    every = "when someone asks" if schedule.backup_interval is None else f"every **{schedule.backup_interval:,g} s**"
    st.markdown(
        f"Made {every}; the last good one: **{look.when(schedule.backup_last_at) or 'none yet'}**."
        f" On the server, in {look.literal(schedule.backup_directory)}; of those made on schedule,"
        f" the newest {schedule.backup_keep:,} full ones are kept, with what builds on them."
    )
    if done := st.session_state.pop("backup done", None):
        st.success(done, icon=":material/check:")
    frame = sources.connection().backups()
    if frame.is_empty():
        look.note("There is no backup yet: take one.")
    else:
        builds_on = st.column_config.TextColumn("builds on", help="Empty for a full one.")
        look.table(frame, key="backups", columns={"base": builds_on})
    left, right = st.columns(2)
    with left, st.form("take", border=True):
        st.markdown("**Take one**")
        # Another one after each backup: a name is taken once.
        key = f"backup-name {len(frame)}"
        name = st.text_input("Name", f"by-hand-{datetime.now(UTC):%Y%m%dT%H%M%SZ}", key=key)
        base = st.selectbox("Only what is new since", frame["name"].to_list(), index=None, placeholder="A full one")
        if st.form_submit_button("Back up", icon=":material/backup:"):
            _do(f"Backing up {name}", "backup", name, base=base)
    if not frame.is_empty():
        with right, st.form("verify", border=True):
            st.markdown("**Verify one**")
            chosen = st.selectbox("Which", frame["name"].to_list(), key="verify-name")
            if st.form_submit_button("Read and check all of it", icon=":material/verified:"):
                _do(f"Checking {chosen}", "verify_backup", chosen)


def _do(what: str, method: str, *args: Any, **keywords: Any) -> None:
    with look.guarded():
        with st.spinner(f"{what} …"):
            manifest = getattr(sources.connection(), method)(*args, **keywords)
        verb = "is whole" if method == "verify_backup" else "was made"
        told = f"{'incremental' if manifest.bases else 'full'} backup of {look.when(manifest.created_at)}"
        told += f" at change {manifest.seq:,}, {manifest.episodes:,} episodes of {manifest.tenants:,} tenants"
        st.session_state["backup done"] = look.literal(f"{args[0]} {verb}: {told}")
        st.rerun()


def _erasures(_info: HubInfo) -> None:
    """The ledger: the evidence that someone's memory was erased."""
    frame = sources.ask("erasures")
    if frame.is_empty():
        look.note("Nothing was ever erased here. `fedlab erase` erases a tenant, an agent or episodes, for good.")
        return
    st.caption(
        "With hashes in the place of names (BLAKE2b of 16 bytes). Restoring an older backup erases all of it again."
    )
    look.table(frame, key="erasures")


page()
