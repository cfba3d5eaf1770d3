"""The commands: what they print, their exit codes, and a hub process that is stopped, interrupted and killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import typer.main

import fedlab
from fedlab import Hub
from fedlab.cli import main
from fedlab.cli.serving import warm_up
from fedlab.cli.shared import app
from fedlab.embedders import Hashing
from fedlab.net import SETTINGS
from tests.processes import HubProcess

Make = Callable[..., Any]


class Result(NamedTuple):
    code: Any
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    monkeypatch.delenv("FEDLAB_TOKEN", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("stats", "lab")`: a command in this process."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(each) for each in arguments])
        return Result(stop.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def lab(tmp_path: Path, episode: Make) -> Path:
    """The directory of a hub with twelve changes: two tenants, of five episodes each."""
    with Hub(tmp_path / "lab", embedder="hashing") as hub:
        hub.put([episode(i, tenant_id=tenant) for tenant in ("acme", "globex") for i in range(5)])
    return tmp_path / "lab"


@pytest.fixture
def running(lab: Path) -> Iterator[HubProcess]:
    with HubProcess(lab) as process:
        yield process


@contextlib.contextmanager
def command(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, which ends here if it has not yet."""
    words = [sys.executable, "-m", "fedlab", *map(str, arguments)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


# --- help and wrong usage --------------------------------------------------------------------------------------


def test_help_explains_every_command_and_every_option(run: Run):
    group: Any = typer.main.get_command(app)
    overview = run("--help")
    assert overview.code == 0
    for name, each in group.commands.items():
        assert name in overview.out
        helped = run(name, "--help")
        assert helped.code == 0
        assert each.help.split()[0] in helped.out
        assert [option.name for option in each.params if not option.help] == []
    assert run().code == 2, "no command at all: the overview, and an exit code that a script notices"


def test_the_version_is_printed(run: Run):
    assert run("--version")[:2] == (0, f"fedlab {fedlab.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["hub"],
        ["hub", "--data", "d", "--port", "99999"],
        ["hub", "--data", "d", "--port", "http"],
        ["hub", "--data", "d", "--retention-interval", "-1"],
        ["hub", "--data", "d", "--log-level", "loud"],
        ["hub", "--data", "d", "--keep-forgotten", "1e99"],
        ["hub", "--data", "d", "--retention-interval", "inf"],
        ["hub", "--data", "d", "--set", "lease=1e99"],
        ["hub", "--data", "d", "--set", "foo=1"],
        ["hub", "--data", "d", "--set", "page_rows"],
        ["hub", "--data", "d", "--set", "page_rows=many"],
        ["hub", "--data", "d", "--set", "page_rows=0"],
        ["token", "--data", "d"],
        ["token", "--data", "d", "--role", "boss"],
        ["token", "--data", "d", "--role", "admin", "--expires", "0"],
        ["stats"],
        ["tail", "d", "--lines", "-1"],
        ["tail", "d", "--lines", "99999999999999999999"],
        ["verify", "d", "e"],
        ["demo", "--generations", "1"],
        ["demo", "--seed", "-1"],
        ["retention", "d", "acme", "--set", "MaxAge(ninety)"],
        ["retention", "d", "acme", "--preview", "--apply"],
        ["retention", "d", "acme", "--preview", "--after", "1e99"],
        ["release", "d", "acme", "x1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2_and_leaves_nothing(
    run: Run, arguments: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Usage: fedlab" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["stats", "nowhere"], "nowhere is no hub"),
        (["tail", "empty"], "empty is no hub"),
        (["verify", "file"], "file is no hub"),
        (["stats", "lab", "--tenant", "acmee"], "spelled right"),
        (["tail", "lab", "--tenant", "acmee", "--no-follow"], "spelled right"),
        (["stats", "ws://127.0.0.1:9"], "no hub answers at ws://127.0.0.1:9"),
        (["stats", "http://127.0.0.1:9"], "looks like ws://"),
        (["token", "--data", "empty", "--role", "admin"], "fedlab hub --data"),
        (["token", "--data", "lab", "--role", "agent"], "needs a tenant"),
        (["hub", "--data", "file"], "is a file"),
        (["hub", "--data", "file/under"], "is a file"),
        (["hub", "--data", "new", "--host", "0.0.0.0"], "without TLS"),
        (["hub", "--data", "new", "--tls-cert", "none.pem"], "none.pem"),
        (["hub", "--data", "new", "--tls-key", "none.pem"], "tls_cert"),
        (["hub", "--data", "lab", "--embedder", "hashing-64"], "hashing-384"),
        (["demo", "--output", "mine"], "no demo has made"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_fails_is_exit_code_1_and_a_sentence(
    run: Run, arguments: Sequence[str], says: str, lab: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(lab.parent)
    Path("empty").mkdir()
    Path("file").write_text("text")
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("mine")
    result = run(*arguments)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("fedlab: ")
    assert says in result.err
    assert "Traceback" not in result.err
    assert list(Path("empty").iterdir()) == []


def test_an_operating_system_that_refuses_is_a_sentence_too(run: Run):
    result = run("hub", "--data", "/proc/lab", "--embedder", "hashing")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("fedlab: ")
    assert "/proc/lab" in result.err


def test_an_embedder_that_does_not_exist_is_asked_for_once_named_with_the_choices_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Whoever is asked hangs up, as on a machine without a network; the libraries would ask for more than a minute.
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        asked: list[bytes] = []

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with nobody.accept()[0] as client:
                        asked.append(client.recv(4096))

        threading.Thread(target=hang_up, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "models"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        with command("hub", "--data", tmp_path / "lab", "--port", 0, "--embedder", "nonsense") as hub:
            out, err = hub.communicate(timeout=120)
        nobody.shutdown(socket.SHUT_RDWR)
    assert (hub.returncode, out, sum(b"nonsense" in each for each in asked)) == (1, "", 1)
    assert err.startswith("fedlab: the embedder 'nonsense' could not be loaded: it is not on this machine, and http")
    assert "It must be 'minilm', 'hashing', 'hashing-N'" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "lab").exists()


def test_a_path_that_leads_to_no_embedder_says_so(run: Run, tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", "./none", tmp_path / "file"):
        failed = run("hub", "--data", tmp_path / "lab", "--embedder", path)
        assert (failed.code, f"{str(path)!r} could not be loaded: there is no such directory" in failed.err) == (
            1,
            True,
        )


def test_ctrl_c_before_the_commands_are_there_is_no_stack_trace(tmp_path: Path):
    """Half of the imports are done then."""
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport nonsense\n")
    here = Path(__file__).parents[1]
    path = os.pathsep.join([str(tmp_path), str(here)])
    for script in (["-m", "fedlab", "demo"], [str(here / "hub_server.py"), "--data", str(tmp_path / "lab")]):
        ended = subprocess.run(
            [sys.executable, *script],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_one_thing_is_no_plural(run: Run, tmp_path: Path, episode: Make):
    with Hub(tmp_path / "lab", embedder="hashing") as hub:
        hub.put(episode())
        assert repr(hub).endswith("1 episode of 1 tenant, 0 agents alive)")
    assert "\n1 episode (0 forgotten), 1 tenant, 0 agents lived, 0 alive\n" in run("stats", tmp_path / "lab").out
    assert run("verify", tmp_path / "lab").out == "1 episode and 3 changes agree\n"
    assert "1 episode of 1 tenant, " in run("backup", tmp_path / "lab", tmp_path / "backup").out
    assert run("retention", tmp_path / "lab", "acme", "--set", "MaxAge(1)").out.startswith(
        "acme: keep what is at most 1 day old"
    )


# --- reading a hub ---------------------------------------------------------------------------------------------


def test_a_directory_a_running_hub_and_its_url_are_read_alike(run: Run, lab: Path):
    resting = run("stats", lab), run("tail", lab, "--no-follow"), run("verify", lab)
    with HubProcess(lab) as process:
        for target in (lab, process.url):
            stats, tail, verify = run("stats", target), run("tail", target, "--no-follow"), run("verify", target)
            # The size on disk is the running hub's own: it counts the write-ahead log too.
            assert stats.out.splitlines()[1:] == resting[0].out.splitlines()[1:]
            assert (tail, verify) == resting[1:]
    assert [result.code for result in resting] == [0, 0, 0]
    assert "10 episodes (0 forgotten), 2 tenants" in resting[0].out
    assert resting[1].out.count("episode_stored") == 9, "the last ten changes, one of which is globex's beginning"
    assert "10 episodes and 13 changes agree" in resting[2].out


def test_numbers_and_changes_are_json_for_programs(run: Run, lab: Path):
    numbers = json.loads(run("stats", lab, "--json").out)
    assert numbers["episodes"] == 10
    assert [row["tenant_id"] for row in numbers["by_tenant"]] == ["acme", "globex"]
    assert json.loads(run("stats", lab, "--tenant", "acme", "--json").out)["episodes"] == 5
    changes = [json.loads(line) for line in run("tail", lab, "--no-follow", "-n", 3, "--json").out.splitlines()]
    assert [(each["seq"], each["tenant_id"]) for each in changes] == [(seq, "globex") for seq in (11, 12, 13)]


def test_the_tail_of_one_tenant_reaches_back_as_far_as_it_has_to(run: Run, lab: Path):
    for lines, expected in ((0, []), (2, [6, 7]), (100, [2, 3, 4, 5, 6, 7])):
        printed = run("tail", lab, "--no-follow", "--tenant", "acme", "--lines", lines, "--json").out
        assert [json.loads(line)["seq"] for line in printed.splitlines()] == expected


def test_tail_follows_what_is_committed_until_ctrl_c(running: HubProcess, episode: Make):
    with command("tail", running.data, "-n", 1) as tail, fedlab.connect_sync(running.url) as hub:
        assert tail.stdout is not None
        assert tail.stdout.readline().split()[0] == "13"
        hub.put(episode(100))
        uid = hub.changes(13)["subject"][0]
        hub.forget("acme", [uid], reason="it was wrong")
        assert f"{uid}  by admin" in tail.stdout.readline()
        assert "episode_forgotten" in (line := tail.stdout.readline())
        assert line.endswith("(it was wrong)\n")
        tail.send_signal(signal.SIGINT)
        assert tail.wait(30) == 0
        assert tail.stderr is not None
        assert tail.stderr.read() == ""


def test_what_others_wrote_neither_ends_a_line_nor_commands_the_terminal(run: Run, tmp_path: Path, episode: Make):
    with Hub(tmp_path / "lab", embedder="hashing") as hub:
        hub.put(episode(0, task="t\n  9  forged\x1b[31m \N{SNOWMAN}"))
        hub.hold("acme", hub.episodes("acme")["id"].to_list(), reason="r\n\x1b[2J \N{SNOWMAN}")
    tail, held = run("tail", tmp_path / "lab", "--no-follow"), run("hold", tmp_path / "lab", "acme")
    assert tail.out.count("\n") == 4
    assert tail.out.endswith("(r\\n\\x1b[2J \N{SNOWMAN})\n")
    assert (held.out.count("\n"), "  t\\n  9  forged\\x1b[31m \N{SNOWMAN}  " in held.out) == (1, True)
    preview = run("retention", tmp_path / "lab", "acme", "--set", "MinReward(1)", "--preview").out
    assert "\x1b" not in preview
    narrow = [sys.executable, "-m", "fedlab", "hold", str(tmp_path / "lab"), "acme"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    shown = subprocess.run(narrow, env=environment, capture_output=True, text=True, check=True)
    assert "\\u2603" in shown.stdout, "an encoding that lacks a character is no stack trace"


def test_a_hub_whose_model_is_still_loading_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sentence_transformers.py").write_text("import threading\nthreading.Event().wait()\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])]))
    with command("hub", "--data", tmp_path / "lab", "--port", 0) as hub:
        assert hub.stderr is not None
        assert "embedder" in [hub.stderr.readline(), hub.stderr.readline()][1]
        hub.send_signal(signal.SIGTERM)
        assert hub.wait(60) == 0
        assert "the hub is closed" in hub.stderr.read()
    assert not (tmp_path / "lab" / "hub.pid").exists()


def test_a_reader_that_has_read_enough_is_no_stack_trace(lab: Path):
    with command("tail", lab, "--no-follow") as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        tail.stdout.close()
        tail.wait(30)
        assert tail.stderr.read() == ""


def test_verify_says_what_is_damaged_with_exit_code_3(run: Run, lab: Path):
    with contextlib.closing(sqlite3.connect(lab / "hub.db")) as database, database:
        database.execute("update episodes set output = 'other' where id = 3")
    result = run("verify", lab)
    assert result.code == 3
    assert "(number 3): its text or numbers are damaged" in result.out
    (lab / "hub.db").write_bytes(b"no database" * 1000)
    result = run("verify", lab)
    assert result.code == 3
    assert f"{lab / 'hub.db'} is damaged (file is not a database). Put a backup in its place" in result.err
    assert "fedlab restore BACKUP" in result.err
    assert result.err.count("damaged") == 1


# --- tokens ----------------------------------------------------------------------------------------------------


def test_a_token_opens_what_its_role_allows(run: Run, running: HubProcess):
    made = run("token", "--data", running.data, "--tenant", "acme", "--role", "observer", "--expires", 300)
    assert (made.code, made.err) == (0, "")
    token = made.out.strip()
    assert "acme" in (numbers := run("stats", running.url, "--token", token).out)
    assert "globex" not in numbers
    refused = run("verify", running.url, "--token", token)
    assert refused.code == 1
    assert "needs the role admin" in refused.err
    forged = run("stats", running.url, "--token", token[:-2])
    assert forged.code == 1
    admin = run("token", "--data", running.data, "--role", "admin").out.strip()
    assert run("verify", running.url, "--token", admin).code == 0


def test_a_token_may_come_from_the_environment(run: Run, running: HubProcess, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FEDLAB_TOKEN", "forged")
    assert run("stats", running.url).code == 1
    monkeypatch.setenv("FEDLAB_TOKEN", run("token", "--data", running.data, "--role", "admin").out.strip())
    assert run("stats", running.url).code == 0


# --- a hub process ---------------------------------------------------------------------------------------------


def test_settings_lists_every_limit_with_its_default(run: Run):
    lines = run("settings").out.splitlines()
    assert [line.split()[0] for line in lines] == [each.name for each in SETTINGS]
    assert all(str(each.default) in line and each.help in line for each, line in zip(SETTINGS, lines, strict=True))


def test_a_limit_is_set_from_the_shell(tmp_path: Path):
    origins = "https://lab.example", "https://other.example"
    options = ["--set", f"origins={','.join(origins)}", "--set", "max_connections=1"]
    with HubProcess(tmp_path / "lab", options=options) as process:

        def ask(origin: str) -> None:
            url = process.url.replace("ws:", "http:") + "/health"
            with urllib.request.urlopen(urllib.request.Request(url, headers={"Origin": origin}), timeout=10) as answer:
                answer.read()

        for origin in origins:
            ask(origin)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask("https://foreign.example")
        refused.value.close()
        with fedlab.connect_sync(process.url), pytest.raises(fedlab.HubUnavailable, match="max_connections"):
            fedlab.connect_sync(process.url, retry_for=0)


def test_every_option_of_a_hub_reaches_it(tmp_path: Path, episode: Make, certificate: tuple[Path, Path]):
    cert, key = certificate
    options = {
        "--host": "127.0.0.1",
        "--tls-cert": cert,
        "--tls-key": key,
        "--retention-interval": 1234,
        "--backup-dir": tmp_path / "backups",
        "--backup-interval": 4321,
        "--backup-keep": 3,
        "--keep-forgotten": 2,
        "--log-level": "warning",
    }
    words = [str(word) for pair in options.items() for word in pair]
    process = HubProcess(tmp_path / "lab", options=words, tls_ca=cert)
    with process, fedlab.connect_sync(process.url, tls_ca=cert) as hub:
        schedule = hub.schedule()
        assert (schedule.retention_interval, schedule.backup_interval, schedule.backup_keep) == (1234, 4321, 3)
        assert schedule.backup_directory == str(tmp_path / "backups")
        assert hub.info().embedder == "hashing-384"
        hub.put(episode())
        hub.forget("acme", hub.episodes()["id"].to_list(), reason="r")
        assert hub.stats().kept == 1
        stats = [sys.executable, "-m", "fedlab", "stats", str(tmp_path / "lab")]
        environment = {**os.environ, "SSL_CERT_FILE": str(cert)}
        assert "(1 forgotten, 1 of them kept)" in subprocess.check_output(stats, env=environment, text=True)
        distrusted = subprocess.run(stats, capture_output=True, text=True, check=False)
        assert (distrusted.returncode, "$SSL_CERT_FILE" in distrusted.stderr) == (1, True)
    assert process.log.read_text() == "", "neither started nor ended, as far as warnings go"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_hub_shuts_down_cleanly_and_says_what_it_did(tmp_path: Path, episode: Make, number: signal.Signals):
    data = tmp_path / "lab"
    with command("hub", "--data", data, "--port", 0, "--embedder", "hashing") as hub:
        assert hub.stderr is not None
        begins = hub.stderr.readline()
        url = begins.split(" at ")[1].split(",")[0]
        with fedlab.connect_sync(url) as connection:
            connection.put(episode())
        assert (data / "hub.pid").exists()
        hub.send_signal(number)
        assert hub.wait(30) == 0
        lines = [begins, *hub.stderr.read().splitlines()]
        assert ["INFO" in line and line[:4].isdecimal() for line in lines] == [True] * 4
        assert lines[-1].endswith(f"the hub is closed; everything acknowledged is in {data}")
    assert not (data / "hub.pid").exists()


def test_a_killed_hub_starts_again_with_all_it_had(run: Run, lab: Path, episode: Make):
    process = HubProcess(lab)
    process.start()
    with fedlab.connect_sync(process.url) as connection:
        connection.put(episode(100))
    process.kill()
    assert "11 episodes and 14 changes agree" in run("verify", lab).out, "the directory of a killed hub can be read"
    with process:
        assert "11 episodes (0 forgotten)" in run("stats", process.url).out


def test_two_hubs_share_neither_a_directory_nor_a_port(run: Run, running: HubProcess, tmp_path: Path):
    same = run("hub", "--data", running.data, "--port", 0)
    assert same.code == 1
    assert (running.data / "hub.pid").read_text().strip() in same.err
    other = run("hub", "--data", tmp_path / "other", "--port", running.port, "--embedder", "hashing")
    assert other.code == 1
    assert "address already in use" in other.err
    assert "hub.pid" not in [path.name for path in (tmp_path / "other").iterdir()], "the directory was let go of"


# --- erasing ---------------------------------------------------------------------------------------------------


def test_a_tenant_is_erased_once_its_name_was_typed_and_the_ledger_tells(
    run: Run, lab: Path, monkeypatch: pytest.MonkeyPatch
):
    for typed, code in (("globex\n", 1), ("", 1), ("acme\n", 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        done = run("erase", lab, "acme", "--reason", "request 17")
        assert done.code == code
    assert "5 episodes" in done.out
    ledger = run("erasures", lab)
    assert "tenant" in ledger.out
    assert "by local (request 17)" in ledger.out
    assert "acme" not in ledger.out
    (row,) = map(json.loads, run("erasures", lab, "--json").out.splitlines())
    assert (row["scope"], row["episodes"]) == ("tenant", 5)
    assert run("erase", lab, "acme", "--reason", "r", "--yes").code == 1
    assert "globex" in run("stats", lab).out


def test_an_agent_and_episodes_are_erased_from_a_running_hub(run: Run, running: HubProcess, episode: Make):
    with fedlab.connect_sync(running.url) as hub:
        hub.put([episode(1, id="x1", agent_id="zed"), episode(2, id="x2"), episode(3, id="x3")])
    options = ("--reason", "r", "--yes")
    assert run("erase", running.data, "acme", "x2", *options, "--agent", "zed").code == 2
    assert "1 episode," in run("erase", running.data, "acme", *options, "--agent", "zed").out
    erased = run("erase", running.url, "acme", "x2", "x3", "x4", "x3", *options)
    assert "2 episodes" in erased.out
    assert erased.err == "never here: 'x4'; spelled right?\n"
    again = run("erase", running.url, "acme", "x2", *options)
    assert (again.code, again.err) == (0, "")
    assert "erased before, 1 of the ids: 'x2'" in again.out
    assert run("erasures", running.url).out.count("\n") == 3
    assert "('x4' …): nothing was erased" in run("erase", running.url, "acme", "x4", *options).err


# --- backup, restore, fork --------------------------------------------------------------------------------------------


def test_a_running_hub_is_backed_up_verified_restored_and_forked(running: HubProcess, run: Run, tmp_path: Path) -> None:
    first = run("backup", running.data, tmp_path / "first")
    assert (first.code, first.err) == (0, "")
    assert first.out.startswith("full backup of hub ")
    with fedlab.connect_sync(running.url) as hub:
        seq = hub.info().seq
        hub.forget("acme", hub.episodes("acme")["id"].to_list(), reason="all")
    second = run("backup", running.data, tmp_path / "second", "--base", tmp_path / "first")
    assert second.out.startswith("incremental backup of hub ")
    whole = run("backup", "--verify", tmp_path / "second")
    assert (whole.code, f"{tmp_path / 'second'} is whole" in whole.out) == (0, True)
    assert "5 episodes" in run("restore", tmp_path / "second", tmp_path / "restored").out
    assert "10 episodes" in run("restore", tmp_path / "first", tmp_path / "restored", "--overwrite").out
    assert "5 episodes" in run("fork", running.data, tmp_path / "now").out
    assert "0 episodes" in run("fork", running.data, tmp_path / "then", "--at", 1).out
    assert "5 episodes, live then and not kept since" in run("fork", running.data, tmp_path / "x", "--at", seq).out
    forked = run("fork", running.data, tmp_path / "kept", "--at", "2100-01-01T00:00+02:00")
    assert (forked.code, "5 episodes" in forked.out) == (0, True)
    assert "agree" in run("verify", tmp_path / "then").out
    assert run("fork", running.data, tmp_path / "late", "--at", seq + 100).code == 1


def test_a_hub_is_backed_up_by_its_url_where_its_server_has_a_place_for_it(lab: Path, run: Run, tmp_path: Path) -> None:
    with HubProcess(lab, options=["--backup-dir", str(tmp_path / "backups")]) as process:
        made = run("backup", process.url, "by-hand")
        assert (made.code, made.err) == (0, "")
        assert "full backup" in run("backup", "--verify", tmp_path / "backups" / "by-hand").out
        assert "plain name" in run("backup", process.url, "../elsewhere").err
        assert "by-hand is whole: full backup" in run("backup", process.url, "--verify", "by-hand").out
        assert "is missing" in run("backup", process.url, "--verify", "nothing").err
        run("backup", process.url, "more", "--base", "by-hand")
        listed = run("backup", process.url, "--list").out.splitlines()
        assert [line.split()[0] for line in listed] == ["more", "by-hand"]
        assert [line.rpartition("episodes  ")[2] for line in listed] == ["on by-hand", "full"]
        forked = run("fork", process.url, "fork", "--at", 7)
        assert (forked.code, forked.err) == (0, "")
        assert "5 episodes of 1 tenant, as of change 7" in forked.out
        assert "5 episodes" in run("stats", tmp_path / "backups" / "fork").out
        assert "plain name" in run("fork", process.url, "../elsewhere").err
        for wrong in ((), ("x", "--list"), ("x", "--verify", "x")):
            assert run("backup", process.url, *wrong).code == 2


def test_what_can_not_be_backed_up_or_restored_is_said(lab: Path, run: Run, tmp_path: Path) -> None:
    assert run("backup").code == run("backup", lab).code == run("backup", lab, "x", "--verify", "y").code == 2
    assert "is no hub" in run("backup", tmp_path, tmp_path / "backup").err
    assert "is missing" in run("backup", "--verify", tmp_path).err
    run("backup", lab, tmp_path / "backup")
    assert "overwritten" in run("restore", tmp_path / "backup", lab).err
    assert "is a backup" in run("stats", tmp_path / "backup").err
    assert run("backup", "--verify", tmp_path / "backup").code == 0
    assert "inside" in run("backup", lab, lab / "backup").err
    assert run("backup", "--list").code == run("backup", lab, "--list").code == 2
    for wrong in (("ws://127.0.0.1:1", tmp_path / "new"), (tmp_path / "backup", "ws://127.0.0.1:1")):
        assert "ws://127.0.0.1:1 is a URL, and a hub is not restored while it runs" in run("restore", *wrong).err
    assert "--at" in run("restore", tmp_path / "backup", tmp_path / "new", "--at", "yesterday").err


# --- retention and holds ---------------------------------------------------------------------------------------


def test_a_policy_is_previewed_set_shown_and_applied_from_the_shell(run: Run, lab: Path):
    assert run("retention", lab, "acme").out == "acme: keep everything forever\nKeepForever()\n"
    policy = "MinReward(0.3) & MaxAge(90).where(task='task 1')"
    preview = run("retention", lab, "acme", "--set", policy, "--preview")
    assert "3 of 5 episodes would go" in preview.out
    assert json.loads(run("retention", lab, "acme", "--set", policy, "--preview", "--json").out)["removed"] == 3
    assert "KeepForever()" in run("retention", lab, "acme").out
    shown = run("retention", lab, "acme", "--set", policy).out
    assert shown.endswith("MinReward(reward=0.3) & MaxAge(days=90.0).where(task='task 1')\n")
    stored = run("retention", lab, "acme", "--json").out
    assert "3 of 5 episodes would go" in run("retention", lab, "acme", "--preview").out
    assert run("retention", lab, "acme", "--apply").out == "acme: 3 episodes forgotten\n"
    assert json.loads(run("retention", lab, "globex", "--set", stored, "--apply", "--json").out)["removed"] == {
        "globex": 3
    }
    assert run("retention", lab, "acne").code == 1


def test_the_policies_of_all_tenants_are_shown_and_applied(run: Run, lab: Path):
    for tenant, least in (("acme", 0.2), ("globex", 0.3)):
        run("retention", lab, tenant, "--set", f"MinReward({least})")
    shown = run("retention", lab)
    assert (shown.code, shown.out.count("MinReward")) == (0, 2)
    applied = run("retention", lab, "--apply")
    assert applied.out == "acme: 2 episodes forgotten\nglobex: 3 episodes forgotten\n"
    assert run("retention", lab, "--preview").code == run("retention", lab, "--set", "MaxAge(1)").code == 2
    with contextlib.closing(sqlite3.connect(lab / "hub.db")) as database, database:
        database.execute("""UPDATE tenants SET retention = '{"policy":"Foreign"}' WHERE tenant_id = 'acme'""")
    failed = run("retention", lab, "--apply")
    assert (failed.code, "acme: failed: " in failed.out, "globex: 0 episodes" in failed.out) == (1, True, True)
    for days in ("nan", "inf", "1e300", "-1"):
        assert run("retention", lab, "globex", "--preview", "--after", days).code == 2
        assert run("hub", "--data", lab, "--keep-forgotten", days).code == 2


def test_a_policy_of_ones_own_is_imported_where_it_is_applied_and_where_it_is_typed(
    lab: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "lucky.py").write_text(
        "from fedlab import RetentionPolicy\n"
        "from fedlab.retention import episodes\n"
        "class Lucky(RetentionPolicy, frozen=True):\n"
        "    digit: int\n"
        "    def condemned(self, rows):\n"
        "        return ~episodes.c.input.endswith(str(self.digit))\n"
        "    def __str__(self):\n"
        "        return f'keep what ends in {self.digit}'\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ("acme", "--import", "lucky", "--set", "Lucky(3)")
    with HubProcess(lab) as process:
        assert "--import MODULE" in run("retention", process.url, *words).err
    with HubProcess(lab, options=["--import", "lucky"]) as process:
        assert "4 of 5 episodes would go" in run("retention", process.url, *words, "--preview").out
        assert run("retention", process.url, *words, "--apply").out == "acme: 4 episodes forgotten\n"
        assert "keep what ends in 3" in run("retention", process.url, *words[:3]).out
    assert run("retention", lab, "acme", "--import", "unlucky").err == (
        "fedlab: unlucky can not be imported: No module named 'unlucky'\n"
    )


def test_episodes_are_held_listed_and_released_in_a_running_hub(run: Run, running: HubProcess):
    with fedlab.connect_sync(running.url) as hub:
        first = hub.episodes("acme")["id"][0]
    assert run("hold", running.url, "acme", first, "--reason", "exemplar").out.startswith("1 episode held")
    assert run("hold", running.url, "acme", "--task", "task 2", "--min-reward", "0.1", "--reason", "r").out[0] == "1"
    lines = run("hold", running.data, "acme").out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(first)
    assert "(exemplar)" in lines[0]
    applied = run("retention", running.url, "acme", "--set", "MinReward(9)", "--apply")
    assert applied.out == "acme: 3 episodes forgotten\n"
    assert run("release", running.url, "acme", "--reason", "done", "--all").out == "2 episodes released\n"
    assert run("hold", running.url, "acme").out == ""
    assert run("hold", running.url, "acme", "--reason", "which?").code == 1
    for chosen in ([first], ["--all"], ["--task", "task 2"]):
        refused = run("hold", running.url, "acme", *chosen)
        assert (refused.code, "nothing was held" in refused.err) == (2, True)
    assert run("hold", running.url, "acme", "--until", "2001-01-01T00:00", "--reason", "r").out[0] == "0"
    assert "yesterday" in run("hold", running.url, "acme", "--since", "yesterday", "--reason", "r").err
    left = run("hold", running.url, "acme", "--all", "--reason", "r").out[0]
    assert len([json.loads(line)["id"] for line in run("hold", running.url, "acme", "--json").out.splitlines()]) == int(
        left
    )
    assert run("forget", running.url, "acme", first, "--reason", "r").code == 1  # held
    assert run("release", running.url, "acme", first, "--reason", "r").code == 0
    gone = run("forget", running.url, "acme", first, "mistyped", "--reason", "r")
    assert (gone.code, gone.out) == (0, "1 episode forgotten\n")
    assert "of 1 of the ids nothing was here" in gone.err
    wrong = run("hold", running.url, "acme", "nobody", "--reason", "r")
    assert wrong.code == 1
    assert "'nobody'" in wrong.err


def test_a_hub_that_starts_again_loads_its_model_again(tmp_path: Path):
    class Counting(Hashing):
        calls = 0

        def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            self.calls += 1
            return super().embed(texts)

    for _ in range(2):
        with Hub(tmp_path / "hub", embedder=Counting()) as hub:
            before = hub.embedder.calls
            warm_up(hub)
            assert hub.embedder.calls > before
