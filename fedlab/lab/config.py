"""An experiment as a file: TOML in, `Experiment` out; or the name of one in a module.

```toml
generations = 20
seeds = 10
generation_interval_days = 10

[world]
kind = "ToolChoice"

[[arms]]
name = "ninety days"
learner = {kind = "NearestNeighbour", k = 1}
retention = "MaxAge(90)"
```
"""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

from fedlab.errors import InvalidRequest
from fedlab.lab import learners, worlds
from fedlab.lab.arm import Arm, Islands, NoisyEvaluator
from fedlab.lab.experiment import Experiment
from fedlab.lab.learner import Query
from fedlab.recall import RecallPolicy
from fedlab.retention import RetentionPolicy


def load(target: str) -> Experiment:
    """The experiment that a TOML file describes, or that `MODULE:NAME` names.

    Raises:
        InvalidRequest: If there is none.
    """
    if not target.endswith(".toml"):
        found = _imported(target)
        if not isinstance(found, Experiment):
            raise InvalidRequest(f"{target} is no Experiment, but {type(found).__name__} {found!r:.80}")
        return found
    try:
        return experiment_of(tomllib.loads(Path(target).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {target}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{target} is no TOML: {error}") from None


def experiment_of(data: dict[str, Any]) -> Experiment:
    """The experiment that a table describes; names are those of `Experiment` and `Arm`.

    Raises:
        InvalidRequest: If something in it is not known; the message names it.
    """
    given = dict(data)
    for name in ("world", "arms"):
        if name not in given:
            raise InvalidRequest(f"an experiment needs {name}", field=name)
    given["world"] = _made(given["world"], worlds)
    arms = given["arms"]
    if not isinstance(arms, list) or not all(isinstance(each, dict) for each in arms):
        raise InvalidRequest(f"arms must be tables, each under a line [[arms]], not {arms!r:.80}", field="arms")
    given["arms"] = [_arm(dict(each)) for each in arms]
    if "generation_interval_days" in given:
        given["generation_interval"] = _called(timedelta, {"days": given.pop("generation_interval_days")})
    if isinstance(given.get("seeds"), int):
        given["seeds"] = range(given["seeds"])
    experiment: Experiment = _called(Experiment, given)
    return experiment


def _arm(given: dict[str, Any]) -> Arm:
    if "learner" in given:
        given["learner"] = _made(given["learner"], learners)
    if isinstance(given.get("retention"), str):
        given["retention"] = RetentionPolicy.parse(given["retention"])
    if isinstance(given.get("recall"), dict):
        recall = dict(given["recall"])
        if isinstance(recall.get("policy"), dict):
            recall["policy"] = _called(RecallPolicy, recall["policy"])
        given["recall"] = _called(Query, recall)
    for name, kind in (("write", NoisyEvaluator), ("sharing", Islands)):
        if isinstance(given.get(name), dict):
            given[name] = _called(kind, given[name])
    arm: Arm = _called(Arm, given)
    return arm


def _made(value: Any, home: Any) -> Any:
    """What a table with a `kind` describes, and the tables in it; everything else as it is."""
    if not isinstance(value, dict):
        return value
    held = {name: _made(each, home) for name, each in value.items()}
    if "kind" not in held:
        return held
    kind = str(held.pop("kind"))
    make = _imported(kind) if ":" in kind else getattr(home, kind, None)
    if make is None:
        names = ", ".join(sorted(home.__all__))
        raise InvalidRequest(f"there is no {kind!r}: there are {names}, and classes of your own as 'module:Name'")
    return _called(make, held)


def _called(make: Any, given: dict[str, Any]) -> Any:
    try:
        return make(**given)
    except TypeError as error:  # a name that it does not know, or one that is missing
        raise InvalidRequest(f"{make.__name__} can not be made of {sorted(given)}: {error}") from None


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    if not module or not name:
        raise InvalidRequest(f"{target!r:.80} is neither a .toml file nor MODULE:NAME")
    # As `python -m` does it: a command that is installed does not look into the working directory.
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidRequest(f"{target} can not be imported: {error}") from None
