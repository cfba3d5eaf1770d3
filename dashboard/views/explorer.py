"""Memory explorer: search a memory, see why it ranks as it does, where an episode comes from, and a map of them all."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import streamlit as st

from dashboard import figures_memory as figures
from dashboard import look, sources
from fedlab.errors import FedlabError
from fedlab.recall import RecallPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fedlab.episode import Memory

SAMPLE = 2_000  # episodes on a map
EXCERPT = 300  # characters of a text in a table
TAIL = 10  # characters by which an address tells the episodes of a map apart: the last ones of an id are random
FIELDS = ("task", "input", "output", "reward", "agent_id", "created_at", "id")
WEIGHTS = {"similarity": 1.0, "reward": 0.0, "recency": 0.0}  # as they are at first
COLOURS = {"reward": "reward", "generation": "generation", "agent_id": "agent"}
ADDRESS: Final = "query-params"  # where the state of a widget is kept: in the address of the view


def page() -> None:
    """Search, one episode, map."""
    tenant_id = look.choose_tenant("This hub has no tenant yet: there is nothing to search. `fedlab demo` fills a hub.")
    where = _filters()
    found = _search(tenant_id, where)
    chosen = st.query_params.get("episode")
    known = {memory.id for memory in found}
    if chosen is not None:
        _episode(tenant_id, chosen, hint=chosen in known)
    _map(tenant_id, where)


def _filters() -> dict[str, Any]:
    """What is searched, and drawn on the map: conditions as `recall` takes them."""
    with st.expander("Filters", icon=":material/filter_alt:"):
        columns = st.columns(3)
        task = columns[0].text_input("Task, exactly", key="task", bind=ADDRESS)
        agent = columns[1].text_input("Agent", key="agent", bind=ADDRESS)
        least = columns[2].number_input("Smallest reward", value=None, key="min_reward", bind=ADDRESS)
    given = {"task": task or None, "agent_id": agent or None, "min_reward": least}
    return {name: value for name, value in given.items() if value is not None}


def _policy(*, text: bool) -> RecallPolicy | None:
    """The weights, as chosen; None if nothing would be left to rank by."""
    with st.expander("Ranking", icon=":material/sort:"):
        columns = st.columns(4)
        weights: dict[str, Any] = {}
        for column, (name, usual) in zip(columns, WEIGHTS.items(), strict=False):
            weights[name] = column.slider(name.capitalize(), 0.0, 2.0, usual, 0.1, key=f"by_{name}", bind=ADDRESS)
        half_life = columns[3].number_input("Half-life, days", 0.01, value=30.0, key="half_life", bind=ADDRESS)
    if not text:
        weights["similarity"] = 0.0
    if not any(weights.values()):
        if text:
            return None
        weights["recency"] = 1.0
    return RecallPolicy(**weights, half_life_days=half_life)


def _search(tenant_id: str, where: Mapping[str, Any]) -> Sequence[Memory]:
    columns = st.columns([5, 1])
    hint = "What a task was about; nothing for the newest"
    text = columns[0].text_input("Search by meaning", key="q", bind=ADDRESS, placeholder=hint).strip()
    k = columns[1].number_input("How many", 1, 200, 10, key="k", bind=ADDRESS)
    policy = _policy(text=bool(text))
    if policy is None:
        look.note("All weights are zero: nothing is left to rank by. Move one of them.")
        return []
    with st.spinner("Recalling …", show_time=True):
        found: Sequence[Memory] = sources.ask("recall", tenant_id, text or None, int(k), policy=policy, **where)
    if not found:
        look.note("No episode passes these filters. Clear one of them.")
        return []
    frame = pl.DataFrame([_row(rank, memory, policy) for rank, memory in enumerate(found, 1)])
    shown = frame.with_columns(pl.col("task", "input", "output").str.slice(0, EXCERPT))
    st.caption(f"{len(found):,} memories, ranked by {policy}. Choose a row to see all of it, and where it comes from.")
    _choose_row(shown, [memory.id for memory in found])
    parts = [name for name in frame.columns if name.startswith("from ")]
    look.chart(
        figures.ranking(frame, parts),
        frame.select("rank", "id", "score", *parts),
        "ranking",
        "The score of each memory that was found, made of what similarity, reward and age gave to it.",
    )
    return found


def _choose_row(shown: pl.DataFrame, ids: list[str]) -> None:
    """The table. A choice is of what was seen: by the time it is heard, other memories may have come before it."""
    if ids != st.session_state.get("listed"):
        st.session_state.listed, st.session_state.lists = ids, st.session_state.get("lists", 0) + 1
    key = f"found {st.session_state.lists}"
    chose = partial(_chosen, key, ids)
    look.table(shown, key=key, on_select=chose, selection_mode="single-row")


def _chosen(key: str, ids: list[str]) -> None:
    _keep("episode", "".join(ids[row] for row in st.session_state[key].selection.rows))


def _keep(name: str, value: str) -> None:
    """Part of the address of this view, as long as there is one."""
    st.query_params.pop(name, None)
    if value:
        st.query_params[name] = value


def _row(rank: int, memory: Memory, policy: RecallPolicy) -> dict[str, Any]:
    own = {name: getattr(memory, name) for name in FIELDS}
    parts = {f"from {name}": value for name, value in policy.parts(memory).items()}
    return {"rank": rank, "score": memory.score, "similarity": memory.similarity, **parts, **own}


def _episode(tenant_id: str, episode_id: str, *, hint: bool) -> None:
    """One episode in full, and its lineage."""
    st.subheader("The episode")
    frame = sources.ask("episodes", tenant_id, ids=[episode_id], sources=True)
    try:
        lineage = sources.ask("lineage", tenant_id, episode_id)
    except FedlabError as error:
        if hint:
            raise
        look.note(f"{look.literal(error)}")  # an address of another tenant's, or of another hub's
        return
    if frame.is_empty():
        look.note("It was forgotten: what is still known of it stands in its lineage.")
    else:
        episode = frame.row(0, named=True)
        look.metrics(
            {
                "Reward": f"{episode['reward']:,.3f}",
                "Agent": look.literal(episode["agent_id"]),
                "Made": look.when(episode["created_at"]),
                "Sources": f"{len(episode['sources']):,}",
            },
            {"Made": f"In the time zone {look.zone().key}."},
        )
        for name in ("task", "input", "output", "metadata"):
            st.caption(name)
            st.code(episode[name] or " ", language=None, wrap_lines=True)
        st.caption("id")
        st.code(episode_id, language=None)
    look.chart(
        figures.lineage(lineage),
        lineage,
        "lineage",
        "The episodes that this one was made from, to the left, and those that were made from it, to the right.",
    )


def _map(tenant_id: str, where: Mapping[str, Any]) -> None:
    st.subheader("Map of the memory")
    columns = st.columns(2)
    colour = columns[0].radio("Colour", COLOURS, format_func=COLOURS.get, key="colour", bind=ADDRESS, horizontal=True)
    way = columns[1].radio("Projection", ["PCA", "UMAP"], key="projection", bind=ADDRESS, horizontal=True)
    sample = sources.ask("sample", tenant_id, SAMPLE, **where)
    if len(sample) < 3:
        look.note("A map needs at least three episodes.")
        return
    with st.spinner("Drawing the map …", show_time=True):
        points = _points(sample, way)
    if points is None:
        look.note("UMAP is not installed: `pip install 'fedlab-memory[map]'`. PCA needs nothing more.")
        return
    drawn = sample.drop("vector").with_columns(pl.Series("x", points[:, 0]), pl.Series("y", points[:, 1]))
    look.chart(
        figures.memory_map(drawn, colour, way),
        drawn,
        "map",
        f"{len(drawn)} episodes as points: near ones are alike; coloured by {colour}.",
        select=_choose,
    )
    sampled = "" if len(drawn) < SAMPLE else f"A sample of {len(drawn):,} episodes. "
    st.caption(f"{sampled}Draw a lasso around some to list them.")
    lasso = drawn.filter(pl.col("id").str.tail(TAIL).is_in(st.query_params.get("lasso", "").split()))
    if len(lasso):
        st.caption(f"{len(lasso):,} chosen, mean reward {lasso['reward'].mean():.3f}")
        look.table(lasso.drop("x", "y"), key="lasso")


def _choose() -> None:
    """Keep what was chosen, in the address: the map of a hub that changes is another one when it is drawn again."""
    points = st.session_state["map"].selection.points
    _keep("lasso", " ".join(point["customdata"][0][-TAIL:] for point in points))


@st.cache_data(max_entries=16, show_spinner=False, hash_funcs={pl.DataFrame: lambda frame: tuple(frame["seq"])})
def _points(sample: pl.DataFrame, way: str) -> Any:
    """Two coordinates of each row, shape (n, 2), float64; None if UMAP is not installed."""
    import numpy as np

    vectors = np.asarray(sample["vector"].to_numpy(), dtype=np.float32)
    if way == "UMAP":
        try:
            from umap import UMAP
        except ImportError:
            return None
        drawn = UMAP(metric="cosine", n_neighbors=min(15, len(vectors) - 1), random_state=0, n_jobs=1, init="random")
        return drawn.fit_transform(vectors)
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    plane = directions[:, ::-1][:, :2]
    # An eigenvector has no sign of its own: the same map whenever it is drawn.
    return centred @ (plane * np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]]))


page()
