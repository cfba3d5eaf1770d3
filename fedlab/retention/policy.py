"""What a retention policy is, how policies compose, and how one is written: as JSON, in English, as an expression."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import sqlalchemy as sa

from fedlab.errors import InvalidRequest
from fedlab.recall import Filter
from fedlab.retention.rows import united

if TYPE_CHECKING:
    from datetime import datetime

    from fedlab.retention.rows import Ids, Rows


class RetentionPolicy(
    msgspec.Struct,
    frozen=True,
    tag_field="policy",
    tag=True,
    omit_defaults=True,
    repr_omit_defaults=True,
    forbid_unknown_fields=True,
):
    """Base of all policies. A policy of one's own needs fields, `condemned` and `__str__`."""

    def condemned(self, rows: Rows) -> sa.ColumnElement[bool] | Ids:
        """What the policy would remove: a condition on `episodes`, or the ids themselves.

        Args:
            rows: Among which it chooses; others that a class of one's own names stay.
        """
        raise NotImplementedError

    def chosen(self, rows: Rows) -> Ids:
        """The ids of what the policy would remove, all of them among the rows.

        Raises:
            InvalidRequest: If a class of one's own chose by something else.
        """
        chosen = self.condemned(rows)
        if isinstance(chosen, sa.ClauseElement) or type(self).__module__.startswith(f"{__package__}."):
            return rows.ids(chosen)
        try:
            ids = np.array([*chosen])
        except (TypeError, ValueError):
            ids = np.array([""])
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            raise InvalidRequest(
                f"the policy {self!r} chooses by neither a condition on episodes nor their numbers (episodes.c.id), but"
                f" gave {chosen!r:.80}"
            )
        return np.intersect1d(united(ids), rows.ids(), assume_unique=True)

    @property
    def looks_at_recalls(self) -> bool:
        """Whether it asks how often an episode was recalled: then the hub writes down the last recalls first."""
        return False

    @property
    def parts(self) -> tuple[RetentionPolicy, ...]:
        """The policies of which each may remove an episode alone: the log names the first that does."""
        return (self,)

    def __and__(self, other: RetentionPolicy) -> RetentionPolicy:
        return Both(self, other) if isinstance(other, RetentionPolicy) else NotImplemented

    def __or__(self, other: RetentionPolicy) -> RetentionPolicy:
        return Either(self, other) if isinstance(other, RetentionPolicy) else NotImplemented

    def where(
        self,
        *,
        task: str | None = None,
        agent_id: str | None = None,
        min_reward: float | None = None,
        since: datetime | int | None = None,
        until: datetime | int | None = None,
    ) -> RetentionPolicy:
        """The policy over the episodes that pass a filter alone: others stay, and do not count."""
        return Where(self, Filter.of(min_reward, since, until, task, agent_id))

    def to_json(self) -> str:
        """The policy as JSON text."""
        return msgspec.json.encode(self).decode()

    @staticmethod
    def from_json(text: str) -> RetentionPolicy:
        """A policy from its JSON text.

        Raises:
            InvalidRequest: If it is none, or of a class that is not imported here.
        """
        try:
            return _build(msgspec.json.decode(text))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidRequest(f"{text!r:.80} is no retention policy: {error}") from None

    @staticmethod
    def parse(text: str) -> RetentionPolicy:
        """A policy from an expression, as `repr` writes it, or from JSON; nothing in it is executed.

        Raises:
            InvalidRequest: If it is none.

        >>> RetentionPolicy.parse("MaxAge(90) & MinReward(quantile=0.5).where(task='parse')")
        MaxAge(days=90) & MinReward(quantile=0.5).where(task='parse')
        """
        if text.lstrip().startswith("{"):
            return RetentionPolicy.from_json(text)
        try:
            return _evaluate(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise InvalidRequest(
                f"{text!r:.200} is no retention policy ({error}): write one like"
                " MaxAge(90) & MinReward(0.7).where(task='parse')"
            ) from None


class Both(RetentionPolicy, frozen=True):
    """What stays has to pass both policies."""

    first: Any
    second: Any

    def __post_init__(self) -> None:
        _adopt(self, "first", "second")

    def condemned(self, rows: Rows) -> Ids:
        """What either would remove."""
        return united(*(each.chosen(rows) for each in (self.first, self.second)))

    @property
    def looks_at_recalls(self) -> bool:
        """Whether one of them does."""
        return bool(self.first.looks_at_recalls or self.second.looks_at_recalls)

    @property
    def parts(self) -> tuple[RetentionPolicy, ...]:
        """Those of both."""
        return (*self.first.parts, *self.second.parts)

    def __str__(self) -> str:
        return f"({self.first}) and ({self.second})"

    def __repr__(self) -> str:
        first = repr(self.first) if isinstance(self.first, Both) else _inner(self.first)
        return f"{first} & {_inner(self.second)}"


class Either(RetentionPolicy, frozen=True):
    """What stays has to pass one of two policies."""

    first: Any
    second: Any

    def __post_init__(self) -> None:
        _adopt(self, "first", "second")

    def condemned(self, rows: Rows) -> Ids:
        """What both would remove."""
        first, second = (each.chosen(rows) for each in (self.first, self.second))
        return np.intersect1d(first, second, assume_unique=True)

    @property
    def looks_at_recalls(self) -> bool:
        """Whether one of them does."""
        return bool(self.first.looks_at_recalls or self.second.looks_at_recalls)

    def __str__(self) -> str:
        return f"({self.first}) or ({self.second})"

    def __repr__(self) -> str:
        # As in Python, `&` goes before `|`, and what stands on the left before what stands on the right.
        second = _inner(self.second) if isinstance(self.second, Either) else repr(self.second)
        return f"{self.first!r} | {second}"


class Where(RetentionPolicy, frozen=True):
    """A policy over the episodes that pass a filter; the others stay."""

    rule: Any
    filter: Filter

    def __post_init__(self) -> None:
        _adopt(self, "rule")
        if self.filter.passes_all:
            raise InvalidRequest("where needs a filter: task, agent_id, min_reward, since or until")

    def condemned(self, rows: Rows) -> Ids:
        """What the policy would remove if there were no others."""
        ids: Ids = self.rule.chosen(rows.part(self.filter))
        return ids

    @property
    def looks_at_recalls(self) -> bool:
        """Whether the policy does."""
        return bool(self.rule.looks_at_recalls)

    def __str__(self) -> str:
        return f"where {self.filter}: {self.rule}"

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in msgspec.to_builtins(self.filter).items())
        return f"{_inner(self.rule)}.where({given})"


def _inner(policy: RetentionPolicy) -> str:
    return f"({policy!r})" if isinstance(policy, (Both, Either)) else repr(policy)


def _adopt(policy: RetentionPolicy, *names: str) -> None:
    """Make policies of what JSON has in their place."""
    for name in names:
        held = getattr(policy, name)
        if not isinstance(held, RetentionPolicy):
            msgspec.structs.force_setattr(policy, name, _build(held))


def _known() -> dict[str, type[RetentionPolicy]]:
    """Every policy by its name; of two with one name, as when a notebook's cell runs again, the later."""

    def below(cls: type[RetentionPolicy]) -> list[type[RetentionPolicy]]:
        return [cls, *(each for child in cls.__subclasses__() for each in below(child))]

    return {cls.__name__: cls for cls in below(RetentionPolicy)[1:]}


def _class(name: object) -> type[RetentionPolicy]:
    known = _known()
    if not isinstance(name, str) or name not in known:
        raise InvalidRequest(
            f"there is no retention policy {name!r:.60} here: there are {', '.join(sorted(known))};"
            " a policy of your own has to be imported first (`fedlab hub --import MODULE`)"
        )
    return known[name]


def _build(data: Any) -> RetentionPolicy:
    if not isinstance(data, dict):
        raise InvalidRequest(f"{data!r:.60} is no retention policy")
    return msgspec.convert(data, _class(data.get("policy")))


def _evaluate(node: ast.expr) -> RetentionPolicy:
    match node:
        case ast.BinOp(left, ast.BitAnd(), right):
            return _evaluate(left) & _evaluate(right)
        case ast.BinOp(left, ast.BitOr(), right):
            return _evaluate(left) | _evaluate(right)
        case ast.Call(ast.Name(name), given, named):
            make: Any = _class(name)
        case ast.Call(ast.Attribute(policy, "where"), given, named):
            make = _evaluate(policy).where
        case _:
            raise ValueError(f"{ast.unparse(node)!r:.60} is none")
    values = [ast.literal_eval(each) for each in given]
    made: RetentionPolicy = make(*values, **{str(each.arg): ast.literal_eval(each.value) for each in named})
    return made
