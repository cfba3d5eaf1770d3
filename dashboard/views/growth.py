"""Memory growth: what was stored and what was forgotten, over time and over generations, of tenants and agents."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
import streamlit as st

from dashboard import figures_growth as figures
from dashboard import look, sources
from dashboard.figures import in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

NOBODY = "Nothing grows yet: this hub is empty. Let an agent store its first episode."
MOST_ROWS = 2_000  # groups that a hub tells apart; Streamlit would show a text that stands alone
DETAILS = ("stored against forgotten", "each on its own", "bytes", "generations")
COLUMNS = {"tenant": "tenant_id", "agent": "agent_id", "generation": "generation"}


class Range(NamedTuple):
    """A stretch of time, ms UTC: from a first moment up to another."""

    since: int
    until: int


def page() -> None:
    """All of it."""
    look.tenants(NOBODY)
    left, right = st.columns([1, 2])
    with left:
        by = look.choose("By", COLUMNS, key="by")
    with right:
        tenants = [look.choose_tenant(NOBODY)] if by == "agent" else look.choose_tenants(NOBODY)
    everything = sources.ask("growth", look.scope(tenants), by=by, bins=look.BINS)
    if everything.is_empty():
        look.note("Nothing was ever stored here. Choose other tenants, or let an agent store an episode.")
        return
    ms = everything["time"].dt.epoch("ms").unique().sort().to_list()
    whole = Range(ms[0], ms[-1] + (ms[1] - ms[0] if len(ms) > 1 else 1))
    grown = everything if len(tenants) in (1, len(sources.tenants())) else _grown(by, tenants, whole)
    chosen = _range(whole)
    part = grown if chosen == whole else _grown(by, tenants, chosen)
    colours = _colours(by, grown)
    _numbers(part)
    _navigator(by, tenants, whole, chosen, grown, colours)
    _details(by, tenants, chosen, part, colours)


def _range(whole: Range) -> Range:
    """What was typed, or chosen with the mouse; part of the address of the view."""
    places = st.columns([2, 2, 1], vertical_alignment="bottom")
    ends = []
    for place, (key, usual) in zip(places, {"from": whole.since, "to": whole.until}.items(), strict=False):
        shown = look.when(usual)
        text = place.text_input(f"{key.title()} ({look.zone().key})", key=key, placeholder=shown, **look.KEPT)
        try:
            at = datetime.fromisoformat(text) if text else None
        except ValueError:
            place.error(f"This is no time. Write it as {shown}.")
            at = None
        zoned = at.replace(tzinfo=look.zone()) if at is not None and at.tzinfo is None else at
        ends.append(usual if zoned is None else round(zoned.timestamp() * 1000))
    places[2].button(
        "All time", key="all-time", on_click=_forget_range, disabled=ends == list(whole), icon=":material/zoom_out_map:"
    )
    if ends[0] >= ends[1]:
        st.error("This time ends before it begins: all time is shown.")
        return whole
    return Range(*ends)


def _forget_range() -> None:
    st.session_state["from"] = st.session_state["to"] = ""
    st.session_state.growth_zooms = st.session_state.get("growth_zooms", 0) + 1


def _zoomed() -> None:
    """Take the box that was drawn on the first chart as the range."""
    boxes = st.session_state[_navigator_key()].selection.box
    for key, text in zip(("from", "to"), sorted(boxes[0]["x"]) if boxes else ("", ""), strict=True):
        at = datetime.fromisoformat(str(text)).replace(tzinfo=look.zone()) if text else None
        st.session_state[key] = "" if at is None else at.isoformat(timespec="milliseconds")


def _navigator_key() -> str:
    return f"growth-live-{st.session_state.get('growth_zooms', 0)}"


def _navigator(
    by: str, tenants: Sequence[str], whole: Range, chosen: Range, frame: pl.DataFrame, colours: dict[str, str]
) -> None:
    zone = look.zone().key
    figure = figures.stacked(
        frame, pl.col("live"), COLUMNS[by], colours, title="Live episodes over all time", unit="episodes", zone=zone
    )
    figures.mark(figure, _forgetting(tenants, whole), zone=zone)
    if chosen != whole:
        ends = [datetime.fromtimestamp(each / 1000, look.zone()) for each in chosen]
        figure.add_vrect(*ends, fillcolor="#7F7F7F", opacity=0.2, line_width=0)
    figures.selectable(figure, frame, zone=zone).update_layout(height=430)
    look.chart(
        figure,
        frame,
        _navigator_key(),
        f"Live episodes over time, one area a {by}; vertical marks where episodes were forgotten.",
        select=_zoomed,
        selection_mode="box",
    )
    st.caption("Draw a box on this chart, or type two times: the numbers and the chart below are of that time only.")


def _numbers(frame: pl.DataFrame) -> None:
    live = frame.filter(pl.col("time") == frame["time"].max())["live"].sum()
    look.metrics(
        {
            **{name.title(): f"{frame[name].sum():,}" for name in ("stored", "forgotten", "erased")},
            "Live at the end": f"{live:,}",
            "Bytes, live now": look.bytes_of(float(frame["bytes"].sum())),
        },
        {"Bytes, live now": "Texts and vectors of what was stored."},
    )


def _details(by: str, tenants: Sequence[str], chosen: Range, frame: pl.DataFrame, colours: dict[str, str]) -> None:
    """One chart at a time of the chosen time: a browser draws two large ones in the time in which one is looked at."""
    shown = look.choose("Of this time", DETAILS, key="detail")
    group, zone = COLUMNS[by], look.zone().key
    if shown == "each on its own":
        look.chart(
            figures.panels(frame, group, colours, zone=zone),
            frame,
            "growth-panels",
            f"A panel for each {by}: episodes that are live, that were stored and that have gone.",
        )
    elif shown == "bytes":
        title = "Live bytes, by when they were stored"
        size = pl.col("bytes").cum_sum()
        look.chart(
            figures.stacked(frame, size, group, colours, title=title, unit="bytes", zone=zone),
            frame,
            "growth-bytes",
            f"Bytes of what is live now, added up by the time at which it was stored, of each {by}.",
        )
    elif shown == "generations":
        _generations(tenants, chosen)
    else:
        _turnover(by, frame, _forgetting(tenants, chosen), colours)


def _turnover(by: str, frame: pl.DataFrame, forgetting: pl.DataFrame, colours: dict[str, str]) -> None:
    zone = look.zone().key
    look.chart(
        figures.mark(figures.turnover(frame, COLUMNS[by], colours, zone=zone), forgetting, zone=zone),
        frame,
        "growth-turnover",
        f"Episodes that were stored, upwards, and forgotten or erased, downwards, of each {by}.",
    )
    if len(forgetting):
        with st.expander("What was forgotten, and why", icon=":material/delete_sweep:"):
            why = forgetting.group_by("tenant_id", "reason").agg(
                pl.col("forgotten").sum(), first_at=pl.col("time").min(), last_at=pl.col("last_at").max()
            )
            look.table(why.sort("tenant_id", "first_at"), key="growth-why")


def _generations(tenants: Sequence[str], chosen: Range) -> None:
    counts = sources.ask(
        "reward_summary",
        look.scope(tenants),
        by=("tenant", "generation"),
        since=chosen.since,
        until=chosen.until,
        limit=MOST_ROWS,
    ).filter(pl.col("tenant_id").is_in(tenants))
    if counts["generation"].is_null().all():
        look.note(
            "No episode of this time says which generation it is of: give it `metadata={'generation': 3}`,"
            " as `fedlab.lab` does, and growth over generations stands here."
        )
        return
    look.chart(
        figures.by_generation(counts, look.colours()),
        counts.select("tenant_id", "generation", "n"),
        "growth-generations",
        "Episodes made in this time that are live, by the generation that made them and by tenant.",
    )


def _grown(by: str, tenants: Sequence[str], time: Range) -> pl.DataFrame:
    """The growth of some tenants: of each on its own, where they are neither one nor all."""
    scopes = tenants if len(tenants) < len(sources.tenants()) else [look.scope(tenants)]
    ends: dict[str, Any] = {"since": time.since, "until": time.until, "bins": look.BINS}
    parts = [sources.ask("growth", each, by=by, **ends) for each in scopes]
    summed: pl.DataFrame = pl.concat(parts).group_by("time", COLUMNS[by], maintain_order=True).sum()
    return summed.sort(COLUMNS[by], "time", nulls_last=True)


def _forgetting(tenants: Sequence[str], time: Range) -> pl.DataFrame:
    frame: pl.DataFrame = sources.ask(
        "forgetting", look.scope(tenants), since=time.since, until=time.until, bins=look.BINS
    )
    return frame.filter(pl.col("tenant_id").is_in(tenants))


def _colours(by: str, grown: pl.DataFrame) -> dict[str, str]:
    if by == "tenant":
        return look.colours()
    names = grown[COLUMNS[by]].drop_nulls().unique().sort()
    return in_order(names.to_list()) if by == "generation" else look.colours(names.to_list())


page()
