"""What was erased is in no byte of any file, and everything else is as it was."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab import (
    AgentExpired,
    Episode,
    HeldEpisodes,
    Hub,
    IdConflict,
    InvalidRequest,
    MinReward,
    Reward,
    UnknownEpisode,
    UnknownTenant,
)
from fedlab.hub import columns, columns_file, schema
from fedlab.hub.ledger import apply_ledger, export_ledger

M = "Qmarker"
"""In every text, name and id of what is to be erased."""
T, A = f"{M}-tenant", f"{M}-agent"
V = np.linspace(-1.7, 1.3, 384)
"""The vector of what is to be erased."""


def marked(**fields) -> Episode:
    values = {"tenant_id": T, "agent_id": A, "task": f"{M} task", "input": f"{M} input", "output": f"{M} output"}
    values |= {"metadata": {M: [M]}, "sources": [f"{M}-source"], "reward": 0.5, "vector": V}
    return Episode(**(values | fields))


def traces(directory: Path, *extra: bytes) -> dict[str, int]:
    """Files of a hub with a marker in them, in their bytes or their names."""
    needles = (M.encode(), V.astype("<f2").tobytes()[:64], *extra)
    found = {}
    for file in directory.rglob("*"):
        data = (file.read_bytes() if file.is_file() else b"") + file.name.encode()
        if count := sum(data.count(needle) for needle in needles):
            found[file.name] = count
    return found


def fill(hub: Hub, rng: Random, rounds: int = 12, tenant_id: str = T, agent_id: str = A) -> list[str]:
    """Marked episodes among others, with a history that moves rows from page to page; returns the marked ids."""
    ids, others = [], []
    for _ in range(rounds):
        batch = []
        for _ in range(20):
            common = {"created_at": rng.randrange(10**12), "output": M + "y" * rng.choice([0, 40, 300, 9_000])}
            if rng.random() < 0.5:
                batch.append(marked(tenant_id=tenant_id, agent_id=agent_id, id=f"{M}-{rng.getrandbits(60)}", **common))
            else:
                plain = {"id": f"plain-{rng.getrandbits(60)}", "output": common["output"].replace(M, "")}
                other = rng.choice(["other", "acme"])
                batch.append(Episode(tenant_id=other, agent_id="b", task="t", input="i" * rng.randrange(300),
                                     reward=0.5, vector=-V, created_at=common["created_at"], **plain))  # fmt: skip
                if other == "other":
                    others.append(batch[-1].id)
        mine = [each for each in batch if each.id.startswith(M)]
        hub.put(mine, actor=agent_id)
        hub.put([each for each in batch if each not in mine])
        ids += [each.id for each in mine]
        hub.forget("other", others[::2], reason="plain")
        others = others[1::2]
    hub.forget(tenant_id, ids[:10], reason=f"because of {M}-agent", actor=f"{M}-boss")
    hub.spawn_agent(tenant_id, agent_id, lifetime=60)
    hub.spawn_agent("acme", "c", lifetime=60)
    hub.set_retention(tenant_id, MinReward(0.1))
    return ids


def hold(hub: Hub, tenant_id: str, uid: str, reason: str = "kept", actor: str = "boss") -> None:
    def work(tx):
        number = tx.connection.exec_driver_sql("SELECT id FROM episodes WHERE uid = ?", (uid,)).scalar_one()
        tx.log("episode_held", tenant_id, uid, actor, reason)
        row = (number, tenant_id, reason, actor, tx.now)
        tx.connection.exec_driver_sql("INSERT INTO holds VALUES (?, ?, ?, ?, ?)", row)

    hub._writer.run(work)


def table_rows(hub: Hub, tenant_id: str) -> dict[str, list[tuple]]:
    """Everything that the database has of a tenant, to the byte."""
    with closing(sqlite3.connect(hub.path / "hub.db")) as db:
        of = {name: f"SELECT * FROM {name} WHERE tenant_id = ? ORDER BY 1"
              for name in ("episodes", "agents", "changes", "tenants", "holds", "attic", "queries")}  # fmt: skip
        of |= {name: f"SELECT {name}.* FROM {name} JOIN episodes ON episodes.id = episode_id WHERE tenant_id = ?"
               " ORDER BY 1, 2" for name in ("vectors", "episode_sources", "recalls")}  # fmt: skip
        return {name: db.execute(query, (tenant_id,)).fetchall() for name, query in of.items()}


@pytest.mark.parametrize("seed", range(3))
def test_an_erased_tenant_is_in_no_byte_of_any_file(tmp_path, seed):
    with Hub(tmp_path, embedder="hashing", keep_forgotten=timedelta(days=1)) as hub:
        fill(hub, Random(seed))
        hub.put(Episode(tenant_id=T, agent_id=A, task=M, input="embedded", output="", reward=1))
        hub.recall(T, f"{M} query")
        assert "hub.db-wal" in traces(tmp_path)
        before = table_rows(hub, "acme"), hub.recall("acme", -V, k=99)
        (tmp_path / "before-upgrade").mkdir()
        (tmp_path / "before-upgrade/schema-1-change-1.db").write_text(M)
        report = hub.erase_tenant(T, reason="request 17", actor="officer")
        assert traces(tmp_path) == {}
        # What SQLite had of the pages in RAM does not come back either.
        hub.put([Episode(tenant_id="other", agent_id=f"b{n}", task="t", input="i" * 99, output="", reward=0, vector=-V)
                 for n in range(300)])  # fmt: skip
        hub.forget("other", hub.episodes("other")["id"].to_list()[::2], reason="plain")
        assert traces(tmp_path) == {}
        assert hub.verify().ok, hub.verify()
        after = table_rows(hub, "acme"), hub.recall("acme", -V, k=99)
        assert after[0] == before[0]
        assert [each.episode.id for each in after[1]] == [each.episode.id for each in before[1]]
    assert traces(tmp_path) == {}
    with Hub(tmp_path) as hub:
        assert traces(tmp_path) == {}
        assert hub.verify().ok
        assert str(report.changes) in str(report)
        assert "request 17" in str(report)
        row = hub.erasures().row(0, named=True)
        assert (row["id"], row["changes"], row["actor"], row["reason"]) == (
            report.id, report.changes, "officer", "request 17",
        )  # fmt: skip


@pytest.mark.parametrize("scope", ["tenant", "agent", "episodes"])
def test_no_vector_that_was_made_of_an_erased_text_or_query_stays_on_disk(tmp_path, scope):
    with Hub(tmp_path, embedder="hashing") as hub:
        fields = {"tenant_id": T, "agent_id": A, "task": "t", "output": "", "reward": 1}
        hub.put([Episode(**fields, input=f"{M} input", id="x"), Episode(**fields, input="other")])
        hub.recall(T, f"{M} query")
        hub.preview_retention(T)  # which has the queries written down
        (made,) = (each.vector for each in hub.recall(T, None, 9, vectors=True, policy=Reward()) if each.id == "x")
        needles = [made.tobytes(), hub.embedder.embed([f"{M} query"])[0].astype("<f2").tobytes()]
        held = {name: (tmp_path / name).read_bytes() for name in ("embeddings.db-wal", "hub.db-wal")}
        assert all(each in content for each in needles for content in held.values())
        hub.recall(T, f"{M} query")  # and which is not yet
        {
            "tenant": lambda: hub.erase_tenant(T, reason="r"),
            "agent": lambda: hub.erase_agent(T, A, reason="r"),
            "episodes": lambda: hub.erase_episodes(T, ["x"], reason="r"),
        }[scope]()
        if scope != "tenant":
            hub.preview_retention(T)
        held = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
        assert [held.count(each) for each in needles] == [0, 0]


def test_columns_on_disk_go_with_what_they_name_and_come_back_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "CHUNK", 10)
    file = tmp_path / "index" / "columns"
    with Hub(tmp_path, embedder="hashing") as hub:
        fill(hub, Random(2))
        hub.growth()
        hub.snapshot()
        assert M.encode() in file.read_bytes()
        hub.erase_agent(T, A, reason="request 18")
        assert not file.exists()
        left = hub.growth()
    with Hub(tmp_path) as hub:
        with hub._reading() as connection:
            found = columns_file.read(file, connection, erasures=1)
        assert found is not None
        assert not any(A in str(frame.rows()) for frame in found[1])
        assert hub.growth().equals(left)
        assert hub.erase_tenant(T).reason == "erased on request"
    assert traces(tmp_path) == {}


def test_erasing_a_tenant_leaves_every_other_tenants_rows_log_and_index_as_they_were(tmp_path, small_graphs):
    with Hub(tmp_path, embedder="hashing") as hub:
        fill(hub, Random(1))
        hub.put([Episode(tenant_id="acme", agent_id="b", task="t", input=f"{n}", output="", reward=0,
                         vector=np.random.default_rng(n).normal(size=384)) for n in range(100)])  # fmt: skip
        hub.put([marked(vector=np.random.default_rng(n).normal(size=384)) for n in range(100)])
        for tenant_id in (T, "acme"):
            hub.recall(tenant_id, V, k=1)
            small_graphs(hub, tenant_id)
        hub.snapshot()
        assert T in (tmp_path / "index/manifest.json").read_text()
        rows = {name: table_rows(hub, name) for name in ("acme", "other")}
        found = hub.recall("acme", V, k=1_000)
        index = hub._indexes.get("acme")
        files = {each.name: each.read_bytes() for each in (tmp_path / "index").glob("*.usearch")}
        assert len(files) == 2
        gone = np.random.default_rng(3).normal(size=384).astype("<f2").tobytes()[:64]
        assert traces(tmp_path, gone)
        hub.erase_tenant(T, reason="r")
        assert {name: table_rows(hub, name) for name in ("acme", "other")} == rows
        assert [(m.episode.id, m.score) for m in hub.recall("acme", V, k=1_000)] == [
            (m.episode.id, m.score) for m in found
        ]
        assert hub._indexes.get("acme") is index
        (left,) = (tmp_path / "index").glob("*.usearch")
        assert left.read_bytes() == files[left.name]
        # A graph has the direction of plain vectors of the same seed: it is the tenant's own bytes that are gone.
        assert traces(tmp_path) == {}
        assert hub.verify().ok


def test_nothing_shows_an_erased_tenant_any_more_and_its_name_is_free(hub):
    made = marked()
    hub.put(made)
    hub.spawn_agent(T, A, lifetime=60)
    hub.erase_tenant(T, reason="r")
    calls = [lambda: hub.recall(T, V), lambda: hub.episodes(T), lambda: hub.stats(T), lambda: hub.changes(tenant_id=T),
             lambda: hub.forget(T, ["x"], reason="r"), lambda: hub.sync_agent(T, A, after=0),
             lambda: hub.erase_tenant(T, reason="r")]  # fmt: skip
    for call in calls:
        with pytest.raises(UnknownTenant, match="erased"):
            call()
    assert T not in str(hub.tenants()) + str(hub.episodes()) + str(hub.agents()) + str(hub.changes())
    assert hub.expire_leases() == []
    with pytest.raises(IdConflict) as conflict:
        hub.put([marked(), made])
    assert (conflict.value.ids, conflict.value.forgotten) == ([made.id], True)
    assert conflict.value.details["erased"]
    hub.put(marked(output="again"))
    assert [each.output for each in hub.recall(T, V)] == ["again"]
    assert hub.verify().ok
    hub.erase_tenant(T, reason="r")
    assert hub.verify().ok
    assert hub.erasures()["episodes"].to_list() == [1, 1]


def test_an_erased_agent_is_in_no_byte_of_any_file_and_the_others_are_whole(tmp_path):
    with Hub(tmp_path, embedder="hashing", keep_forgotten=timedelta(days=1)) as hub:
        hub.set_retention("acme", MinReward(0.1), actor=A)  # it made the tenant
        fill(hub, Random(2), tenant_id="acme")
        stays = Episode(tenant_id="acme", agent_id="b", task="t", input="", output="stays", reward=1, vector=-V)
        falls = Episode(tenant_id="acme", agent_id="b", task="t", input="", output="falls", reward=1, vector=-V)
        hub.put([stays, falls], actor=A)
        hold(hub, "acme", stays.id, f"better than {A}.", A)
        hub.forget("acme", [falls.id], reason=f"as bad as {A}", actor=f"{A}")
        episodes = hub.episodes("acme", agent_id="b").rows()
        alive = hub.stats("acme").agents_alive
        report = hub.erase_agent("acme", A, reason="request 18")
        assert traces(tmp_path) == {}
        assert hub.verify().ok, hub.verify()
        assert (report.agents, report.kept) == (1, 10)
        assert hub.stats("acme").agents_alive == alive - 1
        assert hub.episodes("acme", agent_id="b").rows() == episodes
        assert hub.episodes("acme", agent_id=A).is_empty()
        kinds = hub.changes(tenant_id="acme")["kind"].to_list()
        assert "tenant_created" in kinds
        assert kinds.count("agent_erased") == kinds.count("erasure_finished") == 1
        again = hub.erase_agent("acme", A, reason="asked again")
        assert (again.episodes, again.agents, again.changes) == (0, 0, 0)
        assert hub.episodes("acme", agent_id="b").rows() == episodes
        hub.erase_tenant("acme", reason="r", even_held=True)
        assert hub.verify().ok, hub.verify()


def test_erased_episodes_are_in_no_byte_of_any_file_live_or_forgotten(tmp_path):
    with Hub(tmp_path, embedder="hashing", keep_forgotten=timedelta(days=1)) as hub:
        ids = fill(hub, Random(3), tenant_id="acme", agent_id="b")
        cites = Episode(
            tenant_id="acme", agent_id="b", task="t", input="", output="", reward=1, sources=["plain-0"], vector=-V
        )
        hub.put([cites, marked(tenant_id="acme", agent_id="b", id="plain-0")])
        hold(hub, "acme", "plain-0", f"{M} reason")
        with pytest.raises(HeldEpisodes) as held:
            hub.erase_episodes("acme", [*ids, "plain-0"], reason="r")
        assert held.value.details["ids"] == ["plain-0"]
        assert traces(tmp_path)
        before = hub.stats("acme").episodes
        report = hub.erase_episodes("acme", [*ids, "plain-0", "never", "never\n-2"], reason="r", even_held=True)
        assert (report.already, report.unknown) == ([], ["never", "never\n-2"])
        assert "never here (spelled right?), 2 of the ids: 'never', 'never\\n-2'" in str(report)
        assert "never&#x27;" in report._repr_html_()
        # 10 of them had been forgotten before, and the log named them still.
        assert (report.episodes, report.holds, report.vectors) == (len(ids) + 1, 1, len(ids) - 9)
        assert hub.stats("acme").episodes == before - report.vectors
        found = traces(tmp_path)
        assert [m.episode.sources for m in hub.recall("acme", -V, k=999) if m.episode.id == cites.id] == [("plain-0",)]
        hub.erase_episodes("acme", [cites.id], reason="r")
        before = table_rows(hub, "acme")
        again = hub.erase_episodes("acme", [*ids, "never", ids[0]], reason="asked again")
        assert (again.episodes, again.changes, again.already, again.unknown) == (0, 0, ids, ["never"])
        after = table_rows(hub, "acme")
        assert [row[2] for row in after.pop("changes")[len(before.pop("changes")) :]] == [
            "episodes_erased", "erasure_finished",
        ]  # fmt: skip
        assert after == before
        with pytest.raises(UnknownEpisode) as unknown:
            hub.erase_episodes("acme", ["never", "never\n-2"], reason="r")
        assert unknown.value.details["ids"] == ["never", "never\n-2"]
        assert hub.erasures()["episodes"].to_list() == [len(ids) + 1, 1, 0]
        assert hub.verify().ok, hub.verify()
        assert found == traces(tmp_path) == {}


def test_what_was_erased_or_is_unknown_or_would_leave_its_name_in_the_log_is_refused(hub, episode):
    hub.put(episode(1, agent_id="smith"))
    with pytest.raises(UnknownTenant, match="spelled"):
        hub.erase_tenant("acmee", reason="r")
    for call in [
        lambda: hub.erase_agent("acme", "smyth", reason="r"),
        lambda: hub.erase_episodes("acme", "x", reason="r"),
        lambda: hub.erase_episodes("acme", [], reason="r"),
        lambda: hub.erase_tenant("acme", reason=" "),
        lambda: hub.erase_tenant("acme", reason="a letter from acme."),
        lambda: hub.erase_agent("acme", "smith", reason="r", actor="acme/smith"),
    ]:
        with pytest.raises(InvalidRequest):
            call()
    assert hub.erasures().is_empty()
    hub.erase_agent("acme", "smith", reason="as smithy and acme asked")
    assert hub.stats("acme").episodes == 0


def test_verify_finds_what_is_back_and_what_was_emptied_without_an_erasure(tmp_path, episode, vector):
    with Hub(tmp_path, embedder="hashing") as hub:
        hub.put([episode(n, id=f"x{n}", vector=vector(n)) for n in range(6)])
        hub.erase_episodes("acme", ["x3"], reason="r")
        hub.put(episode(7, id="y7", vector=vector(7)))
        assert hub.verify().ok
    changed = {
        "UPDATE changes SET subject = (SELECT subject FROM changes WHERE kind = 'episode_erased') WHERE subject = 'x5'": "",
        "UPDATE changes SET kind = 'erased', digest = randomblob(32) WHERE subject = 'x5'": "log: change",
        "UPDATE erasures SET changes = 2": "the ledger says",
        "DELETE FROM erasures": "the ledger says",
    }
    for sql, named in changed.items():
        with closing(sqlite3.connect(tmp_path / "hub.db")) as db:
            kept = list(db.iterdump())
            db.execute(sql)
            db.commit()
        with Hub(tmp_path) as hub:
            assert named in str(hub.verify())
            assert not hub.verify().ok
        (tmp_path / "hub.db").unlink()
        with closing(sqlite3.connect(tmp_path / "hub.db")) as db:
            db.executescript("\n".join(kept))
    from fedlab.hub.log import erased_id

    with Hub(tmp_path) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(hub._erased), "__bool__", lambda _: False)
        hub.put(episode(3, id="x3", vector=vector(3)))
        assert "'x3' (number 12): it was erased, and is here again" in str(hub.verify())
    assert erased_id("acme", "x3") != erased_id("acm", "ex3")


@pytest.mark.parametrize("scope", ["tenant", "agent", "episodes"])
def test_an_older_copy_loses_what_was_erased_since(tmp_path, scope):
    old, new = tmp_path / "old", tmp_path / "new"
    tenant_id, agent_id = (T if scope == "tenant" else "acme"), ("b" if scope == "episodes" else A)
    with Hub(new, embedder="hashing") as hub:
        ids = fill(hub, Random(8), 4, tenant_id, agent_id)
        old.mkdir()
        with closing(sqlite3.connect(new / "hub.db")) as source, closing(sqlite3.connect(old / "hub.db")) as target:
            source.backup(target)
        hub.put([marked(tenant_id=tenant_id, agent_id=agent_id, id=f"{M}-late"), marked(tenant_id="other", agent_id="b", task="t",
                 input="", output="", metadata={}, sources=(), vector=-V)])  # fmt: skip
        ids.append(f"{M}-late")
        match scope:
            case "tenant":
                hub.erase_tenant(T, reason="r")
            case "agent":
                hub.erase_agent("acme", A, reason="r")
            case _:
                hub.erase_episodes("acme", ids, reason="r")
        with hub._reading() as connection:
            ledger = export_ledger(connection)
    assert traces(old)
    engine = schema.open_engine(old / "hub.db", "full", writer=True)
    for number in (1, 0):
        with schema.begin(engine, "IMMEDIATE") as connection:
            assert apply_ledger(connection, ledger) == number
    engine.dispose()
    with Hub(old) as hub:
        assert traces(old) == {}
        assert hub.verify().ok, hub.verify()
        assert hub.erasures()["id"].to_list() == [ledger[0].id]
        with pytest.raises(IdConflict):
            hub.put(marked(tenant_id=tenant_id, agent_id=agent_id, id=ids[0]))
        with pytest.raises(InvalidRequest, match="another way"):
            other = [msgspec.structs.replace(ledger[0], id="of another log", seq=9)]
            hub._writer.run(lambda tx: apply_ledger(tx, other))


def test_a_life_that_began_before_an_erasure_is_over(hub, episode):
    for name in ("a1", "a2"):
        hub.spawn_agent("acme", name, lifetime=60)
    after = hub.info().seq
    hub.put([episode(n, agent_id="a1", id=f"x{n}") for n in range(3)])
    hub.erase_agent("acme", "a1", reason="r")
    with pytest.raises(AgentExpired, match="erased"):
        hub.sync_agent("acme", "a1", [episode(9, agent_id="a1")], after=after)
    with pytest.raises(AgentExpired):
        hub.spawn_agent("acme", "a1", lifetime=60, resume=True)
    delta = hub.sync_agent("acme", "a2", after=after)
    assert (len(delta.erased), delta.stored, delta.forgotten) == (3, [], [])
    assert hub.sync_agent("acme", "a2", after=delta.seq).erased == []
    hub.spawn_agent("acme", "a1", lifetime=60)
    hub.sync_agent("acme", "a1", [episode(9, agent_id="a1")], after=hub.info().seq)
    hub.erase_tenant("acme", reason="r")
    with pytest.raises(AgentExpired, match="tenant"):
        hub.sync_agent("acme", "a2", after=after)
    hub.put(episode(1))
    with pytest.raises(AgentExpired):
        hub.sync_agent("acme", "a2", [episode(5)], after=delta.seq)
    with pytest.raises(AgentExpired):
        hub.spawn_agent("acme", "a2", lifetime=60, resume=True)
    assert hub.stats("acme").episodes == 1


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "forget", "episodes", "agent", "tenant", "reopen"]),
        st.integers(0, 7),
        st.sampled_from("ab"),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_whatever_happens_nothing_erased_is_back_and_everything_agrees(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("hub")
    hub = Hub(path, embedder="hashing-8", durability="off")
    live: set[tuple[str, str, str]] = set()
    dead: set[tuple[str, str, str]] = set()
    conflicts: list[bool] = []
    for verb, number, tenant in steps:
        agent, uid = f"agent-{number % 2}", f"x{number}"
        own = {each for each in live if each[0] == tenant}
        try:
            if verb == "put":
                hub.put(
                    Episode(tenant_id=tenant, agent_id=agent, id=uid, task="t", input=uid, output="", reward=0),
                    actor=agent,
                )
                live.add((tenant, agent, uid))
            elif verb == "forget":
                going = {each for each in own if each[2] == uid}
                assert hub.forget(tenant, [uid], reason="r") == len(going)
                live -= going
            elif verb == "episodes":
                hub.erase_episodes(tenant, [uid, f"x{number + 1}"], reason="r")
                dead |= {each for each in own if each[2] in (uid, f"x{number + 1}")}
            elif verb == "agent":
                hub.erase_agent(tenant, agent, reason="r")
                dead |= {each for each in own if each[1] == agent}
            elif verb == "tenant":
                hub.erase_tenant(tenant, reason="r")
                dead |= own
            else:
                hub.close()
                hub = Hub(path)
        except IdConflict as conflict:
            conflicts.append(conflict.forgotten)
        except (UnknownTenant, UnknownEpisode, InvalidRequest):
            assert not own or verb in ("episodes", "agent")
        live -= dead
        assert {(row["tenant_id"], row["agent_id"], row["id"]) for row in hub.episodes().to_dicts()} == live
    assert hub.verify().ok, hub.verify()
    hub.close()
