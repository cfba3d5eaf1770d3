"""A tenant's episodes move between hubs by way of a file; what is in it is what is stored, or it is refused."""

from __future__ import annotations

import itertools
import random
import re
import signal
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedlab import Episode, Hub, HubUnavailable, IncompatibleHub, InvalidRequest, Random, UnknownTenant
from fedlab.cli import main
from fedlab.hub import files

FORMS = ["jsonl", "parquet"]
form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def other(tmp_path):
    with Hub(tmp_path / "other", embedder="hashing") as hub:
        yield hub


def contents(hub: Hub, tenant_id: str) -> list[Episode]:
    memories = hub.recall(tenant_id, None, 10_000, policy=Random(), vectors=True)
    return sorted((memory.episode for memory in memories), key=lambda each: each.id)


# --- there and back -----------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=16)
times = st.integers(0, 253_402_300_799_999)
made = st.builds(
    Episode,
    tenant_id=st.just("acme"),
    agent_id=st.sampled_from(["a", "b"]),
    task=text.map(lambda rest: f"t{rest}"),
    input=text,
    output=text,
    reward=st.floats(allow_nan=False, allow_infinity=False),
    created_at=times,
    expires_at=st.none() | times,
    vector=st.lists(numbers, min_size=3, max_size=3).map(lambda some: [*some, 1.0]),
    sources=st.lists(st.uuids().map(str), max_size=4).map(tuple),
    metadata=st.dictionaries(text, json, max_size=3),
)


@form
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(episodes=st.lists(made, max_size=3))
@example(episodes=[Episode(tenant_id="acme", agent_id="a", task="\r\nx", input="\u2028", output="", reward=-0.0, created_at=0, vector=[-0.0, 6e-8, 0, 1], metadata={"big": 2**64 - 1, "small": -(2**63)}) ])  # fmt: skip
def test_what_was_exported_is_imported_as_it_was(tmp_path, form, episodes):
    path = tmp_path / f"acme.{form}"
    with Hub(":memory:", embedder="hashing-4") as here, Hub(":memory:", embedder="hashing-4") as there:
        gone = Episode(tenant_id="acme", agent_id="a", task="gone", input="", output="", reward=0)
        here.put([*episodes, gone])
        here.forget("acme", [gone.id], reason="test")
        assert here.export_tenant("acme", path).episodes == len(episodes)
        report = there.import_tenant(path)
        assert (report.episodes, report.new, report.known, report.refused) == (len(episodes), len(episodes), 0, {})
        if episodes:
            assert contents(there, "acme") == contents(here, "acme") == sorted(episodes, key=lambda each: each.id)
            assert [row["digest"] for row in stored(there)] == [row["digest"] for row in stored(here)][:-1]
        assert there.verify().problems == []


def stored(hub: Hub) -> list[dict]:
    with hub._reading() as connection:
        query = "SELECT digest FROM changes WHERE kind = 'episode_stored' ORDER BY seq"
        return [dict(row) for row in connection.exec_driver_sql(query).mappings()]


@form
def test_importing_again_stores_nothing_twice_and_tells_what_was_not_taken(hub, other, episode, vector, tmp_path, form):
    path = tmp_path / f"x.{form}"
    batch = [episode(n, vector=vector(n), created_at=n) for n in range(1_200)]
    hub.put(batch)
    hub.export_tenant("acme", path)
    forgotten, erased, taken = batch[5].id, batch[6].id, batch[700].id
    other.put([*batch[:10], msgspec.structs.replace(batch[700], output="another")])
    other.forget("acme", [forgotten], reason="wrong")
    other.erase_episodes("acme", [erased], reason="asked for")
    report = other.import_tenant(path)
    assert report.refused == {forgotten: "forgotten", erased: "erased", taken: "other content"}
    assert (report.episodes, report.new, report.known) == (1_200, 1_189, 8)
    seq = other.info().seq
    again = other.import_tenant(path)
    assert (again.new, again.known, again.refused) == (0, 1_197, report.refused)
    assert other.info().seq == seq
    assert all(part in str(again) for part in ("1,197 were here", "3 were refused", f"{taken}: other content"))


@form
def test_a_tenant_may_get_another_name(hub, other, episode, vector, tmp_path, form):
    path = tmp_path / f"x.{form}"
    hub.put([episode(n, vector=vector(n), sources=("s",)) for n in range(5)])
    hub.export_tenant("acme", path)
    assert other.import_tenant(path, "lab-2").new == 5
    assert other.tenants()["tenant_id"].to_list() == ["lab-2"]
    rename = {"tenant_id": "lab-2", "session_id": "lab-2/agent-1"}
    assert contents(other, "lab-2") == [msgspec.structs.replace(each, **rename) for each in contents(hub, "acme")]
    with pytest.raises(InvalidRequest, match="tenant_id"):
        other.import_tenant(path, "no/name")


@form
def test_vectors_of_another_embedder_are_refused_by_name_and_can_be_made_again(hub, episode, tmp_path, form):
    path = tmp_path / f"x.{form}"
    hub.put([episode(n) for n in range(5)])
    hub.export_tenant("acme", path)
    with Hub(":memory:", embedder="hashing-16") as other:
        with pytest.raises(IncompatibleHub, match="'hashing-384'.*'hashing-16'.*embed_again"):
            other.import_tenant(path)
        assert other.stats().tenants == 0
        assert other.import_tenant(path, embed_again=True).new == 5
        assert other.import_tenant(path, embed_again=True).known == 5
        assert other.recall("acme", "task 3\ninput 3", 1)[0].input == "input 3"


def test_an_export_has_what_was_stored_when_it_began(hub, episode, vector, tmp_path, monkeypatch):
    hub.put([episode(n, vector=vector(n)) for n in range(300)])
    ask = hub.episodes

    def busy(*args, **keywords):
        hub.put(episode(999, vector=vector(0)))
        return ask(*args, **keywords)

    monkeypatch.setattr(hub, "episodes", busy)
    assert hub.export_tenant("acme", tmp_path / "x.jsonl").episodes == 300
    assert hub.stats("acme").episodes > 300


@form
def test_a_transfer_holds_a_page_in_memory_and_not_the_tenant(hub, other, episode, tmp_path, form):
    for n in range(20):
        hub.put([episode(m, output=f"{n} {m} {'x' * 60_000}", vector=np.ones(384)) for m in range(40)])
    path = tmp_path / f"x.{form}"
    hub.export_tenant("acme", path)
    tracemalloc.start()
    hub.export_tenant("acme", path)
    other.import_tenant(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 48 MB of text; a page has 8 MB, a message 1 MB. Polars' own memory is not counted.
    assert most < 30e6
    assert other.stats("acme").episodes == 800


def test_parquet_is_plain_columns_for_other_tools(hub, episode, vector, tmp_path):
    hub.put([episode(n, vector=vector(n), sources=("s1",), metadata={"n": n}) for n in range(3)])
    hub.export_tenant("acme", tmp_path / "x.parquet")
    frame = pl.read_parquet(tmp_path / "x.parquet")
    same = hub.episodes("acme", vectors=True, sources=True).drop("seq")
    assert frame.select(same.columns).equals(same)
    line = msgspec.json.decode(pl.read_parquet_metadata(tmp_path / "x.parquet")["fedlab"])
    assert line["embedder"] == "hashing-384"


# --- files that are not what they should be -----------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("exported")
    with Hub(":memory:", embedder="hashing-8") as hub:
        fields = {"tenant_id": "acme", "agent_id": "a", "task": "t", "reward": 1, "sources": ("s",)}
        hub.put([Episode(input=f"i{n}", output=f"o{n}", metadata={"n": n}, **fields) for n in range(40)])
        for form in FORMS:
            hub.export_tenant("acme", directory / f"x.{form}")
    return {form: directory / f"x.{form}" for form in FORMS}


@form
def test_no_damage_is_taken_for_an_episode_and_nothing_of_a_damaged_file_is_stored(exported, tmp_path, form):
    whole = exported[form].read_bytes()
    rng = random.Random(form)
    path = tmp_path / exported[form].name
    outcomes = []
    with Hub(":memory:", embedder="hashing-8") as hub:
        for at in rng.sample(range(len(whole)), 150):
            data = bytearray(whole)
            data[at] ^= 1 << rng.randrange(8)
            path.write_bytes(bytes(data))
            outcomes.append(outcome(hub, path))
        for length in rng.sample(range(len(whole)), 30):
            path.write_bytes(whole[:length])
            assert outcome(hub, path) == "refused"
        # What is left says nothing of an episode: statistics of columns, the id of the hub.
        assert outcomes.count("refused") > len(outcomes) / 2
        if "same" in outcomes:
            assert hub.import_tenant(exported[form]).known == 40


def outcome(hub: Hub, path: Path) -> str:
    before = hub.info().seq
    try:
        report = hub.import_tenant(path)
    except (InvalidRequest, IncompatibleHub):
        assert hub.info().seq == before
        return "refused"
    assert report.refused == {}
    return "same"


@form
def test_of_a_long_file_that_is_damaged_near_its_end_nothing_is_stored(hub, other, episode, vector, tmp_path, form):
    hub.put([episode(n, vector=vector(n)) for n in range(1_200)])
    path = tmp_path / f"x.{form}"
    hub.export_tenant("acme", path)
    whole, late = path.read_bytes(), []
    for share in range(60, 100, 3):
        data = bytearray(whole)
        data[len(data) * share // 100] ^= 1
        path.write_bytes(data)
        try:  # a bit of what Parquet does not read does no harm
            other.import_tenant(path, f"try-{share}")
        except InvalidRequest as damage:
            late += re.findall(r"episode 1,(\d+) of 1,200", str(damage))
            assert f"try-{share}" not in other.tenants()["tenant_id"]
    assert late  # the episodes before them had been read, in batches of 500


def test_a_missing_line_is_missed_and_an_edited_one_found(exported, tmp_path, hub):
    lines = exported["jsonl"].read_bytes().splitlines(keepends=True)
    path = tmp_path / "x.jsonl"
    for changed, match in [
        (lines[:-1], "episode 40 of 40 .*ends before"),
        (lines[:20] + lines[21:], "episode 40 of 40"),
        ([*lines, lines[-1]], "more than its 40"),
        ([*lines[:9], lines[9].replace(b'"o8"', b'"o9"'), *lines[10:]], "episode 9 of 40 .*not what was written"),
        ([*lines[:9], lines[9][:-20], *lines[10:]], "episode 9 of 40"),
        (lines[1:], "header"),
        ([b""], "header"),
    ]:
        path.write_bytes(b"".join(changed))
        with pytest.raises(InvalidRequest, match=match):
            hub.import_tenant(path, embed_again=True)
    assert hub.stats().tenants == 0


def test_what_is_no_export_is_refused(hub, episode, tmp_path):
    hub.put(episode())
    (tmp_path / "x.jsonl").write_text('{"task": "t"}\n')
    hub.episodes().write_parquet(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_text("text")
    for name, match in [("x.jsonl", "no export"), ("x.parquet", "no export"), ("y.parquet", "no export"), ("z.jsonl", "no file"), ("x.csv", "no file")]:  # fmt: skip
        with pytest.raises(InvalidRequest, match=match):
            hub.import_tenant(tmp_path / name)
    for name, match in [("x.csv", ".parquet or .jsonl"), ("no/x.jsonl", "can not be written"), ("no/x.parquet", "can not be written")]:  # fmt: skip
        with pytest.raises(InvalidRequest, match=match):
            hub.export_tenant("acme", tmp_path / name)


@form
def test_an_export_that_fails_leaves_the_file_before_it_and_no_other(hub, episode, tmp_path, form, monkeypatch):
    hub.put([episode(n) for n in range(150)])
    path = tmp_path / f"x.{form}"
    hub.export_tenant("acme", path)
    before = path.read_bytes()
    with pytest.raises(UnknownTenant):
        hub.export_tenant("nobody", path)
    calls, ask = itertools.count(), hub.episodes

    def failing(*args, **keywords):
        if next(calls):
            raise HubUnavailable("gone")
        return ask(*args, **keywords)

    monkeypatch.setattr(hub, "episodes", failing)
    with pytest.raises(HubUnavailable, match="gone"):
        hub.export_tenant("acme", path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == [path.name]
    assert not list(tmp_path.glob(".*"))


KILL = """
import os, signal, sys
from fedlab import Hub

with Hub(sys.argv[1]) as hub:
    os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
    hub.export_tenant("acme", sys.argv[2])
"""


@form
def test_what_a_killed_export_left_goes_with_the_next_one_there(tmp_path, episode, form):
    with Hub(tmp_path / "hub", embedder="hashing-16") as hub:
        hub.put([episode(n) for n in range(150)])
    path = tmp_path / f"x.{form}"
    done = subprocess.run([sys.executable, "-c", KILL, hub.path, path], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = tmp_path.glob(".*")
    assert stat.S_IMODE(left.stat().st_mode) == 0o700
    with Hub(tmp_path / "hub") as hub:
        hub.export_tenant("acme", tmp_path / f"y.{form}")
        assert left.exists()
        assert hub.export_tenant("acme", path).episodes == 150
    assert not list(tmp_path.glob(".*"))


@form
def test_an_import_that_breaks_off_says_how_far_it_came_and_goes_on_next_time(exported, episode, tmp_path, form, hub, monkeypatch):  # fmt: skip
    hub.put([episode(n, vector=np.ones(384)) for n in range(1_200)])
    path = tmp_path / f"x.{form}"
    hub.export_tenant("acme", path)
    with Hub(tmp_path / "there", embedder="hashing") as other:
        calls, put = itertools.count(), other.put

        def failing(batch):
            if next(calls):
                raise HubUnavailable("gone")
            return put(batch)

        monkeypatch.setattr(other, "put", failing)
        with pytest.raises(HubUnavailable, match=r"gone \(500 of 1,200 episodes .*import it again"):
            other.import_tenant(path)
        monkeypatch.undo()
        report = other.import_tenant(path)
        assert (report.new, report.known) == (700, 500)


def test_the_header_is_read_by_later_versions_and_refuses_another_form(exported, tmp_path, hub):
    text = exported["jsonl"].read_text().replace('"form":1', '"form":2', 1)
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(InvalidRequest, match="form"):
        hub.import_tenant(tmp_path / "x.jsonl", embed_again=True)
    assert files.read_header(exported["parquet"]).episodes == 40


# --- frames, and the shell ----------------------------------------------------------------------------------


def test_a_frame_may_have_vectors_and_sources_and_be_of_some_ids(hub, episode, vector):
    batch = [episode(n, vector=vector(n), sources=("b", "a", f"s{n}")[: n % 4]) for n in range(700)]
    hub.put([*batch, episode(1, id=batch[3].id, tenant_id="other")])
    frame = hub.episodes("acme", ids=[batch[3].id, batch[650].id, "nowhere"], vectors=True, sources=True)
    assert frame["id"].to_list() == [batch[3].id, batch[650].id]
    assert frame["sources"].to_list() == [["b", "a", "s3"], ["b", "a"]]
    assert (frame["vector"].to_numpy() == np.stack([batch[3].vector, batch[650].vector])).all()
    assert hub.episodes(ids=[batch[3].id])["tenant_id"].to_list() == ["acme", "other"]
    assert hub.episodes("acme", vectors=True, sources=True)["sources"].list.len().to_list() == [len(each.sources) for each in batch]  # fmt: skip
    empty = hub.episodes("acme", ids=[], vectors=True, sources=True)
    assert empty.schema == frame.schema
    for wrong in ("x" * 36, [1], ["x"] * 10_001):
        with pytest.raises(InvalidRequest, match="ids"):
            hub.episodes("acme", ids=wrong)


def test_the_commands_move_a_tenant(hub, other, episode, tmp_path, capsys):
    hub.put([episode(n) for n in range(5)])
    path = tmp_path / "x.parquet"
    paths = str(hub.path), str(other.path)
    hub.close(), other.close()

    def fedlab(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert "exported 5 episodes" in fedlab("export", paths[0], "acme", str(path))
    assert "5 are new" in fedlab("import", paths[1], str(path), "--tenant", "lab")
    assert "5 were here" in fedlab("import", paths[1], str(path), "--tenant", "lab", "--embed-again")
    with pytest.raises(SystemExit) as ended:
        main(["import", paths[1], str(tmp_path / "none.jsonl")])
    assert ended.value.code == 1
    assert "there is no file" in capsys.readouterr().err
