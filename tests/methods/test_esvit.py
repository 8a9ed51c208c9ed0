"""EsViT: losses by loops, regions in chunks, centres and teachers by hand."""

import dataclasses
import functools
import pathlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import parallel
from repjax import types
from repjax.layers import prototype_head
from repjax.methods import esvit
from repjax.methods import multi_crop
from repjax.methods import self_distillation
from repjax.models import mlp
from repjax.models import swin
from repjax.models import vit

RNG = np.random.default_rng(0)
B, S, T, D, C, K = 3, 5, 7, 4, 6, 8


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def softmax(x):
  x = np.exp(np.asarray(x, np.float64) - np.max(x))
  return x / x.sum()


STUDENT, TEACHER = normal(B, S, D), normal(B, T, D)
KERNELS = normal(D, K), normal(D, K)
FEATURES = normal(B, S, C), normal(B, T, C)
CENTRE = normal(K)
TEMPERATURES = dict(student_temperature=0.3, teacher_temperature=0.2)


def region(chunk=4, *, student=STUDENT, teacher=TEACHER, match=None):
  if match is None:
    match = self_distillation.matches(*FEATURES)
  return self_distillation.region_loss(
    student,
    KERNELS[0],
    teacher,
    KERNELS[1],
    match,
    CENTRE,
    chunk=chunk,
    **TEMPERATURES,
  )


def test_the_region_loss_is_that_of_a_loop():
  expected = np.zeros(B)
  features, student, teacher, kernels = jax.device_get(
    (FEATURES, STUDENT, TEACHER, KERNELS)
  )
  for row in range(B):
    for i in range(S):
      mine = features[0][row, i]
      cosines = [
        mine @ x / np.linalg.norm(mine) / np.linalg.norm(x)
        for x in features[1][row]
      ]
      j = int(np.argmax(cosines))
      theirs = teacher[row, j] @ kernels[1] - np.asarray(CENTRE)
      own = softmax(student[row, i] @ kernels[0] / 0.3)
      expected[row] -= softmax(theirs / 0.2) @ np.log(own) / S
  np.testing.assert_allclose(jax.jit(region)(), expected, rtol=1e-5)


@pytest.mark.parametrize('chunk', [1, 4, 15, 1000])
def test_chunks_change_neither_loss_nor_gradient(chunk):
  def loss(student, chunk):
    return region(chunk, student=student).sum()

  grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  value, gradient = grad(STUDENT, chunk)
  whole, expected = grad(STUDENT, B * S)
  np.testing.assert_allclose(value, whole, rtol=1e-6)
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_memory_is_linear_in_chunks():
  rows, regions, prototypes = 8, 16, 4096
  shape = jax.ShapeDtypeStruct((rows, regions, D), jnp.float32)
  kernel = jax.ShapeDtypeStruct((D, prototypes), jnp.float32)

  def temporary(chunk):
    def loss(student, kernel, teacher):
      return self_distillation.region_loss(
        student,
        kernel,
        teacher,
        kernel,
        jnp.zeros((rows, regions), jnp.int32),
        jnp.zeros(prototypes),
        chunk=chunk,
        **TEMPERATURES,
      ).sum()

    step = jax.jit(jax.grad(loss)).lower(shape, kernel, shape).compile()
    return step.memory_analysis().temp_size_in_bytes

  small, middle, large = (temporary(x) for x in (16, 32, 64))
  assert large - middle == pytest.approx(2 * (middle - small), rel=0.05)
  # A few arrays of [chunk, K], and never [B T, K].
  assert large < 0.6 * temporary(rows * regions)


def test_no_gradient_reaches_the_teacher():
  def loss(teacher):
    return region(teacher=teacher).sum()

  np.testing.assert_array_equal(jax.jit(jax.grad(loss))(TEACHER), 0)


def test_identical_views_match_themselves():
  found = jax.jit(self_distillation.matches)(FEATURES[1], FEATURES[1])
  np.testing.assert_array_equal(found, np.tile(np.arange(T), (B, 1)))


def test_the_order_of_the_teachers_regions_does_not_matter():
  order = RNG.permutation(T)

  @jax.jit
  def reordered():
    match = self_distillation.matches(FEATURES[0], FEATURES[1][:, order])
    return region(teacher=TEACHER[:, order], match=match)

  np.testing.assert_allclose(reordered(), jax.jit(region)(), rtol=1e-6)


def test_one_region_is_a_view():
  one, other = np.asarray(STUDENT)[:, :1], np.asarray(TEACHER)[:, :1]

  @jax.jit
  def of_region(one, other, match):
    return region(student=one, teacher=other, match=match)

  @jax.jit
  def of_view(one, other):
    said = self_distillation.targets(other @ KERNELS[1], CENTRE, 0.2)
    return self_distillation.cross_entropy(said, one @ KERNELS[0], 0.3)

  found = of_region(one, other, np.zeros((B, 1), np.int32))
  expected = of_view(one[:, 0], other[:, 0])
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_views_are_compared_with_all_others():
  assert len(self_distillation.pairs(10)) == 18
  assert self_distillation.pairs(3) == [(0, 1), (0, 2), (1, 0), (1, 2)]
  student = [np.asarray(normal(B, K)) for _ in range(3)]
  teacher = [np.asarray(normal(B, K)) for _ in range(2)]
  expected = np.zeros(B)
  for row in range(B):
    for q in range(2):
      for v in range(3):
        if q != v:
          said = softmax((teacher[q][row] - np.asarray(CENTRE)) / 0.2)
          own = softmax(student[v][row] / 0.3)
          expected[row] -= said @ np.log(own) / 4
  loss = functools.partial(self_distillation.view_loss, **TEMPERATURES)
  found = jax.jit(loss)(student, teacher, CENTRE)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_teacher_that_says_nothing_costs_log_k():
  flat = [jnp.zeros((B, K))] * 2
  found = self_distillation.view_loss(
    [normal(B, K) * 0] * 2, flat, jnp.zeros(K), **TEMPERATURES
  )
  np.testing.assert_allclose(found, np.log(K), rtol=1e-6)


def test_a_centre_is_the_mean_of_real_rows():
  logits = normal(B, K)
  mask = jnp.array([1.0, 0.0, 1.0])
  logits = logits.at[1].set(jnp.nan)
  moved = jax.jit(
    functools.partial(self_distillation.moved_centre, momentum=0.9)
  )
  found = moved(CENTRE, logits, mask)
  mean = np.asarray(logits)[[0, 2]].mean(0)
  np.testing.assert_allclose(found, 0.9 * CENTRE + 0.1 * mean, rtol=1e-5)
  same = moved(CENTRE, logits, jnp.zeros(B))
  np.testing.assert_array_equal(same, CENTRE)


def test_a_head_compares_unit_vectors():
  head = prototype_head.PrototypeHead(K, hidden_dim=5, dim=D)
  features = normal(2, 3, C)
  given = jax.jit(head.init)(jax.random.key(0), features)

  @jax.jit
  def outputs(given, features):
    return (
      head.apply(given, features),
      head.apply(given, features, method='embed'),
      head.apply(given, method='kernel'),
    )

  logits, embedded, kernel = jax.device_get(outputs(given, features))
  np.testing.assert_allclose(np.square(embedded).sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(np.square(kernel).sum(0), 1, rtol=1e-5)
  np.testing.assert_allclose(logits, embedded @ kernel, atol=1e-6)
  assert abs(logits).max() <= 1 + 1e-6
  learned = prototype_head.PrototypeHead(
    K, hidden_dim=5, dim=D, learn_norm=True
  )
  params = {**given['params'], 'scale': jnp.full(K, 3.0)}
  tripled = jax.jit(learned.apply)({'params': params}, features)
  np.testing.assert_allclose(tripled, 3 * logits, atol=1e-5)


def test_a_head_of_fewer_than_no_hidden_layers_is_refused():
  head = prototype_head.PrototypeHead(K, num_hidden=-1)
  with pytest.raises(types.InputError, match='num_hidden'):
    jax.eval_shape(head.init, jax.random.key(0), normal(2, C))


# The method.

CROPS = multi_crop.MultiCrop(size=8, local_size=4, num_local=1)
BATCH = {
  'image': jnp.asarray(RNG.uniform(size=(4, 8, 8, 3)), jnp.float32),
  'mask': jnp.ones(4),
}


def backbone(kind='swin'):
  if kind == 'vit':
    return vit.ViT(
      2,
      patch_size=2,
      hidden_dim=8,
      mlp_dim=8,
      num_heads=2,
      num_layers=1,
      pool='average',
      position='sincos',
    )
  return swin.Swin(
    2, hidden_dim=8, depths=(1,), num_heads=(2,), patch_size=2, window=2
  )


def make(kind='swin', **settings):
  settings = (
    dict(num_prototypes=K, hidden_dim=8, dim=D, momentum=0.9, chunk=8)
    | settings
  )
  crops = dataclasses.replace(CROPS, num_local=2 if kind == 'vit' else 1)
  return esvit.make(backbone(kind), optax.sgd(0.1), crops=crops, **settings)


# What is not at its default here is at another value there.
VARIED = dict(
  region_weight=0.2,
  centre_momentum=0.0,
  frozen_steps=1,
  momentum=lambda step: jnp.where(step < 1, 0.9, 1.0),
  teacher_temperature=lambda step: jnp.where(step < 1, 0.5, 0.2),
)


@functools.cache
def made(kind='swin', varied=False):
  """(method, initial state, compiled update), for all tests of it."""
  method = make(kind, **(VARIED if varied else dict(teacher_temperature=0.2)))
  state = jax.jit(method.init)(jax.random.key(0), BATCH)
  return method, state, jax.jit(method.update)


@functools.cache
def stepped(kind='swin', varied=False):
  _, state, update = made(kind, varied)
  return state, *update(state, BATCH, jax.random.key(1))


def mean(sums, name):
  return float(sums[name][0] / sums[name][1])


@pytest.mark.parametrize('kind', ['swin', 'vit'])
def test_a_step_moves_student_teacher_and_centres(kind):
  old, new, sums = jax.device_get(stepped(kind))
  chex.assert_trees_all_equal(old.params, old.extra.teacher)
  expected = jax.tree.map(
    lambda x, y: 0.9 * x + 0.1 * y, old.params, new.params
  )
  chex.assert_trees_all_close(new.extra.teacher, expected, atol=1e-6)
  for centre in (new.extra.view_centre, new.extra.region_centre):
    assert abs(np.asarray(centre)).max() > 0
  loss = (mean(sums, 'view') + mean(sums, 'region')) / 2
  assert mean(sums, 'loss') == pytest.approx(loss, rel=1e-5)
  for name in ('entropy', 'mean_entropy', 'clusters', 'spread'):
    assert 0 <= mean(sums, name) <= 1 + 1e-5
  assert mean(sums, 'entropy') <= mean(sums, 'mean_entropy') + 1e-5


def test_centres_move_to_what_the_teacher_says_and_not_the_student():
  state, new, _ = stepped(varied=True)
  model, params = backbone(), state.extra.teacher
  head = prototype_head.PrototypeHead(K, hidden_dim=8, dim=D)

  @jax.jit
  def means(params, image, rng):
    large, _ = CROPS(image, rng)
    maps = model.apply(
      {'params': params['backbone']},
      large.reshape(8, 8, 8, 3),
      train=False,
      method='encode',
    )
    view, regions = esvit.divided(model, maps)
    return (
      head.apply({'params': params['view']}, view).mean(0),
      head.apply({'params': params['region']}, regions).mean((0, 1)),
    )

  rng = jax.random.split(jax.random.key(1))[0]
  view, region = means(params, BATCH['image'], rng)
  np.testing.assert_allclose(new.extra.view_centre, view, atol=1e-5)
  np.testing.assert_allclose(new.extra.region_centre, region, atol=1e-5)


def test_centres_and_teachers_reach_the_loss():
  _, state, update = made()

  def losses(**changed):
    extra = state.extra._replace(**changed)
    _, sums = update(state.replace(extra=extra), BATCH, jax.random.key(1))
    return np.array([mean(sums, x) for x in ('view', 'region')])

  # Of the state's own type, for which the step is compiled.
  plain, far = losses(), 0.2 * jnp.arange(K, dtype=jnp.float32)
  teacher = state.extra.teacher

  def with_prototypes(head):
    moved = {**teacher[head], 'prototypes': -teacher[head]['prototypes']}
    return {**teacher, head: moved}

  for place, changed in (
    (0, dict(view_centre=far)),
    (1, dict(region_centre=far)),
    (0, dict(teacher=with_prototypes('view'))),
    (1, dict(teacher=with_prototypes('region'))),
  ):
    gaps = abs(losses(**changed) - plain)
    assert gaps[place] > 1e-3 and gaps[1 - place] < 1e-6, (place, gaps)


def test_temperature_and_momentum_follow_their_schedules():
  _, state, update = made(varied=True)
  old = state.replace(step=jnp.int32(1))
  new, sums = update(old, BATCH, jax.random.key(1))
  chex.assert_trees_all_equal(new.extra.teacher, old.extra.teacher)
  # The other method has that of step 1 in all steps.
  expected = mean(stepped()[2], 'view')
  assert mean(sums, 'view') == pytest.approx(expected, rel=1e-5)
  _, first, sums = jax.device_get(stepped(varied=True))
  assert abs(expected - mean(sums, 'view')) > 1e-3
  moved = jax.tree.map(
    lambda x, y: 0.9 * x + 0.1 * y, jax.device_get(state.params), first.params
  )
  chex.assert_trees_all_close(first.extra.teacher, moved, atol=1e-6)


def test_regions_have_the_weight_that_is_said():
  _, _, sums = stepped(varied=True)
  expected = 0.8 * mean(sums, 'view') + 0.2 * mean(sums, 'region')
  assert mean(sums, 'loss') == pytest.approx(expected, rel=1e-5)
  assert abs(mean(sums, 'view') - mean(sums, 'region')) > 1e-4


def test_prototypes_wait():
  old, new, _ = stepped(varied=True)
  for name in ('view', 'region'):
    np.testing.assert_array_equal(
      old.params[name]['prototypes'], new.params[name]['prototypes']
    )
  later, _ = made(varied=True)[2](new, BATCH, jax.random.key(2))
  assert (
    later.params['view']['prototypes'] != new.params['view']['prototypes']
  ).any()


@pytest.mark.devices(4)
def test_four_devices_make_the_step_of_one():
  method, state, update = made()
  # What one device does is plain jit, with the key of the step.
  rng = jax.random.fold_in(jax.random.key(1), state.step)
  expected = update(state, BATCH, rng)
  devices = jax.devices()[:4]
  found = parallel.train_step(method.update, devices)(
    parallel.replicate(state, devices),
    parallel.shard(BATCH, devices),
    jax.random.key(1),
  )
  chex.assert_trees_all_close(
    *jax.device_get((found, expected)), rtol=1e-4, atol=1e-6
  )


def test_rows_of_padding_count_for_nothing():
  _, state, update = made()
  mask = jnp.array([1.0, 1.0, 1.0, 0.0])
  image = BATCH['image']
  found = [
    update(
      state,
      {'image': image.at[3].set(x), 'mask': mask},
      jax.random.key(1),
    )
    for x in (0.5, jnp.nan)
  ]
  chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-6)


def test_predictions_are_the_teachers():
  _, new, _ = stepped()
  found = jax.jit(made()[0].predict)(new, BATCH)['features']
  encode = functools.partial(backbone().apply, train=False, method='encode')
  maps = jax.jit(encode)(
    {'params': new.extra.teacher['backbone']}, BATCH['image']
  )
  np.testing.assert_allclose(found, maps.mean((1, 2)), atol=1e-5)


def test_what_cannot_be_is_refused():
  with pytest.raises(types.InputError, match='larger than images'):
    method = esvit.make(
      backbone(),
      optax.sgd(0.1),
      crops=multi_crop.MultiCrop(size=16, local_size=12),
    )
    jax.eval_shape(method.init, jax.random.key(0), BATCH)
  with pytest.raises(types.InputError, match='larger than size'):
    multi_crop.MultiCrop(size=4, local_size=8)
  with pytest.raises(types.InputError, match='encode'):
    esvit.make(mlp.Mlp(2), optax.sgd(0.1), crops=CROPS)
  with pytest.raises(types.InputError, match='region_weight'):
    make(region_weight=1.0)
  with pytest.raises(types.InputError, match='num_prototypes'):
    jax.eval_shape(make(num_prototypes=1).init, jax.random.key(0), BATCH)


# What the authors' code (microsoft/esvit: DDINOLoss, DINOHead) gave of fixed
# numbers: two large views of 9 regions, two small ones of 4.
AUTHORS = pathlib.Path(__file__).with_name('esvit_authors.npz')


def test_losses_and_centres_are_the_authors():
  with np.load(AUTHORS) as file:
    given = {name: jnp.asarray(x) for name, x in file.items()}
  head = prototype_head.PrototypeHead(8, hidden_dim=5, dim=4)
  names = ('hidden_0', 'hidden_1', 'bottleneck')

  @jax.jit
  def computed(given):
    def call(who, method, *args):
      params = {
        name: {x: given[f'{who}/{i}/{x}'] for x in ('kernel', 'bias')}
        for i, name in enumerate(names)
      }
      params['prototypes'] = given[f'{who}/prototypes']
      return head.apply({'params': params}, *args, method=method)

    views = [*given['student_large'], *given['student_small']]
    own = [call('student_view', '__call__', x.mean(1)) for x in views]
    theirs = [
      call('teacher_view', '__call__', x.mean(1))
      for x in given['teacher_large']
    ]
    settings = dict(
      student_temperature=0.1, teacher_temperature=given['temperature']
    )
    view = self_distillation.view_loss(
      own, theirs, given['centre_view'], **settings
    )
    regions = [
      self_distillation.region_loss(
        call('student_region', 'embed', views[v]),
        call('student_region', 'kernel'),
        call('teacher_region', 'embed', given['teacher_large'][q]),
        call('teacher_region', 'kernel'),
        self_distillation.matches(views[v], given['teacher_large'][q]),
        given['centre_region'],
        chunk=5,
        **settings,
      )
      for q, v in self_distillation.pairs(4)
    ]
    loss = (view.mean() + sum(x.mean() for x in regions) / len(regions)) / 2
    region = jnp.stack(
      [call('teacher_region', '__call__', x) for x in given['teacher_large']]
    )
    moved = {
      name: self_distillation.moved_centre(
        given[f'centre_{name}'], said, jnp.ones(3), momentum=0.9
      )
      for name, said in dict(
        view=jnp.stack(theirs).mean(0), region=region.mean((0, 2))
      ).items()
    }
    return jnp.concatenate(own), loss, moved

  logits, loss, moved = computed(given)
  np.testing.assert_allclose(logits, given['logits'], atol=1e-5)
  np.testing.assert_allclose(loss, given['loss'], rtol=1e-5)
  for name, centre in moved.items():
    np.testing.assert_allclose(centre, given[f'new_centre_{name}'], atol=1e-5)


class _Dropping(nn.Module):
  """A dense layer of each pixel, and a dropout."""

  def setup(self):
    self.dense, self.dropout = nn.Dense(4), nn.Dropout(0.5)

  def encode(self, image, *, train):
    return self.dropout(self.dense(image), deterministic=not train)

  def __call__(self, image, *, train):
    return self.encode(image, train=train)


@pytest.fixture(scope='module')
def dropping():
  """(state, compiled update, batch) without regions."""
  # Of one colour, so that all views are alike.
  crops = multi_crop.MultiCrop(
    **dict(size=8, local_size=4, num_local=1),
    **dict(brightness=0.0, contrast=0.0, saturation=0.0),
  )
  method = esvit.make(
    *(_Dropping(), optax.sgd(0.1)),
    crops=crops,
    num_prototypes=K,
    hidden_dim=8,
    dim=D,
    region_weight=0.0,
  )
  batch = {**BATCH, 'image': np.full(BATCH['image'].shape, 0.5, np.float32)}
  state = jax.jit(method.init)(jax.random.key(0), batch)
  return state, jax.jit(method.update), batch


def test_without_regions_it_is_dino(dropping):
  old, update, batch = dropping
  new, sums = update(old, batch, jax.random.key(1))
  assert set(old.params) == {'backbone', 'view'}
  assert 'region' not in sums and new.extra.region_centre.shape == (0,)
  assert mean(sums, 'loss') == pytest.approx(mean(sums, 'view'))


def test_the_student_drops_and_the_teacher_does_not(dropping):
  state, update, batch = dropping
  (one, first), (other, second) = (
    update(state, batch, jax.random.key(i)) for i in (1, 2)
  )
  assert abs(mean(first, 'view') - mean(second, 'view')) > 1e-4
  np.testing.assert_allclose(
    one.extra.view_centre, other.extra.view_centre, atol=1e-5
  )


def test_hidden_kernels_begin_as_in_dino():
  head = prototype_head.PrototypeHead(8, hidden_dim=256, dim=64)
  init = jax.jit(head.init)
  params = init(jax.random.key(0), jnp.ones((1, 128)))['params']
  kernel = np.asarray(params['hidden_1']['kernel'])
  assert kernel.std() == pytest.approx(0.02, rel=0.03)
