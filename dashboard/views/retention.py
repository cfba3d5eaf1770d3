"""Retention lab: what a policy would do, before anything is forgotten."""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import polars as pl
import streamlit as st

from dashboard import figures, look, policies, sources
from fedlab.errors import InvalidRequest
from fedlab.retention import KeepForever, RetentionPolicy

if TYPE_CHECKING:
    from fedlab.hub.values import RetentionPreview

# What the page begins with; and how many tenants are looked at side by side: each costs a preview.
FIRST = "MaxAge(days=30) & MinReward(reward=0.5)"
AT_ONCE = 4
LATER = (0, 1, 7, 30, 90, 180, 365)
"""Days from now of which the page can tell how many would have gone by then."""


def page() -> None:
    """Build, compare, and, for an admin, save or apply."""
    tenants = look.choose_tenants("This hub has no tenant yet: nothing can be forgotten. `fedlab demo` fills a hub.")
    if len(tenants) > AT_ONCE:
        st.caption(f"Of {len(tenants):,} tenants the first is shown: choose up to {AT_ONCE} of them.")
        tenants = tenants[:1]
    if "policy" not in st.session_state and "policy" not in st.query_params:
        st.session_state.policy = FIRST
    text = st.text_input(
        "Policy",
        key="policy",
        **look.KEPT,
        help="`&` lets go of what either part would, `|` only of what both would. The address of this page has it.",
    )
    try:
        policy = RetentionPolicy.parse(text)
    except InvalidRequest as error:
        st.error(look.literal(error), icon=":material/edit:")
        return
    _build(policy)
    compared = _compared(policy, tenants)
    with st.spinner("Asking the hub what would go …"):
        previews = {
            (label, tenant): sources.ask("preview_retention", tenant, each)
            for label, each in compared.items()
            for tenant in tenants
        }
    _numbers([previews["A", tenant] for tenant in tenants])
    _table(previews, compared)
    _charts(previews, compared)
    _when(compared, tenants)
    _decide(policy, tenants)


def _build(policy: RetentionPolicy) -> None:
    """The parts with their controls, and what all of it means."""
    for number, (path, part) in enumerate(policies.parts(policy)):
        with st.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(f"**{look.literal(part)}**", width="stretch")
                st.button(
                    "",
                    icon=":material/delete:",
                    key=f"remove {number}",
                    help="Take this part out",
                    on_click=_put,
                    args=(policy, path, None),
                    type="tertiary",
                )
            key = " ".join((*path, "of"))
            policies.controls(part, key, functools.partial(_put, policy, path))
    columns = st.columns([3, 2, 2, 3], vertical_alignment="bottom")
    columns[0].selectbox("One part more", list(policies.NEW), key="part", persist_state="session")
    columns[1].button("Must pass, too", key="and", on_click=_add, args=("&",), help="policy & part")
    columns[2].button(
        "May pass instead", key="or", on_click=_add, args=("|",), help="policy | part", disabled=policy == KeepForever()
    )
    columns[3].button("Add to the comparison", key="compare this", icon=":material/add:", on_click=_remember)
    with st.popover("In English, and as JSON", icon=":material/translate:"):
        st.text(str(policy))
        st.code(policy.to_json(), language="json", wrap_lines=True)


def _add(sign: str) -> None:
    """One part more, to the policy as it is written now."""
    policy, part = RetentionPolicy.parse(st.session_state.policy), policies.NEW[st.session_state.part]
    _set(part if policy == KeepForever() else policy & part if sign == "&" else policy | part)


def _put(policy: RetentionPolicy, path: tuple[str, ...], part: RetentionPolicy | None) -> None:
    _set(policies.replaced(policy, path, part))


def _set(policy: RetentionPolicy | None) -> None:
    st.session_state.policy = repr(policy or KeepForever())


def _remember() -> None:
    known = st.session_state.get("compare", [])
    st.session_state.compare = [*known, *({st.session_state.policy} - set(known))]


def _compared(policy: RetentionPolicy, tenants: list[str]) -> dict[str, RetentionPolicy]:
    """Policies by letter: the one under construction, and those that it is compared with."""
    every = sources.policies()
    stored = {repr(every[tenant]) for tenant in tenants if isinstance(every[tenant], RetentionPolicy)}
    chosen = st.multiselect(
        "Compared with",
        sorted(stored | set(st.session_state.get("compare", []))),
        key="compare",
        placeholder="Nothing; choose a policy that is in use, or write one",
        accept_new_options=True,
        max_selections=5,
        **look.KEPT,
    )
    compared = {"A": policy}
    for text in chosen:
        try:
            compared[chr(ord("A") + len(compared))] = RetentionPolicy.parse(text)
        except InvalidRequest as error:
            st.error(look.literal(error), icon=":material/edit:")
    return compared


def _numbers(previews: list[RetentionPreview]) -> None:
    removed, kept = sum(each.removed for each in previews), sum(each.kept for each in previews)
    look.metrics(
        {
            "Would go": f"{removed:,}",
            "Would stay": f"{kept:,}",
            "Stay because they are held": f"{sum(each.held for each in previews):,}",
            "Contents that would go": look.bytes_of(sum(each.bytes for each in previews)),
        },
        {"Would go": f"Of {removed + kept:,} episodes of the chosen tenants."},
    )


def _table(previews: dict[tuple[str, str], RetentionPreview], compared: dict[str, RetentionPolicy]) -> None:
    rows = [
        {
            "": label,
            "tenant": tenant,
            "would go": each.removed,
            "would stay": each.kept,
            "share": each.removed / max(1, each.removed + each.kept),
            "held": each.held,
            "others of 10": each.recall.changed if each.recall else None,
            "reward now": each.recall.reward_before if each.recall else None,
            "reward after": each.recall.reward_after if each.recall else None,
            "queries": each.recall.queries if each.recall else 0,
            "bytes": each.bytes,
            "expired": each.expired,
            "policy": repr(compared[label]),
        }
        for (label, tenant), each in previews.items()
    ]
    number = st.column_config.NumberColumn
    columns = {
        "share": st.column_config.ProgressColumn("goes", format="percent", min_value=0, max_value=1),
        "held": number(format="localized", help="Would go, were they not held: they stay."),
        "others of 10": number(
            format="%.2f", help="Of the 10 best memories of a recent query, how many would be others."
        ),
        "reward now": number(format="%.2f", help="Mean reward of the memories that recent queries find now."),
        "reward after": number(format="%.2f", help="Mean reward of those that they would find."),
        "queries": number(format="localized", help="Recent queries by similarity that were tried."),
        "bytes": number(format="localized", help="Contents that would go."),
        "expired": number(format="localized", help="Go with any policy: their own expires_at has come."),
    }
    st.subheader("What would go, and what recall would be")
    look.table(pl.DataFrame(rows, infer_schema_length=None), columns=columns, key="previews")
    if not any(each.recall for each in previews.values()):
        st.caption("Recall cannot be judged: no recent query by similarity is known. Agents that recall make some.")


def _charts(previews: dict[tuple[str, str], RetentionPreview], compared: dict[str, RetentionPolicy]) -> None:
    names = {label: f"{label}: {policy!r}" for label, policy in compared.items()}
    for what, title, x in (
        ("reward", "Rewards of what is there, now and after", "reward"),
        ("age", "Age of what is there, now and after", "age"),
    ):
        frame = figures.before_and_after(previews, names, what)
        if frame.is_empty():
            continue
        look.chart(
            figures.what_if(frame, title, x),
            frame,
            f"what-if-{what}",
            f"Episodes by {what}: as it is now, and as it would be under each policy; a row for each tenant.",
        )


def _when(compared: dict[str, RetentionPolicy], tenants: list[str]) -> None:
    """How many would go as time passes, which takes the hub a preview for each moment: only if it is asked for."""
    told = "If nothing is stored or recalled until then."
    if not st.toggle("How many would go later", key="later", help=told, **look.KEPT):
        return
    with st.spinner("Asking the hub what would go later …"):
        ask = functools.partial(sources.ask, "preview_retention")
        rows = [
            (tenant, f"{label}: {policy!r}", days, ask(tenant, policy, after=timedelta(days=days)).removed)
            for tenant in tenants
            for label, policy in compared.items()
            for days in LATER
        ]
    frame = pl.DataFrame(rows, ["tenant_id", "policy", "days", "would_go"], orient="row")
    about = "Episodes that would go under each policy, were it applied so many days from now."
    look.chart(figures.later(frame), frame, "what-if-later", about)


def _decide(policy: RetentionPolicy, tenants: list[str]) -> None:
    """For who may: the policy becomes a tenant's own."""
    if done := st.session_state.pop("done", None):
        st.success(done, icon=":material/check:")
    source = sources.current()
    if not sources.may("admin") or source is None or source.kind == "backup":
        return
    st.subheader("Make it the policy of a tenant")
    columns = st.columns([3, 2, 2], vertical_alignment="bottom")
    tenant = columns[0].selectbox("Whose", tenants, key="whose")
    ask = {"tenant": tenant, "text": repr(policy)}
    columns[1].button("Save …", key="save", icon=":material/save:", on_click=_ask, kwargs={**ask, "apply": False})
    columns[2].button(
        "Apply now …", key="apply", icon=":material/delete_sweep:", on_click=_ask, kwargs={**ask, "apply": True}
    )
    if question := st.session_state.get("question"):
        _confirm(**question)


def _ask(**question: Any) -> None:
    st.session_state.question = question


def _never_mind() -> None:
    st.session_state.pop("question", None)


@st.dialog("Is this meant?", on_dismiss=_never_mind)
def _confirm(tenant: str, text: str, *, apply: bool) -> None:
    with look.guarded():
        policy = RetentionPolicy.parse(text)
        connection = sources.connection()
        preview = connection.preview_retention(tenant, policy)  # of this moment: time alone makes episodes older
        st.text(f"Tenant {tenant}: {policy}")
        total = preview.removed + preview.kept
        st.markdown(
            f"**{preview.removed:,}** of {total:,} episodes {'go now' if apply else 'would go now'}"
            f" ({look.bytes_of(preview.bytes)} of contents); **{preview.kept:,}** stay,"
            f" {preview.held:,} of them only because they are held."
        )
        if not apply:
            st.caption("Nothing goes until the hub applies its policies: on its schedule, or when an admin does.")
        typed = st.text_input("Type the tenant's name", key="typed", live=True, autocomplete="off")
        label = f"Forget {preview.removed:,} episodes" if apply else "Save the policy"
        if st.button(label, type="primary", disabled=typed != tenant, key="confirmed"):
            connection.set_retention(tenant, policy)
            done = f"Tenant {look.literal(tenant)} has a new policy: {look.literal(policy)}."
            if apply:
                done += f" {connection.apply_retention(tenant).removed[tenant]:,} episodes were forgotten."
            st.session_state.done = done
            _never_mind()
            st.rerun()


page()
