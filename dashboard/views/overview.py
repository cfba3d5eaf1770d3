"""Overview: what there is and what happens now; live."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import polars as pl
import streamlit as st

from dashboard import figures, look, sources

if TYPE_CHECKING:
    from fedlab.hub.values import HubInfo

MINUTE = 60.0


@look.live
def page() -> None:
    """The numbers, the growth and the tenants."""
    info = sources.hub()
    _numbers(info)
    _health(info)
    if not info.seq or not sources.tenants():
        look.note(
            "This hub is empty. Let an agent store its first episode: the ten lines of the README do,"
            " or `fedlab demo` fills a hub of its own."
        )
        return
    growth = sources.ask("growth", info.tenant_id, by="tenant", bins=look.BINS)
    look.chart(
        figures.growth(growth, look.colours(), zone=look.zone().key),
        growth,
        "overview-growth",
        "Episodes in the memory of each tenant over time, with those that were forgotten until then dotted.",
    )
    if info.tenant_id is None:
        _tenants()


def _numbers(info: HubInfo) -> None:
    began = time.perf_counter()
    sources.connection().info()
    answered = time.perf_counter() - began
    numbers = sources.ask("stats", info.tenant_id)
    look.metrics(
        {
            "Tenants": f"{numbers.tenants:,}",
            "Agents alive": f"{numbers.agents_alive:,}",
            "Episodes": f"{numbers.episodes:,}",
            "On disk": look.bytes_of(numbers.bytes) if numbers.bytes else "not said",
            "Changes a minute": _rate(info),
            "Answers in": f"{answered * 1000:,.0f} ms" if answered >= 0.001 else "< 1 ms",
        },
        {
            "Agents alive": f"Of {numbers.agents:,} lives so far.",
            "Episodes": f"{numbers.forgotten:,} were forgotten.",
            "Changes a minute": f"{info.seq:,} changes in the log so far.",
            "Answers in": "Time of the smallest question to the hub.",
        },
    )


def _health(info: HubInfo) -> None:
    """What the hub is, and since when, in a line; what fails in it as a warning."""
    facts = [
        f"fedlab {info.version}",
        f"schema {info.schema}",
        f"{info.embedder}, {info.dimension:,} dimensions",
        f"up since {look.when(info.opened_at)} ({look.zone()})",
    ]
    failed: dict[str, str] = {}
    if sources.whole():
        schedule = sources.ask("schedule")
        if schedule.backup_directory:
            facts.append(f"last backup {look.when(schedule.backup_last_at) or 'not yet'}")
        failed = schedule.retention_last.failed if schedule.retention_last else {}
    for tenant, why in failed.items():
        st.warning(f"The retention of {look.literal(tenant)} failed: {look.literal(why)}", icon=":material/error:")
    st.caption(f"**{'Fails in part' if failed else 'Healthy'}** · {look.literal(' · '.join(facts))}")


def _rate(info: HubInfo) -> str:
    """Changes a minute over the last minute that this session has seen."""
    seen: list[tuple[float, int]] = st.session_state.setdefault(f"seen {sources.current()}", [])
    now = time.monotonic()
    seen.append((now, info.seq))
    while now - seen[0][0] > MINUTE:
        del seen[0]
    elapsed = now - seen[0][0]
    return f"{(info.seq - seen[0][1]) / elapsed * MINUTE:,.0f}" if elapsed else "…"


def _tenants() -> None:
    tenants = sources.ask("tenants")
    expander = st.expander(
        "Tenants", expanded=len(tenants) <= 10, icon=":material/domain:", key="tenants-open", on_change="rerun"
    )
    if expander.open:
        policies = {tenant: str(policy) for tenant, policy in sources.policies().items()}
        retention = pl.col("tenant_id").replace_strict(policies)
        with expander:
            look.table(tenants.with_columns(retention=retention), key="tenants-table")


page()
