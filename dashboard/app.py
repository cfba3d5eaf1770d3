"""The application: the side bar with what is looked at, and the pages. `fedlab dashboard` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

# Streamlit runs this file as a script, from wherever it lies.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dashboard import PAGES, look, sources
from fedlab.errors import FedlabError


def main() -> None:
    """Draw the side bar and the page that is asked for."""
    st.set_page_config("fedlab", page_icon=Path(__file__).with_name("icon.svg"), layout="wide")
    page = st.navigation(
        [st.Page(f"views/{path}.py", title=title, icon=icon, url_path=path) for path, (title, icon) in PAGES.items()]
    )
    with st.sidebar, look.guarded():
        _side_bar()
    st.title(page.title)
    with look.guarded():
        if sources.current() is None and page.url_path != "experiments":
            look.note(
                "No hub is open. `fedlab hub --data my-hub` runs one, `fedlab dashboard my-hub` shows it; or type its"
                " URL or directory into the side bar, under 'Open another'."
            )
            return
        page.run()


def _side_bar() -> None:
    for target in st.query_params.get_all("open"):
        _open(target)
    hubs = sources.hubs()
    # What was not named at the start is part of the address of a view.
    own = [each.target for each in st.session_state.own_sources]
    if own != st.query_params.get_all("open"):
        st.query_params["open"] = own
    if hubs:
        st.selectbox("Hub", hubs, key="hub", **look.KEPT)
    with (
        st.expander("Open another", icon=":material/add:", expanded=not hubs and not sources.runs()),
        st.form("open", border=False),
    ):
        st.text_input("URL of a hub, or a directory", key="target", placeholder="ws://127.0.0.1:8443")
        st.form_submit_button("Open", on_click=_add)
    if problem := st.session_state.pop("problem", None):
        st.error(problem)
    if (source := sources.current()) is not None and source.kind == "hub":
        typed = st.text_input(
            "Token",
            type="password",
            key=f"token {source.target}",
            help="For a hub that is not your own; `fedlab token` makes one.",
        )
        st.session_state.setdefault("tokens", {})[source.target] = typed or None


def _open(target: str) -> str | None:
    """Take something among the sources; its name."""
    try:
        return sources.add(target)
    except FedlabError as error:
        st.session_state.problem = look.literal(error)
        return None


def _add() -> None:
    """Open what a visitor typed."""
    if name := _open(st.session_state.target.strip()):
        run = name in sources.runs()
        st.session_state["run" if run else "hub"] = name
        if run:
            st.toast(look.literal(f"{name} is open: see the page {PAGES['experiments'][0]}"), icon=":material/labs:")


main()
