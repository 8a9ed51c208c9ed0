"""Blocks as one loop: the numbers and trees of blocks one after another."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import checkpoint
from repjax import types
from repjax.layers import adapters
from repjax.layers import frozen
from repjax.layers import layer_inputs
from repjax.layers import layer_outputs
from repjax.layers import performer
from repjax.models import block
from repjax.models import deep
from repjax.models import text_heads
from repjax.models import transformer
from repjax.models import vit
from repjax.privacy import clipping
from repjax.types import InputError
from repjax.weights import text_weights
from repjax.weights import vit_weights

IMAGE = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
TOKENS = np.random.default_rng(1).integers(0, 11, (3, 7))
SOURCE = np.random.default_rng(2).integers(0, 11, (3, 5))
MASK = np.array([[1] * 7, [1] * 5 + [0] * 2, [1] * 6 + [0]])
DEPTH = 3
SMALL = dict(hidden_dim=8, mlp_dim=12, num_heads=2, num_layers=DEPTH)
TEXT = dict(SMALL, vocab_size=11, num_positions=9)


def tiny_vit(**fields):
  return vit.ViT(3, patch_size=4, **(SMALL | fields))


def both(model):
  """One model in both forms."""
  return model.clone(scan_layers=False), model.clone(scan_layers=True)


def draw(model, *inputs, **named):
  """Variables with random leaves, so that none starts as 0 or 1."""
  rng = np.random.default_rng(3)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False, **named),
    jax.random.key(0),
    *inputs,
  )
  return jax.tree.map(
    lambda x: rng.normal(0.1, 0.4, x.shape).astype(x.dtype), shapes
  )


def loops(model, variables, *inputs, depth=DEPTH, **named):
  """Number of loops over as many blocks in the model's forward pass."""
  text = str(
    jax.make_jaxpr(
      lambda variables: model.apply(variables, *inputs, train=False, **named)
    )(variables)
  )
  return text.count(f'length={depth}\n')


MODELS = {
  'ViT': (tiny_vit(), (IMAGE,), {}),
  'ViT, bf16': (tiny_vit(dtype=jnp.bfloat16, pool='average'), (IMAGE,), {}),
  'ViT, drop path': (tiny_vit(drop_path_rate=0.3), (IMAGE,), {}),
  'DecoderLM': (transformer.DecoderLM(**TEXT), (TOKENS,), {}),
  'DecoderLM, rotary, remat': (
    transformer.DecoderLM(**TEXT, position='rotary', remat=True),
    (TOKENS,),
    {},
  ),
  'MaskedLM': (
    text_heads.MaskedLM(**TEXT, norm='post', embedding_norm=True),
    (TOKENS,),
    dict(mask=MASK),
  ),
  'EncoderDecoder': (
    # Of two blocks, since it has two stacks to compile.
    transformer.EncoderDecoder(**TEXT | dict(num_layers=2)),
    (TOKENS,),
    dict(source=SOURCE, source_mask=SOURCE < 9, mask=MASK),
  ),
}


@pytest.mark.parametrize('name', MODELS)
def test_numbers_and_gradients_are_those_of_blocks_one_after_another(name):
  model, inputs, named = MODELS[name]
  plain, scanned = both(model)
  variables = draw(plain, *inputs, **named)
  count = functools.partial(loops, depth=model.num_layers)
  assert count(plain, variables, *inputs, **named) == 0
  assert count(scanned, variables, *inputs, **named) >= 1

  def run(model):
    def loss(variables):
      outputs = model.apply(variables, *inputs, train=False, **named)
      return jnp.mean(jnp.sin(outputs)), outputs

    (_, outputs), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
      variables
    )
    return outputs, grads

  tolerance = 2e-2 if getattr(model, 'dtype', None) is jnp.bfloat16 else 1e-5
  chex.assert_trees_all_close(
    run(scanned), run(plain), rtol=tolerance, atol=tolerance
  )


@pytest.mark.parametrize('name', ['ViT, drop path', 'EncoderDecoder'])
def test_a_seed_gives_the_same_parameters(name):
  model, inputs, named = MODELS[name]
  plain, scanned = (
    jax.jit(functools.partial(each.init, train=True, **named))(
      jax.random.key(1), *inputs
    )
    for each in both(model.clone(num_layers=2))
  )
  chex.assert_trees_all_equal(plain, scanned)


def _gpt2(call, path, params):
  return call(path, params, family='gpt2')


def _state(params):
  step = np.int32(1)
  return types.TrainState(step, params, opt_state=(), model_state={}, extra=())


def _save_checkpoint(path, params):
  store = checkpoint.Checkpoints(str(path))
  store.save(_state(params), {})
  store.close()


def _load_checkpoint(path, shapes):
  store = checkpoint.Checkpoints(str(path))
  like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  state, _ = store.restore(_state(like))
  store.close()
  return state.params


FILES = {
  'ViT': (tiny_vit(), IMAGE, vit_weights.save_npz, vit_weights.load_vit),
  'ViT, checkpoint': (tiny_vit(), IMAGE, _save_checkpoint, _load_checkpoint),
  'GPT-2': (
    transformer.DecoderLM(**transformer.GPT2 | TEXT),
    TOKENS,
    functools.partial(_gpt2, text_weights.save),
    functools.partial(_gpt2, text_weights.load),
  ),
}


@pytest.mark.parametrize('name', FILES)
def test_weights_of_blocks_one_after_another_run_in_the_loop(name, tmp_path):
  model, inputs, save, load = FILES[name]
  plain, scanned = both(model)
  variables = draw(plain, inputs)
  save(tmp_path / 'weights', variables['params'])
  shapes = jax.eval_shape(
    functools.partial(scanned.init, train=False), jax.random.key(0), inputs
  )
  loaded = {'params': load(tmp_path / 'weights', shapes['params'])}
  assert loops(scanned, loaded, inputs) == 1
  found, expected = (
    jax.jit(functools.partial(model.apply, train=False))(leaves, inputs)
    for model, leaves in ((scanned, loaded), (plain, variables))
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def loss_of(model, *inputs, **named):
  """Mean of a function of the outputs, by all variables."""

  def loss(variables):
    return jnp.sin(model.apply(variables, *inputs, train=False, **named)).mean()

  return jax.jit(jax.value_and_grad(loss))


def test_every_block_is_given_by_its_name():
  plain, scanned = both(tiny_vit())
  variables = draw(plain, IMAGE)

  def run(model):
    @jax.jit
    def several(variables):
      apply = functools.partial(model.apply, variables, IMAGE, train=False)
      kept = apply(method='each_block')
      _, sown = apply(mutable=['intermediates'])
      _, captured = apply(
        mutable=['intermediates'],
        capture_intermediates=lambda module, _: isinstance(
          module, nn.LayerNorm
        ),
      )
      _, outputs = layer_outputs.with_outputs_of(apply, ['block_1/mlp/hidden'])
      return kept, sown, captured, outputs

    inputs = layer_inputs.layer_inputs(
      functools.partial(model.apply, variables, IMAGE, train=False)
    )
    return *several(variables), inputs

  expected, found = run(plain), run(scanned)
  assert set(found[1]['intermediates']) >= {'block_0', 'block_1', 'block_2'}
  chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_attention_maps_are_the_same():
  plain, scanned = both(tiny_vit())
  variables = draw(plain, IMAGE)
  found, expected = (
    jax.jit(functools.partial(vit.attention_maps, model))(variables, IMAGE)
    for model in (scanned, plain)
  )
  assert found.shape[:3] == (DEPTH, len(IMAGE), 2)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_decoding_gives_the_logits_of_the_whole_text():
  _, model = both(transformer.DecoderLM(**TEXT))
  variables = draw(model, TOKENS)
  expected = jax.jit(functools.partial(model.apply, train=False))(
    variables, TOKENS
  )
  expected = np.asarray(expected)
  logits, state = jax.jit(
    functools.partial(model.apply, max_length=9, method='prefill')
  )(variables, TOKENS[:, :4])
  np.testing.assert_allclose(logits, expected[:, 3], atol=2e-5)
  step = jax.jit(functools.partial(model.apply, method='step'))
  for i in range(4, 7):
    logits, state = step(variables, state, TOKENS[:, i])
    np.testing.assert_allclose(logits, expected[:, i], atol=2e-5)


def test_layers_drop_of_their_own():
  """Dropout has as many masks as layers, and depends on the seed alone."""
  model = tiny_vit(dropout_rate=0.5, scan_layers=True)
  variables = draw(model, IMAGE)

  @jax.jit
  def masks(seed):
    _, sown = model.apply(
      variables,
      IMAGE,
      train=True,
      rngs={'dropout': jax.random.key(seed)},
      mutable=['intermediates'],
      capture_intermediates=lambda module, _: module.name == 'dropout_hidden',
    )
    sown = sown['intermediates']
    return jnp.stack(
      [
        sown[f'block_{i}']['mlp']['dropout_hidden']['__call__'][0] == 0
        for i in range(DEPTH)
      ]
    )

  one = np.asarray(masks(0))
  np.testing.assert_allclose(one.mean((1, 2, 3)), 0.5, atol=0.1)
  for i, j in [(0, 1), (0, 2), (1, 2)]:
    np.testing.assert_allclose((one[i] == one[j]).mean(), 0.5, atol=0.1)
  np.testing.assert_array_equal(one, masks(0))
  assert (one != masks(1)).any()


def test_stochastic_depth_rises_with_the_layer():
  """Rates 0, 0.3 and 0.6: the first block is never left out."""
  image = np.repeat(IMAGE, 250, 0)
  model = tiny_vit(drop_path_rate=0.6, scan_layers=True)
  variables = draw(model, image)
  plain = jax.jit(
    functools.partial(model.apply, train=False, method='each_block')
  )(variables, image)
  left = jax.jit(
    functools.partial(model.apply, train=True, method='each_block')
  )(variables, image, rngs={'dropout': jax.random.key(0)})
  np.testing.assert_allclose(left[0], plain[0], atol=1e-5)
  # A block of which both branches are left out gives what it was given.
  for i, rate in ((1, 0.3), (2, 0.6)):
    same = np.equal(left[i], left[i - 1])
    kept = np.all(same, axis=(1, 2)).mean()
    np.testing.assert_allclose(kept, rate**2, atol=0.06)


def test_random_features_are_drawn_anew_in_every_block():
  attention = performer.Favor(num_features=8, redraw_every=1)
  plain, scanned = both(tiny_vit(attention_fn=attention, num_layers=2))
  rng = np.random.default_rng(3)

  def leaf(path, x):
    if path[-1].key == 'calls':
      return np.zeros(x.shape, x.dtype)
    if path[-1].key == 'key':
      return rng.integers(2**32, size=x.shape, dtype=x.dtype)
    return rng.normal(0.1, 0.4, x.shape).astype(x.dtype)

  variables = jax.tree_util.tree_map_with_path(
    leaf,
    jax.eval_shape(
      functools.partial(plain.init, train=False), jax.random.key(0), IMAGE
    ),
  )
  kinds = [kind for kind in variables if kind != 'params']
  assert kinds

  def run(model):
    apply = functools.partial(model.apply, train=True, mutable=kinds)
    return jax.jit(apply)(variables, IMAGE)

  (logits, changed), expected = run(scanned), run(plain)
  chex.assert_trees_all_close((logits, changed), expected, rtol=1e-5, atol=1e-5)
  before = {kind: variables[kind] for kind in kinds}
  # What is counted has changed: nothing was left behind in the loop.
  assert jax.tree.structure(changed) == jax.tree.structure(before)
  assert any(
    np.any(x != y)
    for x, y in zip(
      jax.tree.leaves(changed), jax.tree.leaves(before), strict=True
    )
  )


RULES: dict[str, Any] = {
  r'.*/(query|value)': adapters.lora(2),
  r'.*/mlp': adapters.parallel_adapter(2),
}


def test_adapters_of_all_blocks_run_in_the_loop():
  plain, scanned = (
    adapters.adapt(x, RULES) for x in both(transformer.DecoderLM(**TEXT))
  )
  variables = draw(plain, TOKENS)
  chex.assert_trees_all_equal_shapes(variables, draw(scanned, TOKENS))
  assert loops(plain, variables, TOKENS) == 0
  assert loops(scanned, variables, TOKENS) == 1
  chex.assert_trees_all_close(
    loss_of(scanned, TOKENS)(variables),
    loss_of(plain, TOKENS)(variables),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize(
  'rules',
  [
    {'.*/block_1/mlp/out': adapters.lora(2)},
    {
      '.*/block_0/mlp/out': adapters.lora(2, alpha=1.0),
      '.*/block_[12]/mlp/out': adapters.lora(2, alpha=8.0),
    },
  ],
  ids=['some', 'unequal'],
)
def test_adapters_that_differ_between_blocks_run_without_the_loop(rules):
  plain, scanned = (
    adapters.adapt(x, rules) for x in both(transformer.DecoderLM(**TEXT))
  )
  variables = draw(plain, TOKENS)
  assert loops(scanned, variables, TOKENS) == 0
  found, expected = (
    jax.jit(functools.partial(model.apply, train=False))(variables, TOKENS)
    for model in (scanned, plain)
  )
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_part_that_trains_gets_the_same_gradient():
  plain, scanned = (
    frozen.train_only(x, lambda path: path[0] in ('block_2', 'head'))
    for x in both(tiny_vit())
  )
  variables = draw(plain, IMAGE)
  assert loops(scanned, variables, IMAGE) == 1
  chex.assert_trees_all_close(
    loss_of(scanned, IMAGE)(variables),
    loss_of(plain, IMAGE)(variables),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize(
  ('method', 'style'),
  [('ghost', 'flat'), ('ghost', 'per_layer'), ('vmap', 'flat')],
)
def test_clipped_gradients_are_the_same(method, style):
  # Two blocks, since those without the loop take long to compile.
  plain, scanned = both(transformer.DecoderLM(**TEXT | dict(num_layers=2)))
  rows = np.random.default_rng(4).integers(0, 11, (4, 7))
  params = draw(plain, rows)['params']

  def clip(model):
    return clipping.clipped_gradient(
      losses_of(model), 0.1, method=method, style=style
    )

  expected = jax.jit(clip(plain))(params, rows)
  found = jax.jit(clip(scanned))(params, rows)
  assert (expected.norms > 0.1).any()  # Some rows are clipped.
  chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


def test_norms_of_one_group_come_out_of_the_loop():
  """Norms by layer are computed in the open, beside the same fallback."""
  _, scanned = both(transformer.DecoderLM(**TEXT))
  params = draw(scanned, TOKENS)['params']
  flat, per_layer = (
    str(
      jax.make_jaxpr(
        clipping.clipped_gradient(
          losses_of(scanned), 0.1, method='ghost', style=style
        )
      )(params, TOKENS)
    ).count(f'length={DEPTH}\n')
    for style in ('flat', 'per_layer')
  )
  assert flat > per_layer


def losses_of(model):
  def losses(params, tokens, rng):
    del rng
    logits = model.apply({'params': params}, tokens, train=False)
    return jnp.sin(logits).mean((1, 2))

  return losses


def test_blocks_of_unequal_parameters_are_refused():
  model = tiny_vit(scan_layers=True)
  variables = draw(model, IMAGE)
  kernel = variables['params']['block_1']['mlp']['hidden']['kernel']
  variables['params']['block_1']['mlp']['hidden']['kernel'] = kernel.astype(
    jnp.bfloat16
  )
  with pytest.raises(
    InputError, match=r'block_0 and block_1 .*scan_layers=Fals'
  ):
    model.apply(variables, IMAGE, train=False)


def test_a_block_that_changes_the_type_of_tokens_is_refused():
  def call(layer, x, **own):
    return layer(x, train=False, **own)

  class Grows(nn.Module):
    @nn.compact
    def __call__(self, x):
      config = block.BlockConfig(mlp_dim=4, num_heads=1)
      layers = [block.Block(config, name=f'block_{i}') for i in range(2)]
      if deep.can_scan(layers):
        return deep.scan(layers, call, x, train=False)[0]
      return call(layers[1], call(layers[0], x)[0])[0]

  x = jnp.ones((1, 2, 4), jnp.bfloat16)
  variables = jax.jit(Grows().init)(jax.random.key(0), x)
  with pytest.raises(InputError, match='bfloat16 to float32: set scan_layers'):
    Grows().apply(variables, x)


class _TwoViews(nn.Module):
  net: vit.ViT

  def __call__(self, image):
    return [self.net(image, train=True) for _ in range(2)]


@pytest.mark.parametrize('scan_layers', [False, True])
def test_two_calls_drop_otherwise(scan_layers):
  net = tiny_vit(dropout_rate=0.5, scan_layers=scan_layers)
  variables = draw(net, IMAGE)
  nested = {'params': {'net': variables['params']}}
  one, other = jax.jit(_TwoViews(net).apply)(
    nested, IMAGE, rngs={'dropout': jax.random.key(0)}
  )
  assert np.not_equal(one, other).all(1).all()
