"""Learners: how agents answer with the help of memories. What a learner is, and how to write one, is in
`fedlab.lab.learner`.

An object is one learner in one world at a time: `prepare` tells it the world.
"""

from __future__ import annotations

from fedlab.lab.learners.bayesian_sampler import BayesianSampler
from fedlab.lab.learners.chat_model import ChatModel
from fedlab.lab.learners.episodic_control import EpisodicControl
from fedlab.lab.learners.gumbel_imitator import GumbelImitator
from fedlab.lab.learners.nearest_neighbour import NearestNeighbour
from fedlab.lab.learners.signed_vote import SignedVote
from fedlab.lab.learners.zero_shot import ZeroShot

__all__ = [
    "BayesianSampler",
    "ChatModel",
    "EpisodicControl",
    "GumbelImitator",
    "NearestNeighbour",
    "SignedVote",
    "ZeroShot",
]
