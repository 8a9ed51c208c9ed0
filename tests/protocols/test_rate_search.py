"""Rules that choose rates."""

import numpy as np
import optax
import pytest
from scipy import special

from repjax import types
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.models import mlp
from repjax.protocols import rate_search
from repjax.protocols import side_by_side


def test_noise_never_chooses_a_larger_rate():
  scores = np.asarray([[0.70, 0.90], [0.86, 0.88], [0.90, 0.92], [0.50, 0.90]])
  # The highest mean is 0.91, its standard error 0.01.
  assert rate_search.one_standard_error(scores) == 2
  assert rate_search.one_standard_error(scores + [[0], [0.035], [0], [0]]) == 1
  assert rate_search.one_standard_error(scores[:, :1]) == 2


def test_the_best_mean_is_chosen_and_of_equal_ones_the_smaller_rate():
  scores = np.asarray([[0.0, 0.4], [0.9, 0.1], [0.3, 0.7], [0.0, 0.9]])
  assert rate_search.best_mean(scores) == 1
  assert rate_search.best_mean(scores[[0, 3]]) == 1


def test_rows_of_a_seeds_own_are_learned_from():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(40, 3)).astype(np.float32)
  label = (features[:, 0] > 0).astype(np.int32)
  rows = {'features': features, 'label': label}
  # The second seed is told the opposite.
  own = {
    'features': np.stack([features] * 2),
    'label': np.stack([label, 1 - label]),
  }
  method = supervised.make(
    mlp.Mlp(2, features=(8,)),
    side_by_side.swept(optax.adam(1.0)),
    inputs=model_inputs.features,
  )
  (found,) = rate_search.tune(
    *('toy', method, {'fresh': side_by_side.begin(method, own, (0, 1))}),
    *({}, rows),
    **dict(per_seed=own, seeds=(0, 1), rates=(1e-4, 0.05), batch_size=10),
    **dict(steps=100, points=1, rule=rate_search.best_mean, vectorize=False),
  ).values()
  assert found.score[0] > 0.9
  assert found.score[1] < 0.1


def test_a_rate_at_which_a_seed_diverges_is_not_for_the_rule():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(40, 3)).astype(np.float32)
  rows = {'features': features, 'label': (features[:, 0] > 0).astype(np.int32)}
  method = supervised.make(
    mlp.Mlp(2, features=(8,)),
    side_by_side.swept(optax.sgd(1.0)),
    inputs=model_inputs.features,
  )
  seen = []

  def first(scores):
    seen.append(scores)
    return 0

  def tuned(*rates, **more):
    start = side_by_side.begin(method, {}, (0, 1), shared=rows)
    settings = dict(rates=rates, batch_size=10, steps=20, points=1, rule=first)
    return rate_search.tune(
      *('toy', method, {'fresh': start}, rows, rows),
      **dict(seeds=(0, 1), **settings) | more,
    )

  tuned(0.01, 1e30)
  assert np.isfinite(seen[0][0]).all()
  assert (seen[0][1] == -np.inf).all()
  with pytest.raises(types.NonFiniteError, match='diverges at every rate'):
    tuned(1e30)

  # Parameters may be numbers where what is measured is none.
  @np.errstate(invalid='ignore')
  def likelihood(outputs, test):
    of_label = outputs['logits'][:, np.arange(40), test['label']]
    return (of_label - special.logsumexp(outputs['logits'], -1)).mean(-1)

  how = dict(steps=1, score=likelihood, rule=rate_search.best_mean)
  found = tuned(0.01, 1e25, **how)
  assert found['fresh'].rate == 0.01
