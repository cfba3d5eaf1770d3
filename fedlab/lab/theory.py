"""What theory expects of an arm, where its world has one that speaks of such an arm. The formulas are in the worlds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fedlab.lab.arm import Arm, Islands
from fedlab.lab.learners import BayesianSampler, GumbelImitator
from fedlab.lab.worlds import CumulativeCulture, IteratedLearning
from fedlab.retention import KeepForever, MaxAge

if TYPE_CHECKING:
    from fedlab.lab.experiment import Experiment


def expected(experiment: Experiment, arm: Arm) -> list[float] | None:
    """The mean reward of each generation; None where no theory speaks of such an arm.

    Args:
        experiment: Whose world and generations these are.
        arm: One of its arms.
    """
    memory = _memory(experiment, arm)
    agents, tenants = experiment.agents_per_generation, len(arm.tenants(experiment.agents_per_generation))
    if memory is None or experiment.tasks_per_agent != 1 or agents % tenants:
        return None
    world, generations = experiment.world, experiment.generations
    # No subclass, and nothing that wraps a world: it may do what no theory knows of.
    if type(world) is CumulativeCulture and type(arm.learner) is GumbelImitator:
        return [float(each) for each in world.theory(agents, generations, memory=memory, tenants=tenants).mean]
    if type(world) is IteratedLearning and type(arm.learner) is BayesianSampler and agents == tenants:
        return [float(each) for each in world.theory(generations, memory=memory).mean]
    return None


def _memory(experiment: Experiment, arm: Arm) -> Literal["one generation", "forever"] | None:
    """How far an arm remembers, in the words of the theories; None if it is neither of the two."""
    migrates = isinstance(arm.sharing, Islands) and arm.sharing.migration > 0
    if migrates or arm.capacity is not None or arm.recall is not None or arm.write != "everything":
        return None
    if arm.retention == MaxAge(experiment.generation_interval.total_seconds() / 86_400):
        return "one generation"
    return "forever" if arm.retention == KeepForever() else None
