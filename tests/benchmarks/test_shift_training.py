"""Cells that are trained side by side are the cells that were asked for."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from repjax import types
from repjax.benchmarks import fine_grained_shift as shifts
from repjax.benchmarks import shift_training
from repjax.data.images import transforms
from repjax.layers import norms
from repjax.methods import erm
from repjax.models import mlp
from repjax.protocols import side_by_side

_SHIFTS = {
  'correlated': [shifts.SpuriousCorrelation(num_rare=6, num_common=30)],
  'noisy': [shifts.Uniform(27), shifts.LabelNoise(0.5)],
}


def train_rows(num_rows=450):
  label, group = np.divmod(np.arange(num_rows) % 9, 3)
  image = np.zeros((num_rows, 2, 2, 3), np.uint8)
  # An image tells its number.
  image[:, 0, 0, 0], image[:, 0, 1, 0] = np.divmod(np.arange(num_rows), 256)
  return {'image': image, 'label': label, 'group': group}


def numbers(image):
  return image[:, 0, 0, 0].astype(int) * 256 + image[:, 0, 1, 0]


def made(**changes):
  arguments = dict(
    seeds=(4, 5),
    num_labels=3,
    num_values=3,
    steps=60,
    batch_size=20,
  )
  return shift_training.cells(train_rows(), _SHIFTS, **{**arguments, **changes})


def test_each_cell_draws_its_own_table_by_its_weights():
  rows, cells = train_rows(), made()
  assert cells.seeds == (4, 5, 4, 5)
  image, label, group = (cells.columns[x] for x in ('image', 'label', 'group'))
  np.testing.assert_array_equal(group, rows['group'][numbers(image)])
  for cell, (own, order) in enumerate(
    zip(cells.rows, cells.order, strict=True)
  ):
    assert order.shape == (60, 20)
    assert set(order.ravel()) <= set(own)
    true = rows['label'][numbers(image[own])]
    pairs = true * 3 + group[own]
    if cell < 2:
      # 10 of each pair (i, i), and 6 of all.
      assert len(own) == 36
      np.testing.assert_array_equal(label[own], true)
      common = own[:30]
      np.testing.assert_array_equal(label[common], group[common])
      # Rare rows are drawn as often as common ones: half of 1,200.
      rare = np.isin(order, own[30:]).sum()
      assert 520 < rare < 680
    else:
      np.testing.assert_array_equal(np.bincount(pairs), np.full(9, 3))
      # Half of 27 labels are drawn, a third of which stays by chance.
      assert 3 <= (label[own] != true).sum() <= 14
  assert (cells.order[0] != cells.order[1]).any()
  # Noise of one cell is not that of another.
  clean = label == rows['label'][numbers(image)]
  assert 0 < (~clean).sum() < 2 * 14


def test_copies_are_of_the_same_rows():
  cells = made()
  brighter = transforms.on_images(
    lambda image, draws: image + 0.5 * draws[:, :1, None, None], 1
  )
  more = shift_training.augmented(cells, brighter, copies=3, seed=0)
  number = len(cells.columns['label'])
  assert len(more.columns['image']) == 3 * number
  np.testing.assert_array_equal(more.order % number, cells.order)
  np.testing.assert_array_equal(np.unique(more.order // number), [0, 1, 2])
  parts = more.columns['image'].reshape(3, number, 2, 2, 3)
  assert (parts[0] != parts[1]).any()
  np.testing.assert_array_equal(
    np.floor(parts), np.broadcast_to(cells.columns['image'], parts.shape)
  )


def test_errors_are_drawn_more_often_by_their_cell_alone():
  cells = made(steps=400)
  label = cells.columns['label']
  logits = np.stack([np.eye(3)[label]] * 4)
  wrong = cells.rows[0][:5]
  logits[0, wrong] = np.roll(logits[0, wrong], 1, axis=-1)
  again = shift_training.upweighted(cells, logits, 20.0)

  def part(order, rows):
    return np.isin(order, rows).mean()

  before = part(cells.order[0], wrong)
  expected = 20 * before / (20 * before + 1 - before)
  np.testing.assert_allclose(part(again.order[0], wrong), expected, atol=0.02)
  assert set(again.order[0].ravel()) <= set(cells.rows[0])
  # No error: the same rows.
  np.testing.assert_array_equal(again.order[1:], cells.order[1:])


def test_what_is_not_finite_is_an_error_whatever_the_label():
  cells = made()
  label = cells.columns['label']
  logits = np.stack([np.eye(3)[label]] * 4)
  wrong = logits.copy()
  for place in range(3):  # One row of each class.
    row = np.flatnonzero(label == place)[0]
    logits[0, row], wrong[0, row] = np.nan, np.eye(3)[(place + 1) % 3]
  found, expected = (
    shift_training.upweighted(cells, x, 20.0).order for x in (logits, wrong)
  )
  np.testing.assert_array_equal(found, expected)
  assert (found[0] != cells.order[0]).any()


def test_labels_that_change_in_every_step_are_refused():
  with pytest.raises(types.InputError, match='fixed=True'):
    shift_training.cells(
      train_rows(),
      {'noisy': [shifts.Uniform(), shifts.LabelNoise(0.5, fixed=False)]},
      seeds=(0,),
      num_labels=3,
      num_values=3,
      steps=1,
      batch_size=4,
    )


class _Normed(nn.Module):
  """A linear model behind a norm that can be left in training mode."""

  stuck: bool

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    x = image.reshape((len(image), -1))
    x = norms.BatchNorm(name='norm')(x, train=train or self.stuck, mask=mask)
    return nn.Dense(3, name='head')(x)


def _predictor(stuck):
  model = _Normed(stuck)

  def predict(state, batch):
    logits = model.apply(
      state,
      batch['image'],
      train=False,
      mask=batch['mask'],
      mutable=['batch_stats'],
    )[0]
    return {'logits': logits}

  image = np.random.default_rng(0).normal(size=(20, 2, 2, 3)).astype('f4')
  state = model.init(jax.random.key(0), image, train=False)
  state = jax.tree.map(lambda x: x[None], state)
  return types.Predictor(predict), state, {'image': image}


def test_prediction_in_training_mode_is_refused():
  shift_training.check_evaluation(*_predictor(stuck=False))
  with pytest.raises(types.InputError, match='evaluation mode'):
    shift_training.check_evaluation(*_predictor(stuck=True))


def test_a_cell_learns_its_own_table():
  # The label is the number of the brightest pixel, and so is the group.
  label, group = np.divmod(np.arange(900) % 9, 3)
  image = np.zeros((900, 1, 6, 1), np.float32)
  image[np.arange(900), 0, label] = 1
  image[np.arange(900), 0, 3 + group] = 3  # Easier to see.
  rows = {'image': image, 'label': label, 'group': group}
  cells = shift_training.cells(
    rows,
    {
      'none': [shifts.SpuriousCorrelation(num_rare=0)],
      'many': [shifts.Uniform()],
    },
    seeds=(0, 1),
    num_labels=3,
    num_values=3,
    steps=80,
    batch_size=32,
  )
  method = erm.make(mlp.Mlp(3, features=()), optax.adam(0.05))
  trained = shift_training.train('erm', method, cells, rows)
  # By colour alone a third is right, by shape all.
  np.testing.assert_allclose(trained.score[:2], 1 / 3, atol=0.1)
  np.testing.assert_array_equal(trained.score[2:], 1.0)
  assert side_by_side.accuracy(trained.outputs, rows).shape == (4,)
