"""T5: buckets by a loop, packed texts apart, decoding equal to one pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repjax import types
from repjax.layers.positions import bucket_bias
from repjax.methods import finetuning
from repjax.methods import language_modeling
from repjax.models import decoding
from repjax.models import t5
from repjax.models import t5_block

CONFIG = t5_block.LayerConfig(
  hidden_dim=12, head_dim=5, mlp_dim=16, num_heads=2
)


def model(**fields):
  return t5.T5(
    30,
    **{
      **dict(config=CONFIG, num_layers=2, num_buckets=8, max_distance=20),
      **fields,
    },
  )


# Compiled once for each network, method and shape.
apply = jax.jit(
  lambda net, variables, *args, **settings: net.apply(
    variables, *args, **settings
  ),
  static_argnums=0,
  static_argnames=('train', 'method', 'max_length'),
)


@functools.cache
def begin(net, rows=2, length=6, size=9):
  rng = np.random.default_rng(0)
  source = rng.integers(2, 30, (rows, size))
  target = rng.integers(2, 30, (rows, length))
  variables = jax.eval_shape(
    functools.partial(net.init, train=False),
    *(jax.random.key(0), target),
    source=source,
  )
  return draw(variables), source, target


def draw(shapes):
  """Random leaves, since an init takes long to compile."""
  rng = np.random.default_rng(1)

  def leaf(path, x):
    center = float(path[-1].key == 'scale')
    return jnp.asarray(rng.normal(center, 0.2, x.shape).astype(x.dtype))

  return jax.tree_util.tree_map_with_path(leaf, shapes)


def bucket_of(distance, number, farthest, *, both):
  """The published rule, a distance at a time."""
  offset = 0
  if both:
    number //= 2
    offset = number if distance > 0 else 0
    distance = abs(distance)
  else:
    distance = max(-distance, 0)
  exact = number // 2
  if distance < exact:
    return offset + distance
  grown = np.log(distance / exact) / np.log(farthest / exact)
  return offset + min(exact + int(grown * (number - exact)), number - 1)


@pytest.mark.parametrize('both', [True, False])
@pytest.mark.parametrize(('number', 'farthest'), [(32, 128), (8, 20)])
def test_buckets_are_a_loop_over_distances(both, number, farthest):
  distance = np.arange(-300, 301)
  found = jax.jit(
    functools.partial(
      bucket_bias.buckets,
      num_buckets=number,
      max_distance=farthest,
      both_sides=both,
    )
  )(distance)
  expected = [bucket_of(x, number, farthest, both=both) for x in distance]
  # Where a logarithm is a whole number, rounding decides.
  np.testing.assert_allclose(found, expected, atol=1)
  assert (np.asarray(found) != expected).mean() < 0.01
  assert (np.asarray(found).min(), np.asarray(found).max()) == (0, number - 1)


@pytest.mark.parametrize(('number', 'farthest'), [(7, 20), (8, 2), (2, 9)])
def test_buckets_that_cannot_be_are_refused(number, farthest):
  layer = bucket_bias.BucketBias(
    2, both_sides=True, num_buckets=number, max_distance=farthest
  )
  with pytest.raises(types.InputError, match='num_buckets'):
    layer.init(jax.random.key(0), jnp.arange(3), jnp.arange(3))


def test_nothing_sees_what_comes_later_or_is_padding():
  net = model()
  variables, source, target = begin(net)
  run = functools.partial(apply, net, train=False)
  mask = np.ones(source.shape)
  mask[:, 6:] = 0
  first = run(variables, target, source=source, source_mask=mask)
  other, later = source.copy(), target.copy()
  other[:, 6:] = 1
  later[:, 4:] = 1
  second = run(variables, later, source=other, source_mask=mask)
  first, second = np.asarray(first), np.asarray(second)
  np.testing.assert_allclose(first[:, :4], second[:, :4], atol=1e-5)
  assert abs(first[:, 4:] - second[:, 4:]).max() > 1e-3


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(source_mask=np.ones((1, 9))), r'mask must be .*\(2, 9\).*\(1, 9\)'),
    (dict(source_mask=np.ones((2, 1))), r'mask must be .*\(2, 9\).*\(2, 1\)'),
    (dict(mask=np.ones((2, 5))), r'mask must be .*\(2, 6\).*\(2, 5\)'),
    (dict(mask=np.ones(6)), r'mask must be .*\(2, 6\).*\(6,\)'),
    (
      dict(segments=np.ones((2, 5), int), source_segments=np.ones((2, 9), int)),
      r'segments must be .*\(2, 6\).*\(2, 5\)',
    ),
    (
      dict(segments=np.ones((2, 6), int), source_segments=np.ones((1, 9), int)),
      r'segments must be .*\(2, 9\).*\(1, 9\)',
    ),
  ],
)
def test_masks_and_segments_have_one_value_a_token(settings, message):
  net = model()
  variables, source, target = begin(net)
  with pytest.raises(types.InputError, match=message):
    apply(net, variables, target, source=source, train=False, **settings)


@pytest.mark.parametrize('mask', [np.ones((1, 6)), np.ones(6)])
def test_the_mask_of_a_prompt_has_one_value_a_token(mask):
  net = model()
  variables, source, target = begin(net)
  with pytest.raises(types.InputError, match=r'mask must be .*\(2, 6\)'):
    net.apply(
      variables,
      target,
      source=source,
      mask=mask,
      max_length=9,
      method='prefill',
    )


@pytest.mark.parametrize('num_positions', [0, 9])
def test_packed_texts_are_what_they_are_alone(num_positions):
  net = model(num_positions=num_positions)
  variables, source, target = begin(net)
  run = functools.partial(apply, net, variables, train=False)
  alone = run(target, source=source)
  if num_positions:
    with pytest.raises(types.InputError, match='num_positions=9'):
      run(target.reshape(1, -1), source=source)
  packed = run(
    target.reshape(1, -1),
    source=source.reshape(1, -1),
    segments=np.repeat([[1, 2]], 6, -1),
    source_segments=np.repeat([[1, 2]], 9, -1),
  )
  np.testing.assert_allclose(
    packed.reshape(alone.shape), alone, rtol=0, atol=1e-5
  )
  # Padding longer than any text may be.
  padded = run(
    np.pad(target.reshape(1, -1), ((0, 0), (0, 14))),
    source=np.pad(source.reshape(1, -1), ((0, 0), (0, 14))),
    segments=np.repeat([[1, 2, 0]], (6, 6, 14), -1),
    source_segments=np.repeat([[1, 2, 0]], (9, 9, 14), -1),
  )
  np.testing.assert_allclose(
    np.asarray(padded)[:, :12], packed, rtol=0, atol=1e-5
  )
  with pytest.raises(types.InputError, match='source_segments'):
    run(target, source=source, segments=np.ones(target.shape))


@pytest.mark.parametrize('num_positions', [0, 9])
def test_decoding_gives_the_logits_of_one_pass(num_positions):
  net = model(
    num_decoder_layers=1, tied=True, scaled=True, num_positions=num_positions
  )
  variables, source, target = begin(net)
  mask = np.ones(source.shape)
  mask[1, 4:] = 0
  run = functools.partial(apply, net, variables)
  whole = np.asarray(run(target, source=source, source_mask=mask, train=False))
  logits, state = run(
    target[:, :2],
    source=source,
    source_mask=mask,
    max_length=6,
    method='prefill',
  )
  np.testing.assert_allclose(logits, whole[:, 1], atol=1e-5)
  for i in range(2, 6):
    # Where the place is known, the last one has room, too.
    known = state._replace(place=np.int32(i))
    np.testing.assert_array_equal(state.place, known.place)
    jax.eval_shape(
      lambda known=known, i=i: net.apply(
        variables, known, target[:, i], method='step'
      )
    )
    logits, state = run(state, target[:, i], method='step')
    np.testing.assert_allclose(logits, whole[:, i], atol=1e-5)
  # Behind its room it says so, or is no number.
  with pytest.raises(types.InputError, match='larger max_length'):
    net.apply(variables, state, target[:, 0], method='step')
  beyond, _ = run(state, target[:, 0], method='step')
  assert np.isnan(beyond).all()
  written = decoding.generate(
    net,
    variables,
    jnp.asarray(target[:, :1]),
    max_new_tokens=4,
    source=jnp.asarray(source),
  )
  again = run(
    np.concatenate([target[:, :1], written.tokens[:, :-1]], 1),
    source=source,
    train=False,
  )
  np.testing.assert_array_equal(np.argmax(again, -1), written.tokens)
  with pytest.raises(types.InputError, match='max_length >= 2'):
    net.apply(
      variables,
      target[:, :2],
      source=source,
      max_length=1,
      method='prefill',
    )
  if num_positions:
    with pytest.raises(types.InputError, match='num_positions=9'):
      net.apply(
        variables, target, source=source, max_length=10, method='prefill'
      )


def test_learned_places_are_added_to_embedded_tokens():
  net, plain = model(num_positions=6), model()
  variables, source, target = begin(net, size=6)
  params = dict(variables['params'])
  table = params.pop('position_embedding')['embedding']
  assert table.shape == (6, 12)
  run = functools.partial(apply, source=source, train=False)
  without = {**params, 'position_embedding': {'embedding': 0 * table}}
  expected = run(plain, {'params': params}, target)
  np.testing.assert_array_equal(run(net, {'params': without}, target), expected)
  assert abs(run(net, variables, target) - expected).max() > 1e-2


def test_it_learns_to_copy_by_lora_and_as_a_whole():
  net = finetuning.adapt(
    model(), kind='lora', rank=4, length=0, scale=2.0, hidden_dim=0
  )
  rng = np.random.default_rng(0)
  rows = rng.integers(2, 30, (8, 4))
  batch = {
    'source': rows,
    'tokens': np.pad(rows, ((0, 0), (1, 0))),
    'mask': np.ones(8, np.float32),
  }
  for made, smallest in ((net, 0.9), (model(), 0.3)):
    method = language_modeling.make(
      made, optax.adam(1e-2), objective='translation'
    )
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    params, frozen = draw((state.params, state.model_state))
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
    state = state.replace(params=params, model_state=frozen)
    update = jax.jit(method.update)
    state, first = update(state, batch, jax.random.key(1))
    for _ in range(60):
      state, sums = update(state, batch, jax.random.key(1))
    assert sums['loss'][0] < smallest * first['loss'][0]


def test_dropout_needs_a_key_and_changes_the_result():
  net = model(
    num_layers=1,
    config=t5_block.LayerConfig(
      hidden_dim=12, head_dim=5, mlp_dim=16, num_heads=2, dropout_rate=0.5
    ),
  )
  variables, source, target = begin(net)
  run = functools.partial(apply, net, variables, target, source=source)
  first, second = (
    run(train=True, rngs={'dropout': jax.random.key(i)}) for i in range(2)
  )
  assert abs(first - second).max() > 0.1


@pytest.mark.parametrize('num_positions', [0, 9])
def test_padding_in_front_changes_no_text(num_positions):
  net = model(num_decoder_layers=1, num_positions=num_positions)
  variables, source, target = begin(net)
  mask = np.ones(source.shape)
  mask[:, :3] = 0
  run = functools.partial(apply, net, variables)
  encode = functools.partial(run, train=False, method='encode')
  np.testing.assert_allclose(
    np.asarray(encode(source, source_mask=mask))[:, 3:],
    encode(source[:, 3:]),
    atol=1e-5,
  )
  own = np.ones(target.shape)
  own[:, :2] = 0
  whole = run(target, source=source, mask=own, train=False)
  logits, _ = run(
    target, source=source, mask=own, max_length=6, method='prefill'
  )
  np.testing.assert_allclose(logits, np.asarray(whole)[:, -1], atol=1e-5)
  with pytest.raises(types.InputError, match='in front of its text'):
    net.apply(
      variables,
      target,
      source=source,
      mask=own[:, ::-1],
      max_length=6,
      method='prefill',
    )
  # In the loop, which is compiled, too.
  write = functools.partial(
    decoding.generate, net, variables, target, source=source, max_new_tokens=2
  )
  assert write(mask=own).tokens.shape == (len(target), 2)
  with pytest.raises(types.InputError, match='in front of its text'):
    write(mask=own[:, ::-1])
