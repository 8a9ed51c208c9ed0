"""The published settings, and a study that says something of every claim."""

import jax
import numpy as np
import optax
import pytest

from configs import anomaly_transformer as recipe
from configs.studies import anomaly_transformer as study


@pytest.fixture
def channels(tmp_path):
  for name in ('A-1', 'E-1', 'P-1'):
    np.savez(
      tmp_path / f'{name}.npz',
      train=np.random.default_rng(0).normal(size=(500, 25)),
      test=np.zeros((300, 25)),
      test_label=np.arange(300) > 290,
    )
  return str(tmp_path)


def test_the_paper_preset_is_the_authors_code(channels):
  config = recipe.get_config('paper')
  config.data.dir = channels
  experiment = recipe.build(config)
  # 301 windows a channel; three epochs in batches of 256.
  assert experiment.steps == round(3 * 3 * 301 / 256)
  state = jax.eval_shape(
    experiment.method.init, jax.random.key(0), experiment.train.batch(0)
  )
  size = sum(x.size for x in jax.tree.leaves(state.params))
  attention = 4 * 512 * 513 + 513 * 8
  layer = attention + 2 * 512 * 513 + 4 * 512
  assert size == 3 * 25 * 512 + 3 * layer + 2 * 512 + 513 * 25
  # The authors' temperature of 50 times the sum over three layers.
  assert config.anomaly.temperature == pytest.approx(1 / (50 * 3))


def test_the_rate_is_halved_after_every_epoch_but_the_first():
  config = recipe.get_config('paper')
  rates = []

  def optimizer(rate):
    rates.extend(float(rate(step)) for step in range(0, 40, 5))
    return optax.sgd(rate)

  recipe.method(config, 10 * 256, optimizer)  # Ten steps an epoch.
  expected = [1e-4] * 4 + [5e-5] * 2 + [2.5e-5] * 2
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_study_measures_every_claim():
  config = study.get_config('smoke')
  config.min_steps = 2
  config.study.rates = (1e-3,)
  report = study.run(config, (0, 1))
  assert set(study.CLAIMS) <= set(report.scalars)
  assert all(len(x) == 2 for x in report.scalars.values())
  for detector in ('anomaly_transformer', 'reconstruction', 'random'):
    for measure in ('f1', 'f1_adjusted', 'f1_events', 'auroc', 'auprc'):
      values = report.scalars[f'{detector}: {measure}']
      assert ((values >= 0) & (values <= 1)).all()
  assert set(report.figures) == {'measures', 'scores', 'associations'}


def test_what_chance_says_of_random_scores_is_called_theory():
  assert study.CLAIMS['random_raw']['kind'] == 'theory'
