"""Searches over a table: against searches that are carried out."""

import functools
import math

import numpy as np
import optax
import pytest

from repjax.experiments import private
from repjax.methods import supervised
from repjax.models import mlp
from repjax.privacy.search import laws
from repjax.protocols import search_table
from repjax.protocols import side_by_side


@pytest.mark.parametrize(
  'law', [laws.with_mean(1.0, 4.0), laws.with_mean(-0.5, 3.0)]
)
def test_what_a_search_publishes_is_what_many_searches_publish(law):
  rng = np.random.default_rng(0)
  scores, values = rng.normal(size=(2, 4, 5))
  order, total = np.argsort(scores, axis=None), []
  for count in laws.sample(law, rng, 20_000):
    drawn = rng.integers(20, size=count)
    total.append(values.ravel()[order[drawn.max()]])
  found = search_table.chosen(law, scores, values)
  np.testing.assert_allclose(found, np.mean(total), atol=0.03)
  rank = search_table.simulated_rank(law, scores, searches=50_000, seed=0)
  np.testing.assert_allclose(rank, law.mean_rank, atol=0.01)


def test_no_trial_publishes_the_first_candidate():
  values = np.arange(6.0).reshape(2, 3)
  law = laws.Poisson(1.0)
  found = search_table.chosen(law, values, values)
  k, pmf = np.arange(1, 60), law.pmf(59)
  expected = np.exp(-1.0) * values[0].mean() + sum(
    (pmf @ (((i + 1) / 6) ** k - (i / 6) ** k)) * i for i in range(6)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_candidates_differ_in_their_rate_alone_and_runs_in_all_draws():
  rng = np.random.default_rng(0)
  labels = rng.integers(2, size=300)
  images = rng.normal(size=(300, 2, 2, 1)) + labels[:, None, None, None]
  columns = {'image': images.astype(np.float32), 'label': labels}
  parts = [{k: x[i::3] for k, x in columns.items()} for i in range(3)]
  plan = private.plan(
    100,
    batch_size=20,
    epochs=6.0,
    epsilon=math.inf,
    delta=1e-3,
    clip_norm=1.0,
    seed=0,
    nonce=b'',
  )._replace(noise_multiplier=0.5)
  method = supervised.make(
    mlp.Mlp(num_classes=2, features=()),
    optax.chain(plan.link(), side_by_side.swept(optax.sgd(1.0))),
  )
  table = functools.partial(
    search_table.table,
    'table',
    method,
    *parts,
    plan=plan,
    learning_rates=(0.0, 1.0),
    repeats=3,
    seed=0,
  )
  scores, accuracy = table(score_noise=0.0)
  assert scores.shape == accuracy.shape == (2, 3)
  assert accuracy[1].min() > 0.8 > accuracy[0].mean()
  # Noise and batches of their own.
  assert len(set(zip(scores[1], accuracy[1], strict=True))) > 1
  noisy, same = table(score_noise=9.0)
  np.testing.assert_array_equal(same, accuracy)
  assert 2 < np.std(noisy - scores) < 20
