"""Mixing: weights, labels and boxes by hand; any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import parallel
from repjax import types
from repjax.methods import mixup
from repjax.methods import supervised
from repjax.models import mlp

ROWS = 8
KEY = jax.random.key(3)


def unit_batch(rows=ROWS):
  """Row i is the i-th unit vector and has label i."""
  return {
    'image': jnp.eye(rows).reshape(rows, rows, 1, 1),
    'label': jnp.arange(rows),
    'mask': jnp.ones(rows),
  }


def random_batch(rows=ROWS, size=6):
  rng = np.random.default_rng(0)
  return {
    'image': jnp.asarray(rng.normal(size=(rows, size, size, 2)), jnp.float32),
    'label': jnp.asarray(rng.integers(0, 5, rows)),
    'mask': jnp.ones(rows),
  }


@functools.cache
def jitted(**settings):
  return jax.jit(functools.partial(mixup.mix, **settings))


def mix(batch, rng=KEY, *, num_classes=5, alpha=1.0, **settings):
  return jitted(num_classes=num_classes, alpha=alpha, **settings)(batch, rng)


def weights(alpha, rows, per='example', seed=0, **settings):
  mixed = mix(
    {
      'image': jnp.tile(jnp.array([1.0, 0.0]), rows // 2)[:, None, None, None],
      'label': jnp.zeros(rows, int),
      'mask': jnp.ones(rows),
    },
    jax.random.key(seed),
    alpha=alpha,
    per=per,
    **settings,
  )['image'].ravel()
  return jnp.where(jnp.arange(rows) % 2, 1 - mixed, mixed)


@pytest.mark.parametrize('per', ['example', 'batch'])
def test_image_and_label_of_a_row_and_its_neighbour_get_weights_that_sum_to_1(
  per,
):
  mixed = mix(unit_batch(), num_classes=ROWS, per=per)
  image = np.asarray(mixed['image']).reshape(ROWS, ROWS)
  own = np.diag(image)
  expected = np.diag(own)
  expected[np.arange(ROWS), np.arange(ROWS) ^ 1] = 1 - own
  np.testing.assert_allclose(image, expected, atol=1e-7)
  np.testing.assert_allclose(mixed['target'], expected, atol=1e-7)
  assert own.min() > 0 and own.max() < 1
  assert len(np.unique(own)) == (ROWS if per == 'example' else 1)
  np.testing.assert_array_equal(mixed['label'], np.arange(ROWS))


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_weights_have_the_moments_of_the_beta_distribution(alpha):
  drawn = weights(alpha, 20_000)
  variance = 1 / (4 * (2 * alpha + 1))
  np.testing.assert_allclose(
    drawn.mean(), 0.5, atol=4 * (variance / 2e4) ** 0.5
  )
  np.testing.assert_allclose(drawn.var(), variance, rtol=0.05)


def test_mix_rate_is_the_share_of_rows_that_are_mixed():
  unmixed = (weights(1.0, 10_000, mix_rate=0.3) == 1).mean()
  np.testing.assert_allclose(unmixed, 0.7, atol=0.02)


@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
@pytest.mark.parametrize('settings', [{'alpha': 0.0}, {'mix_rate': 0.0}])
def test_lambda_one_is_the_identity_bit_for_bit(kind, settings):
  batch = random_batch()
  mixed = mix(batch, kind=kind, **settings)
  np.testing.assert_array_equal(mixed['image'], batch['image'])
  np.testing.assert_array_equal(
    mixed['target'], jax.nn.one_hot(batch['label'], 5)
  )


def test_lambda_one_is_the_identity_even_beside_a_neighbour_that_is_nan():
  x = jnp.array([[1.0], [jnp.nan]])
  assert mixup.mix_rows(x, jnp.ones(2))[0] == 1.0


@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_a_row_beside_padding_stays_as_it_is(kind):
  batch = unit_batch()
  batch['mask'] = jnp.array([1, 1, 1, 0, 1, 1, 0, 0.0])
  batch['image'] = jnp.where(
    batch['mask'][:, None, None, None] > 0, batch['image'], jnp.nan
  )
  mixed = mix(batch, num_classes=ROWS, kind=kind)
  np.testing.assert_array_equal(mixed['image'][2], batch['image'][2])
  np.testing.assert_array_equal(mixed['target'][2], np.eye(ROWS)[2])
  assert np.isfinite(mixed['image'][jnp.array([0, 1, 2, 4, 5])]).all()
  if kind == 'mixup':
    assert 0 < mixed['image'][0, 0, 0, 0] < 1


def test_soft_labels_that_are_there_already_are_mixed():
  batch = {**unit_batch(), 'target': jnp.full((ROWS, 3), 1 / 3)}
  mixed = mix(batch, num_classes=3)
  np.testing.assert_allclose(mixed['target'], batch['target'], rtol=1e-6)


@pytest.mark.parametrize('per', ['example', 'batch'])
def test_cutmix_pastes_one_box_and_its_label_weight_is_the_share_of_pixels(per):
  rows, size = 64, 9
  parity = jnp.broadcast_to(
    (jnp.arange(rows) % 2).astype(jnp.float32)[:, None, None, None],
    (rows, size, size, 2),
  )
  batch = {
    'image': parity,
    'label': jnp.arange(rows) % 2,
    'mask': jnp.ones(rows),
  }
  mixed = mix(batch, num_classes=2, kind='cutmix', per=per)
  pasted = np.asarray(mixed['image'] != parity)
  np.testing.assert_array_equal(pasted[..., 0], pasted[..., 1])
  pasted = pasted[..., 0]
  counts = pasted.sum((1, 2))
  share = 1 - counts / size**2
  own = np.asarray(mixed['target'])[np.arange(rows), batch['label']]
  np.testing.assert_allclose(own, share, rtol=2e-7)
  np.testing.assert_array_equal(own == 1, counts == 0)
  np.testing.assert_allclose(mixed['target'].sum(-1), 1.0, rtol=1e-6)
  for box, count in zip(pasted, counts, strict=True):
    lines, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
    assert count == len(lines) * len(columns)
    assert (np.diff(lines) == 1).all() and (np.diff(columns) == 1).all()

    def touches(span):
      return {0, size - 1} & set(span)

    if not touches(lines) and not touches(columns):
      assert len(lines) == len(columns)
  assert len(np.unique(pasted, axis=0)) == 1 or per == 'example'
  assert 0 < counts.max() <= size * size


def test_cutmix_boxes_have_area_one_minus_lambda():
  # A box of a quarter of the area is half as wide; at the centre none is cut.
  weight, image = jnp.full(2, 0.75), jnp.arange(2.0)[:, None, None, None]
  image = jnp.broadcast_to(image, (2, 8, 8, 1))
  mixed, kept = mixup._paste(image, weight, jnp.full((2, 2), 0.5))
  np.testing.assert_array_equal(kept, weight)
  expected = np.zeros((8, 8))
  expected[2:6, 2:6] = 1
  np.testing.assert_array_equal(mixed[0, :, :, 0], expected)
  np.testing.assert_array_equal(mixed[1, :, :, 0], 1 - expected)


@pytest.mark.parametrize(
  'kind, per', [('mixup', 'example'), ('cutmix', 'batch')]
)
def test_four_devices_mix_as_one_does(kind, per):
  run = functools.partial(mix, kind=kind, per=per)
  split = jax.tree.map(
    lambda x: x.reshape((4, 2, *x.shape[1:])), random_batch()
  )
  many = jax.pmap(run, axis_name=parallel.AXIS, in_axes=(0, None))(split, KEY)
  one = run(random_batch(), KEY)
  for name, x in one.items():
    np.testing.assert_allclose(
      many[name].reshape(x.shape), x, rtol=1e-6, atol=1e-6
    )


# The method as a whole.


MODEL = mlp.Mlp(5, features=(7, 6))


@functools.cache
def initial_state():
  # Mixing does not change the state: all methods here share one.
  method = supervised.make(MODEL, optax.sgd(1.0))
  return jax.jit(method.init)(jax.random.key(0), random_batch())


@functools.cache
def one_update(make, rows=ROWS, **settings):
  """State and sums after one step of plain descent, at learning rate 1."""
  method = make(MODEL, optax.sgd(1.0), **settings)
  batch = random_batch(rows)
  state = initial_state()
  new, sums = jax.jit(method.update)(state, batch, KEY)
  return state, new, sums


mixed_update = functools.partial(one_update, mixup.make, num_classes=5)


def assert_equal(actual, expected, tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=tolerance, atol=tolerance
    ),
    actual,
    expected,
  )


@pytest.mark.parametrize(
  'settings',
  [{'kind': 'mixup'}, {'kind': 'manifold', 'layers': ('hidden_0', 'input')}],
  ids=lambda settings: settings['kind'],
)
def test_alpha_zero_is_plain_training_bit_for_bit(settings):
  _, plain, sums = one_update(supervised.make)
  _, mixed, mixed_sums = mixed_update(alpha=0.0, **settings)
  assert_equal(mixed.params, plain.params, 0.0)
  assert_equal(mixed_sums, sums, 0.0)


@pytest.mark.parametrize('smoothing', [0.0, 0.3])
def test_the_loss_of_mixed_labels_is_the_mixed_loss(smoothing):
  state, _, sums = mixed_update(alpha=1.0, label_smoothing=smoothing)
  batch = random_batch()
  rng_transform, _ = jax.random.split(KEY)
  image = mix(batch, rng_transform)['image']
  units = mix({**unit_batch(), 'mask': batch['mask']}, rng_transform)
  share = np.diag(np.asarray(units['image']).reshape(ROWS, ROWS))
  logits = MODEL.apply({'params': state.params}, image, train=True)

  def cross_entropy(labels):
    hard = optax.smooth_labels(jax.nn.one_hot(labels, 5), smoothing)
    return optax.softmax_cross_entropy(logits, hard)

  partner = batch['label'][jnp.arange(ROWS) ^ 1]
  expected = share * cross_entropy(batch['label'])
  expected += (1 - share) * cross_entropy(partner)
  np.testing.assert_allclose(sums['loss'][0], expected.sum(), rtol=1e-5)
  assert sums['loss'][1] == ROWS


def test_manifold_mixup_at_the_input_alone_is_mixup():
  _, plain, sums = mixed_update(alpha=1.0)
  _, manifold, manifold_sums = mixed_update(
    alpha=1.0, kind='manifold', layers=('input',)
  )
  assert_equal(manifold.params, plain.params, 1e-6)
  assert_equal(manifold_sums, sums, 1e-6)


def test_manifold_mixup_blends_what_a_layer_gives():
  state, _, sums = mixed_update(
    alpha=1.0, kind='manifold', layers=('hidden_1',)
  )
  rng_transform, _ = jax.random.split(KEY)
  units = mix(unit_batch(), rng_transform, num_classes=ROWS, alpha=1.0)
  matrix = units['image'].reshape(ROWS, ROWS)  # Rows of weights.
  batch, params = random_batch(), state.params
  x = batch['image'].reshape(ROWS, -1)
  x = jnp.maximum(x @ params['hidden_0']['kernel'], 0)
  x = jnp.maximum(matrix @ (x @ params['hidden_1']['kernel']), 0)
  log_probs = jax.nn.log_softmax(x @ params['head']['kernel'])
  target = matrix @ jax.nn.one_hot(batch['label'], 5)
  expected = -(target * log_probs).sum()
  np.testing.assert_allclose(sums['loss'][0], expected, rtol=1e-5)


def test_manifold_mixup_draws_one_layer_a_step_and_each_equally_often():
  method = mixup.make(
    MODEL,
    optax.sgd(1.0),
    num_classes=5,
    alpha=1.0,
    kind='manifold',
    layers=('input', 'hidden_1', 'head'),
  )
  batch = random_batch()
  state = initial_state()
  single = [
    mixup.make(
      MODEL,
      optax.sgd(1.0),
      num_classes=5,
      alpha=1.0,
      kind='manifold',
      layers=(name,),
    )
    for name in ('input', 'hidden_1', 'head')
  ]

  @jax.jit
  @jax.vmap
  def losses(rng):
    return jnp.stack(
      [m.update(state, batch, rng)[1]['loss'][0] for m in (method, *single)]
    )

  drawn = losses(jax.random.split(KEY, 300))
  agrees = np.isclose(drawn[:, :1], drawn[:, 1:], rtol=1e-5)  # [steps, layer]
  assert agrees.any(1).all()
  np.testing.assert_allclose(agrees.mean(0), 1 / 3, atol=0.1)


def test_devices_and_microbatches_do_not_change_manifold_mixup():
  settings = dict(alpha=1.0, kind='manifold', layers=('hidden_1',))
  state, one, sums = mixed_update(**settings)
  _, parts, parts_sums = mixed_update(microbatches=4, **settings)
  assert_equal(parts.params, one.params, 2e-5)
  assert_equal(parts_sums, sums, 2e-5)
  method = mixup.make(MODEL, optax.sgd(1.0), num_classes=5, **settings)
  split = jax.tree.map(
    lambda x: x.reshape((4, 2, *x.shape[1:])), random_batch()
  )
  many, many_sums = jax.pmap(
    method.update, axis_name=parallel.AXIS, in_axes=(None, 0, None)
  )(state, split, KEY)
  for replica in range(4):
    take = functools.partial(jax.tree.map, lambda x, r=replica: x[r])
    assert_equal(take(many.params), one.params, 2e-5)
    assert_equal(take(many_sums), sums, 2e-5)


# What is refused.


def test_an_odd_number_of_rows_is_refused_with_the_remedy():
  with pytest.raises(types.InputError, match=r'3 rows.*config\.batch_size'):
    mix(random_batch(3))
  with pytest.raises(types.InputError, match='microbatches'):
    mixed_update(
      rows=6,
      alpha=1.0,
      kind='manifold',
      layers=('hidden_0',),
      microbatches=2,
    )


def test_a_layer_that_the_model_does_not_have_is_refused():
  with pytest.raises(types.InputError, match="Did you mean 'hidden_0'"):
    mixed_update(alpha=1.0, kind='manifold', layers=('hiden_0',))


def test_images_of_integers_are_refused():
  batch = random_batch()
  batch['image'] = batch['image'].astype(jnp.uint8)
  with pytest.raises(types.InputError, match='uint8'):
    mix(batch)


@pytest.mark.parametrize(
  'settings, word',
  [
    ({'alpha': -0.1}, 'alpha=-0.1'),
    ({'alpha': float('nan')}, 'alpha=nan'),
    ({'alpha': 1.0, 'mix_rate': 1.5}, 'mix_rate=1.5'),
    ({'alpha': 1.0, 'per': 'row'}, 'per='),
    ({'alpha': 1.0, 'kind': 'cutout'}, 'kind='),
    ({'alpha': 1.0, 'kind': 'manifold'}, 'layers='),
    ({'alpha': 1.0, 'layers': ('input',)}, 'layers='),
  ],
)
def test_settings_out_of_range_are_refused(settings, word):
  with pytest.raises(types.InputError, match=word):
    mixup.make(MODEL, optax.sgd(1.0), num_classes=5, **settings)
