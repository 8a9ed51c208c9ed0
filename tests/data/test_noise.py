"""Label noise: how many rows, which labels, always the same."""

import numpy as np
import pytest

from repjax import types
from repjax.data import noise
from repjax.data.reading import source

_LABELS = np.arange(20_000) % 10


@pytest.mark.parametrize('rate', [0.0, 0.2, 0.33333, 1.0])
@pytest.mark.parametrize('among', ['all', 'others'])
def test_exactly_the_rate_is_noisy_and_the_rest_untouched(rate, among):
  noisy = noise.symmetric(_LABELS, rate, 10, seed=0, among=among)
  assert noisy.is_noisy.sum() == round(rate * 20_000)
  clean = ~noisy.is_noisy
  np.testing.assert_array_equal(noisy.labels[clean], _LABELS[clean])


def test_labels_are_uniform_over_all_classes():
  noisy = noise.symmetric(_LABELS, 1.0, 10, seed=0)
  shift = (noisy.labels - _LABELS) % 10
  counts = np.bincount(shift, minlength=10)
  # Binomial: 2000 rows a shift, standard deviation 42.
  assert abs(counts - 2000).max() < 200


def test_labels_are_uniform_over_the_others():
  noisy = noise.symmetric(_LABELS, 1.0, 10, seed=0, among='others')
  counts = np.bincount((noisy.labels - _LABELS) % 10, minlength=10)
  assert counts[0] == 0
  assert abs(counts[1:] - 20_000 / 9).max() < 200


def test_the_seed_decides():
  first = noise.symmetric(_LABELS, 0.5, 10, seed=1)
  again = noise.symmetric(_LABELS, 0.5, 10, seed=1)
  other = noise.symmetric(_LABELS, 0.5, 10, seed=2)
  np.testing.assert_array_equal(first.labels, again.labels)
  assert (first.is_noisy != other.is_noisy).any()


def test_a_source_keeps_the_right_labels():
  clean = source.from_arrays(
    'ten', {'x': np.arange(20_000), 'label': _LABELS}, num_classes=10
  )
  noisy = noise.with_label_noise(clean, 0.4, seed=3)
  rows = np.array([5, 19_999, 5, 0])
  columns = noisy.read(rows)
  np.testing.assert_array_equal(columns['x'], rows)
  np.testing.assert_array_equal(columns['clean_label'], _LABELS[rows])
  np.testing.assert_array_equal(
    noisy.column('label'), noise.symmetric(_LABELS, 0.4, 10, seed=3).labels
  )
  np.testing.assert_array_equal(clean.column('label'), _LABELS)


def test_a_source_without_classes_is_refused():
  values = source.from_arrays('values', {'label': np.linspace(0, 1, 5)})
  with pytest.raises(types.InputError, match='values has no class labels'):
    noise.with_label_noise(values, 0.1, seed=0)


@pytest.mark.parametrize('rate', [-0.1, 1.1])
def test_a_rate_that_is_none_is_refused(rate):
  with pytest.raises(ValueError, match='rate='):
    noise.symmetric(_LABELS, rate, 10, seed=0)
