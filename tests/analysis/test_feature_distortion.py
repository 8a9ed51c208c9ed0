"""Movements that are known because a bias was moved."""

import jax
import numpy as np
import optax
import pytest

from repjax import start
from repjax import types
from repjax.analysis import feature_distortion
from repjax.methods import lp_ft
from repjax.models import mlp


def test_the_mean_is_over_rows_and_seeds_stay_apart():
  rng = np.random.default_rng(0)
  before, after = rng.normal(size=(2, 3, 7, 5))
  found = feature_distortion.distortion(before, after)
  for seed in range(3):
    rows = [
      sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5
      for x, y in zip(before[seed], after[seed], strict=True)
    ]
    sizes = [sum(a**2 for a in x) ** 0.5 for x in before[seed]]
    np.testing.assert_allclose(found.distance[seed], sum(rows) / 7)
    np.testing.assert_allclose(found.relative[seed], sum(rows) / sum(sizes))
  assert np.isnan(feature_distortion.distortion(0 * before, after).relative[0])
  with pytest.raises(types.InputError, match='same rows'):
    feature_distortion.distortion(before, after[:, :6])


def test_layers_and_domains_are_told_apart():
  model = mlp.Mlp(2, features=(4, 3))
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.uniform(size=(8, 2, 2, 1)).astype(np.float32),
    'mask': np.asarray([1.0] * 7 + [0.0], np.float32),
  }
  # Padding counts for nothing, whatever it holds.
  batch['image'][-1] = np.nan
  before = lp_ft.make(model, optax.sgd(0.1)).init(jax.random.key(0), batch)
  params = jax.tree.map(np.array, jax.device_get(before.params))
  params['hidden_1']['bias'] += 100.0  # All units are on.
  before = start.with_params(before, params)
  moved = jax.tree.map(np.array, params)
  moved['hidden_1']['bias'] += np.asarray([2.0, -1.0, 2.0])
  after = start.with_params(before, moved)
  other = {**batch, 'image': 0 * batch['image']}
  other['image'][-1] = 0
  table = feature_distortion.by_layer(
    model,
    before,
    after,
    {'id': [batch], 'ood': [other]},
    layers=('hidden_1', 'head'),
  )
  for domain in ('id', 'ood'):
    assert table['hidden_1'][domain].distance == 0
    np.testing.assert_allclose(table['head'][domain].distance, 3.0, rtol=1e-4)
  size = 100.0 * 3**0.5  # Of the features of a black image.
  np.testing.assert_allclose(
    table['head']['ood'].relative, 3.0 / size, rtol=1e-4
  )
