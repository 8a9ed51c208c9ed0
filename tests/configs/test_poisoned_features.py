"""Features of poisoned sets: what the attacker writes, and who judges."""

import numpy as np
import pytest

from configs.parts import poisoned_features
from configs.parts import poisoned_runs
from configs.studies import contrastive_poisoning as study
from repjax.attacks import contrastive_poisoning


def small():
  config = study.get_config('features')
  config.batch_size = 32
  config.mlp.features = (8,)
  config.contrast.update(dim=4, queue_size=64)
  config.study.update(
    labelled=(0, 3), unlabelled=(0, 5), copies=2, strengths=(1.0,)
  )
  config.study.steps.update(supcon=4, simclr=4, moco=4)
  return config


@pytest.fixture(scope='module')
def shared():
  return poisoned_features.setting(small())


@pytest.mark.parametrize('by_labels', [True, False])
def test_a_backdoor_is_in_rows_of_the_right_classes(shared, by_labels):
  few, many = (
    poisoned_features.backdoor(shared, 1, n, by_labels=by_labels).poison
    for n in (3, 20)
  )
  assert set(few.replaced) < set(many.replaced)
  wanted = poisoned_runs.draw_wanted(1, 10)
  clean = shared.train
  before = clean.column('label')[many.replaced]
  assert ((before == wanted) != by_labels).all()
  poisoned = contrastive_poisoning.apply(clean, many)
  assert len(poisoned) == len(clean)
  bad = np.flatnonzero(poisoned.column('poisoned'))
  np.testing.assert_array_equal(bad, many.replaced)
  assert (poisoned.column('label')[bad] == wanted).all()
  images, originals = poisoned.column('image'), clean.column('image')
  assert (images[bad, -2:, -2:, 0] == [[255, 0], [0, 255]]).all()
  images[bad, -2:, -2:] = originals[bad, -2:, -2:]
  np.testing.assert_array_equal(images, originals)  # Nothing else has changed.


def test_targets_are_test_rows_with_labels_that_are_not_theirs(shared):
  made = poisoned_features.targeted(shared, 0, 3, number=2)
  targets = poisoned_runs.draw_targets(0, shared.test['label'], 10, 2)
  assert made.poison.size == 6
  assert not len(made.poison.replaced)
  for i, target in enumerate(targets):
    assert shared.test['label'][target.row] != target.wanted
    for copy in range(3 * i, 3 * i + 3):
      assert made.poison.columns['label'][copy] == target.wanted
      np.testing.assert_array_equal(
        made.poison.columns['image'][copy], shared.images[target.row]
      )


def test_what_a_run_reads_of_its_poison_has_the_attackers_label(shared):
  runs = [
    poisoned_features.backdoor(shared, 0, 4, by_labels=True),
    poisoned_features.backdoor(shared, 1, 0, by_labels=True),
  ]
  columns, order = poisoned_runs.rows_and_order(
    shared.clean, shared.transform, runs, batch_size=128, steps=24
  )
  wanted, total = poisoned_runs.draw_wanted(0, 10), len(shared.train)
  assert (columns['label'][0] == wanted).all()
  # Two epochs and more: each of the four comes, and none of the other run's.
  assert set(order[0][order[0] >= total]) == {*range(total, total + 4)}
  assert not set(runs[0].poison.replaced) & set(order[0].flat)
  assert order[1].max() < total


def test_every_claim_is_measured_by_all_seeds(shared):
  report = study.run(small(), (0, 1))
  assert set(poisoned_features.CLAIMS) <= set(report.scalars)
  assert {len(x) for x in report.scalars.values()} == {2}
  for name, values in report.scalars.items():
    if name.endswith(('accuracy', 'success', 'hit')):
      assert all(0 <= x <= 1 for x in values), name
  # Arms of a seed begin alike: without poison they are one model.
  for learner in ('simclr', 'supcon', 'moco'):
    alone = report.scalars[f'{learner}, backdoor, 0: accuracy']
    assert report.scalars[f'features_accuracy_{learner}'] == alone
  assert set(report.figures) == {'success'}
