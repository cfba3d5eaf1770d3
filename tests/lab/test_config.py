"""Experiments as files and on the command line."""

from __future__ import annotations

import msgspec
import pytest

from fedlab import InvalidRequest, MaxAge
from fedlab.cli import main
from fedlab.lab import Arm, Islands, NoisyEvaluator, Results
from fedlab.lab.config import load
from tests.lab.small import Copier, experiment

CONFIG = """
generations = 2
agents_per_generation = 2
tasks_per_agent = 3
seeds = 2
generation_interval_days = 5
embedder = "hashing"

[world]
kind = "tests.lab.small:Parity"
most = 8

[[arms]]
name = "ninety days"
learner = {kind = "tests.lab.small:Copier", k = 3}
retention = "MaxAge(90)"
sharing = {tenants = 2, migration = 0.5}
write = {sigma = 0.1}

[[arms]]
name = "guesser"
learner = {kind = "tests.lab.small:Guesser"}
recall = {k = 2, policy = {reward = 1.0}}
"""
IN_A_MODULE = experiment(Arm("copier", Copier()), seeds=[3])


def test_a_file_says_what_is_run(tmp_path):
    (tmp_path / "e.toml").write_text(CONFIG)
    held = load(str(tmp_path / "e.toml"))
    assert (held.world.most, held.seeds, held.generation_interval.days) == (8, (0, 1), 5)
    first, second = held.arms
    assert (first.retention, first.sharing, first.write) == (MaxAge(90), Islands(2, 0.5), NoisyEvaluator(0.1))
    assert (first.learner.k, second.recall.k, second.recall.policy.reward) == (3, 2, 1.0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("[world]", "[wrold]"), "an experiment needs world"),
        (("most = 8", "least = 8"), r"Parity can not be made of \['least'\]"),
        (('kind = "tests.lab.small:Parity"', 'kind = "Paritty"'), "there is no 'Paritty': there are .*ToolChoice"),
        (("small:Guesser", "small:Gueser"), "tests.lab.small:Gueser can not be imported"),
        (('"MaxAge(90)"', '"MaxAge(ninety)"'), "is no retention policy"),
        (("generations = 2", "generations == 2"), "is no TOML"),
        (("generations = 2", "generation = 2"), "Experiment can not be made of"),
        (("sharing = {tenants = 2, migration = 0.5}", 'sharing = "island"'), "sharing of arm 'ninety days' must be"),
        (('"MaxAge(90)"', "90"), "retention of arm 'ninety days' must be a RetentionPolicy, .*, not int 90"),
        (("_days = 5", '_days = "x"'), "timedelta can not be made of"),
    ],
)
def test_a_file_that_is_wrong_is_refused(tmp_path, changed, said):
    (tmp_path / "e.toml").write_text(CONFIG.replace(*changed))
    with pytest.raises(InvalidRequest, match=said):
        load(str(tmp_path / "e.toml"))


@pytest.mark.parametrize("arms", ["3", '["x"]', '{name = "x"}'])
def test_arms_that_are_no_tables_are_refused(tmp_path, arms):
    (tmp_path / "e.toml").write_text(f"arms = {arms}\n{CONFIG.partition('[[arms]]')[0]}")
    with pytest.raises(InvalidRequest, match=r"arms must be tables, each under a line \[\[arms\]\], not "):
        load(str(tmp_path / "e.toml"))


@pytest.mark.parametrize("target", ["nothing.toml", "nothing", "tests.lab.small:nothing", "tests.lab.small:files"])
def test_what_is_no_experiment_is_refused(target):
    with pytest.raises(InvalidRequest, match=target):
        load(target)


def test_the_shell_runs_an_experiment_and_shows_its_results(tmp_path, capsys):
    (tmp_path / "e.toml").write_text(CONFIG)
    main_ok("run", str(tmp_path / "e.toml"), "--output", str(tmp_path / "run"))
    assert "ninety days" in capsys.readouterr().out
    results = Results.open(tmp_path / "run")
    for options, baseline, last in (((), None, None), (("--baseline", "guesser", "--last", "1"), "guesser", 1)):
        main_ok("results", str(tmp_path / "run"), *options)
        assert capsys.readouterr().out == results.table(baseline, last=last) + "\n"
    main_ok("results", str(tmp_path / "run"), "--json", "--baseline", "guesser")
    rows = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == results.summary("guesser").to_dicts()


def test_the_shell_runs_an_experiment_of_a_module(tmp_path, capsys):
    main_ok("run", "tests.lab.test_config:IN_A_MODULE", "-o", str(tmp_path / "run"), "--workers", "2", "--keep-hubs")
    assert "copier" in capsys.readouterr().out
    assert (tmp_path / "run/hub/copier.3/hub.db").exists()


@pytest.mark.parametrize(
    ("target", "place"), [("e.toml", "runs/e"), ("tests.lab.test_config:IN_A_MODULE", "runs/IN_A_MODULE")]
)
def test_without_an_output_a_run_is_named_after_its_experiment(tmp_path, capsys, monkeypatch, target, place):
    (tmp_path / "e.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    main_ok("run", target)
    assert capsys.readouterr().err.startswith(f"The run is in {place}\n")
    assert Results.open(tmp_path / place).generations.height


def test_a_directory_without_a_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["results", str(tmp_path)])
    assert "holds no run" in capsys.readouterr().err


def test_a_baseline_that_is_no_arm_is_named(tmp_path, capsys):
    main_ok("run", "tests.lab.test_config:IN_A_MODULE", "-o", str(tmp_path / "run"))
    with pytest.raises(SystemExit) as end:
        main(["results", str(tmp_path / "run"), "--baseline", "nobody"])
    assert end.value.code
    assert "there is no arm 'nobody', but 'copier'" in capsys.readouterr().err


def main_ok(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code in (0, None)
