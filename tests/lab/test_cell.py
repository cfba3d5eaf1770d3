"""What happens inside one cell, seen in its frames and in its hub."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest

from fedlab import Hub, InvalidRequest, MaxAge, MaxEpisodes, MinReward, Random
from fedlab.lab import Arm, Islands, NoisyEvaluator, Outcome, Query, Task, worlds
from fedlab.retention import Unused
from tests.lab.small import Copier, Guesser, Parity, experiment, files
from tests.processes import HubProcess

ARMS = [
    Arm("copier", Copier()),
    Arm("forgets", Copier(), retention=MaxAge(15), capacity=12),
    Arm("islands", Copier(), sharing=Islands(2, 0.5)),
    Arm("alone", Copier(), sharing="none", write="successes", feedback="corrective"),
]


def ran(directory, *arms, **options):
    return experiment(*arms, **options).run_sync(directory / "run", progress=False)


def test_a_live_hub_gives_the_same_bytes_and_keeps_the_cells_as_tenants(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLAB_RUNTIME_DIR", str(tmp_path / "runtime"))
    ran(tmp_path, *ARMS)
    with HubProcess(tmp_path / "hub") as hub:
        experiment(*ARMS).run_sync(tmp_path / "live", hub=hub.url, progress=False)
    assert files(tmp_path / "live") == files(tmp_path / "run")
    with Hub(tmp_path / "hub") as hub:
        tenants = hub.tenants()
        assert len(tenants) == 2 * (1 + 1 + 2 + 2)
        assert set(tenants.filter(pl.col("tenant_id").str.starts_with("forgets"))["episodes"]) == {8}
        assert hub.verify().ok


def test_the_hubs_of_the_cells_stay_if_wanted(tmp_path):
    tried = experiment(ARMS[1])
    results = tried.run_sync(tmp_path / "run", keep_hubs=True, progress=False)
    with Hub(tmp_path / "run/hub/forgets.7") as hub:
        kept = hub.episodes("all", sources=True)
        log = hub.changes(kind="episode_forgotten")
        assert hub.verify().ok
    own = results.episodes.filter(pl.col("seed") == 7)
    assert kept["id"].to_list() == own.filter(pl.col("forgotten_generation").is_null())["episode_id"].to_list()
    gone = own.filter(pl.col("forgotten_generation").is_not_null())
    assert gone["episode_id"].to_list() == log["subject"].to_list()
    assert gone["forgotten_reason"].to_list() == log["reason"].to_list()
    used = dict(own.select("episode_id", "used").iter_rows())
    assert {row["id"]: row["sources"] for row in kept.to_dicts()} == {each: used[each] for each in kept["id"]}


def test_an_agent_recalls_what_there_was_when_its_generation_began(tmp_path):
    frame = ran(tmp_path, Arm("copier", Copier(k=100))).episodes
    born = dict(frame.select("episode_id", "generation").iter_rows())
    for row in frame.to_dicts():
        assert {born[each] for each in row["recalled"]} == set(range(row["generation"]))
        assert set(row["used"]) <= set(row["recalled"])


def test_the_generations_add_up(tmp_path):
    results = ran(tmp_path, *ARMS)
    for row in results.generations.to_dicts():
        own = (pl.col("arm") == row["arm"]) & (pl.col("seed") == row["seed"])
        until = results.episodes.filter(own & (pl.col("generation") <= row["generation"]) & pl.col("stored"))
        now = until.filter(pl.col("generation") == row["generation"])
        live = until.filter(pl.col("forgotten_generation").fill_null(99) > row["generation"])
        assert now.height == row["stored"]
        if row["arm"] != "islands":  # whose migrants are there twice
            assert live.height == row["memory_size"]
    last = results.generations.filter(pl.col("generation") == 2)
    assert last.filter(pl.col("arm") == "forgets")["memory_size"].to_list() == [8, 8]
    assert last.filter(pl.col("arm") == "islands")["memory_size"].to_list() == [24 + 12] * 2
    lives = results.agents.filter(pl.col("arm") == "copier", pl.col("seed") == 0)
    assert lives["pushed"].to_list() == [4] * 6
    assert set(lives["ending"]) == {"destroyed"}
    days = (lives["spawned_at"] - lives["spawned_at"][0]) // 86_400_000
    assert days.to_list() == [0, 0, 10, 10, 20, 20]


def test_nobody_shares_and_islands_share_a_part(tmp_path):
    frame = ran(tmp_path, *ARMS[2:]).episodes
    place = dict(frame.select("episode_id", "agent").iter_rows())
    for row in frame.filter(pl.col("arm") == "alone").to_dicts():
        assert {place[each] for each in row["recalled"]} <= {row["agent"]}
    met = frame.filter(pl.col("arm") == "islands").to_dicts()
    assert any(place[each] != row["agent"] for row in met for each in row["recalled"])


def test_only_successes_are_written_and_a_noisy_evaluator_errs(tmp_path):
    noisy = Arm("noisy", Copier(), write=NoisyEvaluator(1.0))
    frame = ran(tmp_path, ARMS[3], noisy).episodes
    alone = frame.filter(pl.col("arm") == "alone")
    assert alone["stored"].to_list() == (alone["reward"] >= 0.5).to_list()
    erred = frame.filter(pl.col("arm") == "noisy")
    assert erred["stored"].to_list() == (erred["reward"] >= 0.5).to_list()
    assert (erred["stored"] != (erred["true_reward"] >= 0.5)).any()


def test_what_would_have_been_right_is_told_under_corrective_feedback_alone(tmp_path):
    class Told(Copier):
        def act(self, task, memories, rng):
            told = {each.input: each.metadata.get("answer") for each in memories}
            return told.get(task.input) or "unknown"

    frame = ran(tmp_path, Arm("told", Told(), feedback="corrective"), Arm("not", Told())).episodes
    right = frame.group_by("arm").agg(pl.col("true_reward").sum())
    assert dict(right.iter_rows())["not"] == 0 < dict(right.iter_rows())["told"]


def test_stages_tell_where_memory_failed(tmp_path):
    class Stubborn(Copier):
        def act(self, task, memories, rng):
            return "odd"  # right for half of the numbers, whatever it recalls

    arms = [
        Arm("stubborn", Stubborn()),
        Arm("blind", Stubborn(), recall=Query(1, policy=Random(seed=1))),
        Arm("forgets", Copier(), retention=MaxEpisodes(1)),
        Arm("nothing", Copier(), write=NoisyEvaluator(0.0, threshold=2.0)),
    ]
    world = Parity(most=4)
    world.helpful = lambda task, outcome: outcome.input == task.input
    frame = ran(tmp_path, *arms, world=world, generations=6).episodes
    failed = frame.filter(pl.col("true_reward") < 0.5)
    assert frame.filter(pl.col("true_reward") >= 0.5)["stage"].null_count() == frame.height - failed.height
    stages = {arm: set(own["stage"]) for (arm,), own in failed.group_by("arm")}
    assert stages["stubborn"] == {"never stored", "not used"}
    assert "not recalled" in stages["blind"]
    assert "forgotten" in stages["forgets"]
    assert stages["nothing"] == {"never stored"}


def test_what_was_forgotten_is_attributed_to_the_policy_that_removed_it(tmp_path):
    results = ran(
        tmp_path,
        Arm("two reasons", Copier(k=30), retention=MinReward(0.5) & MaxAge(25), capacity=5),
        world=Parity(most=6),
        generations=8,
    )
    frame = results.episodes
    reasons = dict(frame.select("episode_id", "forgotten_reason").iter_rows())
    successes = frame.filter(pl.col("true_reward") == 1)
    for row in frame.filter(pl.col("stage") == "forgotten").to_dicts():
        # Only what was right helps: what MinReward removed is no loss.
        helpful = successes.filter(
            pl.col("input") == row["input"], pl.col("seed") == row["seed"], pl.col("generation") < row["generation"]
        )
        assert row["stage_reason"] in {reasons[each] for each in helpful["episode_id"]}
    assert (
        frame.filter(pl.col("stage") != "forgotten")["stage_reason"].null_count()
        == frame.filter(pl.col("stage") != "forgotten").height
    )
    stages = results.stages().filter(pl.col("stage") == "forgotten")
    assert set(stages["policy"]) == {f"retention: {MaxEpisodes(5)}"}
    assert set(reasons.values()) == {None, *(f"retention: {each}" for each in (MinReward(0.5), MaxEpisodes(5)))}


def test_the_counterfactual_puts_forgotten_memories_back(tmp_path):
    arms = [Arm("forgets", Copier(k=30), retention=MaxEpisodes(2)), ARMS[0]]
    options = {"world": Parity(most=6), "generations": 6}
    with_it = ran(tmp_path, *arms, **options, counterfactual=True).episodes
    forgotten = pl.col("stage").eq_missing("forgotten")
    assert with_it.filter(forgotten).height > 5
    # The copier has the right answer once it has it back; everything else has no counterfactual.
    assert set(with_it.filter(forgotten)["counterfactual_reward"]) == {1.0}
    assert with_it.filter(~forgotten)["counterfactual_reward"].null_count() == with_it.filter(~forgotten).height
    plain = experiment(*arms, **options).run_sync(tmp_path / "plain", progress=False).episodes
    assert plain.drop("counterfactual_reward").equals(with_it.drop("counterfactual_reward"))


def test_a_world_of_several_steps_stores_one_episode_for_each_outcome(tmp_path):
    class Walk(Parity):
        def attempt(self, task, rng):
            first = yield task._replace(input=f"{task.input} once")
            second = yield task._replace(input=f"{task.input} again")
            return [Outcome(first, 0.25), Outcome(second, 0.75)]

    class Ends(Walk):
        def attempt(self, task, rng):
            return (yield from super().attempt(task, rng))[-1]

    frame = ran(tmp_path, ARMS[0], world=Walk()).episodes
    assert frame.height == 2 * 3 * 2 * 4 * 2
    assert frame["input"].str.ends_with("once").to_list() == [True, False] * (frame.height // 2)
    ends = experiment(ARMS[0], world=Ends()).run_sync(tmp_path / "ends", progress=False).episodes
    assert ends.height == frame.height // 2
    assert ends["recalled"].list.len().max() > 5  # of both steps together


def test_founders_are_there_before_the_first_generation(tmp_path):
    class Founded(Parity):
        def founders(self, rng):
            return [Outcome("even", 1.0, input=str(number)) for number in rng.integers(30, size=3)]

    class Trusting(Copier):
        def act(self, task, memories, rng):
            return memories[0].output

    frame = ran(tmp_path, Arm("trusts", Trusting()), world=Founded()).episodes
    first = frame.filter(pl.col("generation") == 0)
    assert set(first["output"]) == {"even"}
    assert set(first["recalled"].list.len()) == {3}


def test_a_learner_may_await(tmp_path):
    class Slow(Copier):
        async def act(self, task, memories, rng):
            return super().act(task, memories, rng)

    slow = ran(tmp_path, Arm("copier", Slow())).episodes
    assert slow.equals(experiment(ARMS[0]).run_sync(tmp_path / "quick", progress=False).episodes)


def test_a_learner_is_prepared_once_for_each_cell_and_keeps_nothing_of_another(tmp_path):
    class Prepared(Copier):
        seen = ()

        def prepare(self, world, embed):
            assert self.seen == ()
            vectors = embed(["a", "b", "a"])
            assert vectors.shape == (3, 384)
            assert (vectors[0] == vectors[2]).all()
            self.seen = tuple(world.options)

        def act(self, task, memories, rng):
            return self.seen[0]

    world = Parity()
    world.options = {"even": "divisible by two", "odd": "not"}
    assert set(ran(tmp_path, Arm("prepared", Prepared()), world=world).episodes["output"]) == {"even"}


def test_a_world_is_drawn_once_for_each_seed(tmp_path):
    class Seeded(Parity):
        def seeded(self, rng):
            return Seeded(int(rng.integers(1, 10**6)))

    frame = ran(tmp_path, ARMS[0], Arm("guesser", Guesser()), world=Seeded()).episodes
    largest = {
        arm: dict(own.group_by("seed").agg(pl.col("input").cast(int).max()).iter_rows())
        for (arm,), own in frame.group_by("arm")
    }
    assert largest["copier"] == largest["guesser"]
    assert largest["copier"][0] != largest["copier"][7]


def test_too_few_tasks_are_refused(tmp_path):
    class Short(Parity):
        def tasks(self, rng, n, generation):
            return super().tasks(rng, n - 1, generation)

    from fedlab import ExperimentFailed

    with pytest.raises(ExperimentFailed, match=r"Short.tasks gave 7 .* where 8 Tasks are needed"):
        ran(tmp_path, ARMS[0], world=Short())


def test_similarity_that_is_asked_for_late_is_refused(tmp_path):
    class Late(Copier):
        def queries(self, task):
            return () if self.k else [Query()]

        def act(self, task, memories, rng):
            self.k = 0
            return "odd"

    from fedlab import ExperimentFailed

    with pytest.raises(ExperimentFailed, match="asks for similar memories"):
        ran(tmp_path, Arm("late", Late()))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"arms": [ARMS[0], ARMS[0]]}, "arms must be of different names, not str 'copier'"),
        ({"arms": []}, "at least one Arm"),
        ({"arms": ["copier"]}, "arms must be Arms, not str 'copier'"),
        ({"arms": [Arm("a", Copier(), sharing=Islands(3))]}, "1 to 2 tenants"),
        ({"world": object()}, "world must be an object with tasks and reward"),
        ({"world": worlds.Islands(2)}, r"Islands are how the agents of an arm share, and no world: Arm\(…, sharing="),
        ({"world": Parity}, r"world must be an object, such as Parity\(…\), and no class"),
        ({"generations": 0}, "generations must be an integer from 1, not 0"),
        ({"seeds": [1, 1]}, "seeds must be different numbers"),
        ({"seeds": [-1]}, "seeds must be an integer from 0, not -1"),
        ({"seeds": []}, "seeds must be different numbers, at least one"),
        ({"seeds": 3}, r"seeds must be numbers from 0, such as range\(10\), not int 3"),
        ({"generation_interval": timedelta(0)}, "generation_interval must be a timedelta above zero"),
        ({"lifetime": 1}, "lifetime is 5 to 900 seconds"),
    ],
)
def test_a_wrong_experiment_is_refused(changed, said):
    with pytest.raises(InvalidRequest, match=said):
        experiment(**changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"write": "success"}, "write of arm 'a' must be 'everything', 'successes' or a NoisyEvaluator, not str 'succ"),
        ({"sharing": "island"}, "sharing of arm 'a' must be 'all', 'none' or Islands, not str 'island'"),
        ({"feedback": "corective"}, "feedback of arm 'a' must be 'bandit' or 'corrective', not str 'corective'"),
        ({"recall": 5}, "recall of arm 'a' must be a Query or None, not int 5"),
        ({"capacity": 0}, "capacity of arm 'a' must be an integer from 1, or None, not int 0"),
        ({"capacity": 2.5}, "capacity of arm 'a' must be .*, not float 2.5"),
        ({"capacity": True}, "capacity of arm 'a' must be .*, not bool True"),
        (
            {"retention": "MaxAge(3)"},
            r"retention of arm 'a' must be .* RetentionPolicy.parse\(.*, not str 'MaxAge\(3\)",
        ),
        ({"name": 7}, "name of an Arm must be a text that is not empty, not int 7"),
        ({"name": ""}, "name of an Arm must be a text that is not empty, not str ''"),
        ({"learner": object()}, "learner of arm 'a' must be an object with act"),
        ({"learner": Copier}, r"learner of arm 'a' must be an object, such as Copier\(…\), and no class"),
    ],
)
def test_a_wrong_arm_is_refused(changed, said):
    with pytest.raises(InvalidRequest, match=said) as raised:
        Arm(**{"name": "a", "learner": Copier(), **changed})
    assert [raised.value.details["field"]] == list(changed)


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (Islands, (2, 3.0), "migration must be a finite number from 0 to 1, not float 3.0"),
        (Islands, (2.5,), "tenants must be an integer from 1, not 2.5"),
        (
            worlds.Islands,
            (Parity(), 0.1),
            r"Islands are how the agents of an arm share, and no world: Arm\(…, sharing=",
        ),
        (NoisyEvaluator, ("a",), "sigma must be a finite number from 0, not str 'a'"),
        (NoisyEvaluator, (-1,), "sigma must be a finite number from 0, not int -1"),
        (NoisyEvaluator, (1, float("nan")), "threshold must be a finite number, not float nan"),
    ],
)
def test_a_wrong_number_of_an_arm_is_refused(kind, values, said):
    with pytest.raises(InvalidRequest, match=said):
        kind(*values)


def test_retention_by_recalls_works_in_a_cell(tmp_path):
    frame = ran(tmp_path, Arm("unused", Copier(k=1), retention=Unused(after=15)), generations=5).episodes
    gone = frame.filter(pl.col("forgotten_generation").is_not_null())
    recalled = set(frame["recalled"].explode().drop_nulls())
    assert gone.height
    assert not set(gone["episode_id"]) & recalled


def test_own_vectors_need_no_model(tmp_path):
    class Points(Parity):
        dimension = 2

        def tasks(self, rng, n, generation):
            return [
                Task("side", str(i), "right" if x > 0 else "left", [x, 1.0]) for i, x in enumerate(rng.normal(size=n))
            ]

    class Nearest(Copier):
        def act(self, task, memories, rng):
            return memories[0].metadata["answer"] if memories else "left"

    frame = ran(
        tmp_path, Arm("nearest", Nearest(), feedback="corrective"), world=Points(), embedder="no such model"
    ).episodes
    assert frame.filter(pl.col("generation") == 2)["true_reward"].mean() > 0.8
