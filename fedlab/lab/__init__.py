"""The research toolkit: worlds that give tasks and judge answers.

Learners, experiments and statistics build on it; nothing in the hub, the wire or the agents knows of it.
"""

from __future__ import annotations

from fedlab.lab.worlds import Task, ToolChoice

__all__ = ["Task", "ToolChoice"]
