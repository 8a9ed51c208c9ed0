"""Adapters in whole networks: what trains, what stays, what comes out."""

import functools

import chex
from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import optim
from repjax import parallel
from repjax import trees
from repjax import types
from repjax.layers import adapters
from repjax.methods import supervised
from repjax.models import text_heads
from repjax.models import transformer
from repjax.models import vit
from repjax.privacy import clipping
from repjax.privacy.ghost import coverage
from repjax.types import InputError

pytestmark = pytest.mark.versions

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(4, 4, 4, 1)).astype(np.float32)
TOKENS = RNG.integers(0, 11, (3, 7))
SOURCE = RNG.integers(0, 11, (3, 5))
TINY = dict(
  vocab_size=11,
  hidden_dim=8,
  mlp_dim=12,
  num_heads=2,
  num_layers=1,
  num_positions=9,
)
# All that starts at the base network, at once.
STARTS_AT_BASE = {
  r'.*/(query|value|out)': adapters.lora(2),
  r'.*/mlp': adapters.parallel_adapter(3, scale=4.0),
  r'.*(/mlp|attention)': adapters.adapter(3),
  r'.*/(cross_)?attention': adapters.parallel_attention(3),
  r'.*/[a-z_]*attention': adapters.multi_head_parallel(2),
}
MAM = adapters.mam(
  attention='.*attention', ffn='.*/mlp', length=3, rank=4, scale=2.0
)


def small_vit():
  return vit.ViT(
    3,
    patch_size=2,
    hidden_dim=8,
    mlp_dim=12,
    num_heads=2,
    num_layers=1,
    head_init=nn.initializers.normal(1.0),
  )


def start(model, *args, **inputs):
  init = functools.partial(model.init, train=False, **inputs)
  return jax.jit(init)(jax.random.key(0), *args)


def run(model, variables, *args, **inputs):
  apply = jax.jit(functools.partial(model.apply, **inputs))
  return np.asarray(apply(variables, *args))


apply = functools.partial(run, train=False)


def shake(tree):
  """Random leaves, so that no adapter hides behind Wup = 0, or a dead relu."""
  rng = np.random.default_rng(0)

  def draw(path, x):
    center = 3.0 if path[-2:] == ('down', 'bias') else 0.0
    return rng.normal(center, 0.5, x.shape).astype(x.dtype)

  return traverse_util.path_aware_map(draw, tree)


def draw(model, *args, **inputs):
  """Variables with random leaves, without a compilation."""
  init = functools.partial(model.init, train=False, **inputs)
  return shake(jax.eval_shape(init, jax.random.key(0), *args))


def test_starts_at_the_base_exactly():
  adapted = adapters.adapt(small_vit(), STARTS_AT_BASE)
  base = start(small_vit(), IMAGE)
  variables = start(adapted, IMAGE)
  chex.assert_trees_all_equal(variables['base'], base['params'])
  expected = apply(small_vit(), base, IMAGE)
  np.testing.assert_array_equal(apply(adapted, variables, IMAGE), expected)
  # A network whose logits are all equal would prove nothing.
  assert np.abs(expected[0] - expected[1]).max() > 0.1


@pytest.mark.parametrize(
  ('model', 'args', 'inputs'),
  [
    (transformer.Encoder(**TINY), (TOKENS,), {}),
    (transformer.DecoderLM(**TINY), (TOKENS,), {}),
    (
      transformer.EncoderDecoder(**{**TINY, 'remat': True}),
      (TOKENS,),
      {'source': SOURCE},
    ),
  ],
  ids=['encoder', 'decoder', 'encoder-decoder in remat'],
)
def test_every_adapter_has_a_gradient_and_nothing_without_its_up(
  model, args, inputs
):
  adapted = adapters.adapt(model, STARTS_AT_BASE)
  variables = draw(adapted, *args, **inputs)

  def total(params):
    out = adapted.apply(
      {**variables, 'params': params}, *args, train=False, **inputs
    )
    return (out**2).sum(), out

  step = jax.jit(jax.grad(total, has_aux=True))
  grads, _ = step(variables['params'])
  for path, grad in trees.flatten(grads).items():
    assert np.abs(grad).max() > 0, path
  zeros = traverse_util.path_aware_map(
    lambda path, x: x * 0 if {'up', 'value'} & {*path[-2:]} else x,
    variables['params'],
  )
  expected = apply(model, {'params': variables['base']}, *args, **inputs)
  np.testing.assert_array_equal(step(zeros)[1], expected)


@pytest.mark.parametrize('first', ['prefix', 'parallel'])
def test_a_prefix_and_a_branch_of_one_attention_come_in_any_order(first):
  rules = {
    '.*/attention': adapters.prefix(3),
    '.*attention': adapters.parallel_attention(2),
  }
  if first == 'parallel':
    rules = dict(reversed(rules.items()))
  model = adapters.adapt(transformer.DecoderLM(**TINY), rules)
  variables = draw(model, TOKENS)
  found = apply(model, variables, TOKENS)
  expected = apply(
    adapters.adapt(transformer.DecoderLM(**TINY), dict(sorted(rules.items()))),
    variables,
    TOKENS,
  )
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_prefix_decodes_as_it_reads():
  rules = {**MAM, '.*/attention': adapters.multi_head_parallel(2)}
  model = adapters.adapt(transformer.DecoderLM(**TINY), rules)
  variables = draw(model, TOKENS)
  # A row that begins with padding.
  mask = np.ones(TOKENS.shape)
  mask[1, :2] = 0
  expected = apply(model, variables, TOKENS, mask=mask)
  logits, state = jax.jit(
    functools.partial(model.apply, max_length=9, method='prefill')
  )(variables, TOKENS[:, :4], mask=mask[:, :4])
  np.testing.assert_allclose(logits, expected[:, 3], atol=2e-5)
  step = jax.jit(functools.partial(model.apply, method='step'))
  for i in range(4, 7):
    logits, state = step(variables, state, TOKENS[:, i])
    np.testing.assert_allclose(logits, expected[:, i], atol=2e-5)


class Scanned(nn.Module):
  """Blocks of one dense layer and one attention in a scan of remat."""

  @nn.compact
  def __call__(self, x):
    class Block(nn.Module):
      @nn.compact
      def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(2, name='attention')(x)
        return x + nn.Dense(8, name='dense')(x), None

    block = nn.scan(
      nn.remat(Block),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=3,
    )
    return block(name='blocks')(x, None)[0]


def test_adapters_are_scanned_as_their_layers_are():
  x = RNG.normal(size=(2, 4, 8)).astype(np.float32)
  rules = {
    '.*/(dense|query|out)': adapters.lora(2, alpha=4.0),
    '.*/attention': adapters.prefix(
      2, reparametrization=adapters.Reparametrization(3, 4)
    ),
  }
  model = adapters.adapt(Scanned(), rules)
  variables = jax.jit(model.init)(jax.random.key(0), x)
  own = variables['params']['blocks']
  assert own['dense']['lora']['down']['kernel'].shape == (3, 8, 2)
  # Layers have keys of their own.
  assert len(np.unique(own['dense']['lora']['down']['kernel'])) == 48
  params = shake(variables['params'])
  full = {'params': params, 'base': variables['base']}
  expected = run(model, full, x)

  # Plain prefixes, one a layer, then plain weights.
  plain, collapsed = adapters.collapse(model, params)
  assert collapsed['blocks']['attention']['prefix']['key'].shape == (3, 2, 2, 4)
  full = {'params': collapsed, 'base': variables['base']}
  np.testing.assert_allclose(run(plain, full, x), expected, rtol=0, atol=1e-4)
  with pytest.raises(InputError, match="merge: 'prefix' at 'blocks/attention'"):
    adapters.merge(plain, full)
  collapsed['blocks']['attention'].pop('prefix')
  lora = adapters.adapt(Scanned(), dict([next(iter(rules.items()))]))
  unmerged = run(lora, full, x)
  merged = adapters.merge(lora, full)
  found = run(Scanned(), {'params': merged}, x)
  np.testing.assert_allclose(found, unmerged, rtol=1e-5, atol=1e-5)


class Layers(nn.Module):
  """One layer of each kind that has a matrix."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(6, (3, 3), strides=2, name='conv')(x)
    x = nn.DenseGeneral((2, 3), axis=(-2, -1), name='mix')(x)
    return nn.Dense(5, use_bias=False, name='dense')(x)


def test_merged_weights_compute_the_same():
  model = adapters.adapt(
    Layers(),
    {'.+': adapters.lora(2, alpha=5.0)},
    train=lambda p: p[-1] == 'bias',
  )
  variables = jax.jit(model.init)(jax.random.key(0), IMAGE)
  variables['params'] = shake(variables['params'])
  assert 'bias' in variables['params']['conv']
  expected = run(model, variables, IMAGE)
  merged = adapters.merge(model, variables)
  found = run(Layers(), {'params': merged}, IMAGE)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  variables['params'] = jax.tree.map(np.zeros_like, variables['params'])
  assert np.abs(run(model, variables, IMAGE) - expected).max() > 0.1


def test_lora_beside_a_base_that_is_trained_is_merged_and_counted():
  model = adapters.adapt(
    Layers(), {'dense': adapters.lora(2)}, train=lambda path: True
  )
  variables = jax.jit(model.init)(jax.random.key(0), IMAGE)
  assert not variables.get(types.FROZEN)
  variables = {'params': shake(variables['params'])}
  merged = adapters.merge(model, variables)
  np.testing.assert_allclose(
    run(Layers(), {'params': merged}, IMAGE),
    run(model, variables, IMAGE),
    **dict(rtol=1e-5, atol=1e-5),
  )
  found = adapters.budget(model, variables)
  base = jax.eval_shape(Layers().init, jax.random.key(0), IMAGE)
  assert found.base == trees.size(base)


def batch():
  return {
    'image': IMAGE,
    'label': np.arange(4) % 3,
    'mask': np.asarray([1.0, 1, 1, 0], np.float32),
  }


def test_sam_trains_adapters_and_no_bit_of_the_base():
  rules = {'.*/query': adapters.lora(2), **MAM}
  model = adapters.adapt(small_vit(), rules, train=lambda p: p[0] == 'head')
  tx = optax.chain(optim.sam(rho=0.05), optax.adam(1e-2))
  method = supervised.make(model, tx)
  state = jax.jit(method.init)(jax.random.key(0), batch())
  before = trees.flatten(jax.device_get(state.params))
  base = trees.crc32(state.model_state['base'])
  devices = jax.local_devices()[:3]  # A mean over 3 is not exact.
  data = {name: np.concatenate([x] * 3) for name, x in batch().items()}
  step = parallel.train_step(method.update, devices=devices)
  state = parallel.replicate(state, devices=devices)
  for i in range(3):
    state, sums = step(
      state, parallel.shard(data, devices=devices), jax.random.key(i)
    )
  assert np.isfinite(sums['loss'][0])
  assert trees.crc32(jax.device_get(state.model_state['base'])) == base
  # All that is trained has moved, and the optimizer knows of nothing else.
  for path, leaf in trees.flatten(jax.device_get(state.params)).items():
    assert np.any(leaf != before[path]), path
  moments = state.opt_state[1][0].mu
  assert trees.flatten(moments).keys() == before.keys()
  assert {path[0] for path in before} == {'block_0', 'head'}


def test_ghost_clipping_covers_adapters_and_the_base_costs_nothing():
  rules = {
    '.*/(query|value)': adapters.lora(2),
    '.*/mlp': adapters.parallel_adapter(3, scale=2.0),
    '.*/attention': adapters.prefix(2),
  }
  model = adapters.adapt(
    text_heads.Classifier(**TINY, num_classes=3),
    rules,
    train=lambda p: p[0] == 'head',
  )
  variables = draw(model, TOKENS)
  params, base = variables['params'], variables['base']
  rows = {'tokens': TOKENS, 'label': np.asarray([0, 1, 2])}

  def loss(params, batch, rng):
    del rng
    logits = model.apply(
      {'params': params, 'base': base}, batch['tokens'], train=False
    )
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )

  found = coverage.find(
    lambda p, b: loss(p, b, None), params, jax.tree.map(lambda x: x[:1], rows)
  )
  names = list(trees.flatten(params))
  leftover = {names[i][-2:] for i in found.leftover}
  # Prefixes are no dense layers: they have gradients of their own.
  assert leftover == {('prefix', 'key'), ('prefix', 'value')}
  assert len(found.covered) + len(found.leftover) == len(names)
  results = [
    jax.jit(clipping.clipped_gradient(loss, 0.5, method=method))(params, rows)
    for method in ('ghost', 'vmap')
  ]
  chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-6)
  assert (results[0].norms > 0.5).all()


def test_private_steps_see_adapters_alone():
  model = adapters.adapt(small_vit(), {'.*/query': adapters.lora(2)})
  tx = optax.chain(
    optim.dp_sgd(
      0.1, 1.0, expected_batch_size=4, key=jax.random.key(1), method='ghost'
    ),
    optax.adam(1e-3),
  )
  method = supervised.make(model, tx)
  state = jax.eval_shape(method.init, jax.random.key(0), batch())
  # Tracing is enough: it refuses a model that changes other collections.
  after, _ = jax.eval_shape(method.update, state, batch(), jax.random.key(0))
  chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


BART_LARGE = {
  **transformer.BART,
  'vocab_size': 50_265,
  'hidden_dim': 1024,
  'mlp_dim': 4096,
  'num_heads': 16,
  'num_layers': 12,
}


@functools.cache
def bart_budget(*rules):
  model = adapters.adapt(transformer.EncoderDecoder(**BART_LARGE), dict(rules))
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    TOKENS,
    source=SOURCE,
  )
  return adapters.budget(model, shapes)


def test_budgets_on_bart_large_are_those_of_the_paper():
  made = adapters.Reparametrization(1024, 800)
  found = bart_budget(
    *adapters.mam(
      attention='.*attention',
      ffn='.*/mlp',
      length=30,
      rank=512,
      reparametrization=made,
    ).items(),
    ('.*/mlp/(hidden|out)', adapters.lora(102)),
  )
  # 36 attentions, 24 MLPs; bottlenecks have biases, too.
  assert found.base == 406_291_456
  assert found.parts == {
    'prefix': 36 * 2 * 30 * 1024,
    'scaled_parallel': 24 * (2 * 512 * 1024 + 512 + 1024),
    'lora': 24 * 102 * 10 * 1024,
  }
  # What one embedding and MLP for all 36 attentions has more than prefixes.
  making = 30 * 1024 + 1024 * 800 + 800 + 36 * 2 * (800 + 1) * 1024
  assert found.discarded == making - found.parts['prefix']
  mam = found._replace(
    parts={k: v for k, v in found.parts.items() if k != 'lora'}, discarded=0
  )
  # The paper: 6.7 %; prefixes of 200: 3.6 %; a bottleneck of 1024: 12.4 %.
  assert '(6.7 %)' in str(mam)
  assert round(found.parts['lora'] / found.base * 100, 1) == 6.2
  assert round(36 * 2 * 200 * 1024 / found.base * 100, 1) == 3.6
  assert round(24 * 2 * 1024 * 1024 / found.base * 100, 1) == 12.4


def test_the_budget_on_roberta_base_is_that_of_the_paper():
  rules = adapters.mam(
    attention='.*/attention', ffn='.*/mlp', length=16, rank=16, scale=2.0
  )
  model = adapters.adapt(
    text_heads.MaskedLM(50_265, **transformer.ROBERTA), rules
  )
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), TOKENS
  )
  found = adapters.budget(model, shapes)
  assert found.parts['prefix'] == 12 * 2 * 16 * 768
  assert found.parts['scaled_parallel'] == 12 * (2 * 16 * 768 + 16 + 768)
  assert '(0.5 %)' in str(found)


def test_the_base_takes_published_weights():
  model = adapters.adapt(
    small_vit(), {'.*/query': adapters.lora(2)}, train=lambda p: p[0] == 'head'
  )
  variables = draw(model, IMAGE)
  lora = [x for path, x in trees.flatten(variables).items() if 'up' in path]
  for leaf in lora:
    leaf[:] = 0
  published = draw(small_vit(), IMAGE)['params']
  full = adapters.with_base(model, variables, published)
  chex.assert_trees_all_equal(full['params']['head'], published['head'])
  expected = apply(small_vit(), {'params': published}, IMAGE)
  np.testing.assert_array_equal(apply(model, full, IMAGE), expected)
  # It has the methods of the model, and the same masks of dropout.
  features = apply(model, full, IMAGE, method='features')
  assert features.shape == (4, 8) and model.num_layers == 1
  published.pop('cls')
  with pytest.raises(InputError, match=r"missing \['cls'\]"):
    adapters.with_base(model, variables, published)


def test_dropout_masks_are_those_of_the_base():
  base = transformer.Encoder(**TINY, dropout_rate=0.5)
  model = adapters.adapt(base, {'.*/query': adapters.lora(2)})
  variables = draw(model, TOKENS)
  variables['params'] = jax.tree.map(np.zeros_like, variables['params'])
  settings = dict(train=True, rngs={'dropout': jax.random.key(3)})
  np.testing.assert_array_equal(
    run(model, variables, TOKENS, **settings),
    run(base, {'params': variables['base']}, TOKENS, **settings),
  )


@pytest.mark.parametrize(
  ('rules', 'message'),
  [
    (
      {'.*/qerry': adapters.lora(2)},
      r"\['\.\*/qerry'\] select no layer.*query",
    ),
    ({'.*/query': adapters.lora(9)}, r'rank 9 is above the width of layer'),
    ({'.*/mlp': adapters.adapter(9)}, r"mlp', 8 -> 8: choose at most 8"),
    ({'.*/mlp': adapters.lora(2)}, r"'block_0/mlp' is a Mlp"),
    ({'.*/mlp': adapters.prefix(2)}, r'has no attention_fn'),
    (
      {'.*/query': adapters.lora(2), '.*/q.*': adapters.lora(2)},
      r'two adapters of one kind',
    ),
  ],
)
def test_rules_that_do_not_fit_are_refused_before_compute(rules, message):
  model = adapters.adapt(small_vit(), rules)
  with pytest.raises(InputError, match=message):
    jax.eval_shape(
      functools.partial(model.init, train=False), jax.random.key(0), IMAGE
    )


@pytest.mark.parametrize(
  'make',
  [
    lambda: adapters.lora(0),
    lambda: adapters.prefix(-1),
    lambda: adapters.adapter(2.5),
    lambda: adapters.parallel_adapter(2, scale=0.0),
    lambda: adapters.lora(2, dropout_rate=1.0),
    lambda: adapters.prefix(2, reparametrization=adapters.Reparametrization(0)),
    lambda: adapters.adapt(small_vit(), {}),
    lambda: adapters.adapt(small_vit(), {'(': adapters.lora(2)}),
    lambda: adapters.adapt(small_vit(), {'.*/query': 8}),
  ],
)
def test_settings_out_of_range_are_refused(make):
  with pytest.raises(InputError):
    make()


def test_variables_that_do_not_fit_are_named():
  model = adapters.adapt(Layers(), {'dense': adapters.lora(2)})
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGE)
  variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)

  def change(edit):
    changed = jax.tree.map(lambda x: x, variables)
    edit(changed['params']['dense'])
    with pytest.raises(InputError) as error:
      jax.eval_shape(model.apply, changed, IMAGE)
    return str(error.value)

  def add(dense):
    dense['lara'] = {'down': jnp.ones(3)}

  def cut(dense):
    dense['lora']['up']['kernel'] = jnp.ones((3, 5))

  assert 'dense/lora/up' in change(lambda dense: dense['lora']['up'].clear())
  assert "no rule makes ['dense/lara/down']" in change(add)
  assert '/dense/lora/up' in change(cut)
  with pytest.raises(InputError, match="the collection 'base'"):
    model.apply({'params': variables['params']}, IMAGE)
