"""The drift test: how many transitions draws need, and what they moved."""

from __future__ import annotations

import pytest
import torch

from pyro_dft.engine_torch.engine import ENGINE
from pyro_dft.engine_torch.sampler import Sampler
from pyro_dft.engine_torch.target import Target
from pyro_dft.experimental import Experimental
from pyro_dft.recipe.engine import Forms
from pyro_dft.recipe.measure import affordable_draws, compare, measure
from pyro_dft.recipe.subject import Subject
from pyro_dft.settings import Settings


def gaussian(x):
    return 0.5 * x.square().sum()


def banana(x):
    """x_0 of sd 2, x_1 around x_0^2 / 2: a Gaussian kernel needs many transitions to follow the bend."""
    return 0.125 * x[0] ** 2 + 2 * (x[1] - 0.5 * x[0] ** 2) ** 2


def same(x):
    return x


def at_most(transitions):
    return Settings(experimental=Experimental(max_refine_steps=transitions))


@pytest.fixture
def rng(device):
    return torch.Generator(device=device).manual_seed(0)


@pytest.fixture
def sampler(dtype, device):
    def make(shift=0.0, scale=1.0, chains=1, d=2):
        mean = torch.full((chains, d), float(shift), dtype=dtype, device=device)
        return Sampler(mean, scale * torch.eye(d, dtype=dtype, device=device).expand(chains, d, d))

    return make


@pytest.fixture
def target(dtype, device):
    def make(potential, d=2, **options):
        return Target(potential, d, dtype=dtype, device=device, **options)

    return make


def test_right_draws_need_few_transitions_and_do_not_move(target, sampler, rng):
    found = measure(Subject(ENGINE, target(gaussian), sampler(), 4000, Settings(), rng, same))
    assert found.steps <= 4
    assert found.drift_raw.worst_lower < 0.03
    assert found.drift_refined.worst_lower < 0.03
    assert not found.drift_raw.flagged(0.1)
    assert found.raw.shape == found.halfway.shape == found.refined.shape == (1, 4000, 2)
    assert found.divergence_rate == 0
    assert found.stuck < 0.05
    # Tuned to 0.8, on 200 draws.
    assert 0.65 < float(found.acceptance[0]) < 0.95
    torch.testing.assert_close(found.log_density, -0.5 * found.refined.square().sum(-1))


def test_shifted_draws_are_flagged_and_repaired(target, sampler, rng):
    """A shift of one sd and half the spread: the raw draws move by that much, the refined ones stay."""
    found = measure(Subject(ENGINE, target(gaussian), sampler(1.0, 0.5), 4000, Settings(), rng, same))
    assert found.drift_raw.flagged(0.1)
    assert found.drift_raw.mean_shift == pytest.approx([-1.0, -1.0], abs=0.1)
    assert found.drift_raw.log_sd_shift == pytest.approx([0.69, 0.69], abs=0.1)
    assert not found.drift_refined.flagged(0.1)
    # 8,000 numbers of unit variance.
    assert abs(float(found.refined.mean())) < 4 / 8000**0.5
    assert abs(float(found.refined.std()) - 1) < 4 / 16000**0.5


def test_steps_double_until_nothing_moves(target, sampler, rng):
    """Far from the banana, around its bend: as many transitions as the limit allows, and more settle more."""
    easy = measure(Subject(ENGINE, target(gaussian), sampler(), 2000, Settings(), rng, same))
    far = sampler(3.0, 0.3)
    limited = measure(Subject(ENGINE, target(banana), far, 2000, at_most(7), rng, same))
    free = measure(Subject(ENGINE, target(banana), far, 2000, at_most(64), rng, same))
    assert limited.steps == 4
    assert free.steps in (16, 32, 64)
    assert free.steps > easy.steps
    assert free.drift_refined.rms < limited.drift_refined.rms
    assert limited.drift_refined.flagged(0.1)


def test_a_limit_of_one_transition_is_kept(target, sampler, rng):
    found = measure(Subject(ENGINE, target(banana), sampler(0.0, 1.5), 400, at_most(1), rng, same))
    assert found.steps == 1


@pytest.mark.parametrize("steps", [1, 3])
def test_given_steps_are_taken_as_they_are(target, sampler, rng, steps):
    found = measure(
        Subject(ENGINE, target(banana), sampler(0.0, 1.5), 400, Settings(refine_steps=steps), rng, same)
    )
    assert found.steps == steps


def test_draws_are_spread_over_the_chains(target, sampler, rng):
    found = measure(Subject(ENGINE, target(gaussian), sampler(chains=3), 900, Settings(), rng, same))
    assert found.raw.shape == (3, 300, 2)
    assert len(found.drift_raw_by_chain) == len(found.chain_movement) == 3
    assert found.step_size.shape == found.acceptance.shape == (3,)
    assert found.scale.shape == (3, 2, 2)
    assert found.drift_raw.n == 900
    assert found.drift_raw_by_chain[0].n == 300


def test_drifts_are_in_the_original_coordinates(target, sampler, rng):
    """The first coordinate comes out in other units, where the map says so."""
    own = lambda x: torch.stack([x[:, 0].exp(), x[:, 1]], 1)  # noqa: E731
    found = measure(Subject(ENGINE, target(gaussian), sampler(1.0), 2000, Settings(), rng, own))
    # exp of a unit normal has mean exp(1/2), that of a normal around 1 exp(3/2); sd of the first is 2.16.
    assert found.drift_raw.mean_shift[0] == pytest.approx((1 - 2.718) * 1.6487 / 2.161, rel=0.3)
    assert found.drift_raw.mean_shift[1] == pytest.approx(-1.0, abs=0.1)


def test_compare_pools_and_separates(rng, dtype, device):
    before = torch.randn(2, 500, 3, generator=rng, dtype=dtype, device=device)
    after = before.clone()
    after[1, :, 2] += 0.5
    pooled, first, second = compare(ENGINE, before, after, same)
    assert first.worst == 0
    assert second.mean_shift[2] == pytest.approx(0.5, rel=0.1)
    assert 0 < pooled.mean_shift[2] < second.mean_shift[2]
    one = compare(ENGINE, before[:1], after[:1], same)
    assert len(one) == 2
    assert one[0].worst == one[1].worst == 0


def test_the_budget_of_full_data_limits_the_draws(target, rng, sampler):
    settings = Settings(full_data_budget=1e6, experimental=Experimental(leapfrog_steps=5))
    plain = target(gaussian, forms=Forms(rows=1000))
    assert affordable_draws(4000, 10, settings, plain) == 4000

    def refuse(x):
        raise AssertionError("a minibatch where the full data are needed")

    subsampled = target(gaussian, forms=Forms(refuse, rows=1000))
    # 1e6 / (2 * 5 * 1000) draws.
    assert affordable_draws(4000, 2, settings, subsampled) == 100
    assert affordable_draws(50, 2, settings, subsampled) == 50
    assert affordable_draws(4000, 100, settings, subsampled) == 40
    assert affordable_draws(4000, 0, settings, subsampled) == 200
    # 20 draws within the budget, 100 for five times as much.
    assert affordable_draws(4000, 10, settings, subsampled, least=200) == 100
    assert affordable_draws(4000, 2, settings, subsampled, least=200) == 200
    assert affordable_draws(150, 2, settings, subsampled, least=200) == 150
    found = measure(Subject(ENGINE, subsampled, sampler(), 4000, settings, rng, same))
    assert found.raw.shape[1] < 4000


def test_draws_that_are_not_finite_do_not_stop_it(target, sampler, rng, dtype, device):
    """One chain's sampler is broken: it says so, and the other's numbers are its own."""
    both = sampler(chains=2)
    mean = both.mean.clone()
    mean[1] = torch.nan
    found = measure(Subject(ENGINE, target(gaussian), Sampler(mean, both.scale), 1000, Settings(), rng, same))
    assert found.drift_raw.worst == float("inf")
    assert found.drift_raw_by_chain[1].worst == float("inf")
    assert found.drift_raw_by_chain[0].worst < 0.2
    assert torch.isfinite(found.refined[0]).all()
