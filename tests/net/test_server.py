"""The server from outside: who may connect, what it tells without a token, TLS, and how it goes down."""

from __future__ import annotations

import asyncio
import datetime
import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CONTENT_TYPE_LATEST
from websockets.asyncio.client import connect as dial
from websockets.exceptions import InvalidStatus

import fedlab
from fedlab import Episode, FedlabError, Hashing, Hub, HubLocked, HubUnavailable, InvalidRequest
from fedlab.net import HubServer, Settings
from fedlab.net.discovery import find
from fedlab.net.server import TOKEN_PROTOCOL

from .conftest import until

Make = Callable[..., Episode]


async def get(server: HubServer, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type and body."""

    def fetch() -> tuple[int, str, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.headers["Content-Type"], response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()

    return await asyncio.to_thread(fetch)


async def test_health_needs_no_token(server: HubServer):
    status, kind, body = await get(server, "/health")
    info = server.hub.info()
    assert (status, kind) == (200, "application/json")
    assert json.loads(body) == {
        "status": "ok",
        "hub_id": info.hub_id,
        "seq": info.seq,
        "embedder": "hashing-384",
        "version": fedlab.__version__,
    }


async def test_metrics_count_requests_outcomes_and_the_hubs_numbers(server: HubServer, episode: Make):
    async with fedlab.connect(server.url) as hub:
        await hub.put([episode(n) for n in range(3)])
        await hub.spawn_agent("acme", "a", lifetime=60)
        with pytest.raises(FedlabError):
            await hub.recall("nobody", "x")
        assert (await get(server, "/"))[0] == 401
        status, kind, body = await get(server, "/metrics")
    assert status == 200
    assert kind == CONTENT_TYPE_LATEST, "with the version, which a scraper may insist on"
    lines = set(body.splitlines())
    assert 'fedlab_requests_total{method="put",outcome="ok"} 1.0' in lines
    assert 'fedlab_requests_total{method="recall",outcome="unknown_tenant"} 1.0' in lines
    assert 'fedlab_request_seconds_count{method="put"} 1.0' in lines
    assert 'fedlab_refused_total{status="401"} 1.0' in lines
    assert {"fedlab_connections 1.0", "fedlab_episodes 3.0", "fedlab_agents_alive 1.0"} <= lines


async def test_other_paths_are_not_found_and_the_root_needs_a_token(server: HubServer):
    assert (await get(server, "/../etc/passwd"))[0] == 404
    status, _, body = await get(server, "/")
    assert status == 401
    assert json.loads(body)["code"] == "authentication"


@pytest.mark.parametrize("path", ["/", "/health", "/metrics"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "file://"])
async def test_a_web_page_can_not_talk_to_a_loopback_hub(server: HubServer, token: Any, path: str, origin: str):
    bearer = f"Bearer {token(None, 'admin')}"
    assert (await get(server, path, Origin=origin, Authorization=bearer))[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8443", "127.0.0.1.evil.example", "10.0.0.1", ""])
async def test_a_name_made_to_resolve_to_loopback_is_refused(server: HubServer, host: str):
    assert (await get(server, "/health", Host=host))[0] == 403
    assert (await get(server, "/health", Host="localhost"))[0] == 200
    assert (await get(server, "/health", Host=f"[::1]:{server.port}"))[0] == 200


async def test_an_origin_that_the_operator_allows_may_connect(hub: Hub):
    async with fedlab.serve(hub, port=0, settings=Settings(origins=("https://lab.example",))) as server:
        assert (await get(server, "/health", Origin="https://lab.example"))[0] == 200
        assert (await get(server, "/health", Origin="https://lab.example.evil"))[0] == 403


async def test_a_page_of_an_allowed_origin_brings_its_token_as_a_subprotocol(hub: Hub, token: Any):
    """It can set no header."""
    good = TOKEN_PROTOCOL + token("acme", "observer")
    async with fedlab.serve(hub, port=0, settings=Settings(origins=("https://lab.example",))) as server:

        def page(*protocols: str, origin: Any = "https://lab.example") -> Any:
            return dial(server.url, origin=origin, subprotocols=list(protocols), proxy=None)  # type: ignore[arg-type]

        async with page("fedlab.v1.json", good) as socket:
            assert socket.subprotocol == "fedlab.v1.json"
            await socket.send('{"id": 1, "method": "info"}')
            result = json.loads(await socket.recv())["result"]
            assert (result["role"], result["tenant_id"]) == ("observer", "acme")
        for protocols in (["fedlab.v1.json"], ["fedlab.v1.json", good[:-3] + "AAA"], ["fedlab.v1.json", good, good]):
            with pytest.raises(InvalidStatus, match="401"):
                await page(*protocols)
        with pytest.raises(InvalidStatus, match="403"):
            await page("fedlab.v1.json", good, origin="https://evil.example")


async def test_connections_over_the_limit_are_refused(hub: Hub):
    async with fedlab.serve(hub, port=0, settings=Settings(max_connections=1)) as server, fedlab.connect(server.url):
        with pytest.raises(HubUnavailable, match="max_connections"):
            async with fedlab.connect(server.url, retry_for=0):
                pass


async def test_a_client_without_our_subprotocol_is_refused(server: HubServer, token: Any):
    headers = {"Authorization": f"Bearer {token(None, 'admin')}"}
    with pytest.raises(InvalidStatus, match="400"):
        await dial(server.url, additional_headers=headers, proxy=None)


async def test_junk_instead_of_http_harms_nobody(server: HubServer):
    for junk in (b"\x16\x03\x01\x00\xa5", b"GET / HTTP/1.1\r\n" + b"x" * 100_000, b"POST / HTTP/1.1\r\n\r\n", b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(junk)
        writer.write_eof()
        async with asyncio.timeout(10):
            try:
                await reader.read()
            except ConnectionError:
                pass
        writer.close()
    assert (await get(server, "/health"))[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_listening_beyond_this_machine_without_tls_is_refused(hub: Hub, host: str):
    with pytest.raises(InvalidRequest, match="tls_cert"):
        fedlab.serve(hub, host, 0)


async def test_the_operator_may_insist_on_no_tls(hub: Hub):
    async with fedlab.serve(hub, "0.0.0.0", 0, insecure=True) as server, fedlab.connect(server.url) as connection:
        assert (await connection.info()).hub_id == hub.info().hub_id


async def test_tls_is_checked_against_the_authorities_that_are_named(hub: Hub, certificate: tuple[Path, Path]):
    cert, key = certificate
    async with fedlab.serve(hub, port=0, tls_cert=cert, tls_key=key) as server:
        assert server.url.startswith("wss://")
        async with fedlab.connect(server.url, tls_ca=cert) as connection:
            await connection.info()
        with pytest.raises(HubUnavailable, match="TLS"):
            async with fedlab.connect(server.url):
                pass
        with pytest.raises(HubUnavailable):
            async with fedlab.connect(server.url.replace("wss", "ws"), retry_for=0):
                pass


def test_a_certificate_that_can_not_be_used_is_refused(hub: Hub, tmp_path: Path, certificate: tuple[Path, Path]):
    for cert, key in [(tmp_path / "missing.pem", None), (certificate[1], None), (None, certificate[1])]:
        with pytest.raises(InvalidRequest, match="tls|TLS"):
            fedlab.serve(hub, port=0, tls_cert=cert, tls_key=key)


async def test_a_port_that_is_taken_is_named(server: HubServer):
    with pytest.raises(InvalidRequest, match=f"{server.port}.*Port 0 takes a free one"):
        async with fedlab.serve(":memory:", port=server.port, embedder="hashing"):
            pass


async def test_a_directory_that_another_server_has_open_is_refused_with_its_url(tmp_path: Path):
    command = [sys.executable, "-m", "fedlab", "hub", "--data", str(tmp_path / "lab"), "--port", "0"]
    with subprocess.Popen([*command, "--embedder", "hashing"], stderr=subprocess.PIPE) as process:
        try:
            await asyncio.to_thread(process.stderr.readline)
            with pytest.raises(HubLocked, match=f"pid {process.pid}.* listens at ws://127.0.0.1:"):
                async with fedlab.serve(tmp_path / "lab", port=0):
                    pass
        finally:
            process.kill()


async def test_a_connection_that_ends_without_a_goodbye_lets_the_lease_run(tmp_path: Path, episode: Make):
    async with fedlab.serve(tmp_path / "lab", port=0, embedder="hashing", settings=Settings(lease=0.05)) as server:
        connection = fedlab.connect(server.url)
        await connection.spawn_agent("acme", "left", lifetime=60)
        await connection.spawn_agent("acme", "ended", lifetime=60)
        await connection.sync_agent("acme", "ended", [episode(agent_id="ended")], after=0, ending="destroyed")
        await connection.close()
        hub = server.hub
        await until(lambda: "alive" not in set(hub.agents()["status"]))
        assert dict(hub.agents()[["agent_id", "status"]].rows()) == {"left": "crashed", "ended": "destroyed"}


async def test_retention_runs_on_its_schedule(hub: Hub, episode: Make):
    hub.put([episode(n) for n in range(10)])
    hub.set_retention("acme", fedlab.MinReward(0.5))
    async with fedlab.serve(hub, port=0, retention_interval=0.02):
        await until(lambda: hub.stats("acme").episodes == 5)


async def test_a_server_removes_what_was_kept_long_enough_also_where_no_policy_is_applied(
    tmp_path: Path, episode: Make, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fedlab.net.server.PURGE_INTERVAL", 0.02)
    clock = fedlab.SimulatedClock(datetime.datetime(2026, 1, 1))
    with Hub(tmp_path / "lab", clock, "hashing", keep_forgotten=3600) as hub:
        hub.put([episode(n, id=f"x{n}") for n in range(4)])
        hub.forget("acme", ["x0", "x1"], reason="why")
        async with fedlab.serve(hub, port=0):
            clock.advance(minutes=50)
            hub.forget("acme", ["x2"], reason="why")
            assert hub.stats().kept == 3
            clock.advance(minutes=10)
            await until(lambda: hub.stats().kept == 1)


async def test_a_server_that_is_started_often_applies_the_policies_as_often_as_one_that_runs_on(
    tmp_path: Path, episode: Make
):
    clock = fedlab.SimulatedClock(datetime.datetime(2026, 1, 1))
    with Hub(tmp_path / "lab", clock, "hashing") as hub:
        hub.set_retention("acme", fedlab.MinReward(0.5))
        hub.apply_retention()
        hub.put([episode(n) for n in range(10)])
    for minutes, left in ((0, 3600), (40, 1200), (20, 0)):
        clock.advance(minutes=minutes)
        with Hub(tmp_path / "lab", clock) as hub:
            async with fedlab.serve(hub, port=0, retention_interval=3600) as server:
                assert server.schedule().retention_next_at == clock.now() + left * 1000
                if left:
                    assert hub.stats("acme").episodes == 10
                else:
                    await until(lambda: hub.stats("acme").episodes == 5)  # called in this turn alone
    for wrong in (0, -1, float("nan"), float("inf"), 1e12):
        with pytest.raises(InvalidRequest, match="retention_interval"):
            fedlab.serve(tmp_path / "lab", retention_interval=wrong)


async def test_a_hub_that_was_given_stays_open_and_one_that_was_opened_is_closed(hub: Hub, tmp_path: Path):
    async with fedlab.serve(hub, port=0):
        pass
    assert not hub.closed
    async with fedlab.serve(tmp_path / "own", port=0, embedder="hashing") as server:
        assert find(server.url) is not None
    assert server.hub.closed
    assert find(server.url) is None


async def test_what_is_under_way_at_shutdown_is_finished(tmp_path: Path, episode: Make):
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Hashing):
        def embed(self, texts):
            begun.set()
            go_on.wait(10)
            return super().embed(texts)

    async with fedlab.serve(tmp_path / "lab", port=0, embedder=Slow()) as server:
        connection = fedlab.connect(server.url, retry_for=0)
        put = asyncio.ensure_future(connection.put(episode()))
        await asyncio.to_thread(begun.wait, 10)
        closing = asyncio.ensure_future(server.close())
        await until(lambda: server.closing)
        late = asyncio.ensure_future(connection.put(episode(1)))
        for _ in range(200):  # enough for a goodbye, if one were said
            await asyncio.sleep(0)
        go_on.set()
        assert await put == server.hub.info().seq
        await closing
        with pytest.raises(HubUnavailable):
            await late
    await connection.close()
    with Hub(tmp_path / "lab") as hub:
        assert hub.stats().episodes == 1, "what came later was not begun"


async def test_what_was_acknowledged_before_a_shutdown_is_there(tmp_path: Path, episode: Make):
    pushed = [episode(n) for n in range(300)]
    async with fedlab.serve(tmp_path / "lab", port=0, embedder="hashing") as server:
        connection = fedlab.connect(server.url, retry_for=0)
        await connection.info()
        calls = [asyncio.ensure_future(connection.put(each)) for each in pushed]
        await calls[0]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    await connection.close()
    acknowledged = {each.id for each, outcome in zip(pushed, outcomes, strict=True) if isinstance(outcome, int)}
    assert all(isinstance(outcome, (int, HubUnavailable)) for outcome in outcomes)
    with Hub(tmp_path / "lab") as hub:
        assert acknowledged <= set(hub.episodes()["id"])
        assert hub.verify().ok


SERVER = """
import asyncio, sys, fedlab
async def main():
    async with fedlab.serve(sys.argv[1], port=int(sys.argv[2]), embedder="hashing") as server:
        print(server.url, flush=True)
        await server.until_signal()
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_cleanly(tmp_path: Path, episode: Make, number: signal.Signals):
    command = [sys.executable, "-c", SERVER, str(tmp_path / "lab"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = (await asyncio.to_thread(process.stdout.readline)).strip()
        async with fedlab.connect(url, retry_for=0) as connection:
            await connection.put(episode())
            process.send_signal(number)
            assert await asyncio.to_thread(process.wait, 20) == 0
            with pytest.raises(HubUnavailable, match=url):
                await connection.info()
        assert process.stderr.read() == ""
    with Hub(tmp_path / "lab") as hub:
        assert hub.stats().episodes == 1
