"""How everything looks: numbers, times, colours, charts with a way to their data, what is said where one is missing."""

from __future__ import annotations

import contextlib
import functools
import html
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ParamSpec
from zoneinfo import ZoneInfo

import polars as pl
import streamlit as st

from dashboard import sources
from fedlab.errors import AuthenticationError, FedlabError, HubUnavailable, PermissionDenied, UnknownTenant
from fedlab.plots import tenant_colours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import plotly.graph_objects as go

P = ParamSpec("P")
BINS = 60
"""Stretches of time in a chart: as many as are seen, and a browser draws in a moment also for 20 tenants."""
USUAL_HEIGHT = 450
"""Pixels of a figure that has no height of its own."""
LONGEST = 40
"""Characters of a name in a chart."""
KEPT: Any = {"bind": "query-params", "persist_state": "session"}
"""How a choice is kept: in the address of the view, and from page to page."""
CONFIG = {"displaylogo": False, "toImageButtonOptions": {"format": "png", "scale": 3}}


def zone() -> ZoneInfo:
    """The reader's time zone, as the browser says it."""
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (KeyError, ValueError):
        return ZoneInfo("UTC")


def when(ms: int | None) -> str:
    """A time (ms UTC) in the reader's zone."""
    return "" if ms is None else f"{datetime.fromtimestamp(ms / 1000, UTC).astimezone(zone()):%Y-%m-%d %H:%M:%S}"


def local(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame with its times in the reader's zone, which their columns name, so that a file made of it says it, too.

    Whole numbers called `at` or `…_at` are times, in ms UTC.
    """
    utc = [
        pl.from_epoch(name, time_unit="ms") if kind == pl.Int64 else pl.col(name).dt.replace_time_zone(None)
        for name, kind in frame.schema.items()
        if isinstance(kind, pl.Datetime) or (kind == pl.Int64 and (name == "at" or name.endswith("_at")))
    ]
    # Without its zone at last: a table would repeat it in every row.
    reader = zone().key
    moved = frame.with_columns(
        each.dt.replace_time_zone("UTC").dt.convert_time_zone(reader).dt.replace_time_zone(None) for each in utc
    )
    return moved.rename({each.meta.output_name(): f"{each.meta.output_name()} ({reader})" for each in utc})


def table(frame: pl.DataFrame, *, columns: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """A frame as a table, with its times in the reader's zone and a separator of thousands in its whole numbers.

    Args:
        frame: As `local` takes it.
        columns: How some columns look.
        options: Of `st.dataframe`.
    """
    shown = local(frame)
    whole = [name for name, kind in shown.schema.items() if kind.is_integer()]
    usual = {name: st.column_config.NumberColumn(format="localized") for name in whole}
    return st.dataframe(shown, hide_index=True, column_config={**usual, **(columns or {})}, **options)


def bytes_of(number: float) -> str:
    """A size in decimal units.

    >>> bytes_of(1_234), bytes_of(56_000_000)
    ('1.2 kB', '56.0 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:,.0f} B" if unit == "B" else f"{number:,.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def plain(text: object) -> str:
    """A name for a chart: what looks like a tag shows as text, and a long one is cut.

    >>> plain("<b>acme</b>")
    '&lt;b&gt;acme&lt;/b&gt;'
    """
    short = " ".join(str(text).split())
    return html.escape(short if len(short) <= LONGEST else f"{short[: LONGEST - 1]}…", quote=False)


def literal(text: object) -> str:
    """Text that Markdown leaves as it is."""
    return "".join(f"\\{each}" if each in "\\`*_{}[]()<>#+-.!|~$:" else each for each in str(text))


def colours(names: Sequence[str] | None = None) -> dict[str, str]:
    """Of each tenant, the same on all pages."""
    return tenant_colours(sources.tenants() if names is None else names)


def chart(
    figure: go.Figure,
    data: pl.DataFrame,
    key: str,
    about: str,
    *,
    select: bool | Callable[[], None] = False,
    **options: Any,
) -> Any:
    """A figure, and below it the way to its data.

    Args:
        figure: With title, axes and legend.
        data: What is drawn; it can be looked at and downloaded.
        key: Its own, on this page.
        about: What it shows, in a sentence, for who does not see it.
        select: Whether a part of it can be chosen, which is returned; or what is called with a new choice.
        options: Of `st.plotly_chart`.
    """
    # A legend's place is a share of the height: below a tall figure it would be far away.
    share = min(1, USUAL_HEIGHT / (figure.layout.height or USUAL_HEIGHT))
    figure.update_layout(
        margin={"l": 10, "r": 10, "t": 60, "b": 10}, legend={"orientation": "h", "y": -0.25 * share}, font={"size": 13}
    )
    chosen = st.plotly_chart(
        figure,
        key=key,
        config=CONFIG,
        alt=about,
        on_select=select if callable(select) else "rerun" if select else "ignore",
        **options,
    )
    # Sent only when it is looked at: a page that is drawn every two seconds would have it packed each time.
    popover = st.popover(
        "Data",
        icon=":material/table:",
        type="tertiary",
        help="Of this chart, to read and download.",
        key=f"{key}-open",
        on_change="rerun",
    )
    if popover.open:
        with popover:
            table(data.head(5_000), key=f"{key}-data")
            if len(data) > 5_000:
                st.caption(f"The first 5,000 of {len(data):,} rows.")
    return chosen


def metrics(values: Mapping[str, object], helps: Mapping[str, str] | None = None) -> None:
    """Numbers side by side, on a phone some in a row, each under its name, with what helps to understand it."""
    with st.container(horizontal=True, gap="medium"):
        for name, value in values.items():
            st.metric(name, str(value), help=(helps or {}).get(name), width="content")


def tamed(figure: go.Figure) -> go.Figure:
    """A figure whose texts show as they are, also where they look like tags; but for what hovers, which is our own."""
    import plotly.graph_objects as go

    def tame(value: Any, name: str = "") -> Any:
        if isinstance(value, str):
            return value if name == "hovertemplate" else html.escape(value, quote=False)
        if isinstance(value, dict):
            return {key: tame(each, key) for key, each in value.items()}
        return [tame(each, name) for each in value] if isinstance(value, (list, tuple)) else value

    return go.Figure(tame(figure.to_plotly_json()))


def note(text: str) -> None:
    """What stands where there is nothing to show, and what to do next."""
    st.info(text, icon=":material/info:")


@contextlib.contextmanager
def guarded(*, live: bool = False) -> Iterator[None]:
    """What goes wrong becomes a sentence that says what to do; the session goes on.

    Args:
        live: As of `sources.refresh`.
    """
    sources.refresh(live=live)
    try:
        yield
    except HubUnavailable as error:
        st.warning(
            f"The hub does not answer. This page goes on by itself when it is back. {literal(error)}",
            icon=":material/cloud_off:",
        )
        _until(sources.hub)
    except (AuthenticationError, PermissionDenied) as error:
        st.error(f"Not allowed: {literal(error)}", icon=":material/lock:")
    except UnknownTenant as error:
        st.error(f"{literal(error)} Choose a tenant from the list.", icon=":material/help:")
    except FedlabError as error:
        st.error(literal(error), icon=":material/error:")


def live(draw: Callable[P, None]) -> Callable[P, None]:
    """A part of a page that is drawn again every two seconds."""

    @functools.wraps(draw)
    def guard(*args: P.args, **keywords: P.kwargs) -> None:
        with guarded(live=True):
            draw(*args, **keywords)

    return st.fragment(guard, run_every=sources.REFRESH)


@st.fragment(run_every=sources.REFRESH)
def _until(there: Callable[[], object]) -> None:
    """Look again, until there is something to draw."""
    sources.refresh()
    with contextlib.suppress(FedlabError):
        if there():
            st.rerun()


def tenants(nobody: str) -> list[str]:
    """Those of the hub; as long as there is none, a page about tenants ends with what `nobody` says."""
    known = sources.tenants()
    if not known:
        note(nobody)
        _until(sources.tenants)
        st.stop()
    return known


def choose_tenants(nobody: str) -> list[str]:
    """The tenants that a page is about: all, if none is chosen; part of the address of the view."""
    known = tenants(nobody)
    if len(known) < 2:
        return known
    chosen: list[str] = st.multiselect("Tenants", known, key="tenants", placeholder="All tenants", **KEPT)
    return chosen or known


def choose_tenant(nobody: str) -> str:
    """The one tenant that a page is about."""
    chosen: str = st.selectbox("Tenant", tenants(nobody), key="tenant", **KEPT)
    return chosen


def choose(label: str, options: Iterable[str], *, key: str, **more: Any) -> str:
    """One of some, all of which are seen; the first, if nothing was chosen."""
    every = [*options]
    chosen = st.segmented_control(label, every, default=every[0], required=True, key=key, **KEPT, **more)
    return chosen or every[0]


def scope(tenants: Sequence[str]) -> str | None:
    """Which tenant a hub is asked for; None for all."""
    return tenants[0] if len(tenants) == 1 else None
