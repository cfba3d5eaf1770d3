"""Worlds with a known answer: what they say of themselves, without a hub."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from fedlab.errors import InvalidRequest
from fedlab.lab.learners import BayesianSampler, GumbelImitator, ZeroShot
from fedlab.lab.worlds import CumulativeCulture, IteratedLearning


def test_growth_under_a_short_memory_is_that_of_the_best_of_n_imitations():
    theory = CumulativeCulture(alpha=7, beta=1).theory(100, 3)
    drawn = np.random.default_rng(0).gumbel(-7, 1, (40_000, 100)).max(axis=1)
    assert theory.per_generation == pytest.approx(drawn.mean(), abs=3 * drawn.std() / 200)
    assert theory.best == pytest.approx(theory.per_generation * np.array([1, 2, 3]))
    assert theory.mean[1] - theory.mean[0] == pytest.approx(theory.per_generation)
    assert theory.critical_agents == pytest.approx(615.7, abs=0.1)


def test_the_critical_number_of_agents_neither_gains_nor_loses():
    world = CumulativeCulture(alpha=1 + np.euler_gamma, beta=1)
    assert world.theory(1).critical_agents == pytest.approx(np.e)
    assert world.theory(2).per_generation < 0 < world.theory(3).per_generation


@pytest.mark.parametrize("agents", [1, 4, 50])
def test_growth_with_all_of_memory_is_the_mean_of_what_exceeds_the_record(agents):
    world = CumulativeCulture(alpha=2, beta=0.7)
    record = stats.gumbel_r(-2 + 0.7 * np.log(agents), 0.7)
    expected, _ = integrate.quad(record.sf, 0, 60)
    assert world.theory(agents, memory="forever").per_generation == pytest.approx(expected)
    assert expected > 0


def test_isolation_costs_beta_times_the_log_of_the_tenants():
    world = CumulativeCulture(alpha=1, beta=0.5)
    cost = world.theory(12).per_generation - world.theory(12, tenants=4).per_generation
    assert cost == pytest.approx(0.5 * np.log(4))
    with pytest.raises(InvalidRequest, match="10 agents are no multiple of 4 tenants"):
        world.theory(10, tenants=4)


def test_a_chain_goes_to_the_prior_and_an_urn_stays_where_it_began():
    world = IteratedLearning(a=2, n=10, s0=9, m0=10)
    chain = world.theory(200)
    assert chain.mean[0] == pytest.approx(10 / 12)
    assert (chain.mean[1] - 0.5) / (chain.mean[0] - 0.5) == pytest.approx(chain.decay) == pytest.approx(10 / 12)
    assert chain.mean[-1] == pytest.approx(0.5)
    assert chain.limit.pmf(range(11)) == pytest.approx(1 / 11)  # Beta(1, 1) makes all counts alike
    urn = world.theory(200, memory="forever")
    assert set(urn.mean) == {10 / 12}
    assert urn.limit.mean() == pytest.approx(10 / 12)


def test_the_stationary_distribution_is_one_of_the_chain():
    world = IteratedLearning(a=3, n=6)
    counts = np.arange(7)
    step = np.array([stats.betabinom(6, 1.5 + k, 1.5 + 6 - k).pmf(counts) for k in counts])
    stationary = world.theory().limit.pmf(counts)
    assert stationary @ step == pytest.approx(stationary)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CumulativeCulture(beta=0), "beta above 0"),
        (lambda: IteratedLearning(a=0), "a must be a positive number"),
        (lambda: IteratedLearning(s0=3, m0=2), "3 is more than 2"),
        (lambda: CumulativeCulture().theory(3, memory="short"), "'short'"),
        (lambda: IteratedLearning().theory(memory="short"), "'short'"),
        (lambda: BayesianSampler("mode"), "'mode'"),
        (lambda: GumbelImitator().prepare(IteratedLearning(), None), "alpha and beta"),
        (lambda: BayesianSampler().prepare(CumulativeCulture(), None), "a and n"),
        (lambda: ZeroShot().prepare(CumulativeCulture(), None), "has none"),
    ],
)
def test_what_can_not_be_is_refused(make, says):
    with pytest.raises(InvalidRequest, match=says):
        make()


def test_the_learners_draw_what_the_theory_says():
    rng = np.random.default_rng(0)
    world = CumulativeCulture(alpha=1.5, beta=2)
    imitator = GumbelImitator()
    imitator.prepare(world, None)
    task = world.tasks(rng, 1, 0)[0]
    skills = [float(imitator.act(task, [], rng).output) for _ in range(2_000)]
    assert stats.kstest(skills, stats.gumbel_r(-1.5, 2).cdf).pvalue > 0.01
    world = IteratedLearning(a=4, n=8)
    for choose, expected in [("sample", stats.betabinom(8, 2, 2)), ("map", stats.binom(8, 0.5))]:
        sampler = BayesianSampler(choose)
        sampler.prepare(world, None)
        said = [sampler.act(task, [], rng).output.count("1") for _ in range(2_000)]
        observed = np.bincount(said, minlength=9)
        assert stats.chisquare(observed, 2_000 * expected.pmf(range(9))).pvalue > 0.01
