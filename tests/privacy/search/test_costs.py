"""Costs of a private search: the worst candidate, its score, its overflows."""

import dataclasses
import math
import re

import numpy as np
import pytest

from repjax import types
from repjax.privacy import accounting
from repjax.privacy import statements
from repjax.privacy import tuning
from repjax.privacy.search import costs
from repjax.privacy.search import laws
from repjax.privacy.search import tradeoff

LAW = laws.with_mean(1.0, 5.0)


@pytest.fixture(scope='module')
def quiet():
  """What a run with much noise claims."""
  return statements.statement(
    noise_multiplier=4.0,
    sampling_rate=0.1,
    steps=20,
    delta=1e-5,
    accountant='rdp',
  )


@pytest.fixture(scope='module')
def loud(quiet):
  """What one with less noise claims."""
  return dataclasses.replace(quiet, noise_multiplier=1.5)


def curve_of(statement):
  return accounting.rdp_curve(
    noise_multiplier=statement.noise_multiplier,
    sampling_rate=statement.sampling_rate,
    steps=statement.steps,
  )


def test_one_candidate_costs_what_tuning_says(loud):
  found = costs.of_search([loud], LAW, delta=1e-5, score_noise=3.0)
  curve = costs.with_score(curve_of(loud), 3.0)
  limit = laws.most(LAW)
  expected = tuning.epsilon_of_best(
    curve, LAW, 1e-5, power=tradeoff.from_rdp(curve), limit=limit
  )
  assert found == (expected, tuning.epsilon(curve, 1e-5), limit)
  # Its privacy loss tells more than its moments.
  public = costs.of_search([loud], LAW, delta=1e-5)
  by_moments = tuning.epsilon_of_best(
    curve_of(loud), LAW, 1e-5, power=tradeoff.from_rdp(curve_of(loud))
  )
  assert public.epsilon < by_moments < found.epsilon


def test_the_worst_candidate_counts(quiet, loud):
  settings = dict(delta=1e-5, score_noise=3.0)
  alone = costs.of_search([loud], LAW, **settings)
  assert costs.of_search([quiet, loud], LAW, **settings) == alone
  cheap = costs.of_search([quiet], LAW, **settings)
  assert cheap.epsilon < 0.7 * alone.epsilon
  # Where neither is the worst at every order, the bound is above both.
  longer = dataclasses.replace(quiet, noise_multiplier=2.0, steps=60)
  curves = [curve_of(x).epsilons for x in (loud, longer)]
  assert (curves[0] > curves[1]).any()
  assert (curves[0] < curves[1]).any()
  both, _ = costs.worst([loud, longer], None)
  np.testing.assert_array_equal(both.epsilons, np.maximum(*curves))


def test_a_score_is_a_gaussian_mechanism_of_sensitivity_one(quiet):
  curve = curve_of(quiet)
  # The divergence of order a of N(0, s^2) and N(1, s^2) is a / (2 s^2).
  added = costs.with_score(curve, 2.0).epsilons - curve.epsilons
  np.testing.assert_allclose(added, curve.orders / 8, rtol=1e-9)
  with pytest.raises(ValueError, match='stddev'):
    costs.with_score(curve, 0.0)


def test_runs_that_are_all_published_add_up(quiet):
  twice = dataclasses.replace(quiet, steps=40)
  np.testing.assert_allclose(
    costs.composed(curve_of(quiet), 2).epsilons, curve_of(twice).epsilons
  )


def test_batches_that_overflow_and_many_trials_are_paid_for(quiet):
  settings = dict(delta=1e-5, score_noise=3.0)
  often = dataclasses.replace(quiet, overflow=1e-6)
  with pytest.raises(types.InputError, match='overflow too often') as error:
    costs.of_search([quiet, often], LAW, **settings)
  # What it names is enough, and next to it nothing is paid for.
  remedy = float(re.search(r'dp.overflow=(\S+),', str(error.value))[1])
  rare = dataclasses.replace(quiet, overflow=remedy)
  found = costs.of_search([quiet, rare], LAW, **settings)
  free = costs.of_search([quiet], LAW, **settings)
  assert free.epsilon <= found.epsilon < 1.001 * free.epsilon
  with pytest.raises(ValueError, match='trials at most'):
    costs.of_search([quiet], LAW, limit=3, **settings)


def test_a_search_is_cut_as_rarely_as_a_large_epsilon_needs_it(loud):
  # At an epsilon of 31, one in 1e15 is more than 1 % of 1e-10 pays for.
  loud = dataclasses.replace(loud, noise_multiplier=0.5, overflow=1e-40)
  found = costs.of_search([loud], LAW, delta=1e-10)
  assert found.epsilon > 25
  assert LAW.tail(found.limit) * (1 + math.exp(found.epsilon)) < 1e-12


def test_half_of_what_may_be_lost_is_for_overflows_and_half_for_the_cut(loud):
  settings = dict(delta=1e-10, score_noise=3.0)
  often = dataclasses.replace(loud, noise_multiplier=0.5, overflow=1e-3)
  with pytest.raises(types.InputError, match='overflow too often') as error:
    costs.of_search([often], LAW, **settings)
  remedy = float(re.search(r'dp.overflow=(\S+),', str(error.value))[1])
  enough = dataclasses.replace(often, overflow=remedy)
  found = costs.of_search([enough], LAW, **settings)
  # Of 1 % of delta; it names 95 % of what is allowed.
  half = 1e-12 / 2 / (1 + math.exp(found.epsilon))
  lost = LAW.mean * enough.steps * remedy
  assert 0.9 * half < lost < half
  assert LAW.tail(found.limit) < half < LAW.tail(found.limit - 1)
