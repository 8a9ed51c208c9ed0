"""Splits, metadata and rows of sets, and what does not fit."""

import numpy as np
import pytest

from repjax import types
from repjax.benchmarks.wilds import datasets
from repjax.benchmarks.wilds import evaluation
from repjax.benchmarks.wilds import grouper as groupers
from repjax.benchmarks.wilds import metrics
from repjax.data.reading import source as sources


def settings(**changes):
  label = np.array([0, 1, 1, 0, 1, 0])
  made = dict(
    split_ids={'train': 0, 'test': 1},
    split=np.array([0, 0, 1, 1, 0, 0]),
    label=label,
    num_classes=2,
    metadata=dict(place=np.array([0, 1, 2, 2, 0, 1]), y=label),
    names={},
    inputs=sources.from_arrays('tiny', {'features': np.arange(6.0)[:, None]}),
    evaluate=datasets.by_fields(('place',), metrics.ACCURACY),
    source_splits=(0,),
  )
  return {**made, **changes}


def test_a_subset_has_its_rows_in_order():
  data = datasets.make('tiny', **settings())
  part = data.subset('train')
  assert part.rows.tolist() == [0, 1, 4, 5]
  assert part.metadata.fields == ('place', 'y', 'from_source_domain')
  assert part.metadata.column('from_source_domain').tolist() == [1] * 4
  assert data.subset('test').metadata.values[:, -1].tolist() == [0, 0]
  grouper = groupers.Grouper(data.metadata, ('place',))
  columns = part.source(grouper).columns()
  assert columns['features'].ravel().tolist() == [0, 1, 4, 5]
  assert columns['label'].tolist() == [0, 1, 1, 0]
  assert columns['group'].tolist() == [0, 1, 0, 1]
  assert columns['row'].tolist() == [0, 1, 4, 5]
  assert datasets.frequencies(part, grouper) == {
    'place = 0': 2,
    'place = 1': 2,
    'place = 2': 0,
  }


def test_a_fraction_is_drawn_by_its_seed():
  label = np.arange(1000) % 2
  data = datasets.make(
    'large',
    **settings(
      split=np.zeros(1000),
      label=label,
      metadata=dict(place=label, y=label),
      inputs=sources.from_arrays('large', {'features': np.ones((1000, 1))}),
    ),
  )
  rows = data.subset('train', fraction=0.123, seed=1).rows
  assert len(rows) == 123
  assert (np.diff(rows) > 0).all()
  again = data.subset('train', fraction=0.123, seed=1).rows
  np.testing.assert_array_equal(rows, again)
  other = data.subset('train', fraction=0.123, seed=2).rows
  assert 0 < len(set(rows) & set(other)) < 60


def test_rows_without_labels_show_none():
  hidden = np.array([1, 0, 1, 0, 1, 0])
  data = datasets.make(
    'tiny_unlabeled', **settings(evaluate=None, label=hidden)
  )
  part = data.subset('train')
  assert part.source().columns()['label'].tolist() == [-1] * 4
  shown = part.source(reveal=True)
  assert shown.columns()['label'].tolist() == [1, 0, 1, 0]
  with pytest.raises(types.InputError, match='has no labels'):
    part.evaluate(np.zeros(4))
  unknown = datasets.make(
    'tiny_unlabeled', **settings(evaluate=None, label=np.full(6, -100))
  )
  with pytest.raises(types.InputError, match='they are not known'):
    unknown.subset('train').source(reveal=True)


def test_numbers_are_targets():
  wealth = np.linspace(-1, 1, 6, dtype=np.float32)[:, None]
  data = datasets.make(
    'wealth',
    **settings(
      label=wealth,
      num_classes=None,
      evaluate=datasets.by_fields(('place',), metrics.SQUARED_ERROR),
      metadata=dict(place=np.array([0, 1, 2, 2, 0, 1]), y=wealth[:, 0]),
    ),
  )
  part = data.subset('train')
  columns = part.source().columns()
  assert 'label' not in columns
  np.testing.assert_array_equal(columns['target'], wealth[part.rows])
  results = part.evaluate(wealth[part.rows, 0] + 0.5).results
  assert results['mse_avg'] == pytest.approx(0.25)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(split=np.zeros(5)), '6 of inputs, 5 of split'),
    (dict(metadata=dict(place=np.zeros(7))), 'metadata are of other rows'),
    (dict(names={'colour': ['red']}), "'colour', which is no metadata field"),
    (dict(names={'place': ['a', 'b']}), 'place=2, but only 2 values'),
    (dict(num_classes=1), 'Row 1 of tiny has the label 1'),
  ],
)
def test_what_does_not_fit_is_refused(changes, message):
  with pytest.raises(types.InputError, match=message) as error:
    datasets.make('tiny', **settings(**changes))
  assert '\n' not in str(error.value)


def test_a_wrong_split_is_named():
  data = datasets.make('tiny', **settings(split_ids={'train': 0, 'val': 7}))
  with pytest.raises(
    types.InputError, match=r'no split .test.; it has train, v'
  ):
    data.subset('test')
  with pytest.raises(types.InputError, match=r"'val' of tiny is empty"):
    data.subset('val')
  with pytest.raises(types.InputError, match=r'empty at fraction=0.01'):
    data.subset('train', fraction=0.01)
  with pytest.raises(types.InputError, match='fraction must be in'):
    data.subset('train', fraction=1.5)
  with pytest.raises(
    types.InputError, match='3 predictions of the 4 rows of t'
  ):
    data.subset('train').evaluate(np.zeros(3))
  with pytest.raises(types.InputError, match='1 predictions of the 4 rows'):
    data.subset('train').evaluate(np.float32(3))
  with pytest.raises(types.InputError, match='the argmax of logits'):
    data.subset('train').evaluate(np.zeros((4, 2)))
  # Of a number a row, a mean and a deviation.
  with pytest.raises(types.InputError, match='one number a label'):
    evaluation.check(np.zeros((4, 2)), np.zeros((4, 1)), what='wealth')
  with pytest.raises(types.InputError, match=r'Prediction 1 .* not finite'):
    data.subset('train').evaluate(np.array([0, np.nan, 0, 0]))
