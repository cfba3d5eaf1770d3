"""The container's command and its health check, run as they stand, without a container."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.processes import HubProcess

DOCKERFILE = (Path(__file__).parents[1] / "deploy/Dockerfile").read_text()


def test_the_containers_hub_starts_is_healthy_and_stops(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(tmp_path / "runtime"))
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    options = json.loads(entry)[4:]
    assert json.loads(entry)[:4] == ["python", "hub_server.py", "--data", "/data"]
    (check,) = re.findall(r"^HEALTHCHECK [^\n]*CMD (.*?[^\\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)

    def healthy() -> bool:
        words = shlex.split(check.replace("\\\n", "").replace(":8443/", f":{process.port}/"))
        return subprocess.run([sys.executable, *words[1:]], check=False, stderr=subprocess.DEVNULL).returncode == 0

    process = HubProcess(tmp_path / "data", options=[*options, "--insecure"])
    with process:
        assert healthy()
        assert process.stop() == 0
    assert not healthy()
