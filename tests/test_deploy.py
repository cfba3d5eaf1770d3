"""The container's command and its health check, run as they stand, without a container."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.processes import HubProcess

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


def test_the_image_is_given_all_that_the_package_is_built_from():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = build["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", "hub_server.py"}
    needed |= {build["project"]["readme"], *build["project"]["license-files"]}
    copied = {word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert needed == copied == sent


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
