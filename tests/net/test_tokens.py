"""A token is genuine, alive, meant for this hub, and allows what its role and tenant allow; or it is refused."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlab.errors import AuthenticationError, InvalidRequest, PermissionDenied
from fedlab.net.tokens import Identity, load_key, make_token, read_token, token_end

KEY = b"k" * 32
CLAIMS: dict[str, Any] = {"aud": "hub", "role": "agent", "tenant": "acme", "iat": 1, "exp": 9_999_999_999}


def signed(key: bytes = KEY, **changes: Any) -> str:
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not ...}
    return jwt.encode(claims, key, algorithm="HS256")


def test_a_token_says_who_it_was_made_for():
    identity = read_token(KEY, "hub", make_token(KEY, "hub", "acme", "agent", "a1", expires_in=60))
    assert (identity.role, identity.tenant_id, identity.agent_id) == ("agent", "acme", "a1")
    assert time.time() < identity.expires_at <= time.time() + 61
    assert read_token(KEY, "hub", make_token(KEY, "hub", None, "admin")).tenant_id is None


def unsigned(algorithm: str) -> str:
    parts = [json.dumps({"alg": algorithm, "typ": "JWT"}), json.dumps(CLAIMS)]
    return ".".join(base64.urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts) + "."


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (signed(b"another key of thirty-two bytes!"), "signature"),
        (signed(exp=5), "expired"),
        (signed(aud="other"), "another hub"),
        (signed(exp=...), "lacks the claim exp"),
        (signed(aud=...), "lacks the claim aud"),
        (signed(role=...), "lacks the claim role"),
        (signed(tenant=...), "lacks the claim tenant"),
        (signed(role="root"), "role"),
        (signed(role=["admin"]), "role"),
        (signed(tenant="a/b"), "tenant"),
        (signed(tenant={"$ne": ""}), "tenant"),
        (signed(agent=7), "agent"),
        (signed(exp="soon"), "valid token"),
        (unsigned("none"), "HS256"),
        (unsigned("None"), "valid token|HS256"),
        (unsigned("HS512"), "HS256"),
        (signed()[:-5] + "AAAAA", "signature"),
        ("", "valid token"),
        ("a.b.c", "valid token"),
        ("x" * 100_000, "valid token"),
    ],
)
def test_a_bad_token_is_refused_and_told_why(token: str, says: str):
    with pytest.raises(AuthenticationError, match=says):
        read_token(KEY, "hub", token)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_whatever_is_sent_as_a_token_is_refused_in_order(token: str):
    with pytest.raises(AuthenticationError):
        read_token(KEY, "hub", token)


@pytest.mark.parametrize(
    "arguments", [("acme", "root"), (None, "agent"), (None, "observer"), ("a/b", "agent"), ("", "agent")]
)
def test_a_token_that_would_be_refused_is_not_made(arguments: tuple[Any, Any]):
    with pytest.raises(InvalidRequest):
        make_token(KEY, "hub", *arguments)


@pytest.mark.parametrize("expires_in", [0, -1, float("nan"), float("inf")])
def test_a_token_ends_some_time(expires_in: float):
    with pytest.raises(InvalidRequest, match="expires_in"):
        make_token(KEY, "hub", "acme", "agent", expires_in=expires_in)


def test_the_key_is_made_once_and_is_for_its_owner_only(tmp_path: Path):
    path = tmp_path / "hub.key"
    keys: list[bytes] = []
    threads = [threading.Thread(target=lambda: keys.append(load_key(path, create=True))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["hub.key"]


def test_a_key_that_others_can_read_is_refused(tmp_path: Path):
    path = tmp_path / "hub.key"
    load_key(path, create=True)
    path.chmod(0o640)
    with pytest.raises(AuthenticationError, match="chmod 600"):
        load_key(path, create=True)


def test_a_key_that_is_none_is_refused(tmp_path: Path):
    path = tmp_path / "hub.key"
    with pytest.raises(AuthenticationError, match="can not be read"):
        load_key(path)
    path.touch(0o600)
    with pytest.raises(AuthenticationError, match="no key"):
        load_key(path)


def test_roles_are_ordered_and_tenants_are_walls():
    observer, admin = Identity(role="observer", tenant_id="acme"), Identity(role="admin")
    with pytest.raises(PermissionDenied, match="agent"):
        observer.check_role("agent", "put")
    admin.check_role("agent", "put")
    assert observer.check_tenant(None) == "acme"
    assert admin.check_tenant(None) is None
    for other in ("acme2", "Acme", "acme/", "acm\u0435", "", "acme\0"):
        with pytest.raises(PermissionDenied):
            observer.check_tenant(other)


def test_the_end_of_a_token_can_be_read_without_the_key():
    assert token_end(signed(exp=17)) == 17
    for none in ("", "a.b.c", signed(exp=...), signed(exp="soon"), make_token(KEY, "hub", None, "admin")[:-30] + "é"):
        assert token_end(none) is None


def test_a_key_that_can_not_be_written_is_named(tmp_path: Path):
    with pytest.raises(OSError, match=r"the hub's key can not be written.*missing/hub\.key"):
        load_key(tmp_path / "missing" / "hub.key", create=True)
