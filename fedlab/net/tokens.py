"""Who may do what: tokens (JWT, HS256), the key that signs them, and the roles.

A token names its hub, its tenant, perhaps its agent, a role and an end. Nothing here talks to the network.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from typing import TYPE_CHECKING, Any, Literal, get_args

import jwt
import msgspec

from fedlab.episode import check_name
from fedlab.errors import AuthenticationError, InvalidRequest, PermissionDenied

if TYPE_CHECKING:
    from pathlib import Path

Role = Literal["observer", "agent", "admin"]
"""`observer` reads one tenant; `agent` also writes as itself; `admin` may do everything."""

ROLES: tuple[Role, ...] = get_args(Role)
KEY_FILE = "hub.key"
MAX_TOKEN = 4096
"""Longest token in characters: ours have about 300."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says about its bearer.

    Args:
        role: See `Role`.
        tenant_id: The only tenant it may touch; None (admins only) for all.
        agent_id: The only agent it may write as; None for any of its tenant.
        expires_at: Seconds since 1970; infinite for who needs no token.
    """

    role: Role
    tenant_id: str | None = None
    agent_id: str | None = None
    expires_at: float = float("inf")

    @property
    def name(self) -> str:
        """How the change log names this actor."""
        return self.agent_id or self.role

    def check_role(self, least: Role, what: str) -> None:
        """Raise PermissionDenied if `what` needs more than this role."""
        if ROLES.index(self.role) < ROLES.index(least):
            raise PermissionDenied(f"{what} needs the role {least}, and this token has the role {self.role}")

    def check_tenant(self, tenant_id: str | None) -> str | None:
        """`tenant_id`, or the token's own if none is named; PermissionDenied for a foreign one."""
        if self.tenant_id is None or tenant_id == self.tenant_id:
            return tenant_id
        if tenant_id is None:
            return self.tenant_id
        raise PermissionDenied(f"this token is for tenant {self.tenant_id!r} and not for {tenant_id!r:.80}")

    def check_agent(self, agent_id: str) -> None:
        """Raise PermissionDenied if the token may not write as this agent."""
        if self.agent_id is not None and agent_id != self.agent_id:
            raise PermissionDenied(f"this token is for agent {self.agent_id!r} and not for {agent_id!r:.80}")


def load_key(path: Path, *, create: bool = False) -> bytes:
    """The key that signs a hub's tokens.

    Args:
        path: The key file.
        create: Whether to make one (mode 0600) if there is none.

    Raises:
        AuthenticationError: If it is missing, too short, or others than its owner can read it.
        OSError: If it can not be made.
    """
    if create and not path.exists():
        try:
            _create_key(path)
        except OSError as error:
            raise OSError(error.errno, f"the hub's key can not be written: {error.strerror}", str(path)) from None
    try:
        info = path.stat()
        key = path.read_bytes()
    except OSError as error:
        raise AuthenticationError(f"the key {path} can not be read: {error.strerror}") from None
    if os.name == "posix" and stat.S_IMODE(info.st_mode) & 0o077:
        raise AuthenticationError(
            f"others than the owner can read the key {path} (mode {stat.S_IMODE(info.st_mode):o}): every token"
            " may be forged. Delete it, so that the hub makes a new one, or `chmod 600` if no one has seen it"
        )
    if len(key) < 32:
        raise AuthenticationError(f"{path} holds no key: {len(key)} bytes instead of 32. Delete it")
    return key


def _create_key(path: Path) -> None:
    # Written whole under another name and linked into place: who finds the file finds a whole key, and of two
    # processes that start at once both use the key of one.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def make_token(
    key: bytes, hub_id: str, tenant_id: str | None, role: Role, agent_id: str | None = None, expires_in: float = 3600.0
) -> str:
    """A signed token.

    Args:
        key: The hub's key.
        hub_id: The hub it is for.
        tenant_id: Its tenant; None (admins only) for all.
        role: `observer`, `agent` or `admin`.
        agent_id: Its agent; None for any agent of the tenant.
        expires_in: Seconds from now.

    Raises:
        InvalidRequest: On a role that does not exist, or one that needs a tenant and has none.
    """
    if role not in ROLES:
        raise InvalidRequest(f"{role!r:.40} is no role: {', '.join(ROLES)} are", field="role")
    if tenant_id is not None:
        check_name(tenant_id, "tenant_id")
    elif role != "admin" or agent_id is not None:
        raise InvalidRequest(f"a token with the role {role} needs a tenant_id", field="tenant_id")
    if agent_id is not None:
        check_name(agent_id, "agent_id")
    if not 0 < expires_in <= 100 * 365 * 86_400:
        raise InvalidRequest(f"expires_in is a positive number of seconds, not {expires_in}", field="expires_in")
    now = int(time.time())
    claims: dict[str, Any] = {"aud": hub_id, "role": role, "iat": now, "exp": now + max(1, round(expires_in))}
    if tenant_id is not None:
        claims["tenant"] = tenant_id
    if agent_id is not None:
        claims["agent"] = agent_id
    return jwt.encode(claims, key, algorithm="HS256")


def token_end(token: str) -> float | None:
    """When a token says that it ends, seconds since 1970; None if it does not. Its hub alone can tell if it is true."""
    try:
        end = jwt.decode(token, options={"verify_signature": False}).get("exp")
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        return None
    return float(end) if isinstance(end, (int, float)) else None


def read_token(key: bytes, hub_id: str, token: str) -> Identity:
    """Whom a token names, once it is proven genuine, alive and meant for this hub.

    Raises:
        AuthenticationError: Saying which of these it is not.
    """
    try:
        if len(token) > MAX_TOKEN:
            raise jwt.DecodeError(f"{len(token)} characters")
        claims = jwt.decode(
            token,
            key,
            algorithms=["HS256"],
            audience=hub_id,
            options={"require": ["aud", "exp", "iat", "role"], "verify_iat": False},
        )
        return _identity(claims)
    except jwt.ExpiredSignatureError:
        raise AuthenticationError("the token has expired: get a new one") from None
    except jwt.InvalidAudienceError:
        raise AuthenticationError("the token is for another hub") from None
    except jwt.MissingRequiredClaimError as error:
        raise AuthenticationError(f"the token lacks the claim {error.claim}") from None
    except jwt.InvalidAlgorithmError:
        raise AuthenticationError("the token is not signed with HS256") from None
    except jwt.InvalidSignatureError:
        raise AuthenticationError("the token's signature is not this hub's: forged, or of another hub") from None
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError, InvalidRequest) as error:
        raise AuthenticationError(f"this is no valid token: {error!s:.200}") from None


def _identity(claims: dict[str, Any]) -> Identity:
    role, tenant_id, agent_id = claims["role"], claims.get("tenant"), claims.get("agent")
    if role not in ROLES:
        raise InvalidRequest(f"role {role!r:.40}")
    if tenant_id is not None:
        check_name(tenant_id, "tenant_id")
    elif role != "admin" or agent_id is not None:
        raise jwt.MissingRequiredClaimError("tenant")
    if agent_id is not None:
        check_name(agent_id, "agent_id")
    return Identity(role=role, tenant_id=tenant_id, agent_id=agent_id, expires_at=float(claims["exp"]))
