"""Worlds: where tasks come from, and what an answer to one is worth. `ToolChoice` needs nothing but Python.

Of two worlds the literature knows the answer (`CumulativeCulture`, `IteratedLearning`), the others have real data.
What a world is, and how to write one, is in `fedlab.lab.world`.

`NoisyReward` and `Drift` wrap any world. `Islands` are how its agents share, which an arm says:
`Arm(…, sharing=worlds.Islands(4, migration=0.1))`.
"""

from __future__ import annotations

from fedlab.lab.arm import Islands
from fedlab.lab.worlds.answered import Answered
from fedlab.lab.worlds.cumulative_culture import CumulativeCulture
from fedlab.lab.worlds.digits import Digits
from fedlab.lab.worlds.drift import Drift
from fedlab.lab.worlds.gymnasium import Gymnasium
from fedlab.lab.worlds.iterated_learning import IteratedLearning
from fedlab.lab.worlds.labelled_text import LabelledText
from fedlab.lab.worlds.noisy_reward import NoisyReward
from fedlab.lab.worlds.tool_choice import ToolChoice
from fedlab.lab.worlds.wrapper import Wrapper

__all__ = [
    "Answered",
    "CumulativeCulture",
    "Digits",
    "Drift",
    "Gymnasium",
    "Islands",
    "IteratedLearning",
    "LabelledText",
    "NoisyReward",
    "ToolChoice",
    "Wrapper",
]
