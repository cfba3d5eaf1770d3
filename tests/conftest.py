"""What every test may use: episodes that are quick to write, and a hub that needs no model."""

from __future__ import annotations

import datetime
import ipaddress
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedlab import Episode, Hub

MakeEpisode = Callable[..., Episode]

# A shell starts what it leaves in the background with Ctrl-C ignored, and some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = ["test_effects", "test_known_answers", "test_notebooks", "test_browser"]
"""Files that take minutes. The first fills the cache of embeddings, which the notebooks then find."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file to each core, the notebooks one by one, and the longest first: else one core waits for the other."""
    for item in items:
        alone = item.path.stem == "test_notebooks"
        item.add_marker(pytest.mark.xdist_group(item.name if alone else item.location[0]))
    last = len(LONGEST)
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else last)


@pytest.fixture
def episode() -> MakeEpisode:
    """`episode(7)` makes an episode that differs from `episode(8)`; keywords change its fields."""

    def make(number: int = 0, **fields: object) -> Episode:
        values: dict[str, object] = {
            "tenant_id": "acme",
            "agent_id": "agent-1",
            "task": f"task {number % 5}",
            "input": f"input {number}",
            "output": f"output {number}",
            "reward": number % 10 / 10,
        }
        return Episode(**(values | fields))

    return make


@pytest.fixture
def vector() -> Callable[[int], np.ndarray]:
    """`vector(7)`: a direction that depends on the number alone."""
    return lambda number: np.random.default_rng(number).normal(size=384).astype(np.float32)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """An empty hub in a real directory."""
    with Hub(tmp_path / "hub", embedder="hashing") as hub:
        yield hub


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Files with a certificate for 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedlab test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    return cert_file, key_file
