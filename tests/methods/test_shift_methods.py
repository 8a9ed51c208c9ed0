"""What all methods for shifts keep, and that their losses are what they say.

Steps run on four devices, of which one holds padding alone; oracles see the
real rows on one.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import loop
from repjax import optim
from repjax import parallel
from repjax import types
from repjax.layers import norms
from repjax.methods import afn
from repjax.methods import augmix
from repjax.methods import coral
from repjax.methods import dann
from repjax.methods import domain_mixup
from repjax.methods import erm
from repjax.methods import fixmatch
from repjax.methods import group_dro
from repjax.methods import grouped
from repjax.methods import irm
from repjax.methods import model_inputs
from repjax.methods import noisy_student
from repjax.methods import pseudo_label
from repjax.methods import sagnet
from repjax.methods import vrex
from repjax.models import mlp

ROWS, GROUPS, CLASSES, DIM = 16, 3, 4, 5


class Net(nn.Module):
  """A hidden layer with batch normalisation, and a head."""

  @nn.compact
  def __call__(self, x, *, train, mask=None):
    x = nn.Dense(6, name='hidden')(x)
    x = norms.BatchNorm(name='norm')(x, train=train, mask=mask)
    return nn.Dense(CLASSES, name='head')(nn.tanh(x))


NET = Net()
SGD = optax.sgd(1.0)
_ROWS = dict(inputs=model_inputs.features)
_GROUPS = dict(num_groups=GROUPS, **_ROWS)

# Built once: a method of its own is a program of its own.
METHODS = {
  'erm': erm.make(NET, SGD, **_ROWS),
  'erm of groups': erm.make(NET, SGD, balance='groups', **_GROUPS),
  'irm': irm.make(NET, SGD, weight=3.0, **_GROUPS),
  'irm rescaled': irm.make(
    NET, SGD, weight=3.0, form='plain', rescale=True, **_GROUPS
  ),
  'vrex': vrex.make(NET, SGD, weight=2.0, **_GROUPS),
  'group_dro': group_dro.make(NET, SGD, step_size=0.5, **_GROUPS),
  'coral': coral.make(NET, SGD, weight=2.0, **_GROUPS),
  'dann': dann.make(NET, SGD, weight=0.5, **_GROUPS),
  'dann alternating': dann.make(
    NET,
    SGD,
    weight=0.5,
    form='alternating',
    tx_adversary=optax.sgd(0.5),
    adversary=dann.Adversary(GROUPS, (4,), normalize=True),
    **_GROUPS,
  ),
  'afn': afn.make(NET, SGD, weight=0.1, **_ROWS),
  'afn hard': afn.make(NET, SGD, weight=0.1, form='hard', radius=3.0, **_ROWS),
  'domain_mixup': domain_mixup.make(NET, SGD, num_classes=CLASSES, **_GROUPS),
  'sagnet': sagnet.make(NET, SGD, num_classes=CLASSES, weight=0.5, **_ROWS),
  'augmix': augmix.make(NET, SGD, **_ROWS),
  'augmix without its loss': augmix.make(NET, SGD, jsd_weight=0.0, **_ROWS),
  'pseudo_label': pseudo_label.make(
    NET, SGD, weight=0.7, threshold=0.4, **_ROWS
  ),
  'fixmatch': fixmatch.make(NET, SGD, threshold=0.4, **_ROWS),
  'noisy_student': noisy_student.make(NET, SGD, dropout_rate=0.0, **_ROWS),
}


@pytest.fixture(params=METHODS)
def name(request):
  return request.param


def batch_of(step):
  rng = np.random.default_rng(step)

  def normal():
    return rng.normal(size=(ROWS, DIM)).astype(np.float32)

  mask = np.ones(ROWS, np.float32)
  mask[-5:] = 0  # The last device has padding alone.
  labelled = (rng.random(ROWS) < 0.7).astype(np.float32)
  return {
    'features': normal(),
    'strong': normal(),
    'strong_2': normal(),
    'label': np.where(labelled > 0, rng.integers(0, CLASSES, ROWS), -1),
    'pseudo': rng.integers(0, CLASSES, ROWS),
    'group': rng.integers(0, GROUPS, ROWS),
    'weight': rng.uniform(0.5, 1.5, ROWS).astype(np.float32),
    'labelled': labelled,
    'mask': mask,
  }


@functools.cache
def _step(name, one):
  devices = jax.local_devices()[:1] if one else None
  return parallel.train_step(METHODS[name].update, devices), devices


def run(name, batches, *, one=False):
  """(state, sums of the last step) on the host."""
  step, devices = _step(name, one)
  state, sums = loop.init(METHODS[name], batch_of(0), 0, devices), None
  for batch in batches:
    batch = parallel.shard(batch, devices)
    state, sums = step(state, batch, jax.random.key(1))
  return jax.device_get((state, sums))


@pytest.mark.devices(4)
def test_one_device_equals_four(name):
  batches = [batch_of(step) for step in range(3)]
  found, expected = run(name, batches), run(name, batches, one=True)
  chex.assert_trees_all_close(found, expected, rtol=2e-4, atol=2e-5)
  chex.assert_tree_all_finite(found)


def test_padding_and_labels_of_unlabelled_rows_count_for_nothing(name):
  clean, dirty = batch_of(0), {}
  mask = clean['mask'] > 0
  for column, x in clean.items():
    garbage = np.nan if np.issubdtype(x.dtype, np.floating) else 10**6
    shaped = mask.reshape(-1, *[1] * (x.ndim - 1))
    dirty[column] = np.where(shaped, x, garbage).astype(x.dtype)
  dirty['mask'] = clean['mask']
  dirty['label'] = np.where(clean['labelled'] * mask > 0, clean['label'], 10**6)
  chex.assert_trees_all_equal(run(name, [dirty]), run(name, [clean]))


def test_batch_statistics_are_kept(name):
  if name == 'domain_mixup':  # Its rows are others.
    return
  batch = batch_of(0)
  seen = ['features', 'strong', 'strong_2']
  if name == 'augmix without its loss':
    seen = ['strong']
  elif name != 'augmix':
    seen = ['features']
  x = np.concatenate([real(batch)[column] for column in seen])
  start = loop.init(METHODS[name], batch, 0)
  params = start.params.get('model', start.params)
  hidden = x @ params['hidden']['kernel'] + params['hidden']['bias'][None]
  mean = 0.1 * hidden.mean(0)
  if name == 'fixmatch':  # A second pass, over the strong views.
    strong = real(batch)['strong'][real(batch)['labelled'] == 0]
    hidden = strong @ params['hidden']['kernel']
    hidden += params['hidden']['bias'][None]
    mean = 0.9 * mean + 0.1 * hidden.mean(0)
  state, _ = run(name, [batch])
  found = state.model_state['batch_stats']['norm']['mean']
  np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-5)


def test_labels_count(name):
  batch = batch_of(0)
  other = {**batch, 'label': (batch['label'] + 1) % CLASSES}
  # An adversary's own step does not look at them.
  steps = 2 if name == 'dann alternating' else 1
  states = [run(name, [x] * steps)[0] for x in (batch, other)]
  with pytest.raises(AssertionError):
    chex.assert_trees_all_close(*(x.params for x in states), atol=1e-3)


def test_a_batch_of_padding_changes_no_parameter(name):
  batch = {**batch_of(0), 'mask': np.zeros(ROWS, np.float32)}
  state, sums = run(name, [batch])
  start = loop.init(METHODS[name], batch_of(0), 0)
  chex.assert_trees_all_equal(state.params, jax.device_get(start.params))
  assert float(sums['loss'][1]) == 0.0


# Whole steps, against the loss of the real rows as the paper has it.


def real(batch):
  rows = batch['mask'] > 0
  return {k: x[rows] for k, x in batch.items()}


def forward(variables, x):
  """(features, logits) in training mode, written out."""
  params = variables['params']
  x = x @ params['hidden']['kernel'] + params['hidden']['bias'][None]
  x = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0)[None] + 1e-5)
  x = x * params['norm']['scale'][None] + params['norm']['bias'][None]
  features = jnp.tanh(x)
  logits = features @ params['head']['kernel'] + params['head']['bias'][None]
  return features, logits


def ce(logits, label):
  return -jnp.take_along_axis(
    jax.nn.log_softmax(logits), label[:, None], axis=1
  )[:, 0]


def mean_ce(logits, rows):
  """Of the labelled rows, with their weights."""
  at = np.flatnonzero(rows['labelled'])
  return (rows['weight'][at] * ce(logits[at], rows['label'][at])).mean()


def groups_of(rows):
  found = []
  for group in range(GROUPS):
    at = np.flatnonzero((rows['labelled'] > 0) & (rows['group'] == group))
    if len(at):
      found.append(at)
  return found


def _group_losses(logits, rows):
  return jnp.stack(
    [
      (rows['weight'][at] * ce(logits[at], rows['label'][at])).mean()
      for at in groups_of(rows)
    ]
  )


def _irm(logits, rows, halves):
  terms = []
  for at in groups_of(rows):

    def slope(chosen):
      return jax.grad(
        lambda s: ce(s * logits[chosen], rows['label'][chosen]).mean()
      )(1.0)

    if not halves:
      terms.append(slope(at) ** 2)
    elif len(at) > 1:
      terms.append(slope(at[::2]) * slope(at[1::2]))
    else:
      terms.append(0.0)
  return sum(terms) / len(terms)


def oracle(name, variables, rows):
  """The loss of one step, of real rows alone."""
  features, logits = forward(variables, rows['features'])
  supervised = mean_ce(logits, rows)
  unlabelled = np.flatnonzero(rows['labelled'] == 0)
  if name == 'erm':
    return supervised
  losses = _group_losses(logits, rows)
  if name == 'erm of groups':
    return losses.mean()
  if name == 'irm':
    return losses.mean() + 3 * _irm(logits, rows, halves=True)
  if name == 'irm rescaled':
    return (losses.mean() + 3 * _irm(logits, rows, halves=False)) / 3
  if name == 'vrex':
    return losses.mean() + 2 * losses.var()
  if name == 'group_dro':
    weights = jax.nn.softmax(0.5 * jax.lax.stop_gradient(losses))
    return (weights * losses).sum()
  if name == 'coral':
    penalty = coral.penalty(
      features, rows['group'], jnp.ones(len(features)), num_groups=GROUPS
    )
    return supervised + 2 * penalty
  if name == 'afn':
    size = jnp.sqrt((features**2).sum(-1))
    term = (size - jax.lax.stop_gradient(size) - 1) ** 2
    labelled = np.flatnonzero(rows['labelled'])
    return supervised + 0.1 * (term[labelled].mean() + term[unlabelled].mean())
  if name == 'afn hard':
    size = jnp.sqrt((features**2).sum(-1))
    labelled = np.flatnonzero(rows['labelled'])
    parts = (size[labelled].mean() - 3) ** 2, (size[unlabelled].mean() - 3) ** 2
    return supervised + 0.1 * sum(parts)
  if name == 'pseudo_label':
    guess = jax.lax.stop_gradient(logits)
    kept = jax.nn.softmax(guess).max(-1) >= 0.4
    term = jnp.where(kept, ce(logits, guess.argmax(-1)), 0.0)
    return supervised + 0.7 * term[unlabelled].mean()
  if name == 'fixmatch':
    guess = jax.lax.stop_gradient(logits)
    kept = jax.nn.softmax(guess).max(-1) >= 0.4
    _, strong = forward(variables, rows['strong'][unlabelled])
    term = ce(strong, guess.argmax(-1)[unlabelled])
    return supervised + jnp.where(kept[unlabelled], term, 0.0).mean()
  if name == 'noisy_student':
    return supervised + ce(logits, rows['pseudo'])[unlabelled].mean()
  if name == 'augmix without its loss':
    return mean_ce(forward(variables, rows['strong'])[1], rows)
  assert name == 'augmix'
  views = [rows[x] for x in ('features', 'strong', 'strong_2')]
  parts = jnp.split(forward(variables, jnp.concatenate(views))[1], 3)
  probs = [jax.nn.softmax(x) for x in parts]
  middle = jnp.log(sum(probs) / 3)
  terms = [(p * (jnp.log(p) - middle)).sum(-1).mean() for p in probs]
  return mean_ce(parts[0], rows) + 12 * sum(terms) / 3


_PLAIN = [
  x for x in METHODS if not x.startswith(('dann', 'sagnet', 'domain_mixup'))
]


@pytest.mark.parametrize('name', _PLAIN)
def test_a_step_follows_the_gradient_of_its_loss(name):
  batch = batch_of(0)
  start = jax.device_get(loop.init(METHODS[name], batch_of(0), 0))
  rows = real(batch)
  assert len({len(x) for x in groups_of(rows)}) > 1  # Groups are uneven.
  loss, grads = jax.jit(
    jax.value_and_grad(lambda params: oracle(name, {'params': params}, rows))
  )(start.params)
  state, sums = run(name, [batch])
  moved = jax.tree.map(np.subtract, start.params, state.params)
  chex.assert_trees_all_close(moved, grads, rtol=1e-4, atol=2e-6)
  if 'objective' in sums:
    total, weight = sums['objective']
    np.testing.assert_allclose(total / weight, loss, rtol=1e-5)


def test_reported_numbers_are_those_of_labelled_rows():
  batch = batch_of(0)
  rows = real(batch)
  start = jax.device_get(loop.init(METHODS['erm'], batch, 0))
  _, logits = jax.jit(forward)({'params': start.params}, rows['features'])
  at = np.flatnonzero(rows['labelled'])
  losses = np.asarray(jax.jit(ce)(logits, rows['label']))
  _, sums = run('erm', [batch])
  means = {k: float(x) / float(n) for k, (x, n) in sums.items()}
  np.testing.assert_allclose(means['loss'], losses[at].mean(), rtol=1e-5)
  hits = np.asarray(logits).argmax(-1)[at] == rows['label'][at]
  np.testing.assert_allclose(means['accuracy'], hits.mean(), rtol=1e-6)


def test_group_dro_remembers_its_weights():
  batches = [batch_of(step) for step in range(3)]
  state, _ = run('group_dro', batches)
  weights = np.full(GROUPS, 1 / GROUPS)

  @jax.jit
  def losses_of(params, rows):
    _, logits = forward({'params': params}, rows['features'])
    return ce(logits, rows['label'])

  for step, batch in enumerate(batches):
    before, _ = run('group_dro', batches[:step])
    rows = real(batch)
    each = np.asarray(losses_of(before.params, rows))
    losses = np.zeros(GROUPS)
    for at in groups_of(rows):
      nll = rows['weight'][at] * each[at]
      losses[int(rows['group'][at[0]])] = nll.mean()
    weights = weights * np.exp(0.5 * losses)
    weights /= weights.sum()
  found = state.model_state['groups']['weights']
  np.testing.assert_allclose(found, weights, rtol=1e-5)
  assert found.std() > 0.01


def test_the_weight_follows_its_schedule():
  batch = batch_of(0)

  def moved(weight):
    method = coral.make(NET, SGD, weight=weight, **_GROUPS)
    state = loop.init(METHODS['coral'], batch, 0).replace(step=jnp.int32(5))
    after, _ = jax.jit(method.update)(state, batch, jax.random.key(0))
    return after.params

  late = moved(lambda step: jnp.where(step >= 5, 2.0, 0.0))
  chex.assert_trees_all_close(late, moved(2.0), rtol=1e-6)
  kernels = [x['hidden']['kernel'] for x in (late, moved(0.0))]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_a_weight_is_annealed_upwards():
  weight = grouped.annealed(100.0, at=5)
  assert [float(weight(x)) for x in (0, 4, 5, 9)] == [1, 1, 100, 100]


def test_small_groups_weigh_more_where_that_is_asked_for():
  counts = np.array([4, 9, 1])
  batch = {k: jnp.asarray(x) for k, x in batch_of(0).items()}

  def weights(adjustment):
    method = group_dro.make(
      *(NET, SGD),
      step_size=0.5,
      adjustment=adjustment,
      group_counts=counts,
      **_GROUPS,
    )
    state = jax.jit(method.init)(jax.random.key(0), batch)
    state, _ = jax.jit(method.update)(state, batch, jax.random.key(0))
    return np.asarray(state.model_state['groups']['weights'], np.float64)

  expected = weights(0.0) * np.exp(0.5 * 2.0 / np.sqrt(counts))
  np.testing.assert_allclose(weights(2.0), expected / expected.sum(), rtol=1e-4)


def test_what_a_student_sees_keeps_its_mean():
  # One logit is the mean of what is kept, the other one 0.
  class Mean(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mask=None):
      init = lambda _, shape, dtype: jnp.eye(2, dtype=dtype)[:1].repeat(  # noqa: E731
        shape[0], 0
      )
      return nn.Dense(2, kernel_init=init, name='head')(x)

  method = noisy_student.make(Mean(), SGD, dropout_rate=0.8, **_ROWS)
  batch = {
    'features': jnp.full((4, 4096), 3 / 4096),
    'label': jnp.zeros(4, jnp.int32),
    'pseudo': jnp.zeros(4, jnp.int32),
    'labelled': jnp.ones(4),
    'mask': jnp.ones(4),
  }
  state = jax.jit(method.init)(jax.random.key(0), batch)
  _, sums = jax.jit(method.update)(state, batch, jax.random.key(1))
  loss = float(sums['loss'][0] / sums['loss'][1])
  np.testing.assert_allclose(loss, np.log1p(np.exp(-3.0)), rtol=0.2)


def test_views_of_which_all_are_sure_diverge_by_numbers():
  # Of a class that no view gives a probability above 0 there is no logarithm.
  sure = jnp.array([[400.0, 0.0, 0.0]])
  other = jnp.roll(sure, 1, axis=1)
  value_and_grad = jax.jit(
    jax.value_and_grad(lambda *x: augmix.divergence(*x).sum(), (0, 1, 2))
  )
  for views, expected in (
    ((sure, sure, sure), 0.0),
    ((sure, sure, other), np.log(3) - 2 / 3 * np.log(2)),
  ):
    found, grads = value_and_grad(*views)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    chex.assert_tree_all_finite(grads)


# Methods with a second head.


def test_reversal_trains_the_adversary_and_turns_the_features_against_it():
  batch = batch_of(0)
  rows = real(batch)
  method = METHODS['dann']
  start = jax.device_get(loop.init(method, batch, 0))

  def adversary_loss(params):
    features, _ = forward({'params': params['model']}, rows['features'])
    logits = dann.Adversary(GROUPS).apply(
      {'params': params['adversary']}, features, train=True
    )
    return 0.5 * ce(logits, rows['group']).mean()

  def own_loss(params):
    _, logits = forward({'params': params['model']}, rows['features'])
    return mean_ce(logits, rows)

  domain = jax.jit(jax.grad(adversary_loss))(start.params)
  own = jax.jit(jax.grad(own_loss))(start.params)
  expected = {
    'model': jax.tree.map(lambda a, b: a - b, own['model'], domain['model']),
    'adversary': domain['adversary'],
  }
  state, _ = run('dann', [batch])
  moved = jax.tree.map(np.subtract, start.params, state.params)
  chex.assert_trees_all_close(moved, expected, rtol=1e-4, atol=2e-6)


def test_groups_without_training_rows_are_nothing_to_the_adversary():
  batch = batch_of(0)
  # What two groups are, of which the second is called 2; and one row of none.
  group = np.where(batch['group'] == 1, 2, batch['group'] // 2)
  group[0] = 1
  number = np.where(group == 1, -1, group // 2)
  some = dann.make(NET, SGD, weight=0.5, group_counts=(4, 0, 9), **_GROUPS)
  two = dann.make(NET, SGD, weight=0.5, num_groups=2, **_ROWS)
  found, wanted = (
    jax.jit(x.update)(
      loop.init(x, batch, 0), {**batch, 'group': ids}, jax.random.key(0)
    )
    for x, ids in ((some, group), (two, number))
  )
  chex.assert_trees_all_equal(found, wanted)
  with pytest.raises(types.InputError, match='2 groups have training rows'):
    _update(
      dann.make(
        NET,
        SGD,
        weight=0.5,
        adversary=dann.Adversary(GROUPS),
        group_counts=(4, 0, 9),
        **_GROUPS,
      )
    )


def test_of_alternating_parts_one_may_measure_more():
  tx = optax.chain(
    optim.dp_sgd(1.0, 0.0, expected_batch_size=ROWS, key=jax.random.key(0)),
    SGD,
  )
  settings = dict(weight=0.5, form='alternating', tx_adversary=tx, **_GROUPS)
  method = dann.make(mlp.Mlp(CLASSES, features=(6,)), SGD, **settings)
  # Where all rows have labels, each has a loss of its own.
  batch = {k: x for k, x in batch_of(0).items() if k != 'labelled'}
  state = jax.jit(method.init)(jax.random.key(0), batch)
  update, weights = jax.jit(method.update), []
  for _ in range(2):
    state, sums = update(state, batch, jax.random.key(1))
    weights.append((int(sums['gradient_norm'][1]), int(sums['loss'][1])))
  assert weights[0][0] > 0 == weights[1][0]
  assert weights[0][1] == weights[1][1] > 0


def test_alternating_steps_train_one_part_each():
  batch = batch_of(0)
  states = [run('dann alternating', [batch] * number)[0] for number in range(4)]
  for number, trained in enumerate(['adversary', 'model', 'adversary']):
    for part in ('adversary', 'model'):
      moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b),
        states[number].params[part],
        states[number + 1].params[part],
      )
      assert any(jax.tree.leaves(moved)) == (part == trained)
  # The model goes against the adversary as it has just become.
  rows = real(batch)
  adversary = dann.Adversary(GROUPS, (4,), normalize=True)

  def loss(params):
    features, logits = forward({'params': params}, rows['features'])
    told, _ = adversary.apply(
      {
        'params': states[1].params['adversary'],
        **states[1].model_state['adversary'],
      },
      features,
      train=True,
      mutable=['batch_stats'],
    )
    return mean_ce(logits, rows) - 0.5 * ce(told, rows['group']).mean()

  grads = jax.jit(jax.grad(loss))(states[1].params['model'])
  moved = jax.tree.map(
    np.subtract, states[1].params['model'], states[2].params['model']
  )
  chex.assert_trees_all_close(moved, grads, rtol=1e-4, atol=2e-6)


def test_style_goes_and_comes_back():
  rng = np.random.default_rng(0)
  for shape in ((5, 7), (5, 4, 4, 3)):
    x = np.asarray(rng.normal(size=shape) * 3 + 1, np.float32)
    content, style = jax.device_get(jax.jit(sagnet.divide)(x))
    axes = (1,) if len(shape) == 2 else (1, 2)
    np.testing.assert_allclose(content.mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(content.std(axes, ddof=1), 1, rtol=1e-4)
    united = jax.jit(sagnet.unite)(content, style)
    np.testing.assert_allclose(united, x, rtol=1e-4)
    # At weight 1 a row keeps its style, at 0 it has its partner's.
    partner, mixed = np.array([3, 0, 1, 2, 4]), jax.jit(sagnet.mixed)
    same = mixed(style, partner, np.ones(5, np.float32))
    chex.assert_trees_all_close(tuple(same), tuple(style))
    other = mixed(style, partner, np.zeros(5, np.float32))
    chex.assert_trees_all_close(other, tuple(x[partner] for x in style))


@pytest.mark.parametrize('shape', [(5, 1), (5, 1, 1, 3)])
def test_one_number_alone_has_no_style(shape):
  with pytest.raises(types.InputError, match='one alone'):
    sagnet.divide(np.ones(shape, np.float32))


def test_the_style_head_and_the_features_train_apart():
  # Without a weight of the adversary, nothing of the style head reaches the
  # features, and its own loss does not depend on that weight.
  batch = batch_of(0)
  states = []
  for weight in (0.0, 5.0):
    method = sagnet.make(NET, SGD, num_classes=CLASSES, weight=weight, **_ROWS)
    state = jax.jit(method.init)(jax.random.key(0), batch)
    after, _ = jax.jit(method.update)(state, batch, jax.random.key(1))
    states.append(after.params)
  chex.assert_trees_all_equal(states[0]['style'], states[1]['style'])
  head = [x['model']['head'] for x in states]
  chex.assert_trees_all_close(*head, atol=1e-6)
  assert (
    abs(
      states[0]['model']['hidden']['kernel']
      - states[1]['model']['hidden']['kernel']
    ).max()
    > 1e-3
  )


def test_a_style_head_that_knows_nothing_costs_log_c():
  method = METHODS['sagnet']
  batch = batch_of(0)
  state = jax.jit(method.init)(jax.random.key(0), batch)
  blank = jax.tree.map(jnp.zeros_like, state.params['style'])
  state = state.replace(params={**state.params, 'style': blank})
  _, sums = jax.jit(method.update)(state, batch, jax.random.key(1))
  for name in ('style_loss', 'adversarial_loss'):
    total, weight = sums[name]
    np.testing.assert_allclose(total / weight, np.log(CLASSES), rtol=1e-5)


# Mixing across groups.


@pytest.mark.parametrize('per', ['example', 'batch'])
def test_partners_are_labelled_rows_of_other_groups(per):
  batch = batch_of(0)
  mix = functools.partial(
    domain_mixup.mix,
    num_groups=GROUPS,
    num_classes=CLASSES,
    alpha=1.0,
    per=per,
  )
  out = jax.device_get(jax.jit(mix)(batch, jax.random.key(0)))
  usable = np.flatnonzero(batch['labelled'] * batch['mask'])
  weights = []
  for row in range(ROWS):
    x = out['features'][row]
    if row not in usable:
      np.testing.assert_array_equal(x, batch['features'][row])
      continue
    fits = []
    for other in usable:
      if batch['group'][other] == batch['group'][row]:
        continue
      own, theirs = batch['features'][row], batch['features'][other]
      weight = float(np.vdot(x - theirs, own - theirs)) / float(
        np.square(own - theirs).sum()
      )
      blend = weight * own + (1 - weight) * theirs
      if np.allclose(blend, x, atol=1e-5):
        target = weight * np.eye(CLASSES)[batch['label'][row]]
        target += (1 - weight) * np.eye(CLASSES)[batch['label'][other]]
        np.testing.assert_allclose(out['target'][row], target, atol=1e-5)
        fits.append(weight)
    assert len(fits) == 1
    weights += fits
  assert (np.ptp(weights) > 0.1) == (per == 'example')


@pytest.mark.parametrize('per', ['example', 'batch'])
def test_weights_across_groups_are_of_the_beta_distribution(per):
  batch = {
    'features': np.repeat(np.array([[0.0], [1.0]], np.float32), 2, 0),
    'label': np.zeros(4, np.int32),
    'group': np.repeat(np.arange(2), 2),
    'labelled': np.ones(4, np.float32),
    'mask': np.ones(4, np.float32),
  }

  def first(batch, key):
    return domain_mixup.mix(
      batch, key, num_groups=2, num_classes=1, alpha=0.2, per=per
    )['features'][:, 0]

  mixed = jax.jit(jax.vmap(first, in_axes=(None, 0)))(
    batch, jax.random.split(jax.random.key(0), 400)
  )
  shares = np.asarray(mixed)[:, 2]
  # Beta(a, a) has variance 1 / (4 (2 a + 1)); a uniform one .083.
  np.testing.assert_allclose(shares.var(), 1 / (4 * 1.4), rtol=0.1)


def test_one_group_alone_is_not_mixed():
  batch = {**batch_of(0), 'group': np.zeros(ROWS, np.int32)}
  mix = functools.partial(
    domain_mixup.mix, num_groups=GROUPS, num_classes=CLASSES, alpha=1.0
  )
  out = jax.jit(mix)(batch, jax.random.key(0))
  np.testing.assert_array_equal(out['features'], batch['features'])


# What users get wrong.


def _update(method, **changes):
  batch = {**batch_of(0), **changes}
  batch = {k: x for k, x in batch.items() if x is not None}
  state = jax.eval_shape(method.init, jax.random.key(0), batch)
  jax.eval_shape(method.update, state, batch, jax.random.key(0))


@pytest.mark.parametrize(
  ('name', 'column'),
  [
    ('irm', 'group'),
    ('erm of groups', 'group'),
    ('dann', 'group'),
    ('domain_mixup', 'group'),
    ('fixmatch', 'strong'),
    ('augmix', 'strong_2'),
    ('noisy_student', 'pseudo'),
  ],
)
def test_a_missing_column_is_named(name, column):
  with pytest.raises(types.InputError, match=column):
    _update(METHODS[name], **{column: None})


def test_rows_without_an_input_are_not_mixed_across_groups():
  batch = {k: x for k, x in batch_of(0).items() if k != 'features'}
  mix = functools.partial(
    domain_mixup.mix, num_groups=GROUPS, num_classes=CLASSES, alpha=1.0
  )
  with pytest.raises(types.InputError, match='A batch with an input'):
    mix(batch, jax.random.key(0))


def test_a_missing_head_is_named():
  method = vrex.make(NET, SGD, weight=1.0, head='haed', **_GROUPS)
  with pytest.raises(types.InputError, match=r"head='haed' 0 times.*head"):
    _update(method)


def test_a_single_row_is_refused():
  one = {k: x[:1] for k, x in batch_of(0).items()}
  with pytest.raises(types.InputError, match='One row cannot be compared'):
    _update(METHODS['irm'], **one)


@pytest.mark.parametrize(
  'make',
  [
    lambda **x: irm.make(NET, SGD, weight=-1.0, **_GROUPS, **x),
    lambda **x: irm.make(NET, SGD, weight=1.0, form='odd', **_GROUPS, **x),
    lambda **x: irm.make(NET, SGD, weight=1.0, num_groups=0, **x),
    lambda **x: irm.make(NET, SGD, weight=1.0, microbatches=2, **_GROUPS, **x),
    lambda **x: erm.make(NET, SGD, balance='tasks', **x),
    lambda **x: erm.make(NET, SGD, balance='groups', **x),
    lambda **x: coral.make(NET, SGD, weight=1.0, form='mmd', **_GROUPS, **x),
    lambda **x: group_dro.make(NET, SGD, adjustment=1.0, **_GROUPS, **x),
    lambda **x: group_dro.make(NET, SGD, group_counts=(1, 2), **_GROUPS, **x),
    lambda **x: dann.make(NET, SGD, weight=1.0, form='alternating', **_GROUPS),
    lambda **x: dann.make(NET, SGD, weight=1.0, tx_adversary=SGD, **_GROUPS),
    lambda **x: dann.make(NET, SGD, weight=1.0, group_counts=(1,), **_GROUPS),
    lambda **x: afn.make(NET, SGD, weight=1.0, form='soft', **x),
    lambda **x: afn.make(NET, SGD, weight=-0.01, **x),
    lambda **x: fixmatch.make(NET, SGD, weight=-1.0, **x),
    lambda **x: pseudo_label.make(NET, SGD, weight=1.0, threshold=2.0, **x),
    lambda **x: noisy_student.make(NET, SGD, dropout_rate=1.0, **x),
    lambda **x: domain_mixup.make(
      NET, SGD, num_classes=2, alpha=0.0, **_GROUPS, **x
    ),
    lambda **x: grouped.make(
      NET, SGD, lambda rows, memory: None, weight=-1.0, **_GROUPS, **x
    ),
  ],
)
def test_settings_out_of_range_are_refused(make):
  with pytest.raises(types.InputError):
    make()


def test_both_views_of_fixmatch_have_masks_of_their_own(monkeypatch):
  keys = []
  forward = model_inputs.forward

  def look(*args):
    key = jax.random.key_data(args[-1])
    jax.debug.callback(lambda x: keys.append(np.asarray(x)), key)
    return forward(*args)

  monkeypatch.setattr(model_inputs, 'forward', look)
  method = fixmatch.make(NET, SGD, threshold=0.4, **_ROWS)
  batch = batch_of(0)
  state = jax.jit(method.init)(jax.random.key(0), batch)
  jax.block_until_ready(jax.jit(method.update)(state, batch, jax.random.key(1)))
  jax.effects_barrier()
  assert len(keys) == 2
  assert (keys[0] != keys[1]).any()


@pytest.mark.parametrize(
  ('module', 'more'),
  [(fixmatch, dict(threshold=0.4)), (noisy_student, dict(dropout_rate=0.0))],
)
def test_guesses_count_by_their_weight(module, more):
  method = module.make(NET, SGD, weight=lambda t: 1.0 * t, **more, **_ROWS)
  batch = batch_of(0)
  init, update = jax.jit(method.init), jax.jit(method.update)
  start = init(jax.random.key(0), batch)

  def moved(weight):
    state = start.replace(step=jnp.int32(weight))
    after, _ = update(state, batch, jax.random.key(1))
    return jax.tree.map(np.subtract, after.params, start.params)

  none, one, three = map(moved, (0, 1, 3))
  expected = jax.tree.map(lambda a, b: a + 3 * (b - a), none, one)
  chex.assert_trees_all_close(three, expected, atol=1e-5)
  assert abs(one['head']['kernel'] - none['head']['kernel']).max() > 1e-3


def test_coral_compares_by_the_form_that_is_asked_for():
  how = dict(num_groups=GROUPS, form='covariance')
  batch = batch_of(0)
  method = coral.make(NET, SGD, weight=1.0, **_ROWS, **how)
  state, rows = jax.jit(method.init)(jax.random.key(0), batch), real(batch)

  @jax.jit
  def penalty(params, features):
    seen, _ = forward({'params': params}, features)
    return coral.penalty(seen, rows['group'], jnp.ones(len(seen)), **how)

  expected = penalty(state.params, rows['features'])
  _, sums = jax.jit(method.update)(state, batch, jax.random.key(0))
  total, number = sums['penalty']
  np.testing.assert_allclose(total / number, expected, rtol=1e-4)


def test_an_adversary_has_as_many_steps_as_is_said():
  how = dict(form='alternating', tx_adversary=SGD, adversary_steps=2)
  method = dann.make(NET, SGD, weight=0.5, **how, **_GROUPS)
  batch, trained = batch_of(0), []
  init, update = jax.jit(method.init), jax.jit(method.update)
  state = init(jax.random.key(0), batch)
  for _ in range(4):
    after, _ = update(state, batch, jax.random.key(1))
    same = jax.tree.map(np.array_equal, after.params, state.params)
    trained += [x for x in same if not all(jax.tree.leaves(same[x]))]
    state = after
  assert trained == ['adversary', 'adversary', 'model', 'adversary']
