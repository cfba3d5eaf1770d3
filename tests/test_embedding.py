"""Embedders, and the service that batches and caches for a hub."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedlab.embedding import (
    BATCH,
    EmbeddingService,
    Hashing,
    MiniLM,
    SentenceTransformerEmbedder,
    check_embedder,
    get_embedder,
)
from fedlab.errors import FedlabError, HubUnavailable, InvalidRequest, InvalidVector


class Counting(Hashing):
    """A hashing embedder that remembers its calls and can be held in the middle of one."""

    def __init__(self, dimension=32):
        super().__init__(dimension)
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()

    def embed(self, texts):
        self.calls.append(list(texts))
        assert self.gate.wait(30)
        return super().embed(texts)


class Broken(Counting):
    """Fails, or makes something unusable, for texts that ask for it."""

    def embed(self, texts):
        vectors = super().embed(texts)
        if "fail" in texts:
            raise RuntimeError("out of luck")
        if "narrow" in texts:
            return vectors[:, 1:]
        for word, value in (("nan", np.nan), ("zero", 0.0), ("huge", 1e30)):
            if word in texts:
                vectors[list(texts).index(word)] = value
        return vectors


def run_python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.001)


# --- embedders -------------------------------------------------------------------------------------------------


def test_minilm_finds_texts_of_the_same_meaning():
    query, near, far = MiniLM().embed(["parse a date string", "datetime parsing", "open a socket"])
    assert query @ near > 0.5 > query @ far


def test_minilm_is_all_that_an_embedder_must_be():
    check_embedder(MiniLM())
    assert (MiniLM().name, MiniLM().dimension) == ("all-MiniLM-L6-v2", 384)
    assert SentenceTransformerEmbedder(MiniLM()._source).dimension == 384


def test_a_vector_hardly_depends_on_the_batch_it_was_made_in():
    texts = [f"close the {noun} " * (n + 1) for n, noun in enumerate(["file", "socket", "window", "shop"])]
    together = MiniLM().embed(texts)
    alone = np.concatenate([MiniLM().embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_minilm_works_without_a_network_and_prints_nothing():
    code = """
import socket, sys
def refuse(*_, **__): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import fedlab.embedding
assert not {"torch", "sentence_transformers", "plotly", "polars"} & set(sys.modules), "a heavy import"
model = fedlab.embedding.MiniLM()
assert model.dimension == 384 and "torch" not in sys.modules
assert model.embed(["offline"]).shape == (1, 384)
import huggingface_hub.constants
assert not huggingface_hub.constants.HF_HUB_OFFLINE, "other models could not be downloaded any more"
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_HUB")}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_text_of_a_million_characters_is_no_problem():
    assert np.isfinite(MiniLM().embed(["word " * 200_000])).all()


def test_an_unknown_model_is_an_error_that_names_it_and_the_ways_out(tmp_path):
    (tmp_path / "empty").mkdir()
    embedder = get_embedder(str(tmp_path / "empty"))
    with pytest.raises(InvalidRequest, match=r"empty.*hashing"):
        embedder.embed(["x"])


def test_a_model_that_was_downloaded_before_asks_nobody(tmp_path):
    """As the libraries lay out what they download; without a network they would ask for a minute all the same."""
    model = tmp_path / "hub" / "models--sentence-transformers--mine"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    (model / "snapshots").mkdir()
    (model / "snapshots" / ("0" * 40)).symlink_to(MiniLM()._source)
    code = """
import socket
def refuse(*_, **__): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from fedlab.embedding import get_embedder
print(get_embedder("mine").dimension)
"""
    assert run_python(code, HF_HOME=str(tmp_path)) == "384\n"


def test_hashing_makes_the_same_vectors_in_every_process():
    code = "from fedlab.embedding import Hashing; print(Hashing(64).embed(['Parse a date', '']).tobytes().hex())"
    seen = {run_python(code, PYTHONHASHSEED=seed) for seed in ("1", "2")}
    assert seen == {Hashing(64).embed(["Parse a date", ""]).tobytes().hex() + "\n"}


@pytest.mark.parametrize("dimension", [1, 2, 384])
def test_hashing_never_makes_a_vector_without_direction(dimension):
    texts = ["", " ", "?!", "...", "\N{SNOWMAN}", "a", "a b", *(f"word{n} other" for n in range(200))]
    vectors = Hashing(dimension).embed(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_hashing_holds_texts_of_the_same_words_for_similar():
    a, b, c = Hashing().embed(["open the file for reading", "Reading the open file", "send an electronic mail"])
    assert a @ b > 0.6 > 0.3 > a @ c


@pytest.mark.parametrize("embedder", [MiniLM(), Hashing(), Hashing(17), SentenceTransformerEmbedder("some/model")])
def test_the_name_of_an_embedder_gets_that_embedder(embedder):
    again = get_embedder(embedder.name)
    assert (type(again), again.name) == (type(embedder), embedder.name)


@pytest.mark.parametrize("spec", [None, "minilm", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
def test_minilm_is_the_default(spec):
    assert isinstance(get_embedder(spec), MiniLM)


@pytest.mark.parametrize("spec", ["", "hashing-0", "hashing-99999999", 384, object(), ["minilm"]])
def test_what_is_no_embedder_is_refused(spec):
    with pytest.raises(InvalidRequest):
        get_embedder(spec)


def test_an_embedder_of_your_own_is_taken_as_it_is():
    mine = Counting()
    assert get_embedder(mine) is mine
    check_embedder(mine)


def test_check_embedder_finds_what_is_wrong():
    class Forgetful(Hashing):
        def embed(self, texts):
            return np.random.default_rng().normal(size=(len(texts), self.dimension))

    class Zero(Hashing):
        def embed(self, texts):
            return np.zeros((len(texts), self.dimension))

    class Wordy(Hashing):
        def embed(self, texts):
            return [["many"] * self.dimension for _ in texts]

    for wrong, error, message in (
        (Forgetful(), InvalidRequest, "different vectors of the same text"),
        (Zero(), InvalidVector, "only zeros"),
        (Wordy(), InvalidVector, "numbers were due"),
        (object(), InvalidRequest, "name, dimension and embed"),
    ):
        with pytest.raises(error, match=message):
            check_embedder(wrong)


# --- the service -----------------------------------------------------------------------------------------------


def test_vectors_come_in_the_order_of_the_texts_and_in_half_precision():
    with EmbeddingService(Counting()) as service:
        texts = [f"text {n}" for n in range(200)]
        vectors = service.embed(texts)
        assert vectors.dtype == np.float16
        np.testing.assert_array_equal(vectors, Hashing(32).embed(texts).astype(np.float16))
        assert service.embed([]).shape == (0, 32)


def test_a_text_is_embedded_once():
    with EmbeddingService(embedder := Counting()) as service:
        first = service.embed(["a", "b", "a", "a"])
        again = service.submit(["b", "a"])
        assert again.done(), "what is in RAM needs no thread"
        np.testing.assert_array_equal(again.result(), first[[1, 0]])
        assert embedder.calls == [["a", "b"]]
        assert service.stats == (6, 4, 1)


def test_sixty_four_callers_share_a_few_calls_of_the_model():
    with EmbeddingService(embedder := Counting()) as service, ThreadPoolExecutor(64) as pool:
        embedder.gate.clear()
        futures = [pool.submit(service.embed, [f"text {n}", "the same for all"]) for n in range(64)]
        until(lambda: service.stats.texts == 128)
        embedder.gate.set()
        vectors = [future.result(30) for future in futures]
        assert len(embedder.calls) <= 4
        assert sum(call.count("the same for all") for call in embedder.calls) == 1
        expected = Hashing(32).embed([f"text {n}" for n in range(64)]).astype(np.float16)
        np.testing.assert_array_equal(np.array([vector[0] for vector in vectors]), expected)


def test_a_query_does_not_wait_behind_a_bulk_load():
    with EmbeddingService(embedder := Counting()) as service:
        embedder.gate.clear()
        bulk = service.submit([f"text {n}" for n in range(20 * BATCH)])
        until(lambda: embedder.calls)
        query = service.submit(["a question"])
        embedder.gate.set()
        query.result(30)
        bulk.result(30)
        assert "a question" in embedder.calls[1]
        assert max(map(len, embedder.calls)) == BATCH


def test_a_cancelled_request_is_not_embedded_and_harms_nobody():
    with EmbeddingService(embedder := Counting()) as service:
        embedder.gate.clear()
        first = service.submit(["first"])
        until(lambda: embedder.calls)
        unwanted, shared = service.submit(["unwanted", "shared"]), service.submit(["shared"])
        assert unwanted.cancel()
        embedder.gate.set()
        assert len(first.result(30)) == len(shared.result(30)) == 1
        assert embedder.calls == [["first"], ["shared"]]


def test_a_failing_embedder_fails_its_batch_and_the_service_lives_on():
    with EmbeddingService(Broken()) as service:
        with pytest.raises(FedlabError, match="out of luck") as caught:
            service.embed(["fail"])
        assert isinstance(caught.value.__cause__, RuntimeError)
        with pytest.raises(InvalidVector, match=r"\(1, 31\)"):
            service.embed(["narrow"])
        assert service.embed(["fine"]).shape == (1, 32)


@pytest.mark.parametrize("word", ["nan", "zero", "huge"])
def test_an_unusable_vector_fails_the_requests_for_it_alone(word):
    with EmbeddingService(embedder := Broken()) as service:
        embedder.gate.clear()
        first = service.submit(["first"])
        until(lambda: embedder.calls)
        bad, good = service.submit(["good", word]), service.submit(["good"])
        embedder.gate.set()
        first.result(30)
        with pytest.raises(InvalidVector, match=repr(word)):
            bad.result(30)
        assert good.result(30).any()


@pytest.mark.parametrize("text", ["\ud800", None, 3, b"bytes"])
def test_what_is_no_text_is_refused_at_once(text):
    with EmbeddingService(embedder := Counting()) as service:
        with pytest.raises(InvalidRequest):
            service.submit(["good", text])
        assert not embedder.calls


def test_after_close_nothing_is_accepted_and_what_waits_fails():
    service = EmbeddingService(embedder := Counting())
    embedder.gate.clear()
    waiting = service.submit(["waits"])
    until(lambda: embedder.calls)
    closer = threading.Thread(target=service.close)
    closer.start()
    with pytest.raises(HubUnavailable):
        waiting.result(30)
    embedder.gate.set()
    closer.join(30)
    service.close()
    with pytest.raises(HubUnavailable):
        service.submit(["late"])


# --- the cache file --------------------------------------------------------------------------------------------


def test_the_cache_survives_a_restart(tmp_path):
    file = tmp_path / "cache.db"
    texts = [f"text {n}" for n in range(100)]
    with EmbeddingService(Counting(), file) as service:
        first = service.embed(texts)
    with EmbeddingService(embedder := Counting(), file) as service:
        np.testing.assert_array_equal(service.embed(texts), first)
        assert not embedder.calls
        assert service.stats == (100, 100, 0)


def test_models_do_not_see_each_others_vectors(tmp_path):
    with EmbeddingService(Counting(32), tmp_path / "cache.db") as service:
        service.embed(["a"])
    with EmbeddingService(Counting(33), tmp_path / "cache.db") as service:
        assert service.embed(["a"]).shape == (1, 33)


def damage_header(file):
    file.write_bytes(b"no database at all" * 1000)


def damage_middle(file):
    content = bytearray(file.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    file.write_bytes(content)


def damage_every_vector(file):
    # Not noticed by SQLite: only the checksum of the value tells.
    with sqlite3.connect(file) as db:
        rows = db.execute("SELECT id, value FROM vectors").fetchall()
        db.executemany(
            "UPDATE vectors SET value = ? WHERE id = ?",
            [(bytes([value[0] ^ 1]) + value[1:], number) for number, value in rows],
        )
    db.close()


def damage_schema(file):
    file.unlink()
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE vectors (something TEXT)")
    db.close()


def damage_by_truncation(file):
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    "damage", [damage_header, damage_middle, damage_every_vector, damage_schema, damage_by_truncation]
)
def test_a_damaged_cache_costs_time_and_nothing_else(tmp_path, damage):
    file = tmp_path / "cache.db"
    texts = [f"text {n}" for n in range(300)]
    with EmbeddingService(Counting(), file) as service:
        good = service.embed(texts)
    damage(file)
    with EmbeddingService(Counting(), file) as service:
        np.testing.assert_array_equal(service.embed(texts), good)
    with EmbeddingService(embedder := Counting(), file) as service:
        np.testing.assert_array_equal(service.embed(texts[200:]), good[200:])
        assert not embedder.calls, "the cache was made anew"


def test_a_cache_that_cannot_be_used_is_left_alone_with_a_log_line(tmp_path, caplog):
    file = tmp_path / "cache.db"
    other = sqlite3.connect(file)
    other.execute("BEGIN EXCLUSIVE")
    with caplog.at_level(logging.WARNING), EmbeddingService(Counting(), file) as service:
        assert service.embed(["a"]).shape == (1, 32)
    other.close()
    with caplog.at_level(logging.WARNING), EmbeddingService(Counting(), tmp_path / "no" / "dir.db") as service:
        assert service.embed(["a"]).shape == (1, 32)
    assert len(caplog.records) == 2
    assert all("is not used from now on" in record.message for record in caplog.records)


def test_clear_leaves_no_bytes_behind(tmp_path):
    file = tmp_path / "cache.db"
    with EmbeddingService(embedder := Counting(), file) as service:
        vector = service.embed(["a secret"])[0].tobytes()
        until(lambda: any(vector in path.read_bytes() for path in tmp_path.iterdir()))
        assert not any(b"secret" in path.read_bytes() for path in tmp_path.iterdir()), "texts are not stored"
        service.clear()
        assert not any(vector in path.read_bytes() for path in tmp_path.iterdir())
        service.embed(["a secret"])
        assert len(embedder.calls) == 2


def test_what_was_under_way_when_the_cache_was_cleared_is_not_cached(tmp_path):
    file = tmp_path / "cache.db"
    with EmbeddingService(embedder := Counting(), file) as service:
        embedder.gate.clear()
        under_way = service.submit(["a secret"])
        until(lambda: embedder.calls)
        service.clear()
        embedder.gate.set()
        vector = under_way.result(30)[0].tobytes()
        service.embed(["something else"])
    assert not any(vector in path.read_bytes() for path in tmp_path.iterdir())


def test_the_caches_stay_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("fedlab.embedding.RAM_VECTORS", 50)
    monkeypatch.setattr("fedlab.embedding.FILE_VECTORS", 100)
    texts = [f"text {n}" for n in range(500)]
    with EmbeddingService(Counting(), tmp_path / "cache.db") as service:
        for start in range(0, 500, 20):
            service.embed(texts[start : start + 20])
        assert len(service._ram) == 50
    with EmbeddingService(embedder := Counting(), tmp_path / "cache.db") as service:
        service.embed(texts[-100:])
        assert not embedder.calls, "the newest stay"
        service.embed(texts[:100])
        assert sum(map(len, embedder.calls)) == 100, "the oldest go"
