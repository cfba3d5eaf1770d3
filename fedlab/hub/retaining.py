"""Retention as a hub's methods: set a policy, look at what it would do, apply it."""

from __future__ import annotations

import logging
from datetime import timedelta

from fedlab.clock import to_ms
from fedlab.episode import check_name
from fedlab.errors import HubUnavailable, InvalidRequest
from fedlab.hub import forgetting, operations
from fedlab.hub.core import HubCore
from fedlab.hub.directory import write_meta
from fedlab.hub.preview import preview
from fedlab.hub.values import RetentionPreview, RetentionReport
from fedlab.retention import RetentionPolicy

logger = logging.getLogger("fedlab.hub")


class RetentionMethods(HubCore):
    """What a hub forgets by policy."""

    def set_retention(self, tenant_id: str, policy: RetentionPolicy, *, actor: str = "local") -> int:
        """Store a tenant's retention policy; it is applied by `apply_retention`. Returns the seq."""
        check_name(tenant_id, "tenant_id")
        text = _checked(policy).to_json()
        return self._writer.run(lambda tx: operations.set_retention(tx, tenant_id, text, actor=actor))

    def retention(self, tenant_id: str) -> RetentionPolicy:
        """A tenant's retention policy; `KeepForever` unless another was set."""
        self._require(tenant_id)
        with self._reading() as connection:
            return forgetting.read_policy(connection, tenant_id)

    def preview_retention(
        self, tenant_id: str, policy: RetentionPolicy | None = None, *, after: timedelta = timedelta(0)
    ) -> RetentionPreview:
        """What a policy would do; changes nothing.

        Args:
            tenant_id: Whose episodes.
            policy: The tenant's own if not given.
            after: How much later than now, if nothing is stored, recalled or forgotten until then.

        Raises:
            InvalidRequest: If `after` is no time that is still to come.
        """
        self._require(tenant_id)
        if policy is not None:
            _checked(policy)
        self._write_usage()
        index = self._indexes.get(tenant_id)
        if not isinstance(after, timedelta) or after < timedelta(0):
            raise InvalidRequest(f"after is a timedelta of zero or more, not {after!r:.80}", field="after")
        now = to_ms(self.clock.now() + after // timedelta(milliseconds=1))
        with self._reading() as connection:
            policy = policy or forgetting.read_policy(connection, tenant_id)
            verdict = forgetting.judge(connection, index, tenant_id, policy, now)
            return preview(connection, index, tenant_id, policy, verdict, now)

    def apply_retention(self, tenant_id: str | None = None) -> RetentionReport:
        """Apply the stored policies of one tenant, or of all, and let go of what has expired, in small transactions.

        Afterwards, what was forgotten longer than `keep_forgotten` ago is removed for good.

        What is removed is decided once, at the start: an episode stored afterwards is never removed by this call, nor
        one that is held by then. It may be cut off at any place; the next call does the rest.

        Raises:
            InvalidRequest: If the policy of the one tenant is of a class that is not imported here; where all are
                meant, the report names those that failed.
        """
        if tenant_id is not None:
            self._require(tenant_id)
            concerned = {tenant_id}
        else:
            with self._reading() as connection:
                concerned = forgetting.read_concerned(connection, self.clock.now())
        removed = dict.fromkeys(sorted(self._tenants) if tenant_id is None else [tenant_id], 0)
        failed: dict[str, str] = {}
        for each in sorted(concerned & removed.keys()):
            try:
                removed[each] = self._retain(each)
            except Exception as error:  # a policy of one's own may raise anything
                if tenant_id is not None or isinstance(error, HubUnavailable):
                    raise
                logger.exception("the retention of tenant %r failed; the others go on", each)
                failed[each] = str(error)
                del removed[each]
        self.purge_forgotten()
        if tenant_id is None:
            self._note_retained()
        return RetentionReport(removed=removed, failed=failed, seq=self._writer.head.seq)

    @property
    def retained_at(self) -> int | None:
        """When the policies of all tenants were last applied, ms UTC; None if never."""
        held = self._identity.get("retained_at")
        return None if held is None else int(held)

    def _note_retained(self) -> None:
        now = str(self.clock.now())
        self._writer.run(lambda tx: write_meta(tx.connection, retained_at=now))
        self._identity["retained_at"] = now

    def _retain(self, tenant_id: str) -> int:
        policy = self.retention(tenant_id)
        if policy.looks_at_recalls:
            self._write_usage()
        index = self._indexes.get(tenant_id) if self._indexes.is_loaded(tenant_id) else None
        with self._reading() as connection:
            verdict = forgetting.judge(connection, index, tenant_id, policy, self.clock.now())
        keep = bool(self.keep_forgotten)
        return forgetting.carry_out(self._writer, self._read_engine, tenant_id, verdict, keep=keep)


def _checked(policy: object) -> RetentionPolicy:
    if not isinstance(policy, RetentionPolicy):
        raise InvalidRequest(f"a retention policy is one of fedlab.retention, not {policy!r:.80}")
    return policy
