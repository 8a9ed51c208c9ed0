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

# One shape for all tests: they share what is compiled.
ROWS, SIZE = 8, 9
KEY = jax.random.key(3)


def unit_batch():
  """Row i is white in column i and has label i of 8."""
  stripes = np.zeros((ROWS, SIZE, SIZE, 1), np.float32)
  stripes[np.arange(ROWS), :, np.arange(ROWS)] = 1
  return {
    'image': jnp.asarray(stripes),
    'label': jnp.arange(ROWS),
    'mask': jnp.ones(ROWS),
  }


def random_batch():
  rng = np.random.default_rng(0)
  image = rng.normal(size=(ROWS, SIZE, SIZE, 1))
  label = rng.integers(0, ROWS, ROWS)
  return {
    **unit_batch(),
    'image': jnp.asarray(image, jnp.float32),
    'label': jnp.asarray(label),
  }


@functools.cache
def jitted(**settings):
  return jax.jit(functools.partial(mixup.mix, num_classes=ROWS, **settings))


def mix(batch, rng=KEY, *, alpha=1.0, kind='mixup', per='example', **settings):
  mixed = jitted(alpha=alpha, kind=kind, per=per, **settings)(batch, rng)
  return {name: np.asarray(x) for name, x in mixed.items()}


def shares(per='example'):
  """Each row's weights of all rows, [ROWS, ROWS], read from white columns."""
  return mix(unit_batch(), jax.random.split(KEY)[0], per=per)['target']


@pytest.mark.parametrize('per', ['example', 'batch'])
def test_image_and_label_of_a_row_and_its_neighbour_get_weights_that_sum_to_1(
  per,
):
  mixed = mix(unit_batch(), per=per)
  own = np.diag(mixed['target'])
  expected = np.diag(own)
  expected[np.arange(ROWS), np.arange(ROWS) ^ 1] = 1 - own
  np.testing.assert_allclose(mixed['target'], expected, atol=1e-7)
  for line in range(SIZE):
    columns = mixed['image'][:, line, :ROWS, 0]
    np.testing.assert_allclose(columns, expected, atol=1e-7)
  assert own.min() > 0 and own.max() < 1
  assert len(np.unique(own)) == (ROWS if per == 'example' else 1)
  np.testing.assert_array_equal(mixed['label'], np.arange(ROWS))


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_weights_are_beta_distributed_for_the_share_of_rows_that_are_mixed(
  alpha,
):
  rows = 20_000
  batch = {
    'image': jnp.tile(jnp.array([1.0, 0.0]), rows // 2)[:, None, None, None],
    'label': jnp.zeros(rows, int),
    'mask': jnp.ones(rows),
  }
  image = mix(batch, alpha=alpha, mix_rate=0.7)['image'].ravel()
  weights = np.where(np.arange(rows) % 2, 1 - image, image)
  mixed = weights[weights != 1]
  np.testing.assert_allclose(len(mixed) / rows, 0.7, atol=0.015)
  variance = 1 / (4 * (2 * alpha + 1))
  np.testing.assert_allclose(mixed.mean(), 0.5, atol=0.015)
  np.testing.assert_allclose(mixed.var(), variance, rtol=0.05)
  # The fourth central moment tells Beta from other symmetric distributions.
  fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
  np.testing.assert_allclose(((mixed - 0.5) ** 4).mean(), fourth, rtol=0.07)


@pytest.mark.parametrize(
  'settings',
  [{'alpha': 0.0}, {'alpha': 0.0, 'kind': 'cutmix'}, {'mix_rate': 0.0}],
  ids=str,
)
def test_lambda_one_is_the_identity_bit_for_bit(settings):
  batch = random_batch()
  mixed = mix(batch, **settings)
  np.testing.assert_array_equal(mixed['image'], batch['image'])
  np.testing.assert_array_equal(mixed['target'], np.eye(ROWS)[batch['label']])


def test_lambda_one_is_the_identity_even_beside_a_neighbour_that_is_nan():
  x = jnp.array([[1.0], [jnp.nan]])
  assert mixup.mix_rows(x, jnp.ones(2))[0] == 1.0


@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_a_row_beside_padding_stays_as_it_is(kind):
  batch = unit_batch()
  mask = np.array([1, 1, 1, 0, 1, 1, 0, 0.0], np.float32)
  batch['mask'] = jnp.asarray(mask)
  batch['image'] = jnp.where(
    mask[:, None, None, None] > 0, batch['image'], jnp.nan
  )
  mixed = mix(batch, kind=kind)
  np.testing.assert_array_equal(mixed['image'][2], batch['image'][2])
  np.testing.assert_array_equal(mixed['target'][2], np.eye(ROWS)[2])
  assert np.isfinite(mixed['image'][mask > 0]).all()
  if kind == 'mixup':
    assert 0 < mixed['target'][0, 0] < 1


def test_soft_labels_that_are_there_already_are_mixed():
  target = np.random.default_rng(0).dirichlet(np.ones(3), ROWS)
  mixed = mix({**unit_batch(), 'target': jnp.asarray(target, jnp.float32)})
  weights = mix(unit_batch())['target']
  np.testing.assert_allclose(mixed['target'], weights @ target, rtol=1e-5)


@pytest.mark.parametrize('per', ['example', 'batch'])
def test_cutmix_pastes_one_box_and_its_label_weight_is_the_share_of_pixels(per):
  batch = random_batch()
  batch['label'] = jnp.arange(ROWS)
  image = np.asarray(batch['image'])
  sizes = set()
  for seed in range(8):
    mixed = mix(batch, jax.random.key(seed), kind='cutmix', per=per)
    pasted = (mixed['image'] != image)[..., 0]
    partner = image[np.arange(ROWS) ^ 1]
    np.testing.assert_array_equal(
      mixed['image'], np.where(pasted[..., None], partner, image)
    )
    counts = pasted.sum((1, 2))
    own = np.diag(mixed['target'])
    np.testing.assert_allclose(own, 1 - counts / SIZE**2, rtol=2e-7)
    np.testing.assert_array_equal(own == 1, counts == 0)
    np.testing.assert_allclose(mixed['target'].sum(-1), 1.0, rtol=1e-6)
    for box in pasted:
      lines, columns = np.flatnonzero(box.any(1)), np.flatnonzero(box.any(0))
      assert box.sum() == len(lines) * len(columns)
      assert (np.diff(lines) == 1).all() and (np.diff(columns) == 1).all()
      if not {0, SIZE - 1} & {*lines, *columns}:
        assert len(lines) == len(columns)
    assert per == 'example' or len(np.unique(pasted, axis=0)) == 1
    sizes |= {*counts}
  assert len(sizes) > 2


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


@pytest.mark.devices(4)
@pytest.mark.parametrize(
  'kind, per', [('mixup', 'example'), ('cutmix', 'batch')]
)
def test_four_devices_mix_as_one_does(kind, per):
  run = functools.partial(
    mixup.mix, num_classes=ROWS, alpha=1.0, kind=kind, per=per
  )
  split = jax.tree.map(
    lambda x: x.reshape((4, 2, *x.shape[1:])), random_batch()
  )
  many = jax.pmap(run, axis_name=parallel.AXIS, in_axes=(0, None))(split, KEY)
  one = mix(random_batch(), kind=kind, per=per)
  for name, x in one.items():
    np.testing.assert_allclose(
      many[name].reshape(x.shape), x, rtol=1e-6, atol=1e-6
    )


# The method as a whole.


MODEL = mlp.Mlp(ROWS, features=(7, 6))


@functools.cache
def initial_state():
  # Mixing does not change the state: all methods here share one.
  method = supervised.make(MODEL, optax.sgd(1.0))
  return jax.jit(method.init)(jax.random.key(0), random_batch())


@functools.cache
def one_update(make, **settings):
  """State and sums after one step of plain descent, at learning rate 1."""
  method = make(MODEL, optax.sgd(1.0), **settings)
  batch = random_batch()
  state = initial_state()
  new, sums = jax.jit(method.update)(state, batch, KEY)
  return state, new, sums


mixed_update = functools.partial(one_update, mixup.make, num_classes=ROWS)


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
  [
    pytest.param({'kind': 'mixup'}, id='mixup'),
    # A conditional over layers is compiled in another way than none.
    pytest.param(
      {'kind': 'manifold', 'layers': ('hidden_0', 'input')},
      id='manifold',
      marks=pytest.mark.cpu_bits,
    ),
  ],
)
def test_alpha_zero_is_plain_training_bit_for_bit(settings):
  _, plain, sums = one_update(supervised.make)
  _, mixed, mixed_sums = mixed_update(alpha=0.0, **settings)
  assert_equal(mixed.params, plain.params, 0.0)
  assert_equal(mixed_sums, sums, 0.0)
  assert 'accuracy' in sums


@pytest.mark.parametrize(
  'settings', [{}, {'kind': 'manifold', 'layers': ('input', 'hidden_0')}]
)
def test_another_transform_comes_first(settings):
  def blank(batch, rng):
    del rng
    return {**batch, 'image': 0 * batch['image']}

  _, _, sums = mixed_update(alpha=1.0, transform=blank, **settings)
  # Nothing is seen, so that all classes are alike.
  np.testing.assert_allclose(sums['loss'][0] / ROWS, np.log(ROWS), rtol=1e-6)


SMOOTHED = dict(alpha=1.0, label_smoothing=0.3)


def test_the_loss_of_mixed_labels_is_the_mixed_loss():
  state, _, sums = mixed_update(**SMOOTHED)
  batch, weights = random_batch(), shares()
  image = np.einsum('ij,jhwc->ihwc', weights, batch['image'])
  logits = MODEL.apply({'params': state.params}, image, train=True)
  log_probs = np.asarray(jax.nn.log_softmax(logits))

  def cross_entropy(labels):
    hard = 0.7 * np.eye(ROWS)[labels] + 0.3 / ROWS
    return -(hard * log_probs).sum(1)

  own = np.diag(weights)
  expected = own * cross_entropy(batch['label'])
  partner = batch['label'][np.arange(ROWS) ^ 1]
  expected += (1 - own) * cross_entropy(partner)
  np.testing.assert_allclose(sums['loss'][0], expected.sum(), rtol=1e-5)
  assert sums['loss'][1] == ROWS
  # A row is right where it is taken for the label that it has more of.
  larger = np.where(own > 0.5, batch['label'], partner)
  hits = (log_probs.argmax(1) == larger).sum()
  assert sums['mixed_accuracy'] == (hits, ROWS)
  assert 'accuracy' not in sums  # Of labels that have no right one.


def test_manifold_mixup_at_the_input_alone_is_mixup():
  _, plain, sums = mixed_update(**SMOOTHED)
  _, manifold, manifold_sums = mixed_update(
    **SMOOTHED, kind='manifold', layers=('input',)
  )
  assert_equal(manifold.params, plain.params, 1e-6)
  assert_equal(manifold_sums, sums, 1e-6)


def test_manifold_mixup_blends_what_a_layer_gives():
  state, _, sums = mixed_update(
    alpha=1.0, kind='manifold', layers=('hidden_1',)
  )
  weights, batch = shares(), jax.device_get(random_batch())
  kernels = {k: v['kernel'] for k, v in jax.device_get(state.params).items()}
  x = batch['image'].reshape(ROWS, -1)
  x = np.maximum(x @ kernels['hidden_0'], 0)
  x = np.maximum(weights @ (x @ kernels['hidden_1']), 0)
  log_probs = np.asarray(jax.nn.log_softmax(x @ kernels['head']))
  target = weights @ np.eye(ROWS)[batch['label']]
  expected = -(target * log_probs).sum()
  np.testing.assert_allclose(sums['loss'][0], expected, rtol=1e-5)


def test_manifold_mixup_draws_one_layer_a_step_and_each_equally_often():
  method = mixup.make(
    MODEL,
    optax.sgd(1.0),
    num_classes=ROWS,
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
      num_classes=ROWS,
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


@pytest.mark.devices(4)
def test_devices_and_microbatches_do_not_change_manifold_mixup():
  settings = dict(alpha=1.0, kind='manifold', layers=('hidden_1',))
  state, one, sums = mixed_update(**settings)
  _, parts, parts_sums = mixed_update(microbatches=4, **settings)
  assert_equal(parts.params, one.params, 2e-5)
  assert_equal(parts_sums, sums, 2e-5)
  method = mixup.make(MODEL, optax.sgd(1.0), num_classes=ROWS, **settings)
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
  odd = jax.tree.map(lambda x: x[:3], unit_batch())
  with pytest.raises(types.InputError, match=r'3 rows.*config\.batch_size'):
    mix(odd)
  with pytest.raises(types.InputError, match='microbatches'):
    mixed_update(
      alpha=1.0, kind='manifold', layers=('hidden_0',), microbatches=8
    )


def test_a_layer_that_the_model_does_not_have_is_refused():
  with pytest.raises(types.InputError, match="Did you mean 'hidden_0'"):
    mixed_update(alpha=1.0, kind='manifold', layers=('hiden_0',))


def test_numbers_of_any_input_are_mixed_and_boxes_cut_from_images_alone():
  batch = dict(unit_batch())
  features = batch.pop('image').reshape(ROWS, -1)
  mixed = mix({**batch, 'features': features})
  weights = np.asarray(mixed['target'])
  np.testing.assert_allclose(mixed['features'], weights @ features, rtol=1e-5)
  with pytest.raises(types.InputError, match="not from 'features'"):
    mix({**batch, 'features': features}, kind='cutmix')
  with pytest.raises(types.InputError, match='A batch with an input'):
    mix(batch)


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
    mixup.make(MODEL, optax.sgd(1.0), num_classes=ROWS, **settings)
