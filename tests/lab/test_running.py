"""Runs: the same bytes however they are made, and what happens when something goes wrong."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import platform
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import polars as pl
import pytest

from fedlab import ExperimentFailed, FedlabError, HubUnavailable, InvalidRequest, MaxAge
from fedlab.lab import (
    Answer,
    Arm,
    Islands,
    NoisyEvaluator,
    Outcome,
    Query,
    Results,
    check_world,
    learners,
    running,
    worlds,
)
from fedlab.lab.calm import calm
from fedlab.lab.manifest import code_of, manifest
from tests.lab.small import Copier, Guesser, Parity, experiment, files
from tests.processes import free_port

MANY = [
    Arm("copier", Copier()),
    Arm("forgets", Copier(), retention=MaxAge(15), capacity=12),
    Arm("islands", Copier(), sharing=Islands(2, 0.5), write=NoisyEvaluator(0.3)),
    Arm("alone", Copier(), sharing="none", write="successes", feedback="corrective"),
    Arm("guesser", Guesser()),
]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The cells of one run in this process."""
    directory = tmp_path_factory.mktemp("once")
    experiment(*MANY).run_sync(directory / "run", progress=False)
    held = files(directory / "run")
    assert len(held) == 3 * 2 * len(MANY)
    return held


def test_the_same_seed_twice_gives_the_same_bytes(once, tmp_path):
    experiment(*MANY).run_sync(tmp_path / "run", progress=False)
    assert files(tmp_path / "run") == once


def test_two_workers_give_the_same_bytes(once, tmp_path):
    experiment(*MANY).run_sync(tmp_path / "run", workers=2, progress=False)
    assert files(tmp_path / "run") == once


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_any_executor_gives_the_same_bytes(once, tmp_path, pool):
    executor = ThreadPoolExecutor(2) if pool == "threads" else ProcessPoolExecutor(2, get_context("spawn"))
    with executor:
        experiment(*MANY).run_sync(tmp_path / "run", workers=executor, progress=False)
    assert files(tmp_path / "run") == once


@pytest.mark.filterwarnings("ignore")  # what another package deprecates is not tested here
def test_dask_gives_the_same_bytes(once, tmp_path):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        experiment(*MANY).run_sync(tmp_path / "run", workers=client.get_executor(), progress=False)
    assert files(tmp_path / "run") == once


def test_another_arm_changes_no_number_of_the_others(once, tmp_path):
    experiment(Arm("new", Copier(k=1)), *MANY[:2]).run_sync(tmp_path / "run", progress=False)
    again = files(tmp_path / "run")
    assert {name: held for name, held in again.items() if "new" not in name}.items() <= once.items()


def test_all_arms_meet_the_same_tasks_in_the_same_order(once, tmp_path):
    results = experiment(*MANY).run_sync(tmp_path / "run", progress=False)
    place = ("seed", "generation", "agent", "step")
    met = results.episodes.pivot("arm", index=place, values="input")
    assert met.height == 2 * 3 * 2 * 4
    assert all(met["copier"].equals(met[arm.name]) for arm in MANY)
    assert results.episodes["arm"].unique(maintain_order=True).to_list() == [arm.name for arm in MANY]


def test_what_was_defined_in_a_notebook_runs_in_other_processes(tmp_path):
    class Here(Copier):
        def act(self, task, memories, rng):
            return "even"

    results = experiment(Arm("here", Here())).run_sync(tmp_path / "run", workers=2, progress=False)
    assert set(results.episodes["output"]) == {"even"}


def test_a_run_goes_on_with_the_missing_cells(once, tmp_path):
    import shutil

    results = experiment(*MANY).run_sync(tmp_path / "run", progress=False)
    for name in ("copier.0", "islands.7"):
        shutil.rmtree(tmp_path / "run/cells" / name)
    kept = tmp_path / "run/cells/copier.7/episodes.parquet"
    before = kept.stat().st_mtime_ns
    experiment(*MANY).run_sync(tmp_path / "run", progress=False)
    assert files(tmp_path / "run") == once
    assert kept.stat().st_mtime_ns == before
    assert results.costs.height == 3 * 2 * len(MANY)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"generations": 4}, "generations: 3 → 4"),
        ({"seeds": [0, 8]}, r"seeds\[1\]: 7 → 8"),
        ({"world": Parity(31)}, "world.most: 30 → 31"),
        ({"arms": [Arm("copier", Copier(k=6)), MANY[4]]}, r"arms\[copier\].learner.k: 5 → 6"),
        ({"arms": [Arm("copier", Copier(), retention=MaxAge(3)), MANY[4]]}, r"arms\[copier\].retention"),
        ({"arms": [MANY[0]]}, r"arms\[guesser\].*→ nothing"),
    ],
)
def test_another_experiment_is_refused_and_the_error_says_what_differs(tmp_path, changed, said):
    experiment(MANY[0], MANY[4]).run_sync(tmp_path / "run", progress=False)
    with pytest.raises(InvalidRequest, match=said):
        experiment(**{"arms": [MANY[0], MANY[4]], **changed}).run_sync(tmp_path / "run", progress=False)


class Private(Copier):
    """Keeps its arguments to itself."""

    def __init__(self, k, how):
        super().__init__()
        self._k, self._how, self._met = k, how, object()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Private(2, functools.partial(round, ndigits=1)), "learner._k: 1 → 2"),
        (Private(1, functools.partial(round, ndigits=2)), r"learner._how\[1\].ndigits: 1 → 2"),
    ],
)
def test_what_a_learner_was_made_with_is_compared_also_where_it_is_private(tmp_path, other, said):
    first = Private(1, functools.partial(round, ndigits=1))
    experiment(Arm("a", first)).run_sync(tmp_path / "run", progress=False)
    experiment(Arm("a", Private(1, functools.partial(round, ndigits=1)))).run_sync(tmp_path / "run", progress=False)
    with pytest.raises(InvalidRequest, match=said):
        experiment(Arm("a", other)).run_sync(tmp_path / "run", progress=False)


class Asks(Copier):
    """Needs a key to somebody's model."""

    def __init__(self, model, api_key):
        super().__init__()
        self.model, self._api_key = model, api_key


@pytest.mark.parametrize("kind", [Asks, functools.partial(learners.ChatModel, "http://127.0.0.1:9/v1")])
def test_a_key_is_not_written_down_and_another_one_is_no_other_experiment(kind):
    def run(key):
        return experiment(Arm("a", kind("tiny", api_key=key)))

    text = json.dumps(manifest(run("sk-of-mine"), None))
    assert "tiny" in text
    assert "sk-of-mine" not in text
    assert text == json.dumps(manifest(run("sk-of-yours"), None))


def test_who_goes_on_with_other_code_is_told_and_keeps_what_is_finished(tmp_path):
    def learner(act):
        return type("Mine", (Copier,), {"act": act})()

    def run(act, **options):
        return experiment(Arm("mine", learner(act)), **options).run_sync(tmp_path / "run", progress=False)

    def says(self, task, memories, rng):
        return "odd" if task.input in {"1", "3"} else "even"

    first = run(says).episodes

    def says(self, task, memories, rng):
        # as before, in other lines
        return "odd" if task.input in {"1", "3"} else "even"

    run(says)
    with pytest.warns(UserWarning, match=r"^arms\[mine\].learner.act: not the code with which the run in .* was begun"):
        assert run(lambda self, task, memories, rng: "odd").episodes.equals(first)


def test_the_code_of_what_is_wrapped_counts_and_that_of_the_library_does_not():
    world = worlds.NoisyReward(Parity(), 0.1)
    found = code_of(experiment(Arm("a", learners.ZeroShot()), Arm("b", Copier()), world=world))
    methods = {"__init__", "tasks", "reward", "helpful"}
    copier = {"__init__", "queries", "act"}
    assert set(found) == {f"world.world.{each}" for each in methods} | {f"arms[b].learner.{each}" for each in copier}


def test_a_run_says_what_it_was_made_of_and_how_long_it_took(tmp_path):
    world = worlds.NoisyReward(worlds.Digits(), 0.1)
    tried = experiment(Arm("guess", learners.ZeroShot()), world=world)
    tried.run_sync(tmp_path / "run", progress=False)
    held = json.loads((tmp_path / "run/manifest.json").read_text())
    assert held["experiment"]["seeds"] == [0, 7]
    assert held["experiment"]["world"]["sigma"] == 0.1
    assert held["data_hash"] == world.data_hash
    assert held["versions"]["python"] == platform.python_version()
    assert held["versions"]["polars"] == pl.__version__
    assert held["platform"]["machine"] == platform.machine()
    (timing,) = json.loads((tmp_path / "run/timings.json").read_text())
    assert timing["cells"] == 2
    assert timing["seconds"] > 0
    tried.run_sync(tmp_path / "run", progress=False)
    assert [each["cells"] for each in json.loads((tmp_path / "run/timings.json").read_text())] == [2, 0]


def test_a_directory_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InvalidRequest, match="thesis.tex"):
        experiment().run_sync(tmp_path, progress=False)


@pytest.mark.parametrize("kind", [bool, np.bool_, np.float32, int])
def test_right_or_wrong_is_a_reward(tmp_path, kind):
    world = own(Parity, reward=lambda self, task, output: kind(output == task.answer))
    check_world(world)
    experiment(world=world).run_sync(tmp_path / "run", progress=False)
    experiment().run_sync(tmp_path / "floats", progress=False)
    assert files(tmp_path / "run") == files(tmp_path / "floats")


class Breaks(Copier):
    """Breaks in the second generation of one seed."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def act(self, task, memories, rng):
        if self.how == "raises" and memories:
            raise ZeroDivisionError("no reason")
        return 7 if self.how == "number" else super().act(task, memories, rng)


class Nan(Parity):
    def reward(self, task, output):
        return float("nan")


class Raises(Parity):
    def attempt(self, task, rng):
        output = yield task
        if task.input == "5":  # which is no task of seed 0
            raise LookupError("the world broke")
        return Outcome(output, self.reward(task, output))


def own(base, **parts):
    """A world or a learner with a part that is wrong."""
    return type("Own", (base,), parts)()


def used(ids):
    return Arm("bad", own(Copier, act=lambda self, task, memories, rng: Answer("odd", ids)))


def queries(given):
    return Arm("bad", own(Copier, queries=lambda self, task: given))


@pytest.mark.parametrize(
    ("options", "arm", "said"),
    [
        ({}, Arm("bad", Breaks("raises")), "arm 'bad', seed 0, generation 1: ZeroDivisionError: no reason"),
        ({}, Arm("bad", Breaks("number")), "arm 'bad', seed 0, generation 0: Breaks.act answered with int 7"),
        ({"world": Raises()}, MANY[0], "arm 'copier', seed 7, generation .: LookupError: the world broke"),
        ({}, queries(None), "Own.queries gave NoneType None: a sequence of Query is due"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_cell_is_named_and_the_others_are_finished(tmp_path, options, arm, said, workers):
    tried = experiment(arms=[arm, MANY[4]], **options)
    with pytest.raises(ExperimentFailed, match=said) as raised:
        tried.run_sync(tmp_path / "run", workers=workers, progress=False)
    failed = {each.stem for each in (tmp_path / "run/failed").iterdir()}
    finished = {each.name for each in (tmp_path / "run/cells").glob("*")}
    assert len(raised.value.details["cells"]) == len(failed)
    assert failed | finished == {f"{each.slug}.{seed}" for each in (arm, MANY[4]) for seed in (0, 7)}
    assert not failed & finished
    assert ("the others are finished in" in raised.value.message) == bool(finished)
    assert "Traceback" in (tmp_path / "run/failed" / f"{min(failed)}.txt").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_when_all_cells_fail_for_one_reason_the_others_are_not_tried(tmp_path, workers):
    with pytest.raises(ExperimentFailed, match="the reward nan") as raised:
        experiment(world=Nan(), seeds=range(50)).run_sync(tmp_path / "run", workers=workers, progress=False)
    failed = len(list((tmp_path / "run/failed").iterdir()))
    assert 3 <= failed <= 20
    assert f"{failed} of 100 cells failed for one reason, and the other {100 - failed} were not tried" in str(
        raised.value
    )
    assert raised.value.message.count("the reward nan") == 1


def test_as_long_as_some_succeed_all_are_tried(tmp_path):
    tried = experiment(MANY[4], Arm("bad", Breaks("number")), seeds=range(5))
    with pytest.raises(ExperimentFailed, match="5 of 10 cells failed, the others are finished"):
        tried.run_sync(tmp_path / "run", progress=False)


def test_a_hub_that_is_away_is_said_before_anything_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "connect", functools.partial(running.connect, retry_for=0.2))
    with pytest.raises(HubUnavailable):
        experiment().run_sync(tmp_path / "run", hub=f"ws://127.0.0.1:{free_port()}", progress=False)
    assert not (tmp_path / "run/failed").exists()


def test_what_was_there_before_a_cell_is_searched_for_garbage_again_afterwards():
    assert not gc.get_freeze_count()
    with pytest.raises(ValueError, match="mine"), calm():
        assert gc.get_freeze_count()
        with calm():
            pass
        raise ValueError("mine")
    assert not gc.get_freeze_count()
    gc.freeze()
    try:
        with calm():
            pass
        assert gc.get_freeze_count()  # who froze it has it frozen still
    finally:
        gc.unfreeze()


class Broken:
    """A model that can not be loaded."""

    name = "broken"
    dimension = 8
    asked = 0

    def embed(self, texts):
        type(self).asked += 1
        raise OSError("no weights")


def test_a_model_that_does_not_work_is_tried_once(tmp_path):
    with pytest.raises(FedlabError, match="no weights"):
        experiment(embedder=Broken(), seeds=range(9)).run_sync(tmp_path / "run", progress=False)
    assert Broken.asked == 1
    assert not (tmp_path / "run/failed").exists()


@pytest.mark.parametrize(
    ("options", "arm", "said"),
    [
        ({}, used(["nope"]), "Own.act used 'nope', which is none of the 0 memories that were recalled"),
        (
            {"world": own(Parity, reward=lambda self, task, output: "0.5")},
            MANY[0],
            "Own gave 'odd' the reward '0.5': a reward is a finite number",
        ),
        (
            {},
            Arm("bad", own(Copier, act=lambda self, task, memories, rng: Answer("odd", (), None))),
            "Own.act answered with metadata None: a dict is due",
        ),
        ({}, used("nope"), "Own.act used 'nope', which is none"),
        ({}, used(5), "Own.act used 5, which is none"),
        ({}, queries([5]), r"Own.queries gave list \[5\]: a sequence of Query is due"),
        ({}, queries(Query(3)), "Own.queries gave Query .*: a sequence of Query is due"),
        (
            {"world": own(Parity, attempt=lambda self, task, rng: Outcome("odd", 1.0))},
            MANY[0],
            "the world Own has an attempt that gave Outcome .* and is no generator",
        ),
        (
            {"world": own(Parity, attempt=lambda self, task, rng: (yield "a task"))},
            MANY[0],
            "the world Own yields str 'a task' in attempt, and no Task",
        ),
        (
            {"world": own(Parity, tasks=lambda self, rng, n, generation: ["a task"] * n)},
            MANY[0],
            "Own.tasks gave str 'a task', which is no Task, where 8 Tasks are needed",
        ),
        ({"world": own(Parity, tasks=lambda self, rng, n, generation: None)}, MANY[0], "Own.tasks gave NoneType None"),
        (
            {"world": own(Parity, tasks=lambda self, rng, n, generation: [])},
            MANY[0],
            "Own.tasks gave 0 Tasks where 8 Tasks are needed",
        ),
    ],
)
def test_what_is_no_answer_query_or_task_is_named(tmp_path, options, arm, said):
    with pytest.raises(ExperimentFailed, match=said):
        experiment(arm, seeds=[0], **options).run_sync(tmp_path / "run", progress=False)


def test_an_interrupted_run_leaves_nothing_running_and_goes_on_later(once, tmp_path):
    class Stops(Copier):
        async def act(self, task, memories, rng):
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        experiment(MANY[0], Arm("stops", Stops())).run_sync(tmp_path / "run", progress=False)
    assert [each.name for each in (tmp_path / "run/cells").iterdir()] == ["copier.0"]


def test_frames_are_read_from_parquet_in_the_order_of_the_experiment(tmp_path):
    results = experiment(seeds=[7, 0]).run_sync(tmp_path / "run", progress=False)
    expected = results.generations.sort(pl.col("arm") != "copier", "seed", "generation")
    assert results.generations.equals(expected)


@pytest.mark.parametrize("file", ["cells/islands.7/episodes.parquet", "costs/islands.7.parquet"])
def test_a_damaged_file_is_named_and_its_cell_can_be_had_anew(once, tmp_path, file):
    import shutil

    experiment(*MANY).run_sync(tmp_path / "run", progress=False)
    damaged, cell = tmp_path / "run" / file, tmp_path / "run/cells/islands.7"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    results = Results.open(tmp_path / "run")
    with pytest.raises(InvalidRequest, match=f"{damaged} is damaged .*: delete {cell}, and run"):
        _ = results.episodes.height + results.costs.height
    shutil.rmtree(cell)
    results = experiment(*MANY).run_sync(tmp_path / "run", progress=False)
    assert files(tmp_path / "run") == once
    assert results.costs.height == 3 * 2 * len(MANY)


def test_a_damaged_manifest_is_named(tmp_path):
    experiment().run_sync(tmp_path / "run", progress=False)
    (tmp_path / "run/manifest.json").write_text('{"experiment": ')
    with pytest.raises(InvalidRequest, match=r"manifest.json is damaged .*: run the experiment in another directory"):
        experiment().run_sync(tmp_path / "run", progress=False)


async def test_who_runs_where_a_loop_is_running_is_told_to_await(tmp_path):
    with pytest.raises(InvalidRequest, match=r"await experiment.run\(…\) instead"):
        experiment().run_sync(tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
