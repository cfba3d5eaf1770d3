"""The change log: every change has its row, in commit order, and readers miss none."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab import Episode, Hub, MaxEpisodes


def test_every_change_has_a_row_that_says_what_who_and_why(hub, episode):
    hub.put(episode(1, id="x"), actor="me")
    hub.spawn_agent("acme", "a", lifetime=5)
    hub.set_retention("acme", MaxEpisodes(5), actor="boss")
    hub.sync_agent("acme", "a", [episode(2, id="y")], after=0, ending="expired")
    hub.forget("acme", ["x"], reason="wrong", actor="me")
    rows = [(each.kind, each.tenant_id, each.subject, each.actor, each.reason) for each in hub.read_changes()]
    assert rows == [
        ("hub_created", "", hub.info().hub_id, "hub", ""),
        ("tenant_created", "acme", "acme", "me", ""),
        ("episode_stored", "acme", "x", "me", ""),
        ("agent_spawned", "acme", "a", "a", ""),
        ("retention_set", "acme", "acme", "boss", MaxEpisodes(5).to_json()),
        ("episode_stored", "acme", "y", "a", ""),
        ("agent_ended", "acme", "a", "a", "expired"),
        ("episode_forgotten", "acme", "x", "me", "wrong"),
    ]
    assert [each.seq for each in hub.read_changes()] == list(range(1, 9))


def test_the_log_can_be_read_from_any_place_and_by_tenant_and_kind(hub, episode):
    hub.put([episode(n, tenant_id=f"t{n % 2}") for n in range(10)])
    everything = hub.read_changes()
    assert hub.read_changes(4, limit=3) == everything[4:7]
    assert hub.read_changes(tenant_id="t1") == [each for each in everything if each.tenant_id == "t1"]
    assert hub.read_changes(kind="episode_stored", limit=None) == [
        each for each in everything if each.kind == "episode_stored"
    ]
    assert hub.changes(after=4)["seq"].to_list() == [each.seq for each in everything[4:]]
    assert hub.read_changes(10**9) == []


def test_a_reader_that_follows_overtakes_nothing_while_many_write(hub, episode, vector):
    read: list[int] = []
    finished = threading.Event()

    def follow() -> None:
        while not (finished.is_set() and (not read or read[-1] == hub.info().seq)):
            read.extend(each.seq for each in hub.read_changes(read[-1] if read else 0))

    def write(number: int) -> None:
        mine = episode(number, vector=vector(number))
        hub.put(mine)
        if number % 3 == 0:
            hub.forget("acme", [mine.id], reason="r")

    with ThreadPoolExecutor(9) as threads:
        follower = threads.submit(follow)
        list(threads.map(write, range(120)))
        finished.set()
        follower.result(20)
    assert read == list(range(1, hub.info().seq + 1))


def test_the_log_goes_on_after_a_restart(tmp_path, episode):
    seqs, ids = [], set()
    for number in range(4):
        with Hub(tmp_path, embedder="hashing") as hub:
            seqs.append(hub.put(episode(number)))
            ids.add(hub.info().hub_id)
    assert seqs == [3, 4, 5, 6]
    assert len(ids) == 1


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "put", "forget"]), st.integers(0, 6), st.sampled_from("ab")), max_size=12
    )
)
def test_replaying_the_log_gives_the_memory_at_every_moment(steps):
    fresh = itertools.count()
    with Hub(":memory:", embedder="hashing") as hub:
        moments = {hub.info().seq: set()}
        live: set[tuple[str, str]] = set()
        for verb, number, tenant in steps:
            if verb == "put":
                batch = [(tenant, f"x{next(fresh)}") for _ in range(number)]
                hub.put(
                    [
                        Episode(tenant_id=tenant, agent_id="a", id=uid, task="t", input=uid, output="", reward=0)
                        for _, uid in batch
                    ]
                )
                live |= set(batch)
            elif (tenant, "x0") in live or any(tenant == each for each, _ in live):
                going = sorted(live)[:number]
                hub.forget(tenant, [uid for _, uid in going], reason="r")
                live -= {each for each in going if each[0] == tenant}
            moments[hub.info().seq] = set(live)
        for seq, members in moments.items():
            replayed: set[tuple[str, str]] = set()
            for change in hub.read_changes(limit=None):
                if change.seq > seq:
                    break
                key = (change.tenant_id, change.subject)
                if change.kind == "episode_stored":
                    replayed.add(key)
                elif change.kind == "episode_forgotten":
                    replayed.remove(key)
            assert replayed == members
