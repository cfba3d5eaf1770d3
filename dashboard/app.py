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
        page.run()


def _side_bar() -> None:
    hubs = sources.hubs()
    if hubs:
        st.selectbox("Hub", [*hubs], key="hub", bind="query-params", persist_state="session")
    with st.expander("Open another", icon=":material/add:", expanded=not hubs and not sources.runs()):
        st.text_input("URL of a hub, or a directory", key="target", placeholder="ws://127.0.0.1:8443")
        st.button("Open", on_click=_add)
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


def _add() -> None:
    """Take what a visitor typed among the sources."""
    try:
        source = sources.identify(st.session_state.target.strip(), given=False)
        if source.kind != "hub" and not sources.start().own_rights:
            st.session_state.problem = "Directories are open only to who started this dashboard: give the URL of a hub."
            return
    except FedlabError as error:
        st.session_state.problem = look.literal(error)
        return
    own = st.session_state.own_sources
    if source.target not in [each.target for each in sources.sources()]:
        own.append(source)
    if source.kind != "run":
        st.session_state.hub = source.name


main()
