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
SHARING = (1, 2, 4, 8, 16)
"""How many agents share a memory."""
TENANTS = 12
CULTURE = worlds.CumulativeCulture(alpha=1.0, beta=1.0)


def run(folder, world, arms, **sizes):
    """A run on two cores."""
    experiment = Experiment(world, arms, tasks_per_agent=1, generation_interval=timedelta(days=10), **sizes)
    return experiment.run_sync(folder, workers=2, progress=False)


@pytest.fixture(scope="module")
def growth(tmp_path_factory):
    """Growth of each isolated tenant in a generation, by how many agents share it; each number of agents with as many
    tenants, because the best of many varies as much as the best of two.
    """
    generations, imitator, sizes = 31, learners.GumbelImitator(), {"seeds": range(2)}
    found = {}
    for n in SHARING:
        arms = [Arm("a generation", imitator, retention=ONE_GENERATION, sharing=Islands(TENANTS))]
        if n == 4:
            arms.append(Arm("forever", imitator, sharing=Islands(TENANTS)))
        results = run(
            tmp_path_factory.mktemp("culture"),
            CULTURE,
            arms,
            generations=generations,
            agents_per_generation=n * TENANTS,
            **sizes,
        )
        place = ["arm", "seed", "tenant_id"]
        means = results.episodes.group_by(*place, "generation").agg(pl.col("reward").mean()).sort("generation")
        skill = pl.col("reward")
        each = means.group_by(place).agg(growth=(skill.last() - skill.first()) / (generations - 1)).sort(place)
        for arm in results.arms:
            found[arm, n] = each.filter(pl.col("arm") == arm)["growth"].to_numpy()
    return found


def agrees(values, theory):
    """Whether a prediction is in the 95 % interval of a mean."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return low <= theory <= high


def test_culture_grows_with_the_log_of_those_who_share_a_memory(growth):
    held = [agrees(growth["a generation", n], CULTURE.theory(n).per_generation) for n in SHARING]
    assert sum(held) >= 4
    slope, _ = np.polyfit(np.log(SHARING), [growth["a generation", n].mean() for n in SHARING], 1)
    assert slope == pytest.approx(CULTURE.beta, rel=0.05)


def test_isolation_costs_beta_times_the_log_of_the_tenants(growth):
    together, apart = growth["a generation", 16], growth["a generation", 4]
    error = np.hypot(stats.sem(together), stats.sem(apart))
    cost = CULTURE.theory(16).per_generation - CULTURE.theory(16, tenants=4).per_generation
    assert cost == pytest.approx(CULTURE.beta * np.log(4))
    assert together.mean() - apart.mean() == pytest.approx(cost, abs=1.96 * error)


def test_with_all_of_memory_culture_grows_as_records_are_broken(growth):
    assert agrees(growth["forever", 4], CULTURE.theory(4, memory="forever").per_generation)
    assert growth["forever", 4].mean() > growth["a generation", 4].mean()


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
