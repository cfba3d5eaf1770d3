"""Which episodes should go: retention policies.

A policy is plain data: it is stored per tenant as JSON and travels on the wire as such. It chooses among the rows of
one tenant by a condition in SQL or by an ordered selection (`rows.py`); nothing here removes anything.
`MaxAge(days=90) & MinReward(0.7)` removes what either would, `MaxAge(days=90) | MinReward(0.7)` only what both would:
read it as "keep what passes the one *and* the other". `.where(task="parse")` applies a policy to a part.

A policy of one's own is a class; where it is imported, it can be stored, composed and written like the others:

>>> import sqlalchemy as sa
>>> from fedlab.retention import RetentionPolicy, Rows, episodes
>>> class KeepTagged(RetentionPolicy, frozen=True):
...     '''Episodes whose metadata do not have this tag go.'''
...     name: str
...     def condemned(self, rows: Rows) -> sa.ColumnElement[bool]:
...         return sa.func.json_extract(episodes.c.metadata, "$.tag").is_distinct_from(self.name)
...     def __str__(self) -> str:
...         return f"keep what is tagged {self.name!r}"
>>> policy = RetentionPolicy.parse("KeepTagged('gold') | MaxAge(90)")
>>> str(policy)
"(keep what is tagged 'gold') or (keep what is at most 90 days old)"
>>> RetentionPolicy.from_json(policy.to_json()) == policy
True
"""

from fedlab.hub.schema import episodes
from fedlab.retention.policies import Decay, Distinct, KeepForever, MaxAge, MaxBytes, MaxEpisodes, MinReward, Unused
from fedlab.retention.policy import Both, Either, RetentionPolicy, Where
from fedlab.retention.rows import Ids, Rows

__all__ = [
    "Both",
    "Decay",
    "Distinct",
    "Either",
    "Ids",
    "KeepForever",
    "MaxAge",
    "MaxBytes",
    "MaxEpisodes",
    "MinReward",
    "RetentionPolicy",
    "Rows",
    "Unused",
    "Where",
    "episodes",
]
