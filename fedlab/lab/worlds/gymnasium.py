"""`Gymnasium`: an environment of the Gymnasium library, one decision after the other.

What is remembered is a transition, the state with the action taken there and the return that came of it, or a
whole trajectory with its return.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from fedlab.errors import InvalidRequest
from fedlab.lab.extras import need
from fedlab.lab.world import Outcome, Task

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy.typing as npt

ONE_HOT = 64
"""Most states of a discrete space that each have an axis of their own."""


class _Step(NamedTuple):
    input: str
    vector: npt.NDArray[np.float32]
    action: str
    reward: float


class Gymnasium:
    """An environment with discrete actions, and discrete or box observations.

    A task is one run from a start that its seed decides. An agent answers with actions, "0", "1", …; what is no
    action is replaced by a random one, and noted in the metadata. Each episode has the discounted return from its
    state on as its reward, and the plain sum of rewards from there on as its true reward: that of the first episode
    of a run is the score of the run.

    A discrete state is a unit vector: an axis of its own up to 64 states, otherwise a random direction that depends
    on the state alone. A box observation is scaled by its bounds (by 1 where there are none) and projected on a
    sphere stereographically, so that near observations have near directions.

    Args:
        id: As `gymnasium.make` takes it.
        episode: An episode of memory is one transition ("step") or one run ("trajectory").
        discount: Of one step, 0 to 1.
        max_steps: A run ends after so many steps, whatever the environment says.
        settings: More for `gymnasium.make`: `is_slippery=False`, for one.

    Raises:
        InvalidRequest: If Gymnasium is not installed, there is no such environment, or its spaces are other ones.
    """

    def __init__(
        self,
        id: str,
        *,
        episode: Literal["step", "trajectory"] = "step",
        discount: float = 0.99,
        max_steps: int = 500,
        **settings: Any,
    ) -> None:
        if episode not in ("step", "trajectory"):
            raise InvalidRequest(f"an episode is a 'step' or a 'trajectory', not {episode!r:.40}")
        if not 0 <= discount <= 1 or max_steps < 1:
            raise InvalidRequest(f"not a discount of {discount} and {max_steps} steps: 0 to 1, and 1 or more")
        self.id = id
        self.episode = episode
        self.discount = discount
        self.max_steps = max_steps
        self.settings = settings
        self._idle: list[Any] = []
        spaces = need("gymnasium.spaces", "gymnasium")
        environment = self._make()
        states, actions = environment.observation_space, environment.action_space
        if not isinstance(actions, spaces.Discrete) or not isinstance(states, (spaces.Discrete, spaces.Box)):
            raise InvalidRequest(f"{id} has actions {actions} and observations {states}: discrete, and discrete or box")
        self._idle.append(environment)
        self._first_action = int(actions.start)
        self.options = {str(self._first_action + number): "" for number in range(int(actions.n))}
        self._states = None if isinstance(states, spaces.Box) else int(states.n)
        if self._states is None:
            low, high = states.low.ravel().astype(float), states.high.ravel().astype(float)
            bounded = np.abs([low, high]).max(axis=0) < 1e6  # otherwise infinite, or as good as
            low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
            self._center, self._scale = (high + low) / 2, (high - low) / 2
            self.dimension = len(low) + 1
        else:
            self._start = int(states.start)
            self.dimension = self._states if self._states <= ONE_HOT else ONE_HOT
        described = f"{need('gymnasium', 'gymnasium').__version__} {environment.spec!r} {sorted(settings.items())}"
        self.data_hash = hashlib.sha256(described.encode()).hexdigest()

    def tasks(self, rng: np.random.Generator, n: int, generation: int) -> list[Task]:
        """Runs, each named by the seed of its start."""
        return [Task(self.id, f"seed {seed}") for seed in rng.integers(2**31, size=n)]

    def attempt(self, task: Task, rng: np.random.Generator) -> Generator[Task, str, Outcome | list[Outcome]]:
        """One run: asks for an action in each state."""
        # Agents take turns: each run has an environment for itself.
        environment = self._idle.pop() if self._idle else self._make()
        steps: list[_Step] = []
        invalid: dict[int, str] = {}
        observation, _ = environment.reset(seed=int(task.input.removeprefix("seed ")))
        done = False
        while not done and len(steps) < self.max_steps:
            state, vector = self._text(observation), self.vector(observation)
            action = yield Task(self.id, state, None, vector)
            if action not in self.options:
                invalid[len(steps)] = action
                action = str(self._first_action + rng.integers(len(self.options)))
            observation, reward, terminated, truncated, _ = environment.step(int(action))
            steps.append(_Step(state, vector, action, float(reward)))
            done = terminated or truncated
        self._idle.append(environment)
        return self._outcomes(steps, invalid)

    def reward(self, task: Task, output: str) -> float:
        """A run is judged by `attempt`.

        Raises:
            InvalidRequest: Always.
        """
        raise InvalidRequest("one answer is no run: go through a task of this world with fedlab.lab.attempt")

    def vector(self, observation: Any) -> npt.NDArray[np.float32]:
        """The unit vector of an observation, shape (dimension,)."""
        if self._states is None:
            x = (np.asarray(observation, float).ravel() - self._center) / self._scale
            square = float(x @ x)
            return np.asarray(np.append(2 * x, square - 1) / (square + 1), np.float32)
        if self._states <= ONE_HOT:
            return np.asarray(np.eye(self._states)[int(observation) - self._start], np.float32)
        direction = np.random.default_rng(int(observation)).normal(size=ONE_HOT)
        return np.asarray(direction / np.linalg.norm(direction), np.float32)

    def _text(self, observation: Any) -> str:
        if self._states is None:
            return " ".join(f"{value:.3g}" for value in np.ravel(observation))
        return f"state {int(observation)}"

    def _outcomes(self, steps: list[_Step], invalid: dict[int, str]) -> list[Outcome]:
        outcomes = []
        discounted = plain = 0.0
        for number in reversed(range(len(steps))):
            step = steps[number]
            discounted = step.reward + self.discount * discounted
            plain += step.reward
            notes: dict[str, Any] = {"step": number}
            if number in invalid:
                notes["invalid"] = invalid[number]
            outcomes.append(Outcome(step.action, discounted, plain, step.input, step.vector, metadata=notes))
        if self.episode == "step":
            return outcomes[::-1]
        actions = " ".join(step.action for step in steps)
        notes = {"steps": len(steps)} | ({"invalid": list(invalid.values())} if invalid else {})
        return [outcomes[-1]._replace(output=actions, metadata=notes)]

    def _make(self) -> Any:
        gymnasium = need("gymnasium", "gymnasium")
        try:
            return gymnasium.make(self.id, disable_env_checker=True, **self.settings)
        except (gymnasium.error.Error, TypeError, ImportError) as error:
            raise InvalidRequest(f"gymnasium cannot make {self.id!r}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_idle": []}  # environments stay in their process

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        return f"Gymnasium({self.id!r}, episode={self.episode!r}{settings})"
