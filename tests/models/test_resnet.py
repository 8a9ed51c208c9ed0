"""Residual networks: published sizes, the papers' formulas, the contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import trees
from repjax import types
from repjax.layers import downsampling
from repjax.models import mlp
from repjax.models import resnet


def shapes(model, size):
  init = functools.partial(model.init, train=False)
  image = jnp.zeros((1, size, size, 3))
  return jax.eval_shape(init, jax.random.key(0), image)


def wide_resnet_size(depth, widen, num_classes):
  """Weights of table 1, counted by hand: convolutions, norms, head."""
  total, before = 27 * 16, 16
  for width in (16 * widen, 32 * widen, 64 * widen):
    for block in range((depth - 4) // 6):
      total += 2 * before + 9 * before * width  # Norm and first convolution.
      total += 2 * width + 9 * width * width
      total += before * width if block == 0 else 0  # Shortcut.
      before = width
  return total + 2 * before + (before + 1) * num_classes


@pytest.mark.parametrize(
  'model, size, expected',
  [
    (resnet.WideResNet(10), 32, 36_479_194),
    (resnet.WideResNet(100), 32, 36_536_884),
    (resnet.WideResNet(10, depth=16, widen=4), 32, None),
    (resnet.PreActResNet(10), 32, 11_172_170),
    (resnet.ResNet(1000, (2, 2, 2, 2), 'basic'), 224, 11_689_512),
    (resnet.ResNet(1000), 224, 25_557_032),
    (resnet.ResNet(1000, (3, 4, 23, 3)), 224, 44_549_160),
    (resnet.ResNet(1000, (3, 8, 36, 3)), 224, 60_192_808),
  ],
)
def test_networks_have_the_published_numbers_of_parameters(
  model, size, expected
):
  if isinstance(model, resnet.WideResNet):
    by_hand = wide_resnet_size(model.depth, model.widen, model.num_classes)
    expected = by_hand if expected is None else expected
    assert by_hand == expected
  assert trees.size(shapes(model, size)['params']) == expected


def multiply_adds(model, size):
  """Products of all convolutions and of the head, padding included."""

  def forward(variables, image):
    return model.apply(variables, image, train=False)

  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  jaxpr = jax.make_jaxpr(forward)(shapes(model, size), image)
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('conv_general_dilated', 'dot_general'):
      kernel, output = equation.invars[1].aval, equation.outvars[0].aval
      total += np.prod(output.shape) * np.prod(kernel.shape[:-1])
  return total


@pytest.mark.parametrize(
  'model, size, billions',
  [
    (resnet.ResNet(1000), 224, 4.09),  # v1: 3.86.
    (resnet.WideResNet(10), 32, 5.25),
    (resnet.PreActResNet(10), 32, 0.56),
  ],
)
def test_strides_stand_where_the_published_costs_say(model, size, billions):
  total = multiply_adds(model, size)
  np.testing.assert_allclose(total / 1e9, billions, rtol=0.01)


def random_variables(model):
  """Random weights and statistics, none of them zero or one."""
  rng = np.random.default_rng(0)

  def fill(x):
    if x.ndim == 1:
      return rng.uniform(0.2, 1.5, x.shape).astype(x.dtype)
    fan = np.prod(x.shape[:-1])
    return rng.normal(0, (2 / fan) ** 0.5, x.shape).astype(x.dtype)

  return jax.tree.map(fill, shapes(model, 32))


IMAGE = jnp.asarray(
  np.random.default_rng(1).normal(size=(4, 16, 16, 3)).astype(np.float32)
)


def preactivation_by_hand(variables, image, strides):
  """Fig. 4e of the paper in plain `lax`, one block a stage, evaluation."""
  params, stats = variables['params'], variables['batch_stats']

  def conv(x, kernel, stride=1):
    pad = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      (pad, pad),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  def act(x, params, stats):
    params, stats = jax.tree.map(lambda a: a[None, None, None], (params, stats))
    normal = (x - stats['mean']) / jnp.sqrt(stats['var'] + 1e-5)
    return jnp.maximum(normal * params['scale'] + params['bias'], 0)

  x = conv(image, params['stem']['kernel'])
  for stage, stride in enumerate(strides):
    p, s = params[f'stage_{stage}']['block_0'], stats[f'stage_{stage}']
    inner = act(x, p['norm_0'], s['block_0']['norm_0'])
    if 'shortcut' in p:
      x = conv(inner, p['shortcut']['kernel'], stride)
    inner = conv(inner, p['conv_0']['kernel'], stride)
    inner = act(inner, p['norm_1'], s['block_0']['norm_1'])
    x = x + conv(inner, p['conv_1']['kernel'])
  x = act(x, params['norm'], stats['norm']).mean((1, 2))
  return x @ params['head']['kernel'] + params['head']['bias'][None]


def test_wide_resnet_computes_the_formula_of_the_paper():
  model = resnet.WideResNet(5, depth=10, widen=1)
  variables = random_variables(model)
  # Only a change of shape has a shortcut of its own.
  assert 'shortcut' not in variables['params']['stage_0']['block_0']
  logits = jax.jit(functools.partial(model.apply, train=False))(
    variables, IMAGE
  )
  expected = jax.jit(preactivation_by_hand, static_argnums=2)(
    variables, IMAGE, (1, 2, 2)
  )
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_rows_of_padding_change_neither_real_logits_nor_statistics():
  model = resnet.WideResNet(5, depth=10, widen=1)
  variables = random_variables(model)

  @jax.jit
  def run(image, mask):
    return model.apply(
      variables, image, train=True, mask=mask, mutable='batch_stats'
    )

  mask = jnp.array([1, 0, 1, 1.0])
  clean, dirty = run(IMAGE, mask), run(IMAGE.at[1].set(1e3), mask)
  np.testing.assert_array_equal(clean[0][mask > 0], dirty[0][mask > 0])
  jax.tree.map(np.testing.assert_array_equal, clean[1], dirty[1])
  everything = run(IMAGE, jnp.ones(4))
  assert np.abs(everything[0] - clean[0]).max() > 1e-3


def test_with_group_norm_an_example_does_not_see_the_others():
  model = resnet.WideResNet(5, depth=10, widen=1, norm='group')
  variables = random_variables(model)
  assert set(variables) == {'params'}
  apply = jax.jit(functools.partial(model.apply, train=True))
  logits = apply(variables, IMAGE)
  others = apply(variables, IMAGE.at[1:].multiply(-3))
  np.testing.assert_array_equal(logits[0], others[0])
  assert np.abs(logits[1:] - others[1:]).max() > 1e-3


def test_dropout_acts_in_training_only():
  model = resnet.WideResNet(
    5, depth=10, widen=1, norm='group', dropout_rate=0.5
  )
  variables = random_variables(model)

  @functools.partial(jax.jit, static_argnames='train')
  def run(seed, *, train):
    rngs = {'dropout': jax.random.key(seed)}
    return model.apply(variables, IMAGE, train=train, rngs=rngs)

  np.testing.assert_array_equal(run(0, train=False), run(1, train=False))
  assert np.abs(run(0, train=True) - run(1, train=True)).max() > 1e-3


def test_bfloat16_computes_in_bfloat16_and_returns_float32():
  model = resnet.WideResNet(5, depth=10, widen=1, dtype=jnp.bfloat16)
  variables = random_variables(model)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  logits, seen = jax.jit(
    functools.partial(
      model.apply, train=False, capture_intermediates=True, mutable=True
    )
  )(variables, IMAGE)
  assert logits.dtype == jnp.float32
  inner = seen['intermediates']['stage_1']['__call__'][0]
  assert inner.dtype == jnp.bfloat16


def test_kernels_start_with_the_variance_of_he():
  block = resnet.PreActBlock(32, 1, 0.0, 'group', None)
  x = jnp.zeros((1, 2, 2, 16))
  init = jax.jit(functools.partial(block.init, train=False))
  params = init(jax.random.key(0), x)['params']
  for name, size in {'conv_0': 9, 'conv_1': 9, 'shortcut': 1}.items():
    variance = np.var(params[name]['kernel'])
    np.testing.assert_allclose(variance, 2 / (32 * size), rtol=0.15)


@pytest.mark.parametrize('kind, width', [('bottleneck', 16), ('basic', 64)])
def test_a_block_starts_as_its_shortcut(kind, width):
  block = resnet.PostActBlock(kind, width, stride=1, norm='batch', dtype=None)
  x = np.random.default_rng(1).normal(size=(2, 4, 4, 64)).astype(np.float32)
  init, apply = (
    jax.jit(functools.partial(f, train=False))
    for f in (block.init, block.apply)
  )
  output = apply(init(jax.random.key(0), x), x)
  np.testing.assert_array_equal(output, np.maximum(x, 0))


@pytest.mark.parametrize(
  'model, word',
  [
    (resnet.WideResNet(10, depth=20), 'depth'),
    (resnet.WideResNet(10, widen=0), 'widen'),
    (resnet.WideResNet(10, depth=10, norm='layer'), 'norm'),
    (resnet.ResNet(10, block='preact'), 'block'),
  ],
)
def test_settings_that_make_no_network_are_refused(model, word):
  with pytest.raises(types.InputError, match=word):
    shapes(model, 32)


def test_mlp_is_a_chain_of_dense_layers_with_relu():
  model = mlp.Mlp(7, features=(6, 5))
  variables = jax.jit(functools.partial(model.init, train=False))(
    jax.random.key(0), IMAGE
  )
  apply = jax.jit(functools.partial(model.apply, train=True))
  x = np.asarray(IMAGE).reshape(4, -1)
  for name in ('hidden_0', 'hidden_1'):
    layer = jax.device_get(variables['params'][name])
    x = np.maximum(x @ layer['kernel'] + layer['bias'][None], 0)
  head = jax.device_get(variables['params']['head'])
  np.testing.assert_allclose(
    apply(variables, IMAGE),
    x @ head['kernel'] + head['bias'][None],
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parity
def test_resnet50_equals_the_implementation_of_transformers():
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = transformers.ResNetConfig(num_labels=12)
  theirs = transformers.ResNetForImageClassification(config).eval()
  model = resnet.ResNet(12)
  image = jnp.asarray(
    np.random.default_rng(2).normal(size=(2, 64, 64, 3)), jnp.float32
  )
  variables = random_variables(model)

  def theirs_name(path):
    """Ours ('stage_1', 'block_0', 'conv_2_norm', 'scale') -> theirs."""
    *where, leaf = path
    leaf = {'kernel': 'weight', 'scale': 'weight', 'var': 'running_var'}.get(
      leaf, {'mean': 'running_mean'}.get(leaf, leaf)
    )
    if where[0] == 'head':
      return f'classifier.1.{leaf}'
    kind = 'normalization' if where[-1].endswith('norm') else 'convolution'
    if where[0].startswith('stem'):
      return f'resnet.embedder.embedder.{kind}.{leaf}'
    stage, block = (int(part[-1]) for part in where[:2])
    name = where[2].removesuffix('_norm')
    place = 'shortcut' if name == 'shortcut' else f'layer.{name[-1]}'
    return f'resnet.encoder.stages.{stage}.layers.{block}.{place}.{kind}.{leaf}'

  state = theirs.state_dict()
  filled = {name for name in state if name.endswith('num_batches_tracked')}
  for collection in variables.values():
    for path, value in trees.flatten(collection).items():
      name, value = theirs_name(path), np.array(value)
      if value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)  # HWIO -> OIHW.
      elif value.ndim == 2:
        value = value.T
      state[name].copy_(torch.from_numpy(value))
      filled.add(name)
  assert filled == set(state)
  with torch.no_grad():
    pixels = torch.from_numpy(np.array(image).transpose(0, 3, 1, 2))
    expected = theirs(pixels).logits.numpy()
  logits = jax.jit(functools.partial(model.apply, train=False))(
    variables, image
  )
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def learns(**settings):
  return downsampling.Downsampling('diffstride', **settings)


@pytest.mark.parametrize(
  'stride, side',
  [
    (None, 4),
    (downsampling.Downsampling(strides=(4, 1)), 4),
    (downsampling.Downsampling('spectral'), 4),
    (downsampling.Downsampling('spectral', strides=(1.5, 3)), 3),
    (learns(smoothness=1.0), 8),
    (learns(smoothness=1.0, sizes=((12, 12), (8, 8))), 8),
    (learns(smoothness=1.0, sizes='full'), 16),
  ],
)
@pytest.mark.parametrize('kind', ['preact', 'basic'])
def test_one_field_says_how_maps_shrink(stride, side, kind):
  if kind == 'preact':
    net = resnet.PreActResNet(10, (1, 1, 1), width=16, stride=stride)
    image = jnp.zeros((1, 16, 16, 3))
  else:
    net = resnet.ResNet(10, (1, 1, 1), 'basic', stride=stride)
    image = jnp.zeros((1, 64, 64, 3))  # A stem of stride 4.
  variables, seen = jax.eval_shape(
    lambda rng: (
      net.init(rng, image, train=False),
      net.apply(
        net.init(rng, image, train=False),
        image,
        train=False,
        capture_intermediates=True,
        mutable=True,
      )[1],
    ),
    jax.random.key(0),
  )
  last = seen['intermediates']['stage_2']['__call__'][0]
  assert last.shape[1:3] == (side, side)
  paths = {'/'.join(x) for x in trees.flatten(variables['params'])}
  learnt = {x for x in paths if x.endswith('strides')}
  block = 'block_0/pool/strides'
  own = {f'stage_1/{block}', f'stage_2/{block}'}
  is_learnt = stride is not None and stride.kind == 'diffstride'
  assert learnt == (own if is_learnt else set())


def test_pooling_before_a_shortcut_of_1_x_1_is_pooling_behind_it():
  pool = learns(smoothness=1.0).stages(2)[1].layer
  x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
  kernel = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
  layer = pool('pool')
  variables = jax.jit(layer.init)(jax.random.key(0), x)
  apply = jax.jit(layer.apply)
  np.testing.assert_allclose(
    np.asarray(apply(variables, x)) @ kernel,
    apply(variables, x @ kernel),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  'stride, word',
  [
    (downsampling.Downsampling('learnt'), 'kind'),
    (downsampling.Downsampling('strided', strides=(1.5, 2)), 'whole'),
    (downsampling.Downsampling('spectral', strides=(0.5, 2)), 'strides'),
    (learns(strides=(2.0,)), '3 stages'),
    (learns(sizes=((8, 8),)), '3 stages'),
  ],
)
def test_strides_that_do_not_fit_are_refused(stride, word):
  with pytest.raises(types.InputError, match=word):
    shapes(resnet.PreActResNet(10, (1, 1, 1), width=16, stride=stride), 16)


def test_a_pooling_is_told_all_that_its_network_was():
  told = dict(
    smoothness=1.5,
    shared=True,
    room=1.25,
    scale='public_code',
    layout='public_code',
  )
  pool = learns(**told).stages(2)[1].layer('pool')
  assert {name: getattr(pool, name) for name in told} == told
