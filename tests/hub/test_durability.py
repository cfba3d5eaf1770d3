"""An acknowledged episode survives `kill -9` of the process that has the hub open, embedded."""

from __future__ import annotations

import random
import signal
import subprocess
import sys

import pytest

from fedlab import Hub

WRITER = """
import sys, threading
from fedlab import Episode, Hub

def work(hub, number):
    vector = [float(number + 1)] * 8
    while True:
        batch = [Episode(tenant_id=f"t{number}", agent_id="a", task="t", input=str(n), output="", reward=0, vector=vector) for n in range(5)]
        hub.put(batch if number else batch[0])
        if number:
            hub.forget(f"t{number}", [batch[4].id], reason="r")
            del batch[4]
        sys.stdout.write("".join(f"{each.id}\\n" for each in (batch if number else batch[:1])))
        sys.stdout.flush()

hub = Hub(sys.argv[1], embedder="hashing-8")
for number in range(4):
    threading.Thread(target=work, args=(hub, number)).start()
"""


@pytest.mark.parametrize("round_", range(5))
def test_every_acknowledged_episode_is_there_once_after_sigkill(tmp_path, round_):
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        lines = random.Random(round_).randint(1, 800)
        acknowledged = [process.stdout.readline().strip() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [line.strip() for line in process.stdout if line.endswith("\n") and len(line) == 37]
    assert process.returncode == -signal.SIGKILL
    with Hub(tmp_path) as hub:
        ids = hub.episodes()["id"].to_list()
        assert len(ids) == len(set(ids))
        assert set(acknowledged) <= set(ids)
        assert hub.verify().problems == []
        forgotten = {each.subject for each in hub.read_changes(kind="episode_forgotten", limit=None)}
        assert not forgotten & set(ids)
