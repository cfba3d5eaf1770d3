"""ChatModel against a small server that speaks the chat-completions protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from fedlab.embedding import Hashing
from fedlab.errors import FedlabError
from fedlab.lab import Task
from fedlab.lab.learners import ChatModel
from tests.lab.test_learners import TASK, Shop, memory


class Server(ThreadingHTTPServer):
    """Answers with what `replies` says, one after the other, the last one again and again: a text, an HTTP status to
    fail with, or None to keep the client waiting."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[str | int | None] = ["fruit"]
        self.asked: list[dict] = []
        self.keys: list[str] = []
        self.closed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        server.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        server.keys.append(self.headers["authorization"])
        reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
        if reply is None:
            server.closed.wait(30)
            self.close_connection = True
            return
        status = 200 if isinstance(reply, str) else reply
        body = {"error": {"message": "not now"}}
        if status == 200:
            assert self.path == "/v1/chat/completions"
            message = {"role": "assistant", "content": reply}
            body = {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "tiny-1",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107},
            }
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("retry-after-ms", "1")  # what the client waits for, so that the test does not
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closed.set()
        server.shutdown()
        thread.join()


def chat(server, world=None, **settings):
    model = ChatModel(server.url, "tiny", **settings)
    model.prepare(world or Shop(), Hashing(8).embed)
    return model


async def act(model, memories=()):
    return await model.act(TASK, memories, np.random.default_rng(0))


async def test_memories_and_options_are_in_the_prompt_and_tokens_in_the_metadata(server):
    near, far = memory("tool", 0.9, 0.0, answer="fruit"), memory("book", 0.5)
    answer = await act(chat(server, prices=(2.0, 10.0)), [near, far])
    assert (answer.output, list(answer.used)) == ("fruit", [near.id, far.id])
    assert answer.metadata == {
        "model": "tiny-1", "prompt_tokens": 100, "completion_tokens": 7, "cost": pytest.approx((200 + 70) / 1e6)
    }  # fmt: skip
    (asked,) = server.asked
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("tiny", 0.0, 256)
    system, user = (message["content"] for message in asked["messages"])
    assert "Reply with the answer alone" in system
    assert "- tool: a hammer or a saw" in user
    assert user.index("Answer: book") < user.index("Answer: tool\nReward: 0\nRight answer: fruit")
    assert user.endswith("Task: pick\nInput: a red apple\nAnswer:")


@pytest.mark.parametrize(
    ("said", "output"),
    [(" Fruit.\n", "fruit"), ("I would take the tool, not fruit", "tool"), ("toolbox", "toolbox"), ("", "")],
)
async def test_the_option_that_a_reply_names_is_the_answer(server, said, output):
    server.replies = [said]
    answer = await act(chat(server))
    assert answer.output == output
    assert answer.metadata["said"] == said.strip()
    assert "cost" not in answer.metadata


async def test_without_options_the_reply_is_the_answer(server):
    class Open:
        def tasks(self, rng, n, generation):
            return [Task("say", "something")] * n

        def reward(self, task, output):
            return 1.0

    server.replies = ["whatever it is"]
    assert (await act(chat(server, Open()))).output == "whatever it is"
    assert "The answer is one of" not in server.asked[0]["messages"][1]["content"]


async def test_a_failed_request_is_repeated(server):
    server.replies = [500, 429, "book"]
    assert (await act(chat(server, retries=2))).output == "book"
    assert len(server.asked) == 3


async def test_after_all_retries_the_error_says_which_model_and_why(server):
    server.replies = [503]
    with pytest.raises(FedlabError, match=r"'tiny' at http://127.0.0.1:\d+/v1 did not answer .*503"):
        await act(chat(server, retries=1))
    assert len(server.asked) == 2


async def test_a_refusal_is_not_repeated(server):
    server.replies = [401]
    with pytest.raises(FedlabError, match="401"):
        await act(chat(server))
    assert len(server.asked) == 1


async def test_a_server_that_is_silent_is_given_up(server):
    server.replies = [None]
    with pytest.raises(FedlabError, match="APITimeoutError"):
        await act(chat(server, retries=0, timeout=0.05))


async def test_a_key_is_sent_and_not_shown(server):
    model = chat(server, api_key="s3cret")
    await act(model)
    assert server.keys == ["Bearer s3cret"]
    assert "s3cret" not in repr(model)
