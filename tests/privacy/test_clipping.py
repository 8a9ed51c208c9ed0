"""Clipped sums against plain per-example gradients, network by network."""

import functools
import itertools
import types as python_types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import float64
from repjax import gradients
from repjax import parallel
from repjax import trees
from repjax import types
from repjax.models import mlp
from repjax.models import resnet
from repjax.models import vit
from repjax.privacy import clipping
from repjax.privacy.ghost import coverage

pytestmark = pytest.mark.versions

ROWS = 4
KEY = jax.random.key(0)
MASK = jnp.array([1.0, 1, 0, 1])


def images(size=8, channels=3, rows=ROWS):
  rng = np.random.default_rng(0)
  return {
    'image': jnp.asarray(rng.normal(size=(rows, size, size, channels)), 'f4'),
    'label': jnp.asarray(rng.integers(0, 5, rows)),
  }


def classify(model):
  """Cross-entropy of a classifier: (loss_fn, params, batch)."""
  batch = images()
  params = init(model, batch['image'], train=False)

  def loss_fn(params, batch, rng):
    rngs = {} if rng is None else {'dropout': rng}
    logits = model.apply(
      {'params': params}, batch['image'], train=True, rngs=rngs
    )
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )

  return loss_fn, params, batch


def init(model, *args, **settings):
  """Parameters, drawn anew so that none is zero."""
  shapes = jax.eval_shape(
    functools.partial(model.init, **settings), KEY, *args
  )['params']
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.3, 'f4'), shapes
  )


class Block(nn.Module):
  """A transformer layer; with `carry` as `nn.scan` wants it."""

  @nn.compact
  def __call__(self, x, _=None):
    y = nn.LayerNorm(name='norm')(x)
    mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
    attend = nn.MultiHeadDotProductAttention(num_heads=2, name='attention')
    y = nn.RMSNorm(name='mlp_norm')(x + attend(y, mask=mask))
    return x + nn.tanh(nn.Dense(8, name='mlp')(y)), None


class Lm(nn.Module):
  """A language model: embedding, blocks, a head."""

  form: str = 'none'
  tied: bool = False
  vocabulary: int = 30

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(self.vocabulary, 8, name='embed')
    x = embed(tokens)
    if self.form == 'scan':
      blocks = nn.scan(
        nn.remat(Block),
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=2,
      )
      x, _ = blocks(name='blocks')(x, None)
    else:
      x = nn.Dense(8, name='mix')(x)
    if self.tied:
      return embed.attend(jnp.sin(x))
    return nn.Dense(self.vocabulary, use_bias=False, name='head')(x)


def language(length=6, **fields):
  model = Lm(**fields)
  rng = np.random.default_rng(0)
  # Few kinds of tokens, so that ids repeat.
  batch = {'tokens': jnp.asarray(rng.integers(0, 5, (ROWS, length)))}

  def loss_fn(params, batch, rng):
    del rng
    logits = model.apply({'params': params}, batch['tokens'])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits[:, :-1], batch['tokens'][:, 1:]
    ).mean(-1)

  return loss_fn, init(model, batch['tokens']), batch


class Convolutions(nn.Module):
  """Every kind of convolution side by side on one image."""

  @nn.compact
  def __call__(self, image, *, train):
    del train
    kinds = [
      dict(kernel_size=(2, 3), padding='SAME', strides=(2, 1)),
      dict(kernel_size=(3, 2), padding=((2, 0), (1, 3)), input_dilation=(1, 2)),
      dict(kernel_size=(3, 3), padding='CIRCULAR', kernel_dilation=2),
      dict(kernel_size=(3, 3), padding='REFLECT', feature_group_count=3),
      dict(kernel_size=(8, 8), padding='VALID', use_bias=False),
    ]
    logits = 0.0
    for i, kind in enumerate(kinds):
      y = nn.Conv(6, name=f'conv_{i}', **kind)(image)
      logits += jnp.sin(y).mean((1, 2))
    line = image.reshape((image.shape[0], -1, 4))
    y = nn.Conv(6, (3,), padding='CAUSAL', kernel_dilation=2, name='line')(line)
    logits += jnp.sin(y).mean(1)
    # Frames of volumes, [B, 2, 4, 4, 2, 3].
    frames = image.reshape((image.shape[0], 2, 4, 4, 2, 3))
    y = nn.Conv(6, (2, 2, 2), strides=2, name='frames')(frames)
    return logits + jnp.sin(y).mean((1, 2, 3, 4))


class General(nn.Module):
  """Dense layers over several axes, to several axes, and after reshapes."""

  @nn.compact
  def __call__(self, image, *, train):
    del train
    x = nn.DenseGeneral((2, 3), axis=(1, -1), name='wide')(
      image
    )  # [B, W, 2, 3]
    x = nn.DenseGeneral(4, axis=-2, use_bias=False, name='inner')(jnp.sin(x))
    x = nn.GroupNorm(2, name='norm')(x)
    return nn.DenseGeneral(5, axis=(1, 2, 3), name='head')(x)


NETWORKS = {
  'mlp': lambda: classify(mlp.Mlp(5, features=(16,))),
  'resnet': lambda: classify(
    resnet.PreActResNet(5, stage_sizes=(1,), width=16, norm='group')
  ),
  'vit': lambda: classify(
    vit.ViT(
      5,
      patch_size=4,
      hidden_dim=8,
      mlp_dim=16,
      num_heads=2,
      num_layers=1,
    )
  ),
  'convolutions': lambda: classify(Convolutions()),
  'general': lambda: classify(General()),
  # Tied by the rule, and, with more positions than columns, left over.
  'tied, scanned and rematerialised lm': lambda: language(
    form='scan', tied=True
  ),
  'long tied lm': lambda: language(length=9, form='none', tied=True),
}


def by_rows(loss_fn, params, batch):
  """Gradients of single rows, as a program without clipping computes them."""

  def row(row):
    row = jax.tree.map(lambda x: x[None], row)
    return jax.grad(lambda params: loss_fn(params, row, None).sum())(params)

  return jax.vmap(row)(batch)


def flat_norms(grads):
  squares = [
    np.square(np.asarray(g)).reshape((ROWS, -1)).sum(1)
    for g in jax.tree.leaves(grads)
  ]
  return np.sqrt(sum(squares))


def weighted(grads, factors):
  return jax.tree.map(
    lambda g: np.einsum('b,b...->...', factors, np.asarray(g)), grads
  )


def assert_close(actual, expected, tolerance=1e-5):
  """The global relative error: some gradients are zero but for rounding."""
  actual, expected = jax.device_get((actual, expected))
  gap = jax.tree.map(lambda a, b: np.square(a - b).sum(), actual, expected)
  size = jax.tree.map(lambda b: np.square(b).sum(), expected)
  gap, size = sum(jax.tree.leaves(gap)), sum(jax.tree.leaves(size))
  assert np.sqrt(gap) <= tolerance * np.sqrt(size), (gap, size)


def both(case, clip_norm=1.0, methods=('ghost',), **settings):
  """(one `Clipped` a method, per-example gradients), compiled together."""
  loss_fn, params, batch = case

  @jax.jit
  def run(params, batch):
    grads = by_rows(loss_fn, params, batch)
    limit = clip_norm
    if callable(clip_norm):
      squares = [
        jnp.square(g).reshape((ROWS, -1)).sum(1) for g in jax.tree.leaves(grads)
      ]
      limit = clip_norm(jnp.sqrt(sum(squares)))
    ours = [
      clipping.clipped_gradient(loss_fn, limit, method=method, **settings)(
        params, batch, None, MASK
      )
      for method in methods
    ]
    return ours, grads

  return jax.device_get(run(params, batch))


def all_at_once(cases):
  """Name -> (`Clipped` at a huge norm, gradients by row), in one program."""
  clip = functools.partial(clipping.clipped_gradient, method='ghost')

  @jax.jit
  def run(data):
    return {
      name: (
        clip(loss_fn, 1e9)(*data[name], None, MASK),
        by_rows(loss_fn, *data[name]),
      )
      for name, (loss_fn, _, _) in cases.items()
    }

  return jax.device_get(run({name: case[1:] for name, case in cases.items()}))


def check(ours, grads):
  """Norms and sums are those of single rows."""
  norms = flat_norms(grads)
  assert norms.min() > 1e-3
  np.testing.assert_allclose(ours.norms, norms * MASK, rtol=1e-5)
  assert_close(ours.grads, weighted(grads, np.asarray(MASK)))


def leftover(case):
  """Paths of the parameters that no rule covers, and of those that do count."""
  loss_fn, params, batch = case
  row = jax.tree.map(lambda x: x[:1], batch)
  found = coverage.find(loss_fn, params, row, None)
  paths = ['/'.join(path) for path in trees.flatten(params)]
  return (
    {paths[i] for i in found.leftover},
    {paths[i] for i in found.covered},
    set(paths),
  )


@pytest.mark.parametrize('name', NETWORKS)
def test_norms_and_clipped_sums_are_those_of_single_rows(name):
  # Between the norms, so that some rows are clipped and some are not.
  def clip_norm(norms):
    return jnp.sort(norms)[1] * 1.01

  (ours,), grads = both(NETWORKS[name](), clip_norm)
  norms = flat_norms(grads)
  np.testing.assert_allclose(ours.norms, norms * MASK, rtol=1e-5)
  factors = np.minimum(1, clip_norm(norms) / (norms + 1e-6)) * MASK
  assert 0 < (factors == 1).sum() < (factors > 0).sum()
  assert_close(ours.grads, weighted(grads, np.asarray(factors)))


@pytest.mark.parametrize('style', ['flat', 'per_layer'])
@pytest.mark.parametrize(
  'name', ['general', 'tied, scanned and rematerialised lm']
)
def test_ghost_norms_are_float32_in_a_process_of_64_bits(name, style):
  loss_fn, params, batch = NETWORKS[name]()
  clip = clipping.clipped_gradient(
    loss_fn, np.float64(1.0), method='ghost', style=style
  )
  with float64.enabled():
    found = jax.eval_shape(clip, params, batch)
  assert found.norms.dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(found.grads)} == {found.norms.dtype}


@pytest.mark.parametrize(
  'name, expected',
  [
    ('mlp', ()),
    ('resnet', ('norm',)),
    ('vit', ('norm', 'cls', 'positions')),
    ('convolutions', ()),
    ('general', ('norm',)),
    ('tied, scanned and rematerialised lm', ('norm',)),
    ('long tied lm', ('embed',)),
  ],
)
def test_only_small_parameters_are_left_over(name, expected):
  rest, covered, paths = leftover(NETWORKS[name]())
  assert rest == {p for p in paths if any(word in p for word in expected)}
  assert rest | covered == paths


# What looks like a covered layer and is not.


class Twice(nn.Module):
  """A layer with a method that calls it twice."""

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(4, name='layer')
    return nn.Dense(1, name='head')(layer(jnp.sin(layer(x))))


class Step(nn.Module):
  """One step of a recurrent network."""

  @nn.compact
  def __call__(self, x, _):
    return nn.Dense(4, name='layer')(jnp.sin(x)), None


class ScanShared(nn.Module):
  """One set of weights for all steps of a scan."""

  @nn.compact
  def __call__(self, x):
    steps = nn.scan(
      Step, variable_broadcast='params', split_rngs={'params': False}, length=2
    )
    return nn.Dense(1, name='head')(steps(name='steps')(x, None)[0])


class VmapShared(nn.Module):
  """One set of weights for all entries of an axis, by `nn.vmap`."""

  @nn.compact
  def __call__(self, x):
    shared = nn.vmap(
      nn.Dense, variable_axes={'params': None}, split_rngs={'params': False}
    )
    x = jnp.stack([x, 2 * x, x**2], 0)
    return nn.Dense(1, name='head')(jnp.sin(shared(4, name='layer')(x)).sum(0))


class Positions(nn.Module):
  """Layers whose output does not depend on the example."""

  @nn.compact
  def __call__(self, x):
    places = nn.Embed(4, 4, name='embed')(jnp.arange(4))
    places = jnp.sin(nn.Dense(4, name='layer')(places))
    return nn.Dense(1, name='head')(x @ places)


class Direct(nn.Module):
  """Uses the table of an embedding in a product of its own."""

  @nn.compact
  def __call__(self, x):
    embed = nn.Embed(7, 4, name='embed')
    table = embed(jnp.arange(3)).sum(0) + embed.embedding.mean(0)
    return nn.Dense(1, name='head')(nn.Dense(4, name='layer')(x) * table[None])


def tiny(model=None, transform=lambda p: p, penalty=None):
  """A regression on vectors: (loss_fn, params, batch)."""
  model = Twice() if model is None else model
  rng = np.random.default_rng(3)
  batch = {'x': jnp.asarray(rng.normal(size=(ROWS, 4)), 'f4')}

  def loss_fn(params, batch, rng):
    del rng
    weights = transform(params)

    def apply(x):
      return model.apply({'params': weights}, x)

    loss = jnp.square(apply(batch['x']) - 1)[..., 0]
    if penalty is not None:
      loss += penalty(params, apply, batch['x'])
    return loss

  return loss_fn, init(model, batch['x']), batch


class Plain(nn.Module):
  """Two layers."""

  @nn.compact
  def __call__(self, x):
    x = jnp.sin(nn.Dense(4, name='layer')(x))
    return nn.Dense(1, name='head')(x)


def with_layer(change):
  def transform(params):
    layer = {**params['layer'], 'kernel': change(params['layer']['kernel'])}
    return {**params, 'layer': layer}

  return transform


def input_gradient(params, apply, x):
  del params
  slope = jax.grad(lambda x: apply(x).sum())(x)
  return jnp.square(slope).sum(-1)


def with_apply(apply):
  return python_types.SimpleNamespace(init=Plain().init, apply=apply)


@jax.custom_vjp
def twofold(variables, x):
  """A network with a gradient of its own."""
  return Plain().apply(variables, x)


def twofold_forward(variables, x):
  return jax.vjp(Plain().apply, variables, x)


def twofold_backward(backward, g):
  return backward(2 * g)


twofold.defvjp(twofold_forward, twofold_backward)


def tenfold(next_fn, args, kwargs, context):
  """An interceptor that changes what dense layers give."""
  y = next_fn(*args, **kwargs)
  return 10 * y if isinstance(context.module, nn.Dense) else y


def behind_an_interceptor(variables, x):
  with nn.intercept_methods(tenfold):
    return Plain().apply(variables, x)


TWO = python_types.SimpleNamespace(
  init=lambda *args: {
    'params': {
      'a': Plain().init(*args)['params'],
      'b': Plain().init(*args)['params'],
    }
  },
  apply=lambda v, x: Plain().apply(
    {'params': v['params']['a']},
    x + Plain().apply({'params': v['params']['b']}, x),
  ),
)
LAYER = {'layer/kernel', 'layer/bias'}
HEAD = {'head/kernel', 'head/bias'}
TRAPS = {
  'called twice': (lambda: tiny(), LAYER),
  'shared by the steps of a scan': (
    lambda: tiny(ScanShared()),
    {'steps/layer/kernel', 'steps/layer/bias'},
  ),
  'shared under vmap': (lambda: tiny(VmapShared()), LAYER),
  'alike for all rows': (lambda: tiny(Positions()), set()),
  'used directly': (lambda: tiny(Direct()), {'embed/embedding'}),
  'symmetric': (
    lambda: tiny(Plain(), with_layer(lambda w: (w + w.T) / 2)),
    LAYER,
  ),
  'scaled': (lambda: tiny(Plain(), with_layer(lambda w: 2 * w)), LAYER),
  'penalised': (
    lambda: tiny(
      Plain(),
      penalty=lambda p, apply, x: jnp.square(p['layer']['kernel']).sum(),
    ),
    LAYER,
  ),
  'differentiated inside': (
    lambda: tiny(Plain(), penalty=input_gradient),
    LAYER | HEAD,
  ),
  'cast and transposed twice': (
    lambda: tiny(Plain(), with_layer(lambda w: w.T.astype('f4').T)),
    set(),
  ),
  'with a gradient of its own': (
    lambda: tiny(with_apply(twofold)),
    LAYER | HEAD,
  ),
  'behind an interceptor': (
    lambda: tiny(with_apply(behind_an_interceptor)),
    LAYER | HEAD,
  ),
  'of one name in two models': (
    lambda: tiny(TWO),
    {f'{model}/{leaf}' for model in 'ab' for leaf in LAYER | HEAD},
  ),
  'one row under vmap': (
    lambda: tiny(
      with_apply(lambda v, x: jax.vmap(lambda x: Plain().apply(v, x))(x))
    ),
    set(),
  ),
}


@pytest.fixture
def two_backwards(monkeypatch):
  """As if no layer were called in the open."""
  find = coverage.find

  def hidden(*args):
    return find(*args)._replace(outputs={})

  monkeypatch.setattr(coverage, 'find', hidden)


def test_two_backward_passes_give_the_same(two_backwards):
  del two_backwards
  names = ('general', 'convolutions')
  cases = {name: NETWORKS[name]() for name in names}
  cases['tied'] = language(form='none', tied=True)
  for result in all_at_once(cases).values():
    check(*result)


def flops(loss_fn, params, batch, method):
  if method == 'plain':
    run = jax.grad(lambda params, batch: loss_fn(params, batch, None).sum())
  else:
    run = clipping.clipped_gradient(loss_fn, 1.0, method=method)
  return jax.jit(run).lower(params, batch).compile().cost_analysis()['flops']


def deep_mlp():
  return classify(mlp.Mlp(5, features=(256, 256, 256)))


def test_norms_come_without_a_second_backward_pass():
  case = deep_mlp()
  assert flops(*case, 'ghost') < 1.15 * flops(*case, 'plain')


def test_two_backward_passes_cost_one_more(two_backwards):
  del two_backwards
  case = deep_mlp()
  assert flops(*case, 'ghost') > 1.2 * flops(*case, 'plain')


@pytest.mark.parametrize(
  'name, expected',
  [
    ('mlp', True),
    ('long tied lm', True),
    ('tied, scanned and rematerialised lm', False),
  ],
)
def test_layers_in_the_open_are_told_from_others(name, expected):
  loss_fn, params, batch = NETWORKS[name]()
  row = jax.tree.map(lambda x: x[:1], batch)
  found = coverage.find(loss_fn, params, row, None)
  assert bool(found.outputs) == expected
  # A vmap inside of the loss hides its inputs.
  inner = TRAPS['one row under vmap'][0]()
  row = jax.tree.map(lambda x: x[:1], inner[2])
  assert not coverage.find(inner[0], inner[1], row, None).outputs


@pytest.fixture(scope='module')
def trapped():
  return all_at_once({name: make() for name, (make, _) in TRAPS.items()})


@pytest.mark.parametrize('name', TRAPS)
def test_weights_that_are_not_used_once_as_they_are_stay_exact(name, trapped):
  make, expected = TRAPS[name]
  check(*trapped[name])
  rest, covered, paths = leftover(make())
  assert rest == expected
  assert covered == paths - expected


@pytest.mark.parametrize('method', ['ghost', 'vmap'])
def test_an_interceptor_around_clipping_is_part_of_the_loss(method):
  inner = tiny(with_apply(behind_an_interceptor))
  grads = jax.jit(functools.partial(by_rows, inner[0]))(*inner[1:])
  loss_fn, params, batch = tiny(Plain())
  clip = jax.jit(clipping.clipped_gradient(loss_fn, 1e9, method=method))
  with nn.intercept_methods(tenfold):
    found = clip(params, batch)
  np.testing.assert_allclose(found.norms, flat_norms(grads), rtol=1e-5)
  assert_close(found.grads, weighted(grads, np.ones(ROWS)))


@pytest.mark.parametrize('precision', [None, 'highest'])
def test_a_compiled_loss_is_seen_through(precision):
  loss_fn, params, batch = tiny(Plain())
  parts = tiny(with_apply(jax.jit(Plain().apply)))
  cases = {'whole': (jax.jit(loss_fn), params, batch), 'part': parts}
  with jax.default_matmul_precision(precision):
    for result in all_at_once(cases).values():
      check(*result)
    # A compiled part is found out, once it has been traced, and left over.
    assert leftover(parts)[0] == LAYER | HEAD


def test_frozen_parameters_cost_nothing():
  def freeze(params):
    return {**params, 'layer': jax.lax.stop_gradient(params['layer'])}

  cases = {
    'layer': tiny(Plain(), freeze),
    'kernel': tiny(Plain(), with_layer(jax.lax.stop_gradient)),
  }
  for result in all_at_once(cases).values():
    check(*result)
  rest, covered, _ = leftover(cases['layer'])
  assert (rest, covered) == (set(), HEAD)
  rest, covered, _ = leftover(cases['kernel'])
  assert (rest, covered) == (set(), HEAD | {'layer/bias'})


def test_half_precision_is_clipped_by_what_it_multiplies():
  def halve(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

  loss_fn, params, batch = tiny(Plain(), halve)

  def half(params, batch, rng):
    return loss_fn(params, halve(batch), rng)

  _, covered, paths = leftover((half, params, batch))
  assert covered == paths
  (ours,), grads = both((half, params, batch), 0.1)
  np.testing.assert_allclose(ours.norms, flat_norms(grads) * MASK, rtol=0.01)
  assert ours.grads['layer']['kernel'].dtype == jnp.float32


def random_case(seed):
  """A random network of layers with and without rules."""
  rng = np.random.default_rng(seed)
  depth = int(rng.integers(1, 3))
  kinds = rng.choice(['dense', 'conv', 'norm', 'general', 'mix'], depth)
  widths = rng.choice([2, 4, 6, 12], depth)
  length = int(rng.choice([1, 3, 9]))
  bias = rng.random(depth) < 0.5

  class Network(nn.Module):
    @nn.compact
    def __call__(self, ids):
      x = nn.Embed(int(rng_ids), 4, name='embed')(ids)
      for i, (kind, width) in enumerate(zip(kinds, widths, strict=True)):
        settings = dict(use_bias=bool(bias[i]), name=f'{kind}_{i}')
        width = int(width)
        if kind == 'dense':
          x = nn.Dense(width, **settings)(x)
        elif kind == 'conv':
          x = nn.Conv(width, (3,), feature_group_count=2, **settings)(x)
        elif kind == 'general':
          x = nn.DenseGeneral((width, 2), **settings)(x)
          x = x.reshape((*x.shape[:2], -1))
        elif kind == 'norm':
          x = nn.LayerNorm(name=f'norm_{i}')(x)
        else:
          x = x * self.param(f'mix_{i}', nn.initializers.ones, x.shape[1:])
        x = jnp.tanh(x)
      return nn.Dense(1, name='head')(x.mean(1))

  rng_ids = rng.choice([1, 3, 50])
  model = Network()
  batch = {'ids': jnp.asarray(rng.integers(0, rng_ids, (ROWS, length)))}

  def loss_fn(params, batch, rng):
    del rng
    return jnp.square(model.apply({'params': params}, batch['ids']) - 1)[:, 0]

  return loss_fn, init(model, batch['ids']), batch


def test_random_networks():
  cases = {str(seed): random_case(seed) for seed in range(3)}
  for result in all_at_once(cases).values():
    check(*result)


# Options.


class Dropped(nn.Module):
  """Dropout and two layers."""

  @nn.compact
  def __call__(self, image, *, train):
    x = image.reshape((image.shape[0], -1))
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(5, name='head')(jnp.sin(nn.Dense(8, name='layer')(x)))


def dropout_case():
  return classify(Dropped())


def test_all_methods_and_microbatches_give_the_same_sum():
  loss_fn, params, batch = dropout_case()  # Every row has its key.
  kinds = [('ghost', 1), ('vmap', 2), ('microbatch', 1)]

  @jax.jit
  def run(params, batch):
    return [
      clipping.clipped_gradient(
        loss_fn, 0.5, method=method, microbatches=microbatches
      )(params, batch, KEY, MASK)
      for method, microbatches in kinds
    ]

  first, *others = run(params, batch)
  for other in others:
    assert_close(other.grads, first.grads)
    np.testing.assert_allclose(other.norms, first.norms, rtol=1e-5)
    np.testing.assert_allclose(other.loss, first.loss, rtol=1e-5)


def test_each_module_is_clipped_on_its_own():
  ours, grads = both(tiny(Plain()), 0.3, ('ghost', 'vmap'), style='per_layer')
  limit, expected = 0.3 / np.sqrt(2), {}
  for name, layer in grads.items():
    norms = flat_norms(layer)
    factors = np.minimum(1, limit / (norms + 1e-6)) * MASK
    expected[name] = weighted(layer, np.asarray(factors))
  for one in ours:
    assert_close(one.grads, expected)
    np.testing.assert_allclose(one.norms, flat_norms(grads) * MASK, rtol=1e-5)


def test_automatic_clipping_scales_small_gradients_up():
  (ours,), grads = both(tiny(Plain()), 50.0, style='automatic')
  factors = 50 / (flat_norms(grads) + 0.01) * MASK
  assert factors.max() > 1
  assert_close(ours.grads, weighted(grads, np.asarray(factors)))


def test_one_row_moves_the_sum_by_no_more_than_the_clip_norm():
  loss_fn, params, batch = tiny(Plain())

  for style in ('flat', 'per_layer', 'automatic'):
    clip = clipping.clipped_gradient(loss_fn, 0.1, method='ghost', style=style)
    run = jax.jit(lambda mask, clip=clip: clip(params, batch, None, mask).grads)
    gap = jax.tree.map(lambda a, b: a - b, run(jnp.ones(ROWS)), run(MASK))
    assert 0.09 < optax.tree.norm(gap) <= 0.1 * (1 + 1e-5)


def test_models_side_by_side_are_clipped_each_on_its_own():
  loss_fn, params, batch = tiny(Plain())

  def run(params):
    clip = clipping.clipped_gradient(loss_fn, 0.5, method='ghost')
    return clip(params, batch).grads

  models = [params, jax.tree.map(lambda x: 2 * x, params)]
  together = jax.jit(jax.vmap(run))(
    jax.tree.map(lambda *x: jnp.stack(x), *models)
  )
  alone = jax.jit(run)
  for i, model in enumerate(models):
    own = jax.tree.map(lambda x, i=i: x[i], together)
    assert_close(own, alone(model))


def test_auto_takes_ghost_norms_where_gradients_are_large():
  loss_fn, params, batch = NETWORKS['mlp']()  # 192 x 16 weights, one position.
  row = jax.tree.map(lambda x: x[:1], batch)
  assert clipping._ghost_is_smaller(
    coverage.find(loss_fn, params, row, KEY), params
  )
  loss_fn, params, batch = NETWORKS['convolutions']()  # 64 positions.
  row = jax.tree.map(lambda x: x[:1], batch)
  found = coverage.find(loss_fn, params, row, KEY)
  assert not clipping._ghost_is_smaller(found, params)


# In a training step.


def rows(count=8):
  rng = np.random.default_rng(2)
  mask = jnp.ones(count).at[jnp.array([1, 6, 7])].set(0)
  return {
    'image': jnp.asarray(rng.normal(size=(count, 2, 2, 1)), 'f4'),
    'label': jnp.asarray(rng.integers(0, 3, count)),
    'mask': mask,
  }


MODEL = mlp.Mlp(3, features=(8,))
PARAMS = init(MODEL, rows()['image'], train=False)


def supervised_loss(params, model_state, batch, rng):
  del rng
  logits = MODEL.apply({'params': params}, batch['image'], train=True)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
  return types.Losses(loss, model_state, {'twice': 2 * loss})


def clipped(batch, clip_norm=1.0, **settings):
  grad_fn = gradients.GradFn(supervised_loss, batch, KEY, {}, **settings)
  return grad_fn.clipped(PARAMS, clip_norm)


@pytest.mark.devices(4)
def test_four_devices_give_the_sum_of_one():
  batch = rows()  # The last device holds only padding.
  one, aux = jax.jit(clipped)(batch)
  split = jax.tree.map(lambda x: x.reshape((4, 2, *x.shape[1:])), batch)
  many, many_aux = jax.pmap(clipped, axis_name=parallel.AXIS)(split)
  for replica in range(4):
    take = functools.partial(jax.tree.map, lambda x, r=replica: x[r])
    assert_close(take(many), one, 1e-6)
    assert_close(take(many_aux.sums), aux.sums, 1e-6)
  norms = aux.sums['gradient_norm']
  assert norms[1] == 5
  # Some norms are above 1 and some below.
  assert 0 < aux.sums['unclipped'][0] < 5, norms


@pytest.mark.parametrize('method', ['ghost', 'vmap'])
def test_padding_counts_for_exactly_nothing(method):
  @jax.jit
  def run(batch):
    grad_fn = gradients.GradFn(supervised_loss, batch, KEY, {})
    return grad_fn.clipped(PARAMS, 0.5, method=method)

  batch = rows()
  padding = batch['mask'] == 0
  dirty = {
    **batch,
    'image': jnp.where(padding[:, None, None, None], jnp.nan, batch['image']),
  }
  jax.tree.map(np.testing.assert_array_equal, run(dirty), run(batch))
  nothing, aux = run({**dirty, 'mask': jnp.zeros(8)})
  assert not any(np.any(x) for x in jax.tree.leaves(nothing))
  assert aux.sums['loss'] == (0, 0)


def test_without_clipping_it_is_the_plain_gradient():
  batch = rows()

  @jax.jit
  def run(batch):
    grad_fn = gradients.GradFn(supervised_loss, batch, KEY, {}, microbatches=2)
    return grad_fn(PARAMS), grad_fn.clipped(PARAMS, 1e6)

  (plain, plain_aux), (total, aux) = run(batch)
  assert_close(jax.tree.map(lambda x: x / 5, total), plain, 1e-6)
  for name in ('loss', 'twice'):
    np.testing.assert_allclose(aux.sums[name], plain_aux.sums[name], rtol=1e-6)


def test_batch_normalisation_is_refused_with_the_reason():
  model = resnet.PreActResNet(5, stage_sizes=(1,), width=16, norm='batch')
  variables = jax.eval_shape(
    functools.partial(model.init, train=False), KEY, images()['image']
  )
  variables = jax.tree.map(lambda x: jnp.ones(x.shape), variables)

  def loss_fn(params, model_state, batch, rng, train=True):
    del rng
    logits, model_state = model.apply(
      {'params': params, **model_state},
      batch['image'],
      train=train,
      mutable=['batch_stats'],
    )
    return types.Losses(logits.sum(-1), model_state, {})

  batch = {**images(), 'mask': MASK}
  state = {'batch_stats': variables['batch_stats']}
  grad_fn = gradients.GradFn(loss_fn, batch, KEY, state)
  with pytest.raises(types.InputError, match=r'batch_stats.*see each other'):
    grad_fn.clipped(variables['params'], 1.0)
  # Statistics that do not move couple nothing.
  frozen = functools.partial(loss_fn, train=False)
  grad_fn = gradients.GradFn(frozen, batch, KEY, state)
  jax.eval_shape(lambda p: grad_fn.clipped(p, 1.0), variables['params'])


@pytest.mark.parametrize(
  'bad', [{'clip_norm': 0}, {'method': 'fast'}, {'style': 'global'}]
)
def test_settings_out_of_range_are_refused(bad):
  with pytest.raises(ValueError, match=next(iter(bad))):
    clipping.clipped_gradient(None, **{'clip_norm': 1.0, **bad})


def test_a_loss_that_is_already_a_mean_is_refused():
  loss_fn, params, batch = tiny(Plain())
  mean = clipping.clipped_gradient(lambda *args: loss_fn(*args).mean(), 1.0)
  with pytest.raises(ValueError, match='one loss a row'):
    mean(params, batch, KEY)


def with_bad_rows(batch, bad):
  """Rows 0 and 2 get the number: NaN, or so large that gradients overflow."""
  name = 'image' if 'image' in batch else 'scale'
  rows = np.array(batch[name])
  rows[[0, 2]] = bad
  return {**batch, name: rows}


def scaled_language(**fields):
  """A language model whose losses have a factor a row."""
  inner, params, batch = language(**fields)

  def loss_fn(params, batch, rng):
    return inner(params, batch, rng) * batch['scale']

  return loss_fn, params, {**batch, 'scale': np.ones(ROWS, np.float32)}


BAD = {
  'mlp': NETWORKS['mlp'],
  'convolutions': NETWORKS['convolutions'],
  'tied lm': lambda: scaled_language(tied=True),
  'scanned and rematerialised lm': lambda: scaled_language(form='scan'),
}


@pytest.mark.parametrize(
  'name, method, style, bad',
  [
    *itertools.product(BAD, ['ghost'], ['flat', 'per_layer'], [np.nan]),
    ('mlp', 'ghost', 'automatic', np.nan),
    ('mlp', 'ghost', 'flat', np.inf),
    ('mlp', 'ghost', 'flat', 1e38),
    ('mlp', 'vmap', 'flat', np.nan),
    ('mlp', 'microbatch', 'per_layer', np.nan),
  ],
)
def test_a_row_without_a_finite_gradient_counts_as_zero(
  name, method, style, bad
):
  loss_fn, params, batch = BAD[name]()
  fn = clipping.clipped_gradient(loss_fn, 0.5, method=method, style=style)
  fn = jax.jit(fn)

  def run(batch, *mask):
    mask = np.asarray(mask, np.float32)
    return jax.device_get(fn(params, batch, None, mask))

  found = run(with_bad_rows(batch, bad), 1, 1, 1, 1)
  expected = run(batch, 0, 1, 0, 1)
  assert_close(found.grads, expected.grads, 1e-6)
  assert max(np.abs(x).max() for x in jax.tree.leaves(found.grads)) > 0
  np.testing.assert_array_equal(
    np.isfinite(found.norms), [False, True, False, True]
  )
  # And nothing is left of a batch that has no other rows.
  none = run(with_bad_rows(batch, bad), 1, 0, 1, 0)
  assert all((x == 0).all() for x in jax.tree.leaves(none.grads))


@pytest.mark.parametrize('method', ['ghost', 'vmap'])
def test_padding_whose_gradient_is_not_finite_counts_for_nothing(method):
  model = mlp.Mlp(3, features=(8,))

  def loss_fn(params, batch, rng):  # Its slope at a blank row is infinite.
    del rng
    length = jnp.linalg.norm(batch['image'].reshape((-1, 12)), axis=1)
    logits = model.apply({'params': params}, batch['image'], train=True)
    return jnp.sqrt(jnp.square(logits).sum(1) * length)

  batch = images(size=2)
  params = init(model, batch['image'], train=False)
  params['head']['bias'] = jnp.zeros(3)
  found = jax.jit(clipping.clipped_gradient(loss_fn, 0.5, method=method))(
    params, batch, None, MASK
  )
  assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(found.grads))
  assert found.norms[2] == 0


@pytest.mark.devices(4)
def test_rows_without_a_finite_gradient_are_counted_and_in_no_other_metric():
  batch = rows()
  bad = {**batch, 'image': batch['image'].at[2].set(np.nan)}
  without = {**batch, 'mask': batch['mask'].at[2].set(0)}
  expected, aux = jax.jit(clipped)(without)
  found, sums = jax.jit(clipped)(bad)
  assert_close(found, expected, 1e-6)
  assert sums.sums['nonfinite'] == (1, 5)
  for name, value in aux.sums.items():
    if name != 'nonfinite':
      assert_close(sums.sums[name], value, 1e-5)
  split = jax.tree.map(lambda x: x.reshape((4, 2, *x.shape[1:])), bad)
  many, many_aux = jax.pmap(clipped, axis_name=parallel.AXIS)(split)
  take = functools.partial(jax.tree.map, lambda x: x[0])
  assert_close(take(many), expected, 1e-6)
  assert_close(take(many_aux.sums), sums.sums, 1e-5)


def test_a_step_all_of_whose_gradients_are_not_finite_has_no_loss():
  batch = rows()
  bad = {**batch, 'image': jnp.full_like(batch['image'], np.nan)}
  found, aux = jax.jit(clipped)(bad)
  assert all((x == 0).all() for x in jax.tree.leaves(found))
  assert np.isnan(aux.sums['loss'][0])  # Which stops the run.
  assert aux.sums['loss'][1] == 5
  assert aux.sums['nonfinite'] == (5, 5)
  assert aux.sums['unclipped'] == (0, 0)
