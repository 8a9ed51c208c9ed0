"""The alarm: few classes and sure, where the reference says otherwise."""

import numpy as np
import pytest

from repjax import types
from repjax.adapt import collapse


def _logits(labels, *, sure, num_classes=4):
  return sure * np.eye(num_classes)[labels]


def test_what_is_looked_at():
  found = collapse.look(_logits(np.array([0, 0, 1, 1]), sure=3.0))
  np.testing.assert_allclose(found.histogram, [0.5, 0.5, 0, 0])
  np.testing.assert_allclose(found.classes, 2.0)
  p = np.exp([3.0, 0, 0, 0])
  p /= p.sum()
  np.testing.assert_allclose(found.entropy, -(p * np.log(p)).sum() / np.log(4))


def test_it_rings_where_one_class_is_left():
  labels = np.tile(np.arange(4), 10)
  reference = _logits(labels, sure=2.0)
  adapted = _logits(np.where(np.arange(40) < 20, labels, 0), sure=5.0)
  assert collapse.alarm(adapted, reference, window=10) == 20
  # Not if it is no surer, or as rich in classes.
  unsure = _logits(np.zeros(40, int), sure=1.0)
  assert collapse.alarm(unsure, reference, window=10) is None
  assert collapse.alarm(5 * reference, reference, window=10) is None


def test_a_stream_sorted_by_class_is_no_collapse():
  labels = np.repeat(np.arange(4), 10)
  adapted, reference = (_logits(labels, sure=x) for x in (6.0, 2.0))
  assert collapse.alarm(adapted, reference, window=10) is None


def test_a_few_last_rows_are_no_collapse():
  # 3 rows behind two windows: of one class, and surer than the reference.
  labels = np.random.default_rng(0).integers(0, 4, 403)
  reference = _logits(labels, sure=2.0)
  adapted = reference.copy()
  adapted[400:] = _logits(np.zeros(3, int), sure=5.0)
  assert collapse.alarm(adapted, reference, window=200) is None
  assert collapse.alarm(adapted[:2], reference[:2], window=200) is None
  # A collapse in the last rows is still seen, where its window begins.
  adapted[203:] = _logits(np.zeros(200, int), sure=5.0)
  assert collapse.alarm(adapted, reference, window=200) == 200
  adapted[:400] = reference[:400]
  adapted[260:] = _logits(np.zeros(143, int), sure=9.0)
  assert collapse.alarm(adapted, reference, window=150) == 253


@pytest.mark.parametrize(
  'setting', [dict(window=0), dict(window=9, least=1.1), dict(window=np.nan)]
)
def test_settings_out_of_range(setting):
  logits = np.zeros((4, 2))
  with pytest.raises(types.InputError, match=list(setting)[-1]):
    collapse.alarm(logits, logits, **setting)


def test_logits_of_other_rows_are_no_reference():
  # A reference that is too short would silence the alarm.
  adapted = _logits(np.zeros(40, int), sure=5.0)
  reference = _logits(np.tile(np.arange(4), 10), sure=2.0)
  assert collapse.alarm(adapted, reference, window=20) == 0
  for other in (reference[:20], reference[:, :3]):
    with pytest.raises(types.InputError, match='reference'):
      collapse.alarm(adapted, other, window=20)
