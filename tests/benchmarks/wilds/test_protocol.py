"""Runs side by side are those that each would be alone."""

import numpy as np
import pytest

from configs import wilds
from repjax.benchmarks.wilds import experiment
from repjax.benchmarks.wilds import loaders
from repjax.benchmarks.wilds import protocol

_SETTINGS = dict(copies=2, strong='stains', unlabelled='test_unlabeled')
_FIXMATCH = protocol.Arm('fixmatch', augmented=True, unlabelled=True)


@pytest.fixture(scope='module')
def config():
  config = wilds.get_config('smoke')
  config.mlp.features = (8,)
  return config


def runs_of(arm, config, draws, **settings):
  return protocol.run(
    arm, config, wilds.method, draws=draws, **{**_SETTINGS, **settings}
  )


def test_a_run_does_not_depend_on_those_beside_it(config):
  many = runs_of(protocol.ERM, config, (0, 1), replicates=2)
  alone = runs_of(protocol.ERM, config, (1,), replicates=1)
  assert set(many.accuracy) == {'train', 'id_val', 'test', 'val', 'id_test'}
  for split, values in many.accuracy.items():
    assert values.shape == (2, 2)
    assert values[1, 0] == pytest.approx(alone.accuracy[split][0, 0], abs=1e-6)
  np.testing.assert_allclose(
    many.logits[1, 0], alone.logits[0, 0], rtol=1e-4, atol=1e-5
  )
  assert (many.logits[0, 0] != many.logits[0, 1]).any()
  assert config.data.looks == 0  # The caller's config is not changed.


def test_steps_see_the_rows_of_the_batches(config):
  for arm, copies in ((_FIXMATCH, 3), (protocol.LABELLED[2], 1)):
    own = config.copy_and_resolve_references()
    own.algorithm = arm.algorithm
    own.unlabelled = 'test_unlabeled' if arm.unlabelled else ''
    own.augment.kind = 'stains' if arm.augmented else 'none'
    data = experiment.read(own)
    columns = protocol._columns(data, arm.algorithm, None, copies)
    order = protocol._order(own, data, copies)
    batches = experiment.batches(own, data)
    kinds = [batches]
    if isinstance(batches, loaders.JointBatches):
      kinds = [batches.labelled, batches.unlabelled]
    assert order.shape == (data.steps, 64 * len(kinds))
    for step in (0, data.steps - 1):
      begin = 0
      for kind, part in enumerate(kinds):
        rows = order[step, 64 * kind : 64 * (kind + 1)] - begin
        number = len(part.source)
        assert rows.min() >= 0
        assert rows.max() < copies * number
        # Group loaders hand out their rows mixed.
        assert sorted(rows % number) == sorted(part.batch(step)['index'])
        seen = {k: x[order[step]] for k, x in columns.items()}
        has = seen['labelled'][64 * kind : 64 * (kind + 1)]
        assert (has == (kind == 0)).all()
        begin += copies * number
    if arm is _FIXMATCH:
      # The other view of rows without labels is the plain one.
      without = columns['labelled'] == 0
      plain = data.unlabelled.source().columns()['image'] / 127.5 - 1
      np.testing.assert_allclose(
        columns['image'][without], np.tile(plain, (copies, 1, 1, 1)), atol=1e-5
      )
      assert (columns['strong'][without] != columns['image'][without]).any()


def test_a_student_is_taught_by_the_runs_of_its_own_draw(config):
  arm = protocol.Arm('noisy_student', augmented=True, unlabelled=True)
  teacher = runs_of(protocol.AUGMENTED, config, (0, 1), replicates=2)
  first = runs_of(arm, config, (0, 1), replicates=2, teacher=teacher)
  logits = teacher.logits.copy()
  logits[1, 1] *= -1  # It says the opposite in one run.
  other = runs_of(
    arm, config, (0, 1), replicates=2, teacher=teacher._replace(logits=logits)
  )
  same = np.isclose(first.logits, other.logits, atol=1e-6).all((2, 3))
  assert same.tolist() == [[True, True], [True, False]]


def test_figures_of_runs():
  def made(test, val):
    return protocol.Runs(
      {'test': np.array(test), 'val': np.array(val)}, {'test': 50}, np.empty(0)
    )

  first = made([[0.5, 0.7], [0.6, 0.6]], [[0.9, 0.9], [0.1, 0.1]])
  second = made([[0.8, 0.8], [0.9, 0.7]], [[0.5, 0.5], [0.5, 0.5]])
  np.testing.assert_allclose(protocol.gain(second, first, 'test'), [0.2, 0.2])
  np.testing.assert_allclose(
    protocol.spread(first, 'test'), [np.sqrt(0.02), 1 / 50]
  )
  names, scores = protocol.chosen(
    {'a': first, 'b': second}, by='val', split='test'
  )
  assert names == ['a', 'b']
  np.testing.assert_allclose(scores, [0.6, 0.8])


def test_the_table_has_each_method_with_and_without():
  names = [x.name for x in protocol.ARMS]
  assert len(names) == len(set(names)) == 15
  for arm in protocol.UNLABELLED:
    without = arm._replace(unlabelled=False)
    learns = arm.algorithm in ('coral', 'dann')
    assert (without if learns else protocol.AUGMENTED) in protocol.ARMS
