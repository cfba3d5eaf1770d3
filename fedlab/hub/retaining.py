"""Retention as a hub's methods: set a policy, look at what it would do, apply it."""

from __future__ import annotations

from fedlab.episode import check_name
from fedlab.errors import InvalidRequest
from fedlab.hub import forgetting, operations
from fedlab.hub.core import HubCore
from fedlab.hub.values import RetentionPreview, RetentionReport
from fedlab.retention import RetentionPolicy


class RetentionMethods(HubCore):
    """What a hub forgets by policy."""

    def set_retention(self, tenant_id: str, policy: RetentionPolicy, *, actor: str = "local") -> int:
        """Store a tenant's retention policy; it is applied by `apply_retention`. Returns the seq."""
        check_name(tenant_id, "tenant_id")
        if not isinstance(policy, RetentionPolicy):
            raise InvalidRequest(f"a retention policy is one of fedlab.retention, not {policy!r:.80}")
        return self._writer.run(lambda tx: operations.set_retention(tx, tenant_id, policy.to_json(), actor=actor))

    def retention(self, tenant_id: str) -> RetentionPolicy:
        """A tenant's retention policy; `KeepForever` unless another was set."""
        self._require(tenant_id)
        with self._reading() as connection:
            return forgetting.read_policy(connection, tenant_id)

    def preview_retention(self, tenant_id: str, policy: RetentionPolicy) -> RetentionPreview:
        """How many episodes a policy would remove now; changes nothing."""
        self._require(tenant_id)
        with self._reading() as connection:
            return forgetting.preview(connection, tenant_id, policy, self.clock.now())

    def apply_retention(self, tenant_id: str | None = None) -> RetentionReport:
        """Apply the stored policies of one tenant, or of all, in small transactions.

        What is removed is decided once, at the start: an episode stored afterwards is never removed by
        this call.
        """
        if tenant_id is not None:
            self._require(tenant_id)
        removed = {}
        for each in [tenant_id] if tenant_id is not None else sorted(self._tenants):
            with self._reading() as connection:
                policy = forgetting.read_policy(connection, each)
                going = forgetting.condemned(connection, each, policy, self.clock.now())
            removed[each] = forgetting.remove(self._writer, each, going, policy)
        self.purge_forgotten()
        return RetentionReport(removed=removed, seq=self._writer.head.seq)
