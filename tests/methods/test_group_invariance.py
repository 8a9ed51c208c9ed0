"""Groups' predictions are compared class by class; the head is left alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.methods import class_conditional
from repjax.methods import erm
from repjax.methods import group_inference
from repjax.methods import group_invariance
from repjax.methods import irm
from repjax.methods import model_inputs
from repjax.methods import vrex
from repjax.models import mlp

CLASSES, ROWS, DIM = 3, 24, 4
_ROWS = dict(inputs=model_inputs.features)
NET = mlp.Mlp(CLASSES, features=(6,))


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  mask = np.ones(ROWS, np.float32)
  mask[-3:] = 0
  label = rng.integers(0, CLASSES, ROWS)
  group = rng.integers(0, 2, ROWS)
  group[label == 2] = 0  # A class of one group.
  return dict(
    features=rng.normal(size=(ROWS, DIM)).astype(np.float32),
    logits=3 * rng.normal(size=(ROWS, CLASSES)).astype(np.float32),
    nll=rng.exponential(size=ROWS).astype(np.float32),
    label=label,
    group=group,
    mask=mask,
  )


def _softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def _cell(rows, label, group):
  return np.flatnonzero(
    (rows['mask'] > 0) & (rows['label'] == label) & (rows['group'] == group)
  )


_JITTED = jax.jit(
  functools.partial(group_invariance.penalty, num_classes=CLASSES)
)


def _penalty(rows, **changes):
  rows = {**rows, **changes}
  return _JITTED(*(rows[x] for x in ('logits', 'label', 'group', 'mask')))


def test_it_is_the_divergence_of_mean_predictions(rows):
  expected = 0.0
  for label in (0, 1):
    easy, hard = (
      _softmax(rows['logits'][_cell(rows, label, g)].astype(float)).mean(0)
      for g in (0, 1)
    )
    expected += np.mean(hard * np.log(hard / easy))
  np.testing.assert_allclose(_penalty(rows), expected, rtol=1e-5)
  swapped = _penalty(rows, group=1 - rows['group'])
  assert abs(float(swapped) - expected) > 1e-3  # It has a direction.


def test_equal_groups_have_no_penalty(rows):
  twice = {k: np.concatenate([x, x]) for k, x in rows.items()}
  group = np.repeat([0, 1], ROWS)
  assert abs(float(_penalty(twice, group=group))) < 1e-6
  assert float(_penalty(rows, group=np.zeros(ROWS, int))) == 0.0
  # Certain predictions are clipped, not infinite.
  certain = np.where(np.arange(CLASSES) == rows['group'][:, None], 1e4, 0.0)
  found = _penalty(rows, logits=certain.astype(np.float32))
  assert np.isfinite(found) and found > 5


@pytest.mark.parametrize('name', ['pgi', 'dro'])
def test_labels_of_eight_bits_are_the_same_labels(name):
  # Cells of 100 classes and two groups are more than int8 holds.
  many = np.arange(400) % 100
  net = mlp.Mlp(100, features=(6,))
  if name == 'pgi':
    method = group_invariance.make(
      net, optax.sgd(0.1), num_classes=100, weight=1.0, **_ROWS
    )
  else:
    method = class_conditional.dro(
      net, optax.sgd(0.1), num_classes=100, **_ROWS
    )
  features = np.random.default_rng(0).normal(size=(400, DIM))
  shared = dict(
    features=features.astype(np.float32), mask=np.ones(400, np.float32)
  )
  sums = []
  for kind in (np.int32, np.int8):
    columns = dict(label=many, group=np.arange(400) // 100 % 2)
    columns = {k: x.astype(kind) for k, x in columns.items()}
    sums.append(_update(method, {**shared, **columns})[2])
  assert sums[1] == sums[0]


def test_the_penalty_reaches_the_features_but_not_the_head(rows):
  batch = {k: jnp.asarray(x) for k, x in rows.items()}
  tx = optax.sgd(1.0)
  moved = {}
  for name, method in (
    ('balanced', erm.make(NET, tx, balance='groups', num_groups=2, **_ROWS)),
    (
      'pgi',
      group_invariance.make(NET, tx, num_classes=CLASSES, weight=7.0, **_ROWS),
    ),
  ):
    state = jax.jit(method.init)(jax.random.key(0), batch)
    after, _ = jax.jit(method.update)(state, batch, jax.random.key(1))
    moved[name] = after.params
  for leaf in ('kernel', 'bias'):
    np.testing.assert_allclose(
      moved['pgi']['head'][leaf], moved['balanced']['head'][leaf], atol=1e-6
    )

  def penalty(params):
    hidden = jax.nn.relu(
      batch['features'] @ params['hidden_0']['kernel']
      + params['hidden_0']['bias'][None]
    )
    head = state.params['head']
    logits = hidden @ head['kernel'] + head['bias'][None]
    return 7 * _penalty(rows, logits=logits)

  grads = jax.jit(jax.grad(penalty))(state.params)['hidden_0']['kernel']
  assert abs(grads).max() > 1e-2
  difference = (
    moved['balanced']['hidden_0']['kernel'] - moved['pgi']['hidden_0']['kernel']
  )
  np.testing.assert_allclose(difference, grads, rtol=1e-3, atol=1e-5)


def test_the_weight_rises_after_the_reference():
  ramp = group_invariance.ramp(10.0, start=5, steps=4)
  found = [float(ramp(step)) for step in (0, 4, 5, 7, 9, 100)]
  np.testing.assert_allclose(found, [0, 0, 0, 5, 10, 10])


# Class by class.


def _update(method, rows, steps=1):
  batch = {k: jnp.asarray(x) for k, x in rows.items()}
  state = jax.jit(method.init)(jax.random.key(0), batch)
  update = jax.jit(method.update)
  for _ in range(steps):
    before = state
    state, sums = update(state, batch, jax.random.key(1))
  return before, state, {k: float(x / n) for k, (x, n) in sums.items()}


@pytest.mark.parametrize('form', ['irm', 'vrex', 'mmd'])
def test_a_group_that_a_batch_lacks_changes_nothing(rows, form):
  shared = {k: x for k, x in _ROWS.items() if k != 'num_groups'}
  found = []
  for num_groups in (2, 3):
    method = class_conditional.make(
      *(NET, optax.sgd(0.1)),
      form=form,
      num_classes=CLASSES,
      num_groups=num_groups,
      weight=2.0,
      **shared,
    )
    found.append(_update(method, rows)[2])
  assert found[0]['penalty'] > 0
  for name in ('loss', 'penalty'):
    np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-5)


@pytest.mark.parametrize('form', ['irm', 'vrex', 'mmd'])
def test_penalties_of_classes_are_averaged(rows, form):
  method = class_conditional.make(
    NET, optax.sgd(0.1), form=form, num_classes=CLASSES, weight=2.0, **_ROWS
  )
  before, _, sums = _update(method, rows)
  params = jax.device_get(before.params)
  hidden = rows['features'] @ params['hidden_0']['kernel']
  hidden = np.maximum(hidden + params['hidden_0']['bias'], 0)
  logits = hidden @ params['head']['kernel'] + params['head']['bias']
  nll = -np.log(_softmax(logits)[np.arange(ROWS), rows['label']])
  of_irm, of_vrex = (
    jax.jit(functools.partial(penalty, num_groups=2, **more))
    for penalty, more in (
      (irm.penalty, dict(form='vector')),
      (vrex.penalty, {}),
    )
  )
  expected = []
  for label in range(CLASSES):
    cells = [_cell(rows, label, g) for g in (0, 1)]
    if not all(map(len, cells)):
      expected.append(0.0)
    elif form == 'mmd':
      x, y = (hidden[at].astype(float) for at in cells)

      def kernel(a, b):
        square = ((a[:, None] - b[None]) ** 2).sum(-1)
        return np.mean(
          [np.exp(-square / (2 * s * s)).mean() for s in (1, 5, 10)]
        )

      expected.append(kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    else:
      at = rows['group'], rows['mask'] * (rows['label'] == label)
      if form == 'irm':
        found = of_irm(logits, rows['label'], *at)
      else:
        found = of_vrex(nll, *at)
      expected.append(float(found))
  np.testing.assert_allclose(
    sums['penalty'], np.mean(expected), rtol=1e-4, atol=1e-6
  )


def test_dro_inside_classes_weighs_their_groups(rows):
  method = class_conditional.dro(
    NET, optax.sgd(0.0), num_classes=CLASSES, step_size=0.5, **_ROWS
  )
  before, state, sums = _update(method, rows, steps=2)
  logits = jax.jit(method.predict)(before, rows)
  nll = -np.log(
    _softmax(np.asarray(logits['logits']))[np.arange(ROWS), rows['label']]
  )
  weights, total = np.full((CLASSES, 2), 0.5), 0.0
  for label in range(CLASSES):
    cells = [_cell(rows, label, g) for g in (0, 1)]
    if all(map(len, cells)):
      losses = np.array([nll[at].mean() for at in cells])
      weights[label] *= np.exp(2 * 0.5 * losses)  # After two steps.
      weights[label] /= weights[label].sum()
      total += weights[label] @ losses
    else:
      total += nll[np.concatenate(cells)].mean()
  found = state.model_state['groups']['weights']
  np.testing.assert_allclose(found, weights, rtol=1e-5)
  np.testing.assert_allclose(sums['objective'], total / CLASSES, rtol=1e-5)


# Inference.


def _biased(seed, num_rows=300):
  """A reference that sees the bias alone: the minority is wrong or unsure."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, CLASSES, num_rows)
  minority = rng.random(num_rows) < 0.2
  shown = np.where(minority, (label + 1) % CLASSES, label)
  features = 2 * np.eye(CLASSES)[shown] + 0.3 * rng.normal(
    size=(num_rows, CLASSES)
  )
  return features, 3 * features, label, minority


def test_groups_are_found_where_the_reference_is_biased():
  features, logits, label, minority = _biased(0)
  settings = dict(num_classes=CLASSES, steps=200, learning_rate=3e-3)
  found, again, other = (
    group_inference.infer(features, logits, label, seed=seed, **settings)
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(found.share, again.share)
  assert not np.array_equal(found.share, other.share)
  nll = -np.log(_softmax(logits)[np.arange(len(label)), label])
  for partition in (found, other):
    report = partition.report(minority)
    assert report['precision'] > 0.6
    assert report['recall'] > 0.9
    # The minority is the harder part of each class.
    for index in range(CLASSES):
      easy, hard = (
        nll[(label == index) & (partition.group == group)] for group in (0, 1)
      )
      assert hard.mean() > easy.mean()
  # With one free number a row, too.
  found = group_inference.free(
    logits, label, seed=0, steps=300, learning_rate=0.1
  )
  assert found.report(minority)['precision'] > 0.4
  assert found.report(minority)['recall'] > 0.9


def test_the_objective_is_that_of_two_weighted_environments():
  _, logits, label, _ = _biased(0, 20)
  rng = np.random.default_rng(1)
  share, mask = rng.random(20), (np.arange(20) < 15).astype(float)
  probs = _softmax(logits)
  nll = -np.log(probs[np.arange(20), label])
  slopes = logits * (probs - np.eye(CLASSES)[label])
  expected = 0.0
  for weights in (share * mask, (1 - share) * mask):
    weights = weights / weights.sum()
    expected += weights @ nll + 10 * np.sum((weights @ slopes) ** 2)
  found = jax.jit(group_inference.objective)(share, logits, label, mask)
  np.testing.assert_allclose(found, expected / 2, rtol=1e-5)


def test_a_report_counts_hits():
  found = group_inference.Partition(
    np.array([1, 1, 0, 0, 1]), np.array([0.9, 0.8, 0.1, 0.2, 0.7])
  )
  report = found.report(np.array([1, 0, 0, 1, 1]))
  assert report == dict(precision=2 / 3, recall=2 / 3, base_rate=0.6, size=0.6)
  with pytest.raises(types.InputError, match='some of them 1'):
    found.report(np.zeros(5))


def _with(value, kind=int):
  """Labels of which the eighth is wrong."""
  label = _biased(0)[2].astype(kind)
  label[7] = value
  return label


_WRONG = (_with(-1), _with(CLASSES))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (dict(label=np.zeros(300, int)), 'two rows and more'),
    (dict(label=_with(0.5, float)), r'integers in \[0, 3\); row 0 has'),
    (dict(logits=np.full((300, CLASSES), np.nan)), 'diverged'),
    (dict(label=np.zeros(3, int)), r'logits \[N, C\]'),
    (dict(features=np.zeros((2, CLASSES))), '2 rows of features'),
    (dict(logits=np.zeros((300, CLASSES - 1))), '2 logits a row'),
    (dict(temperature=1e-3), r'not finite: raise temperature=0\.001'),
    *((dict(label=x), r'integers in \[0, 3\); row 7') for x in _WRONG),
  ],
)
def test_what_cannot_be_divided_is_refused(change, message):
  features, logits, label, _ = _biased(0)
  given = {**dict(features=features, logits=logits, label=label), **change}
  with pytest.raises(types.InputError, match=message):
    group_inference.infer(**given, num_classes=CLASSES, seed=0)


@pytest.mark.parametrize('label', [*_WRONG, _with(1, float), _with(1, str)])
def test_free_numbers_need_labels_that_are_classes(label):
  _, logits, _, _ = _biased(0)
  with pytest.raises(types.InputError, match=r'integers in \[0, 3\)'):
    group_inference.free(logits, label, seed=0, steps=1)


def test_shares_that_diverge_are_no_groups():
  _, logits, label, _ = _biased(0)
  with pytest.raises(types.InputError, match='300 of 300 rows are not finite'):
    group_inference.free(1e25 * logits, label, seed=0, steps=3)
