"""What the literature predicts, and what agents on a hub do."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from scipy import stats

from fedlab.lab import Arm, Experiment, Islands, learners, worlds
from fedlab.retention import MaxAge

pytestmark = pytest.mark.timeout(900)

ONE_GENERATION = MaxAge(days=10)
AGENTS = 32
TENANTS = (32, 16, 8, 4, 2)
CULTURE = worlds.CumulativeCulture(alpha=1.0, beta=1.0)


def run(folder, world, arms, **sizes):
    """A run on two cores."""
    experiment = Experiment(world, arms, tasks_per_agent=1, generation_interval=timedelta(days=10), **sizes)
    return experiment.run_sync(folder, workers=2, progress=False)


@pytest.fixture(scope="module")
def growth(tmp_path_factory):
    """Growth of each isolated tenant in a generation, by arm: 32 agents in some tenants, which never meet."""
    generations, seeds = 31, 3
    imitator = learners.GumbelImitator()
    arms = [Arm(f"{t}", imitator, retention=ONE_GENERATION, sharing=Islands(t)) for t in TENANTS]
    arms.append(Arm("forever", imitator, sharing=Islands(8)))
    results = run(
        tmp_path_factory.mktemp("culture"),
        CULTURE,
        arms,
        generations=generations,
        agents_per_generation=AGENTS,
        seeds=range(seeds),
    )
    place = ["arm", "seed", "tenant_id"]
    means = results.episodes.group_by(*place, "generation").agg(pl.col("reward").mean()).sort("generation")
    skill = pl.col("reward")
    each = means.group_by(place).agg(growth=(skill.last() - skill.first()) / (generations - 1)).sort(place)
    return {arm: each.filter(pl.col("arm") == arm)["growth"].to_numpy() for arm in results.arms}


def agrees(values, theory):
    """Whether a prediction is in the 95 % interval of a mean."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return low <= theory <= high


def test_culture_grows_with_the_log_of_those_who_share_a_memory(growth):
    held = [agrees(growth[f"{t}"], CULTURE.theory(AGENTS, tenants=t).per_generation) for t in TENANTS]
    assert sum(held) >= 4
    slope, _ = np.polyfit(np.log(AGENTS / np.array(TENANTS)), [growth[f"{t}"].mean() for t in TENANTS], 1)
    assert slope == pytest.approx(CULTURE.beta, rel=0.05)


def test_isolation_costs_beta_times_the_log_of_the_tenants(growth):
    together, apart = growth["2"], growth["8"]
    error = np.hypot(stats.sem(together), stats.sem(apart))
    assert together.mean() - apart.mean() == pytest.approx(CULTURE.beta * np.log(4), abs=1.96 * error)


def test_with_all_of_memory_culture_grows_as_records_are_broken(growth):
    forever = CULTURE.theory(AGENTS, tenants=8, memory="forever").per_generation
    assert agrees(growth["forever"], forever)
    assert growth["forever"].mean() > growth["8"].mean()


CHAINS = 40
CHAIN = worlds.IteratedLearning(a=5, n=5, s0=8, m0=8)


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    """Count of the first variant, shape (generations, chains): each place in a generation is a chain of its own."""
    arm = Arm("chains", learners.BayesianSampler(), retention=ONE_GENERATION, sharing="none")
    folder = tmp_path_factory.mktemp("chains")
    results = run(folder, CHAIN, [arm], generations=24, agents_per_generation=CHAINS, seeds=range(5))
    shares = results.episodes.sort("generation", "seed", "agent")["reward"].to_numpy().reshape(24, -1)
    return np.rint(shares * CHAIN.n).astype(int)


def test_a_chain_with_a_short_memory_ends_in_the_prior(chains):
    # Every fourth generation: by then all but 1/16 of what was said is forgotten.
    counts = np.bincount(chains[[11, 15, 19, 23]].ravel(), minlength=CHAIN.n + 1)
    expected = CHAIN.theory().limit.pmf(range(CHAIN.n + 1)) * counts.sum()
    assert stats.chisquare(counts, expected).pvalue > 0.01


def test_a_chain_forgets_its_founder_at_the_predicted_rate(chains):
    theory = CHAIN.theory(6)
    shares = chains[:6] / CHAIN.n
    # A regression of each generation on the one before it has n / (n + a) as its slope.
    before, after = shares[:-1].ravel() - 0.5, shares[1:].ravel() - 0.5
    fit = stats.linregress(before, after)
    assert abs(fit.slope - theory.decay) < stats.norm.ppf(0.995) * fit.stderr
    errors = shares.std(axis=1, ddof=1) / np.sqrt(shares.shape[1])
    assert (np.abs(shares.mean(axis=1) - theory.mean) < stats.norm.ppf(1 - 0.005 / 6) * errors).all()


def test_with_all_of_memory_a_founder_is_never_forgotten(tmp_path):
    urn = worlds.IteratedLearning(a=2, n=20, s0=3, m0=4)
    arm = Arm("urn", learners.BayesianSampler(), sharing="none")
    results = run(tmp_path, urn, [arm], generations=20, agents_per_generation=CHAINS, seeds=range(4))
    said = results.episodes.group_by("seed", "agent").agg(ones=pl.col("reward").sum() * urn.n)["ones"].to_numpy()
    share = (said + urn.s0) / (20 * urn.n + urn.m0)
    assert stats.kstest(share, urn.theory(memory="forever").limit.cdf).pvalue > 0.01
    assert share.mean() == pytest.approx(urn.theory(memory="forever").mean[0], abs=3 * stats.sem(share))
