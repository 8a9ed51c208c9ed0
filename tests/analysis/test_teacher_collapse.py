"""What becomes of a teacher without a centre, or without sharpening."""

import functools

import numpy as np
import pytest

from repjax import types
from repjax.analysis import teacher_collapse

K = 16


@functools.cache
def _grid():
  return teacher_collapse.grid(
    seeds=(0, 1), num_prototypes=K, num_clusters=4, steps=200, batch_size=16
  )


def test_without_sharpening_it_says_nothing():
  for name in ('no sharpening', 'neither'):
    curves = _grid()[name]
    assert curves.loss.shape == (2, 200)
    np.testing.assert_allclose(curves.loss[:, -1], np.log(K), rtol=0.01)
    assert (curves.entropy[:, -1] > 0.99).all()


def test_without_a_centre_it_says_fewer_things():
  both, alone = _grid()['both'], _grid()['no centre']
  assert both.mean_entropy[:, -1].mean() > alone.mean_entropy[:, -1].mean()
  assert both.prototypes.mean() > alone.prototypes.mean()
  assert (alone.entropy[:, -1] < 0.1).all()
  assert (alone.prototypes >= 1).all()


def test_one_prototype_is_refused():
  with pytest.raises(types.InputError, match='num_prototypes'):
    teacher_collapse.grid(num_prototypes=1)
