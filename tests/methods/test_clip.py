"""CLIP's losses are loops over pairs; its towers and heads do what they say."""

import dataclasses
import functools

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
from repjax.methods import clip as method
from repjax.methods import contrastive
from repjax.models import clip
from repjax.models import mlp

ROWS, DIM, SCALE, BIAS = 8, 5, 3.0, -2.0
MASK = np.array([1, 1, 0, 1, 1, 1, 0, 0], np.float32)
END = 9
_FIRST = ('token_embedding', 'positions')
TOWER = clip.TowerConfig(hidden_dim=8, mlp_dim=16, num_heads=2, num_layers=1)


def unit(seed):
  x = np.random.default_rng(seed).normal(size=(ROWS, DIM))
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def model(**fields):
  return clip.Clip(
    4,
    clip.VisionTower(TOWER, patch_size=2),
    clip.TextTower(TOWER, vocab_size=10, num_positions=6, end_token=END),
    **fields,
  )


def batch():
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 9, (ROWS, 6))
  tokens[:, 4] = END
  return {
    'image': rng.normal(size=(ROWS, 4, 4, 1)).astype(np.float32),
    'tokens': tokens.astype(np.int32),
    'token_mask': np.repeat([[1, 1, 1, 1, 1, 0]], ROWS, 0).astype(np.float32),
    'mask': MASK,
  }


def test_the_softmax_loss_is_a_loop_over_pairs():
  image, text = unit(0), unit(1)
  found = method.softmax_loss(image, text, MASK, scale=jnp.float32(SCALE))
  real = np.flatnonzero(MASK)
  for i in real:
    losses = [
      np.log(sum(np.exp(SCALE * one[i] @ other[j]) for j in real))
      - SCALE * one[i] @ other[i]
      for one, other in ((image, text), (text, image))
    ]
    np.testing.assert_allclose(found[i], np.mean(losses), rtol=1e-5)


def test_the_sigmoid_loss_is_a_loop_over_pairs():
  image, text = unit(0), unit(1)
  found = method.sigmoid_loss(
    jnp.asarray(image, jnp.float32),
    jnp.asarray(text, jnp.float32),
    MASK,
    scale=jnp.float32(SCALE),
    bias=jnp.float32(BIAS),
  )
  real = np.flatnonzero(MASK)
  for i in real:
    expected = 0.0
    for j in real:
      logit = SCALE * image[i] @ text[j] + BIAS
      expected += np.log1p(np.exp(-logit if i == j else logit))
    np.testing.assert_allclose(found[i], expected, rtol=1e-5)


def test_the_in_modal_loss_is_a_loop_over_other_views():
  first, second = (unit(0), unit(1)), (unit(2), unit(3))
  found = method.in_modal_loss(first, second, MASK, scale=jnp.float32(SCALE))
  real = np.flatnonzero(MASK)
  for i in real:
    losses = [
      np.log(sum(np.exp(SCALE * one[i] @ other[j]) for j in real))
      - SCALE * one[i] @ other[i]
      for one, other in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(found[i], np.mean(losses), rtol=1e-5)


def test_in_modal_needs_other_views_and_adds_their_loss():
  rows = batch()
  made = method.make(model(), optax.sgd(0.0), in_modal=2.0)
  state = jax.jit(made.init)(jax.random.key(0), rows)
  with pytest.raises(types.InputError, match='image_view'):
    jax.eval_shape(made.update, state, rows, jax.random.key(1))
  views = {f'{k}_view': rows[k] for k in ('image', 'tokens', 'token_mask')}
  _, sums = jax.jit(made.update)(state, {**rows, **views}, jax.random.key(1))
  said = jax.jit(made.predict)(state, rows)
  pair = said['image_embedding'], said['text_embedding']
  scale = jnp.exp(state.params['logit_scale'])
  without = (method.softmax_loss(*pair, MASK, scale=scale) * MASK).sum()
  each = method.in_modal_loss(pair, pair, MASK, scale=scale)
  more = sums['loss'][0] - without
  assert more > 0.1
  np.testing.assert_allclose(more, 2 * (each * MASK).sum(), rtol=1e-3)
  # They are of the type of the computation, as first views are.
  half = method.make(
    model(), optax.sgd(0.0), in_modal=2.0, compute_dtype='bfloat16'
  )
  kinds = []

  def look(call, args, kwargs, context):
    if isinstance(context.module, clip.VisionTower):
      kinds.append(args[0].dtype)
    return call(*args, **kwargs)

  with nn.intercept_methods(look):
    jax.eval_shape(half.update, state, {**rows, **views}, jax.random.key(1))
  assert kinds == [jnp.bfloat16] * 2
  # It is of the other view: with another one it is another loss.
  views['tokens_view'] = np.roll(rows['tokens'], 1, axis=0)
  _, other = jax.jit(made.update)(state, {**rows, **views}, jax.random.key(1))
  assert abs(other['loss'][0] - sums['loss'][0]) > 1e-3


@pytest.mark.devices(4)
@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_a_step_on_four_devices_is_that_of_one(loss):
  # The last device holds padding alone.
  fields = dict(initial_bias=BIAS) if loss == 'sigmoid' else {}
  # Its state is the gradient, which no parameter has rounded.
  made = method.make(model(**fields), optax.trace(0.0), loss=loss)
  state = jax.jit(made.init)(jax.random.key(0), batch())
  # Texts begin as embeddings of a width near .02, of which a layer norm makes
  # 1: it enlarges rounding as much, to 2.4e-6 of the largest entry in float32.
  text = state.params['text_tower']
  wide = {x: jax.tree.map(lambda y: 50 * y, text[x]) for x in _FIRST}
  state = state.replace(params={**state.params, 'text_tower': {**text, **wide}})

  def on(number):
    devices = jax.local_devices()[:number]
    found, sums = parallel.train_step(made.update, devices)(
      parallel.replicate(state, devices),
      parallel.shard(batch(), devices),
      jax.random.key(1),
    )
    return jax.device_get((found.opt_state.trace, sums))

  (one, sums), (four, sums_of_four) = on(1), on(4)
  # Biases of keys change no attention.
  moved = jax.tree_util.tree_map_with_path(
    lambda path, x: 'key' in str(path) or abs(x).max() > 1e-4, one
  )
  assert all(jax.tree.leaves(moved)), moved
  largest = max(abs(x).max() for x in jax.tree.leaves(one))
  for found, expected, close in (
    (four, one, dict(rtol=0, atol=1e-6 * largest)),
    (sums_of_four, sums, dict(rtol=1e-5)),
  ):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, **close), found, expected
    )


@pytest.mark.parametrize('ema_decay', [0.0, 0.5])
def test_the_scale_and_its_average_stop_where_they_are_told_to(ema_decay):
  rows = batch()
  made = method.make(
    model(initial_scale=9.0),
    optax.GradientTransformation(
      lambda params: (), lambda grads, state, params: (_raised(grads), state)
    ),
    max_scale=10.0,
    ema_decay=ema_decay,
  )
  state, _ = jax.jit(made.update)(
    jax.jit(made.init)(jax.random.key(0), rows), rows, jax.random.key(1)
  )
  np.testing.assert_allclose(state.params['logit_scale'], np.log(10.0))
  if ema_decay:
    average = state.extra.params['logit_scale']
    np.testing.assert_allclose(average, np.log(10.0), rtol=1e-6)


def _raised(grads):
  zeros = jax.tree.map(jnp.zeros_like, grads)
  return {**zeros, 'logit_scale': jnp.float32(5.0)}


def test_a_text_is_read_where_it_first_ends_and_no_further():
  # A second layer could see what the first one has hidden.
  config = dataclasses.replace(TOWER, num_layers=2)
  tower = clip.TextTower(config, vocab_size=10, num_positions=6, end_token=END)
  tokens = np.array([[1, 2, END, 3, 4, 5], [1, 2, END, END, END, END]])
  variables = jax.jit(functools.partial(tower.init, train=False))(
    jax.random.key(0), tokens
  )
  read = jax.jit(functools.partial(tower.apply, train=False))
  first, second = read(variables, tokens)
  np.testing.assert_allclose(first, second, rtol=1e-5)
  short = read(variables, tokens[:1, :3])
  np.testing.assert_allclose(first, short[0], rtol=1e-5)
  # Without an end, at the last real token.
  bare = np.array([[1, 2, 3, 0, 0, 0]])
  masked = read(variables, bare, mask=np.array([[1, 1, 1, 0, 0, 0]]))
  np.testing.assert_allclose(masked, read(variables, bare[:, :3]), rtol=1e-5)


def test_a_head_of_texts_is_their_mean_direction():
  net = model()
  rows = batch()
  prompts = rows['tokens'].reshape(4, 2, 6)
  made = method.make(net, optax.sgd(0.1), prompts=(prompts, np.ones((4, 2, 6))))
  state = jax.jit(made.init)(jax.random.key(0), rows)
  variables = {'params': state.params}
  head = jax.jit(functools.partial(method.zero_shot_head, net))(
    variables, prompts
  )
  read = jax.jit(
    functools.partial(net.apply, train=False, method='text_embedding')
  )
  for label, texts in enumerate(prompts):
    each = [np.asarray(read(variables, x[None]))[0] for x in texts]
    mean = np.mean([x / np.linalg.norm(x) for x in each], axis=0)
    np.testing.assert_allclose(
      head[label], mean / np.linalg.norm(mean), rtol=1e-4
    )
  found = jax.jit(made.predict)(state, rows)
  np.testing.assert_allclose(
    found['logits'], found['image_embedding'] @ head.T / 0.07, rtol=1e-4
  )


def test_any_classifier_is_a_tower_and_pairs_are_learned():
  net = clip.Clip(
    8,
    mlp.Mlp(16, features=(32,)),
    clip.TextTower(TOWER, vocab_size=10, num_positions=6),
  )
  rows = {**batch(), 'mask': np.ones(ROWS, np.float32)}
  made = method.make(net, optax.adam(1e-2))
  state = jax.jit(made.init)(jax.random.key(0), rows)
  update = jax.jit(made.update)
  for _ in range(60):
    state, sums = update(state, rows, jax.random.key(1))
  assert sums['accuracy'][0] == ROWS
  assert sums['loss'][0] / ROWS < 0.2


@pytest.mark.parametrize('mlp_dim', [256, 64])
def test_initial_kernels_are_as_wide_as_the_authors(mlp_dim):
  config = clip.TowerConfig(
    hidden_dim=64, mlp_dim=mlp_dim, num_heads=4, num_layers=3
  )
  tower = clip.VisionTower(config, patch_size=2)
  init = jax.jit(functools.partial(tower.init, train=False))
  images = np.zeros((1, 4, 4, 3), np.float32)
  params = init(jax.random.key(0), images)['params']['block_0']
  for names, expected in (
    (('attention', 'query'), 64**-0.5),
    (('attention', 'out'), (2 * 3 * 64) ** -0.5),
    (('mlp', 'hidden'), (2 * 64) ** -0.5),
    (('mlp', 'out'), (2 * 3 * 64) ** -0.5),
  ):
    leaf = params[names[0]][names[1]]['kernel']
    np.testing.assert_allclose(np.std(leaf), expected, rtol=0.05)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: method.make(model(), optax.sgd(1.0), loss='sigmoid'),
      'initial_bias=-10',
    ),
    (lambda: method.make(model(), optax.sgd(1.0), loss='hinge'), 'loss'),
    (
      lambda: method.make(model(), optax.sgd(1.0), microbatches=2),
      'microbatches=1',
    ),
    (
      lambda: method.make(model(), optax.sgd(1.0), max_scale=0.0),
      'max_scale',
    ),
    (
      lambda: method.zero_shot_head(model(), {}, np.zeros((2, 3))),
      'prompts',
    ),
    (
      lambda: clip.TextTower(TOWER, vocab_size=10, num_positions=2).init(
        jax.random.key(0), np.zeros((1, 3), int), train=False
      ),
      'num_positions=2',
    ),
    (
      lambda: clip.TowerConfig(
        hidden_dim=8, mlp_dim=8, num_heads=0, num_layers=1
      ),
      'num_heads',
    ),
  ],
)
def test_what_cannot_be_is_refused(make, message):
  with pytest.raises(types.InputError, match=message):
    make()


def test_links_that_look_at_single_rows_are_refused():
  private = optim.dp_sgd(1.0, 1.0, expected_batch_size=1, key=jax.random.key(3))
  made = method.make(model(), private)
  for count in (1, ROWS):
    rows = {name: x[:count] for name, x in batch().items()}
    with pytest.raises(types.InputError, match='compares all rows'):
      state = jax.eval_shape(made.init, jax.random.key(0), rows)
      jax.eval_shape(made.update, state, rows, jax.random.key(1))


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_one_row_a_step_is_refused_where_it_teaches_nothing(loss):
  fields = dict(initial_bias=BIAS) if loss == 'sigmoid' else {}
  made = method.make(model(**fields), optax.sgd(1.0), loss=loss)
  row = {name: x[:1] for name, x in batch().items()}
  if loss == 'softmax':
    state = jax.eval_shape(made.init, jax.random.key(0), row)
    with pytest.raises(types.InputError, match=r'one row.*config\.batch_size'):
      jax.eval_shape(made.update, state, row, jax.random.key(1))
    return
  state = jax.jit(made.init)(jax.random.key(0), row)
  after, _ = jax.jit(made.update)(state, row, jax.random.key(1))
  assert after.params['logit_bias'] > state.params['logit_bias'] + 0.1


def test_embeddings_of_zero_are_no_nan():
  gradient = jax.grad(
    lambda x: method.softmax_loss(
      contrastive.unit(x), contrastive.unit(x), MASK, scale=jnp.float32(1)
    ).sum()
  )(jnp.zeros((ROWS, DIM)))
  assert np.isfinite(gradient).all()


def test_weights_decay_and_gains_biases_and_the_scale_do_not():
  own = model(initial_bias=-10.0)
  rows = batch()
  params = jax.jit(functools.partial(own.init, train=False))(
    jax.random.key(0),
    rows['image'],
    rows['tokens'],
    mask=rows['mask'],
    token_mask=rows['token_mask'],
  )['params']
  tx = optax.adamw(1.0, weight_decay=0.5, mask=method.weight_decay_mask)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(tx.update)(zeros, jax.jit(tx.init)(params), params)
  flat, old = (trees.flatten(x) for x in (updates, params))
  still = {path for path, x in flat.items() if not np.any(x)}
  for path in set(flat) - still:
    np.testing.assert_allclose(flat[path], -0.5 * old[path], rtol=1e-6)
    assert path[-1] in ('kernel', 'embedding') or old[path].ndim > 1, path
  assert {('logit_scale',), ('logit_bias',)} <= still
  assert {x[-1] for x in still} >= {'bias', 'scale'}
  assert not {x[-1] for x in still} & {'kernel', 'embedding'}
