"""Attacks and targets in pairs, on networks whose predictions are known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.protocols import transfer_matrix

SEEDS = (3, 5)
IMAGE = np.linspace(0, 1, 11, dtype=np.float32)[:, None]
LABEL = (IMAGE[:, 0] > 0.5).astype(np.int32)


def threshold(state, pixels):
  """Class 1 above the threshold that the state is."""
  return jnp.concatenate([state - pixels, pixels - state], axis=1)


def shift(state, pixels, label, key):
  """Images beside each other differ, but not by their batch."""
  del key
  return pixels + state * (1 - 2.0 * label[:, None])


TARGET = transfer_matrix.Target(threshold, jnp.array([0.49, 0.69]))


@pytest.mark.parametrize('batch_size', [4, 100])
def test_each_seed_is_attacked_and_asked_by_itself(batch_size):
  measured = transfer_matrix.measure(
    {'shift': transfer_matrix.Attack(shift, jnp.array([0.0, 0.2]))},
    {'step': TARGET},
    IMAGE,
    LABEL,
    seeds=SEEDS,
    batch_size=batch_size,
  )
  x = IMAGE[:, 0]
  for seed, (moved, at) in enumerate([(0.0, 0.49), (0.2, 0.69)]):
    changed = x + moved * (1 - 2 * LABEL)
    before, after = x > at, changed > at
    pair = 'shift', 'step'
    assert measured.accuracy['step'][seed] == (before == LABEL).mean()
    assert measured.fooled[pair][seed] == (before != after).mean()
    assert measured.robust[pair][seed] == (after == LABEL).mean()
  assert measured.fooled['shift', 'step'][0] == 0
  np.testing.assert_array_equal(measured.images['shift'], IMAGE)


def test_keys_differ_between_seeds_and_batches():
  def noise(state, pixels, label, key):
    del state, label
    return pixels + jax.random.normal(key, pixels.shape)

  def run(seeds):
    return transfer_matrix.measure(
      {'noise': transfer_matrix.Attack(noise, jnp.zeros(len(seeds)))},
      {},
      np.zeros((6, 1), np.float32),
      np.zeros(6, np.int32),
      seeds=seeds,
      batch_size=3,
    ).images['noise']

  first = run((0, 1))
  np.testing.assert_array_equal(first, run((0,)))
  assert not np.array_equal(first, run((1,)))
  assert not np.array_equal(first[:3], first[3:])


def test_what_does_not_fit_is_refused():
  with pytest.raises(types.InputError, match='no image'):
    transfer_matrix.measure(
      {}, {'step': TARGET}, IMAGE[:0], LABEL[:0], seeds=SEEDS
    )
  with pytest.raises(types.InputError, match='3 seeds'):
    transfer_matrix.measure({}, {'step': TARGET}, IMAGE, LABEL, seeds=(0, 1, 2))


def test_a_target_of_other_images_or_fewer_classes_is_named():
  model = nn.Dense(2)
  variables = model.init(jax.random.key(0), jnp.zeros((1, 3)))
  states = jax.tree.map(lambda x: jnp.stack([x, x]), variables)
  target = transfer_matrix.Target(model.apply, states)
  for image, label, says in (
    (IMAGE, LABEL, r'dense does not take images of \[1\]'),
    (np.zeros((11, 3), np.float32), LABEL + 1, 'class 2 is asked for'),
    (np.zeros((11, 3), np.float32), LABEL - 1, 'class -1 is asked for'),
  ):
    with pytest.raises(types.InputError, match=says) as error:
      transfer_matrix.measure({}, {'dense': target}, image, label, seeds=SEEDS)
    assert '\n' not in str(error.value)


def test_nan_is_no_guess():
  measured = transfer_matrix.measure(
    {},
    {'step': TARGET._replace(logits=lambda *x: threshold(*x) * jnp.nan)},
    IMAGE,
    LABEL,
    seeds=SEEDS,
  )
  np.testing.assert_array_equal(measured.accuracy['step'], [0, 0])
