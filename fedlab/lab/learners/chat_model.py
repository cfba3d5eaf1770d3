"""`ChatModel`: a language model behind an OpenAI-compatible endpoint, with the recalled memories in its prompt."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fedlab.errors import FedlabError
from fedlab.lab.extras import need
from fedlab.lab.learner import Answer, Query
from fedlab.lab.learners.choosing import revealed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from fedlab.episode import Memory
    from fedlab.lab.learner import Embed
    from fedlab.lab.world import Task, World

MOST_OPTIONS = 200
"""Longest list of options that is put into a prompt."""
INSTRUCTIONS = """You do tasks. Past attempts at similar tasks may be shown, each with its reward (1 is a success).
Learn from them. Reply with the answer alone, without explanation."""


@dataclass
class ChatModel:
    """Asks a model of any endpoint that speaks the chat-completions protocol, through the `openai` package.

    Failed requests (no connection, time-outs, 408, 409, 429 and 5xx) are repeated with growing pauses. An answer's
    metadata has the model and the numbers of tokens, and the cost where prices are given.

    Args:
        base_url: Of the endpoint, such as "http://127.0.0.1:11434/v1".
        model: Its name there.
        api_key: If None, the environment's OPENAI_API_KEY, and where there is none, a word that local servers ignore.
        k: How many memories are recalled.
        instructions: The system message.
        temperature: Of sampling; 0 repeats itself as well as the endpoint can.
        max_tokens: Of an answer.
        timeout: Seconds for one request.
        retries: How often a request is repeated.
        prices: Of a million tokens, of the prompt and of the answer, in one currency.

    Raises:
        InvalidRequest: If the `openai` package is not installed.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    k: int = 5
    instructions: str = INSTRUCTIONS
    temperature: float = 0.0
    max_tokens: int = 256
    timeout: float = 60.0
    retries: int = 3
    prices: tuple[float, float] | None = None
    _options: Mapping[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        need("openai", "openai")

    def prepare(self, world: World, embed: Embed) -> None:
        """Learn the options of the world, if it has any."""
        self._options = getattr(world, "options", None) or {}

    def queries(self, task: Task) -> list[Query]:
        """The k nearest."""
        return [Query(self.k)]

    async def act(self, task: Task, memories: Sequence[Memory], rng: np.random.Generator) -> Answer:
        """What the model says; the option that it names, where there are options.

        Raises:
            FedlabError: If the endpoint refuses, or does not answer after all retries.
        """
        openai = need("openai", "openai")
        try:
            reply = await self._client().chat.completions.create(
                model=self.model,
                messages=self.messages(task, memories),
                temperature=self.temperature,
                max_tokens=self.max_tokens,
            )
        except openai.OpenAIError as error:
            raise FedlabError(
                f"the model {self.model!r} at {self.base_url} did not answer ({type(error).__name__}: {error})"
            ) from error
        said = (reply.choices[0].message.content or "").strip() if reply.choices else ""
        return Answer(self._option(said), [memory.id for memory in memories], self._usage(reply, said))

    def messages(self, task: Task, memories: Sequence[Memory]) -> list[dict[str, str]]:
        """The prompt: instructions, options, memories from the least to the most similar, and the task."""
        parts = []
        if 0 < len(self._options) <= MOST_OPTIONS:
            lines = (
                f"- {name}" + (f": {text}" if text and text != name else "") for name, text in self._options.items()
            )
            parts.append("The answer is one of:\n" + "\n".join(lines))
        parts += [_told(memory) for memory in reversed(memories)]
        parts.append(f"Task: {task.task}\nInput: {task.input}\nAnswer:")
        return [{"role": "system", "content": self.instructions}, {"role": "user", "content": "\n\n".join(parts)}]

    def _option(self, said: str) -> str:
        """The option that a reply is, or else the first that it names; the reply itself where it names none."""
        plain = said.strip(" \n.`'\"*")
        names = {name.casefold(): name for name in self._options}
        if plain.casefold() in names:
            return names[plain.casefold()]
        matches = {
            name: re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", said, re.IGNORECASE) for name in names.values()
        }
        found = [(match.start(), -len(name), name) for name, match in matches.items() if match]
        return min(found)[2] if found else said

    def _usage(self, reply: Any, said: str) -> dict[str, Any]:
        usage: dict[str, Any] = {"model": reply.model or self.model}
        if said not in self._options:
            usage["said"] = said
        if reply.usage is not None:
            asked, answered = reply.usage.prompt_tokens, reply.usage.completion_tokens
            usage |= {"prompt_tokens": asked, "completion_tokens": answered}
            if self.prices is not None:
                usage["cost"] = (asked * self.prices[0] + answered * self.prices[1]) / 1e6
        return usage

    def _client(self) -> Any:
        """The client of the running event loop, to which its connections belong."""
        loop = asyncio.get_running_loop()
        if loop not in _clients:
            _clients[loop] = {}
        settings = (self.base_url, self.api_key, self.timeout, self.retries)
        if settings not in _clients[loop]:
            key = self.api_key or os.environ.get("OPENAI_API_KEY") or "none"
            _clients[loop][settings] = need("openai", "openai").AsyncOpenAI(
                base_url=self.base_url, api_key=key, timeout=self.timeout, max_retries=self.retries
            )
        return _clients[loop][settings]


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()


def _told(memory: Memory) -> str:
    text = f"Past task: {memory.task}\nInput: {memory.input}\nAnswer: {memory.output}\nReward: {memory.reward:g}"
    right = revealed(memory)
    return text if right is None else f"{text}\nRight answer: {right}"
