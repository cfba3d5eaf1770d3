"""The research toolkit: worlds that give tasks and judge answers.

Learners, experiments and statistics build on it; nothing in the hub, the wire or the agents knows of it.
"""

from __future__ import annotations

from fedlab.lab import learners, worlds
from fedlab.lab.arm import Arm, Islands, NoisyEvaluator
from fedlab.lab.experiment import Experiment
from fedlab.lab.learner import Answer, Learner, Query, check_learner
from fedlab.lab.results import Results
from fedlab.lab.world import Outcome, Task, World, check_world
from fedlab.lab.worlds import ToolChoice

__all__ = [
    "Answer",
    "Arm",
    "Experiment",
    "Islands",
    "Learner",
    "NoisyEvaluator",
    "Outcome",
    "Query",
    "Results",
    "Task",
    "ToolChoice",
    "World",
    "check_learner",
    "check_world",
    "learners",
    "worlds",
]
