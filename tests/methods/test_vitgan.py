"""Two networks in one update: losses, penalties, averages, draws."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.methods import diff_augment
from repjax.methods import gan_losses
from repjax.methods import vitgan
from repjax.models import vit_discriminator
from repjax.models import vit_generator

ROWS, SIDE, LATENT = 8, 4, 3


class Generator(nn.Module):
  """z -> an image, linearly."""

  latent_dim: int = LATENT
  side: int = SIDE

  @nn.compact
  def __call__(self, latent, *, train):
    del train
    x = nn.Dense(self.side**2, name='dense')(latent)
    return x.reshape((-1, self.side, self.side, 1))


class Discriminator(nn.Module):
  """An image -> its logit, by one hidden layer."""

  @nn.compact
  def __call__(self, image, *, train):
    del train
    x = nn.tanh(nn.Dense(5, name='hidden')(image.reshape((len(image), -1))))
    return nn.Dense(1, name='head')(x)[:, 0]


SHIFTS = functools.partial(
  diff_augment.augment, kinds=('translation',), ratio=0.5
)


def batch_of(seed=0, real=ROWS):
  rng = np.random.default_rng(seed)
  mask = (np.arange(ROWS) < real).astype(np.float32)
  image = rng.normal(size=(ROWS, SIDE, SIDE, 1)).astype(np.float32)
  return {'image': image, 'mask': mask}


# Equal settings are one method, whose program is compiled once.
@functools.cache
def make(rate=0.1, judge_rate=None, judge=Discriminator(), **settings):
  judge_rate = rate if judge_rate is None else judge_rate
  tx = vitgan.Optimizers(optax.sgd(rate), optax.sgd(judge_rate))
  return vitgan.make(Generator(), judge, tx, **settings)


@functools.cache
def first(method):
  return jax.jit(method.init)(jax.random.key(0), batch_of())


def stepped(method, batch=None, state=None):
  state = first(method) if state is None else state
  return jax.jit(method.update)(state, batch or batch_of(), jax.random.key(1))


def test_losses_are_those_of_the_papers():
  real, fake = np.array([2.0, -0.5]), np.array([-3.0, 0.5])
  sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
  np.testing.assert_allclose(
    gan_losses.of_discriminator(real, fake, kind='non_saturating'),
    -np.log(sigmoid(real)) - np.log(1 - sigmoid(fake)),
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    gan_losses.of_generator(fake, kind='non_saturating'),
    -np.log(sigmoid(fake)),
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    gan_losses.of_discriminator(real, fake, kind='hinge'), [0, 3.0]
  )
  np.testing.assert_allclose(gan_losses.of_generator(fake, kind='hinge'), -fake)


def test_r1_is_half_of_a_squared_slope_by_finite_differences():
  weights = np.random.default_rng(1).normal(size=(SIDE * SIDE, 3))

  def score(image):
    return np.tanh(image.reshape((len(image), -1)) @ weights).sum(-1)

  image = batch_of()['image'].astype(np.float64)
  slopes = np.zeros_like(image)
  for place in np.ndindex(*image.shape[1:]):
    step = np.zeros(image.shape[1:])
    step[place] = 1e-5
    slopes[:, *place] = (score(image + step) - score(image - step)) / 2e-5
  found = gan_losses.r1(
    lambda x: jnp.tanh(x.reshape((len(x), -1)) @ weights).sum(-1),
    batch_of()['image'],
  )
  np.testing.assert_allclose(found, (slopes**2).sum((1, 2, 3)) / 2, rtol=1e-4)


def test_r1_adds_its_gradient():
  # Of a linear discriminator D(x) = w x it is gamma |w|^2 / 2, with slope
  # gamma w.
  class Linear(nn.Module):
    @nn.compact
    def __call__(self, image, *, train):
      del train
      return nn.Dense(1, name='head')(image.reshape((len(image), -1)))[:, 0]

  plain, penalised = (
    stepped(make(0.1, judge=Linear(), r1=x))[0] for x in (0.0, 3.0)
  )
  weights = first(make(judge=Linear())).params['discriminator']['head'][
    'kernel'
  ]
  change = jax.tree.map(
    lambda a, b: a - b,
    penalised.params['discriminator']['head'],
    plain.params['discriminator']['head'],
  )
  np.testing.assert_allclose(change['kernel'], -0.1 * 3 * weights, atol=1e-6)
  np.testing.assert_allclose(change['bias'], 0, atol=1e-6)


def test_an_update_is_one_of_each_network_in_turn():
  method = make(0.1, 0.2, ema_decay=0.9)
  before, (after, sums) = first(method), stepped(method)
  # The generator's gradient is that against the discriminator of after.
  frozen = make(0.1, 0.0)
  alone = jax.jit(frozen.update)(
    before.replace(
      params={**before.params, 'discriminator': after.params['discriminator']}
    ),
    batch_of(),
    jax.random.key(1),
  )[0]
  chex.assert_trees_all_close(
    alone.params['generator'], after.params['generator'], atol=1e-6
  )
  with pytest.raises(AssertionError):
    chex.assert_trees_all_close(
      stepped(frozen)[0].params['generator'],
      after.params['generator'],
      atol=1e-6,
    )
  # Gradients are what the optimizers moved by.
  for name, rate in (('generator', 0.1), ('discriminator', 0.2)):
    moved = jax.tree.map(
      lambda a, b: a - b, after.params[name], before.params[name]
    )
    np.testing.assert_allclose(
      optax.tree.norm(moved) / rate, sums[f'{name}_gradient'][0], rtol=1e-3
    )
  # The average begins by a tenth of the old.
  expected = jax.tree.map(
    lambda old, new: 0.1 * old + 0.9 * new,
    before.params['generator'],
    after.params['generator'],
  )
  chex.assert_trees_all_close(after.extra.params, expected, atol=1e-6)


def test_the_discriminator_learns_a_known_loss():
  # Its gradient, by hand: real rows, and what the generator makes of the
  # latents of this step.
  method = make(0.0, 1.0)
  before = first(method)
  after, sums = stepped(method, batch_of(real=5))
  key = jax.random.split(jax.random.split(jax.random.key(1))[0], 3)[0]
  latent = jnp.stack(
    [jax.random.normal(jax.random.fold_in(key, i), (LATENT,)) for i in range(5)]
  )
  fake = Generator().apply(
    {'params': before.params['generator']}, latent, train=False
  )

  def loss(params):
    real, made = (
      Discriminator().apply({'params': params}, x, train=False)
      for x in (batch_of()['image'][:5], fake)
    )
    return (jnp.log1p(jnp.exp(-real)) + jnp.log1p(jnp.exp(made))).mean()

  value, slope = jax.value_and_grad(loss)(before.params['discriminator'])
  np.testing.assert_allclose(sums['loss'][0] / 5, value, rtol=1e-5)
  expected = jax.tree.map(
    lambda p, g: p - g, before.params['discriminator'], slope
  )
  chex.assert_trees_all_close(
    after.params['discriminator'], expected, atol=1e-5
  )


def test_consistency_is_nothing_where_views_change_nothing():
  same = lambda image, rngs: image  # noqa: E731
  plain, plain_sums = stepped(make())
  state, sums = stepped(make(augment=same, bcr_real=10.0, bcr_fake=10.0))
  assert float(sums['consistency'][0]) == 0
  np.testing.assert_allclose(sums['loss'][0], plain_sums['loss'][0], rtol=1e-6)
  chex.assert_trees_all_close(state.params, plain.params, atol=1e-6)


def test_consistency_is_the_squared_gap_to_a_view():
  # Views that are 0 all over: the gap is that to the score of nothing.
  method = make(
    0.0, augment=lambda image, rngs: 0 * image, bcr_real=2.0, bcr_fake=0.0
  )
  _, sums = stepped(method)
  state = first(method)
  _, plain = stepped(make(0.0, augment=lambda image, rngs: 0 * image))
  scores, nothing = (
    Discriminator().apply(
      {'params': state.params['discriminator']}, x, train=False
    )
    for x in (batch_of()['image'], 0 * batch_of()['image'])
  )
  gap = float(np.square(scores - nothing).sum())
  np.testing.assert_allclose(
    sums['loss'][0] - plain['loss'][0], 2.0 * gap, rtol=1e-4
  )


def test_made_images_count_in_their_own_weight():
  blank = functools.partial(make, 0.0, augment=lambda image, rngs: 0 * image)
  some, more = (stepped(blank(bcr_fake=x))[1]['loss'][0] for x in (1.0, 3.0))
  assert more - some > 1e-3


def test_the_generator_is_judged_by_views():
  # Views show nothing of it, so that it learns nothing.
  method = make(0.1, augment=lambda image, rngs: 0 * image)
  state, _ = stepped(method)
  chex.assert_trees_all_equal(
    state.params['generator'], first(method).params['generator']
  )


def test_microbatches_change_nothing():
  # Linear in rows, draws and all.
  whole, parts = (
    stepped(make(augment=SHIFTS, bcr_real=1.0, r1=1.0, microbatches=x))
    for x in (1, 4)
  )
  chex.assert_trees_all_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_norms_are_estimated_once_an_update():
  judge = vit_discriminator.VitDiscriminator(
    2, hidden_dim=4, mlp_dim=4, num_heads=1, num_layers=1
  )
  method = make(0.0, judge=judge, augment=SHIFTS, bcr_real=1.0, r1=1.0)
  state = first(method)
  changed = jax.tree.map(lambda x: x + 0.5, state.params['discriminator'])
  state = state.replace(params={**state.params, 'discriminator': changed})
  after, sums = stepped(method, state=state)
  kernel = np.asarray(changed['embed']['kernel']) / np.sqrt(16)
  vector = np.asarray(state.model_state['spectral']['embed']['vector'])
  expected = kernel.T @ (kernel @ vector)
  np.testing.assert_allclose(
    after.model_state['spectral']['embed']['vector'],
    expected / np.linalg.norm(expected),
    atol=1e-5,
  )
  assert np.isfinite(float(sums['r1'][0]))


def test_bfloat16_keeps_parameters_in_float32():
  state, sums = stepped(make(compute_dtype='bfloat16', augment=SHIFTS))
  assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {'float32'}
  _, exact = stepped(make(augment=SHIFTS))
  np.testing.assert_allclose(sums['loss'][0], exact['loss'][0], rtol=0.05)


def test_samples_belong_to_rows_and_come_from_the_average():
  method = make()
  state = first(method)
  average = jax.tree.map(lambda x: x + 1.0, state.extra.params)
  state = state.replace(extra=vitgan.GanState(average))
  batch = {**batch_of(), 'index': np.arange(ROWS)[::-1].copy()}
  made, turned = method.predict(state, batch_of()), method.predict(state, batch)
  np.testing.assert_allclose(made['sample'], turned['sample'][::-1], atol=1e-6)
  assert np.asarray(made['sample']).std(0).min() > 0
  latent = jax.random.normal(
    jax.random.fold_in(jax.random.key(0), 2), (1, LATENT)
  )
  expected = vitgan.of_latents(Generator(), average, latent)[0]
  np.testing.assert_allclose(made['sample'][2], expected, atol=1e-6)
  drawn = vitgan.sample(Generator(), average, jax.random.key(0), num=3)
  assert drawn.shape == (3, SIDE, SIDE, 1)
  assert np.asarray(drawn).std(0).min() > 0


@pytest.mark.parametrize(
  ('settings', 'says'),
  [
    (dict(loss='wasserstein'), 'loss must be one of'),
    (dict(r1=-1.0), 'r1 must be in'),
    (dict(bcr_real=1.0), 'give augment'),
    (dict(ema_decay=1.0), 'ema_decay must be in'),
    (dict(compute_dtype='float16'), 'compute_dtype must be one of'),
  ],
)
def test_bad_settings_are_refused(settings, says):
  with pytest.raises(types.InputError, match=says):
    make(**settings)


def test_images_that_the_generator_does_not_make_are_refused():
  method = vitgan.make(
    Generator(side=6), Discriminator(), vitgan.Optimizers(*[optax.sgd(1.0)] * 2)
  )
  with pytest.raises(types.InputError, match=r'\(6, 6, 1\).*\(4, 4, 1\): set'):
    jax.jit(method.init)(jax.random.key(0), batch_of())
  stateful = vit_generator.VitGenerator(
    4, 1, 2, 3, hidden_dim=4, mlp_dim=4, num_heads=1, num_layers=1, norm='plain'
  )
  method = vitgan.make(
    stateful, Discriminator(), vitgan.Optimizers(*[optax.sgd(1.0)] * 2)
  )
  with pytest.raises(types.InputError, match='only a generator without state'):
    jax.jit(method.init)(jax.random.key(0), batch_of())


def test_behind_its_warm_up_the_average_keeps_what_is_asked_for():
  method = make(0.1, ema_decay=0.9)
  before = first(method).replace(step=jnp.int32(1000))
  after, _ = stepped(method, state=before)
  expected = jax.tree.map(
    lambda old, new: 0.9 * old + 0.1 * new,
    before.extra.params,
    after.params['generator'],
  )
  chex.assert_trees_all_close(after.extra.params, expected, atol=1e-6)


@pytest.mark.parametrize('kind', ['non_saturating', 'hinge'])
def test_the_generator_learns_a_known_loss(kind):
  method = make(1.0, 0.0, loss=kind)
  before, (after, sums) = first(method), stepped(method)
  key = jax.random.split(jax.random.split(jax.random.key(1))[1], 3)[0]
  keys = [jax.random.fold_in(key, i) for i in range(ROWS)]
  latent = jnp.stack([jax.random.normal(x, (LATENT,)) for x in keys])

  def loss(params):
    fake = Generator().apply({'params': params}, latent, train=False)
    judge = {'params': before.params['discriminator']}
    score = Discriminator().apply(judge, fake, train=False)
    each = -score if kind == 'hinge' else jnp.log1p(jnp.exp(-score))
    return each.mean()

  value, slope = jax.value_and_grad(loss)(before.params['generator'])
  np.testing.assert_allclose(sums['generator_loss'][0] / ROWS, value, rtol=1e-5)
  expected = jax.tree.map(jnp.subtract, before.params['generator'], slope)
  chex.assert_trees_all_close(after.params['generator'], expected, atol=1e-5)
