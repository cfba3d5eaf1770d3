"""Which episodes should go: retention policies. Each compiles to one SQL predicate over `episodes`.

A policy is plain data: it is stored per tenant as JSON and travels on the wire as such.
`MaxAge(days=90) & MinReward(0.7)` removes what either would, `MaxAge(days=90) | MinReward(0.7)` only what
both would: read it as "keep what passes the one *and* the other".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, Union, get_args

import msgspec
import sqlalchemy as sa

from fedlab.errors import InvalidRequest
from fedlab.hub.schema import episode_sources, episodes
from fedlab.recall import check_count

if TYPE_CHECKING:
    Predicate = sa.ColumnElement[bool]

Keep = Literal["newest", "best", "most_used"]
_KEEP: tuple[Keep, ...] = get_args(Keep)


class RetentionPolicy(msgspec.Struct, frozen=True, tag_field="policy"):
    """Base of all policies."""

    def condemned(self, tenant_id: str, now: int) -> Predicate:
        """What the policy would remove, as a condition on the tenant's rows of `episodes`: here, nothing.

        Args:
            tenant_id: Whose episodes are looked at; the condition may rank them against each other.
            now: Ms UTC.
        """
        return sa.false()

    def __and__(self, other: RetentionPolicy) -> RetentionPolicy:
        return Both(self, other) if isinstance(other, RetentionPolicy) else NotImplemented  # type: ignore[arg-type]

    def __or__(self, other: RetentionPolicy) -> RetentionPolicy:
        return Either(self, other) if isinstance(other, RetentionPolicy) else NotImplemented  # type: ignore[arg-type]

    def to_json(self) -> str:
        """The policy as JSON text."""
        return msgspec.json.encode(self).decode()

    @staticmethod
    def from_json(text: str) -> RetentionPolicy:
        """A policy from its JSON text.

        Raises:
            InvalidRequest: If it is none.
        """
        try:
            policy: RetentionPolicy = msgspec.json.decode(text, type=AnyPolicy)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidRequest(f"{text!r:.80} is no retention policy: {error}") from None
        return policy


class KeepForever(RetentionPolicy, frozen=True, tag=True):
    """Nothing goes: the default."""

    def __str__(self) -> str:
        return "keep everything forever"


class MaxAge(RetentionPolicy, frozen=True, tag=True):
    """Episodes that were made more than so many days ago go."""

    days: float

    def __post_init__(self) -> None:
        _positive(self.days, "days")

    def condemned(self, tenant_id: str, now: int) -> Predicate:
        """Those made before the window."""
        return episodes.c.created_at < now - round(self.days * 86_400_000)

    def __str__(self) -> str:
        return f"keep what is at most {self.days:g} days old"


class MinReward(RetentionPolicy, frozen=True, tag=True):
    """Episodes with a smaller reward go."""

    reward: float

    def __post_init__(self) -> None:
        number = isinstance(self.reward, (int, float)) and not isinstance(self.reward, bool)
        if not number or not math.isfinite(self.reward):
            raise InvalidRequest(f"reward must be a finite number, not {self.reward!r:.40}")

    def condemned(self, tenant_id: str, now: int) -> Predicate:
        """Those below."""
        return episodes.c.reward < self.reward

    def __str__(self) -> str:
        return f"keep rewards of at least {self.reward:g}"


class MaxEpisodes(RetentionPolicy, frozen=True, tag=True):
    """All but n episodes go.

    Args:
        n: How many stay.
        keep: Which: the newest, the best rewarded, or those that are the source of most others
            (newer ones first among equals).
    """

    n: int
    keep: Keep = "newest"

    def __post_init__(self) -> None:
        check_count(self.n, "n", least=1)
        # A word that is taken for another would delete the wrong ones.
        if self.keep not in _KEEP:
            raise InvalidRequest(f"keep is one of {', '.join(_KEEP)}, not {self.keep!r:.40}")

    def condemned(self, tenant_id: str, now: int) -> Predicate:
        """Those beyond the first n."""
        newest = (episodes.c.created_at.desc(), episodes.c.id.desc())
        ranked = sa.select(episodes.c.id).where(episodes.c.tenant_id == tenant_id)
        if self.keep == "best":
            ranked = ranked.order_by(episodes.c.reward.desc(), *newest)
        elif self.keep == "most_used":
            citing = episodes.alias("citing")
            uses = (
                sa.select(episode_sources.c.source, sa.func.count().label("uses"))
                .join(citing, citing.c.id == episode_sources.c.episode_id)
                .where(citing.c.tenant_id == tenant_id)
                .group_by(episode_sources.c.source)
                .subquery()
            )
            ranked = ranked.outerjoin(uses, uses.c.source == episodes.c.uid)
            ranked = ranked.order_by(sa.func.coalesce(uses.c.uses, 0).desc(), *newest)
        else:
            ranked = ranked.order_by(*newest)
        kept = ranked.limit(self.n).subquery()
        return episodes.c.id.not_in(sa.select(kept.c.id))

    def __str__(self) -> str:
        return f"keep the {self.keep.replace('_', ' ')} {self.n:,} episodes"


class Both(RetentionPolicy, frozen=True, tag=True):
    """What stays has to pass both policies."""

    first: AnyPolicy
    second: AnyPolicy

    def condemned(self, tenant_id: str, now: int) -> Predicate:
        """What either would remove."""
        return sa.or_(self.first.condemned(tenant_id, now), self.second.condemned(tenant_id, now))

    def __str__(self) -> str:
        return f"({self.first}) and ({self.second})"


class Either(RetentionPolicy, frozen=True, tag=True):
    """What stays has to pass one of two policies."""

    first: AnyPolicy
    second: AnyPolicy

    def condemned(self, tenant_id: str, now: int) -> Predicate:
        """What both would remove."""
        return sa.and_(self.first.condemned(tenant_id, now), self.second.condemned(tenant_id, now))

    def __str__(self) -> str:
        return f"({self.first}) or ({self.second})"


AnyPolicy = Union[KeepForever, MaxAge, MinReward, MaxEpisodes, Both, Either]  # noqa: UP007


def _positive(value: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InvalidRequest(f"{what} must be a positive number, not {value!r:.40}")
