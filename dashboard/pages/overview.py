"""Overview: what there is and what happens now; live."""

from __future__ import annotations

import streamlit as st

from dashboard import look, sources


@st.fragment(run_every=look.REFRESH)
def live() -> None:
    """The numbers, the growth and the tenants; drawn again every two seconds."""
    with look.guarded():
        info = sources.hub()
        numbers = sources.ask("stats", info.tenant_id)
        columns = st.columns(5)
        columns[0].metric("Tenants", f"{numbers.tenants:,}")
        columns[1].metric("Agents alive", f"{numbers.agents_alive:,}", help=f"of {numbers.agents:,} lives so far")
        columns[2].metric("Episodes", f"{numbers.episodes:,}", help=f"{numbers.forgotten:,} were forgotten")
        columns[3].metric("On disk", look.bytes_of(numbers.bytes))
        columns[4].metric("Changes", f"{info.seq:,}")


live()
