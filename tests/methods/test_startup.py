"""The student's three terms by loops in NumPy; labels; batch statistics."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import parallel
from repjax import types
from repjax.data.images import views as image_views
from repjax.layers import norms
from repjax.methods import soft_labels
from repjax.methods import startup
from repjax.methods import step as steps

ROWS, CLASSES, TEMPERATURE = 8, 3, 0.5
MASK = np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)
RNG = np.random.default_rng(0)
KEY = jax.random.key(1)


class Net(nn.Module):
  """A norm over the rows, and a head."""

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    x = image.reshape((len(image), -1))
    x = norms.BatchNorm(name='norm')(x, train=train, mask=mask)
    return nn.Dense(CLASSES, name='head')(x)


class Plain(nn.Module):
  """A head alone."""

  @nn.compact
  def __call__(self, image, *, train, mask=None):
    return nn.Dense(CLASSES, name='head')(image.reshape((len(image), -1)))


def _views(image, rngs):
  """A shift of each row by a number of its own."""
  return image + jax.vmap(jax.random.normal)(rngs)[:, None, None, None]


def _batch():
  taught = RNG.dirichlet(np.ones(CLASSES), ROWS)
  return {
    'image': RNG.normal(size=(ROWS, 4, 4, 1)).astype(np.float32),
    'label': RNG.integers(0, CLASSES, ROWS),
    'unlabelled': RNG.normal(2, 3, (ROWS, 4, 4, 1)).astype(np.float32),
    'pseudo_target': taught.astype(np.float32),
    'mask': MASK,
  }


BATCH = _batch()


@functools.cache
def _student(weights, statistics='mixed'):
  objective = startup.Objective(*weights, temperature=TEMPERATURE)
  method = startup.make(
    Net(),
    optax.sgd(0.1),
    views=_views,
    objective=objective,
    projection_dim=5,
    statistics=statistics,
  )
  state = jax.jit(method.init)(jax.random.key(0), BATCH)
  return method, state, jax.jit(method.update)


def _seen(count):
  """The views of a step, as `steps.make` draws them."""
  rng, _ = jax.random.split(KEY)
  rngs = [jax.random.fold_in(rng, i) for i in range(count)]
  return [
    np.asarray(_views(BATCH['unlabelled'], parallel.row_rngs(x, ROWS)))
    for x in rngs
  ]


def _forward(params, image):
  """(logits, features) with the statistics of real rows, float64."""
  x = np.asarray(image, np.float64).reshape((ROWS, -1))
  real = x[MASK > 0]
  features = (x - real.mean(0)) / np.sqrt(real.var(0) + 1e-5)
  head = params['model']['head']
  return features @ head['kernel'] + head['bias'], features


def _project(params, x):
  for name in ('hidden', 'out'):
    layer = params['projector'][name]
    x = x @ np.asarray(layer['kernel'], np.float64) + layer['bias']
    x = np.maximum(x, 0) if name == 'hidden' else x
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _log_softmax(x):
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _nt_xent(first, second):
  everyone = np.concatenate([first[MASK > 0], second[MASK > 0]])
  num = len(everyone) // 2
  losses = []
  for i in range(2 * num):
    others = [j for j in range(2 * num) if j != i]
    scores = {j: everyone[i] @ everyone[j] / TEMPERATURE for j in others}
    total = np.log(sum(np.exp(x) for x in scores.values()))
    losses.append(total - scores[(i + num) % (2 * num)])
  return np.mean(losses)


def _expected(params, weights):
  """The three terms, means over real rows."""
  real = MASK > 0
  logits, _ = _forward(params, BATCH['image'])
  nll = -_log_softmax(logits)[np.arange(ROWS), BATCH['label']]
  views = _seen(2 if weights[2] else int(weights[1] > 0))
  taught = BATCH['pseudo_target']
  apart = [
    (taught * (np.log(taught) - _log_softmax(_forward(params, x)[0]))).sum(-1)
    for x in views
  ]
  terms = dict(base_loss=nll[real].mean())
  if views:
    terms['distillation'] = np.mean(apart, 0)[real].mean()
  if len(views) == 2:
    projected = [_project(params, _forward(params, x)[1]) for x in views]
    terms['self_supervision'] = _nt_xent(*projected)
  return terms


@pytest.mark.parametrize(
  'weights', [(1, 1, 1), (1, 1, 0), (0.5, 0, 2), (0, 1, 0), (1, 0, 0)]
)
def test_the_loss_is_the_weighted_sum_of_its_terms(weights):
  _, state, update = _student(weights)
  _, sums = update(state, BATCH, KEY)
  terms = _expected(jax.device_get(state.params), weights)
  names = ('base_loss', 'distillation', 'self_supervision')
  loss = 0
  for weight, name in zip(weights, names, strict=True):
    assert (name in sums) == (weight > 0)
    if weight:
      value, count = sums[name]
      np.testing.assert_allclose(value / count, terms[name], rtol=2e-5)
      loss += weight * terms[name]
  value, count = sums['loss']
  assert count == MASK.sum()
  np.testing.assert_allclose(value / count, loss, rtol=2e-5)


def test_base_rows_that_are_named_right_are_counted():
  _, state, update = _student((1, 0, 0))
  logits, _ = _forward(jax.device_get(state.params), BATCH['image'])
  label = logits.argmax(-1)
  wrong = MASK.argmax()  # The first real row.
  label[wrong] = logits[wrong].argmin()
  _, sums = update(state, {**BATCH, 'label': label}, KEY)
  real = MASK.sum()
  np.testing.assert_array_equal(sums['base_accuracy'], [real - 1, real])


def test_a_term_that_is_left_out_trains_nothing_of_its_own():
  _, state, update = _student((1, 1, 0))
  after, _ = update(state, BATCH, KEY)
  chex.assert_trees_all_equal(
    after.params['projector'], state.params['projector']
  )
  _, state, update = _student((0, 0, 1))
  after, _ = update(state, BATCH, KEY)
  head = after.params['model']['head']
  chex.assert_trees_all_equal(head, state.params['model']['head'])
  norm = after.params['model']['norm']['scale']
  assert abs(norm - state.params['model']['norm']['scale']).max() > 1e-4


def _moved(means):
  """A running mean after passes with these means."""
  running = np.zeros(16)
  for x in means:
    running = 0.9 * running + 0.1 * x
  return running


@pytest.mark.parametrize('statistics', ['mixed', 'separate'])
def test_each_pass_has_the_statistics_of_its_domain(statistics):
  method, state, update = _student((1, 1, 1), statistics)
  after, _ = update(state, BATCH, KEY)
  base, *target = (
    x.reshape((ROWS, -1))[MASK > 0].mean(0) for x in (BATCH['image'], *_seen(2))
  )
  found = {
    name: np.asarray(tree['norm']['mean'])
    for name, tree in after.model_state.items()
  }
  if statistics == 'mixed':
    expected = {'batch_stats': _moved([base, *target])}
  else:
    expected = {
      'batch_stats': _moved(target),
      'base_batch_stats': _moved([base]),
    }
  chex.assert_trees_all_close(found, expected, atol=1e-5)
  # It predicts with those of the target.
  logits = method.predict(after, BATCH)['logits']
  own = {'params': after.params['model']}
  own['batch_stats'] = after.model_state['batch_stats']
  np.testing.assert_allclose(
    logits, Net().apply(own, BATCH['image'], train=False), rtol=1e-6
  )


@pytest.mark.parametrize('statistics', ['mixed', 'separate'])
def test_held_out_rows_are_seen_as_they_are(statistics):
  weights = (1, 2, 0.5)
  _, state, update = _student(weights, statistics)
  for number in range(3):
    state, _ = update(state, BATCH, jax.random.key(number))
  objective = startup.Objective(*weights, temperature=TEMPERATURE)
  loss = startup.held_out(
    Net(), views=_views, objective=objective, projection_dim=5
  )
  found = jax.jit(loss)(state, BATCH, KEY)
  params, stats = jax.device_get((state.params, state.model_state))

  def forward(image, kind):
    norm = params['model']['norm']
    own = stats.get(kind, stats['batch_stats'])['norm']
    x = image.reshape((ROWS, -1)) - own['mean']
    x = x / np.sqrt(own['var'] + 1e-5) * norm['scale'] + norm['bias']
    head = params['model']['head']
    return x @ head['kernel'] + head['bias'], x

  real = MASK > 0
  rows = BATCH['unlabelled']
  drawn = np.asarray(_views(rows, parallel.row_rngs(KEY, ROWS)))
  logits, _ = forward(BATCH['image'], 'base_batch_stats')
  nll = -_log_softmax(logits)[np.arange(ROWS), BATCH['label']]
  taught, (said, first) = BATCH['pseudo_target'], forward(rows, 'batch_stats')
  apart = (taught * (np.log(taught) - _log_softmax(said))).sum(-1)
  _, second = forward(drawn, 'batch_stats')
  contrast = _nt_xent(_project(params, first), _project(params, second))
  expected = nll[real].mean() + 2 * apart[real].mean() + 0.5 * contrast
  np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_padding_may_hold_anything_in_held_out_rows():
  # Without norms, which blank it by themselves.
  loss = jax.jit(startup.held_out(Plain(), views=_views, projection_dim=5))
  method = startup.make(Plain(), optax.sgd(0.1), views=_views, projection_dim=5)
  state = jax.jit(method.init)(jax.random.key(0), BATCH)
  dirty = {'mask': MASK}
  for name in ('image', 'unlabelled', 'pseudo_target', 'label'):
    x = BATCH[name].copy()
    x[MASK == 0] = -99 if name == 'label' else np.nan
    dirty[name] = x
  np.testing.assert_array_equal(
    loss(state, dirty, KEY), loss(state, BATCH, KEY)
  )
  del dirty['unlabelled']
  with pytest.raises(types.InputError, match='rows of the target'):
    loss(state, dirty, KEY)


def test_the_sum_of_published_labels_hardly_matters():
  logits = RNG.normal(size=(ROWS, CLASSES))
  said = jnp.asarray(RNG.normal(size=(ROWS, CLASSES)))
  ours, theirs = (
    startup.divergence(
      soft_labels.of_teacher(logits, num_classes=CLASSES, normalized=x), said
    )
    for x in (True, False)
  )
  scale = abs(np.asarray(said)).max() + np.log(CLASSES) + 2
  assert 0 < abs(np.asarray(ours - theirs)).max() < 2 * CLASSES * 1e-6 * scale


def test_what_makes_no_student_is_refused():
  views = image_views.random_views()
  for weights in [(0, 0, 0), (1, -1, 1)]:
    with pytest.raises(types.InputError):
      objective = startup.Objective(*weights)
      startup.make(Net(), optax.sgd(0.1), views=views, objective=objective)
  _, state, update = _student((1, 1, 1))
  for change, match in [
    (dict(pseudo_target=np.ones((ROWS, 2), np.float32)), 'tells 2 classes'),
    (dict(pseudo_target=None), "teacher's labels"),
    (dict(unlabelled=None), 'rows of the target'),
  ]:
    batch = {k: x for k, x in {**BATCH, **change}.items() if x is not None}
    with pytest.raises(types.InputError, match=match):
      update(state, batch, KEY)


def test_statistics_of_a_model_without_any_are_refused():
  method = startup.make(
    Plain(), optax.sgd(0.1), views=_views, statistics='separate'
  )
  with pytest.raises(types.InputError, match='mixed'):
    method.init(jax.random.key(0), BATCH)
  method = startup.make(Plain(), optax.sgd(0.1), views=_views)
  state = jax.jit(method.init)(jax.random.key(0), BATCH)
  assert not state.model_state
  assert not isinstance(state.extra, steps.EmaState)
  _, sums = jax.jit(method.update)(state, BATCH, KEY)
  assert np.isfinite(sums['loss'][0])
