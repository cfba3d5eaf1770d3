"""Agents and generations: when they lived, how they ended, what they pulled and pushed, and who learned from whom."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import streamlit as st

from dashboard import figures_lives as figures
from dashboard import look, sources

MOST = 500  # lives on the timeline
FLOWS = 80  # more of them are a tangle
SPANS = {"all": None, "last hour": timedelta(hours=1), "last 10 minutes": timedelta(minutes=10)}


def page() -> None:
    """Timeline, exchange and credit of one tenant."""
    tenant_id = look.choose_tenant("This hub has no tenant yet: no agent has lived here. `fedlab demo` fills a hub.")
    span = st.radio("Time", SPANS, key="span", bind="query-params", horizontal=True)
    _lives(tenant_id, span)
    _credit(tenant_id)


@look.live
def _lives(tenant_id: str, span: str) -> None:
    back = SPANS[span]
    # Whole minutes: an answer that is asked for again and again is the same one.
    since = None if back is None else datetime.now(UTC).replace(second=0, microsecond=0) - back
    lives = sources.ask("lives", tenant_id, since=since, limit=MOST)
    if lives.is_empty():
        look.note("No agent lived here in this time. `EphemeralAgent.spawn` begins a life.")
        return
    ends = dict(lives["status"].value_counts().iter_rows())
    look.metrics({status.capitalize(): f"{ends.get(status, 0):,}" for status in figures.ENDS})
    zone = look.zone().key
    look.chart(
        figures.timeline(lives, zone),
        lives,
        "timeline",
        "A line for each life, from its spawn to its end; the colour says how it ended.",
    )
    if len(lives) == MOST:
        st.caption(f"The last {MOST:,} lives.")
    look.chart(
        figures.exchange(lives, zone),
        lives.select("agent_id", "generation", "spawned_at", "pulled", "pushed", "mean_reward"),
        "exchange",
        "How many episodes each life pulled from the hub, and how many it pushed.",
    )


def _credit(tenant_id: str) -> None:
    by = st.radio("Credit between", ["generation", "agent"], key="credit_by", bind="query-params", horizontal=True)
    credit = sources.ask("credit", tenant_id, by=by, limit=FLOWS)
    if credit.is_empty():
        look.note(
            "No episode names another as its source yet: what an agent recalls before it stores becomes that by itself."
        )
        return
    look.chart(
        figures.credit(credit, by),
        credit,
        "credit",
        f"From which {by} the memories came that the episodes of another were made from.",
    )
    st.caption(
        f"From which {by} the memories came that another was made of; the more reward, the stronger the colour."
        + (f" The {FLOWS} largest flows." if len(credit) == FLOWS else "")
    )


page()
