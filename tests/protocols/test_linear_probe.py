"""Two solvers against each other, against scikit-learn, and their mapping."""

import numpy as np
import pytest

from repjax import types
from repjax.protocols import linear_probe

GRID = np.logspace(-4, 1, 4)


def digits(num_classes=10, num_rows=300):
  from sklearn import datasets

  data = datasets.load_digits()
  rows = np.flatnonzero(data.target < num_classes)
  # As features are: of another scale, and not centred.
  features, labels = data.data[rows] * 0.3 + 2.0, data.target[rows]
  train, val = slice(0, num_rows), slice(num_rows, 2 * num_rows)
  return {
    'features': features[train],
    'labels': labels[train],
    'val_features': features[val],
    'val_labels': labels[val],
    'num_classes': num_classes,
  }


@pytest.mark.parametrize('num_classes', [10, 2])
@pytest.mark.parametrize('intercept', [True, False])
def test_a_probe_is_scikit_learn_on_scaled_features(num_classes, intercept):
  from sklearn import linear_model

  data = digits(num_classes, num_rows=120)
  settings = dict(tol=1e-8, max_iter=5000)
  probe = linear_probe.fit(
    **data, grid=[1e-3, 0.1], intercept=intercept, **settings
  )
  assert probe.converged.all()
  # Of one number each for all columns.
  mean = data['features'].mean() if intercept else 0.0
  std = data['features'].std()
  cold = linear_model.LogisticRegression(
    C=probe.strengths[probe.chosen], fit_intercept=intercept, **settings
  ).fit((data['features'] - mean) / std, data['labels'])
  expected = cold.decision_function((data['val_features'] - mean) / std)
  logits = data['val_features'] @ probe.head.kernel + probe.head.bias
  if num_classes == 2:
    np.testing.assert_allclose(logits.sum(1), 0.0, atol=1e-9)
    logits = logits[:, 1] - logits[:, 0]
  np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize('num_classes', [10, 2])
def test_both_solvers_find_the_same_path(num_classes):
  data = digits(num_classes, num_rows=120)
  settings = dict(grid=GRID, tol=1e-6, max_iter=1000)
  exact, found = (
    linear_probe.fit(**data, **settings, solver=solver)
    for solver in ('sklearn', 'jax')
  )
  np.testing.assert_allclose(found.accuracy, exact.accuracy)
  assert found.chosen == exact.chosen
  scale = np.abs(exact.head.kernel).max()
  np.testing.assert_allclose(
    found.head.kernel, exact.head.kernel, atol=1e-3 * scale
  )
  np.testing.assert_allclose(
    found.head.bias, exact.head.bias, atol=1e-3 * np.abs(exact.head.bias).max()
  )


def test_the_first_of_the_best_is_chosen_on_held_out_rows():
  data = digits(num_rows=120)
  probe = linear_probe.fit(**data, grid=GRID)
  logits = data['val_features'] @ probe.head.kernel + probe.head.bias
  accuracy = (logits.argmax(1) == data['val_labels']).mean()
  assert accuracy == probe.accuracy[probe.chosen] == probe.accuracy.max()
  assert (probe.accuracy[: probe.chosen] < accuracy).all()
  # Other held-out rows, another choice: these labels are noise.
  data['val_labels'] = np.roll(data['val_labels'], 1)
  noise = linear_probe.fit(**data, grid=GRID)
  assert noise.accuracy.max() < 0.5


def test_classes_without_rows_have_zeros():
  data = digits(num_rows=120)
  keep = ~np.isin(data['labels'], [0, 4])
  data['features'], data['labels'] = (
    data[name][keep] for name in ('features', 'labels')
  )
  probe = linear_probe.fit(**data, grid=[0.01])
  assert not probe.head.kernel[:, [0, 4]].any()
  assert not probe.head.bias[[0, 4]].any()
  assert probe.head.kernel[:, [1, 2, 3, 5]].any(0).all()
  # Held-out rows of classes that were never seen are counted as wrong.
  seen = ~np.isin(data['val_labels'], [0, 4])
  assert probe.accuracy[0] <= seen.mean()
  assert probe.accuracy[0] > 0.9 * seen.mean()


def test_a_path_that_was_cut_short_says_so():
  data = digits(num_rows=120)
  assert not linear_probe.fit(**data, grid=[10.0], max_iter=5).converged[0]
  assert linear_probe.fit(**data, grid=[10.0], max_iter=5000).converged[0]


def test_the_grid_is_that_of_the_authors():
  grid = linear_probe.strengths()
  assert len(grid) == 50
  np.testing.assert_allclose(grid[[0, -1]], [1e-7, 1e2])
  np.testing.assert_allclose(grid[1:] / grid[:-1], 10 ** (9 / 49))


@pytest.mark.parametrize(
  'change, word',
  [
    (dict(labels=np.zeros(60, int)), 'needs two classes'),
    (dict(features=np.ones((60, 64))), 'All features are equal'),
    (dict(labels=np.full(60, 10)), r'labels must be integers in \[0, 10\)'),
    (dict(labels=np.zeros(60)), 'labels must be integers'),
    (dict(labels=np.zeros(59, int)), r'labels \[N\]'),
    (dict(val_features=np.ones((60, 3))), '64 columns, val_features 3'),
    (dict(solver='svm'), 'solver='),
    (dict(grid=[0.0, 1.0]), 'grid must be positive'),
    (dict(grid=[0.1, np.nan]), 'grid must be positive and finite'),
    (dict(grid=[0.1, np.inf]), 'grid must be positive and finite'),
    (dict(grid=[10.0, 0.1]), 'grid must rise'),
  ],
  ids=lambda x: x if isinstance(x, str) else '',
)
def test_bad_input_is_named(change, word):
  with pytest.raises(types.InputError, match=word):
    linear_probe.fit(**{**digits(num_rows=60), 'grid': [1.0], **change})


def test_features_that_are_not_finite_are_named():
  data = digits(num_rows=60)
  data['features'][[7, 9], 3] = np.nan
  with pytest.raises(types.InputError, match='2 rows, the first of them 7'):
    linear_probe.fit(**data)
