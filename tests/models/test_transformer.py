"""Transformers: sizes, an oracle in NumPy, decoding, padding, settings."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import trees
from repjax.layers import attention
from repjax.models import text_heads
from repjax.models import transformer
from repjax.types import InputError

TINY = dict(
  vocab_size=11,
  hidden_dim=8,
  mlp_dim=12,
  num_heads=2,
  num_layers=1,
  num_positions=9,
)
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 7))
SOURCE = np.random.default_rng(1).integers(0, 11, (3, 5))
SOURCE_MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])


def draw(model, **inputs):
  """Variables with random leaves, so that none starts as 0 or 1."""
  rng = np.random.default_rng(2)
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    TOKENS,
    **inputs,
  )
  return jax.tree.map(
    lambda x: rng.normal(0.1, 0.4, x.shape).astype(x.dtype), shapes
  )


@functools.partial(jax.jit, static_argnums=0, static_argnames=('train',))
def apply(model, variables, tokens, *, train=False, rngs=None, **inputs):
  return model.apply(variables, tokens, train=train, rngs=rngs, **inputs)


# The published numbers of parameters of the base models.
@pytest.mark.parametrize(
  ('kind', 'vocab_size', 'geometry', 'count'),
  [
    (transformer.DecoderLM, 50_257, transformer.GPT2, 124_439_808),
    (text_heads.MaskedLM, 30_522, transformer.BERT, 109_514_298),
    (text_heads.MaskedLM, 50_265, transformer.ROBERTA, 124_697_433),
    (transformer.EncoderDecoder, 50_265, transformer.BART, 139_420_416),
  ],
)
def test_published_settings_have_the_published_sizes(
  kind, vocab_size, geometry, count
):
  model = kind(vocab_size, **geometry)
  inputs = {}
  if kind is transformer.EncoderDecoder:
    inputs['source'] = SOURCE
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    TOKENS,
    **inputs,
  )
  assert trees.size(shapes) == count


# One block of GPT-2's and of BERT's kind, written in NumPy.


def norm(x, p):
  mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(var + 1e-5) * p['scale'] + p['bias']


def mlp(x, p, *, exact):
  hidden = x @ p['hidden']['kernel'] + p['hidden']['bias']
  hidden = np.asarray(nn.gelu(jnp.asarray(hidden), approximate=not exact))
  return hidden @ p['out']['kernel'] + p['out']['bias']


def attend(x, p, *, causal):
  query, key, value = (
    np.einsum('ld,dhk->hlk', x, p[name]['kernel']) + p[name]['bias'][:, None]
    for name in ('query', 'key', 'value')
  )
  scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
  if causal:
    scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  heads = np.einsum('hqk,hkd->qhd', weights, value)
  return np.einsum('qhd,hdo->qo', heads, p['out']['kernel']) + p['out']['bias']


def test_decoder_is_pre_norm_with_tied_logits():
  model = transformer.DecoderLM(**TINY)
  variables = draw(model)
  found = apply(model, variables, TOKENS)
  p = jax.device_get(variables['params'])
  embedding, block = p['token_embedding']['embedding'], p['decoder']['block_0']
  for row, tokens in enumerate(TOKENS):
    x = embedding[tokens]
    x = x + p['decoder']['position_embedding']['embedding'][: len(tokens)]
    x = x + attend(
      norm(x, block['attention_norm']), block['attention'], causal=True
    )
    x = x + mlp(norm(x, block['mlp_norm']), block['mlp'], exact=False)
    logits = norm(x, p['decoder']['norm']) @ embedding.T
    np.testing.assert_allclose(found[row], logits, atol=2e-5)


def test_encoder_is_post_norm_with_types_and_an_offset():
  model = transformer.Encoder(
    **TINY,
    norm='post',
    embedding_norm=True,
    num_token_types=2,
    position_offset=2,
    activation='gelu_exact',
  )
  types = np.random.default_rng(3).integers(0, 2, TOKENS.shape)
  variables = draw(model)
  found = apply(model, variables, TOKENS, token_types=types)
  p = jax.device_get(variables['params'])
  encoder, block = p['encoder'], p['encoder']['block_0']
  for row, tokens in enumerate(TOKENS):
    x = p['token_embedding']['embedding'][tokens]
    x = x + encoder['position_embedding']['embedding'][2 : 2 + len(tokens)]
    x = x + encoder['type_embedding']['embedding'][types[row]]
    x = norm(x, encoder['embedding_norm'])
    x = norm(
      x + attend(x, block['attention'], causal=False), block['attention_norm']
    )
    x = norm(x + mlp(x, block['mlp'], exact=True), block['mlp_norm'])
    np.testing.assert_allclose(found[row], x, atol=2e-5)


@functools.partial(jax.jit, static_argnums=(0, 3))
def prefill(model, variables, tokens, max_length, inputs):
  return model.apply(
    variables, tokens, max_length=max_length, method='prefill', **inputs
  )


@functools.partial(jax.jit, static_argnums=0)
def step(model, variables, state, tokens):
  return model.apply(variables, state, tokens, method='step')


@pytest.mark.parametrize(
  ('position', 'num_layers', 'padding'),
  [('learned', 2, 'left'), ('sinusoidal', 1, 'none'), ('rotary', 1, 'right')],
)
def test_decoding_equals_the_teacher_forced_pass(position, num_layers, padding):
  model = transformer.DecoderLM(
    **{**TINY, 'num_layers': num_layers}, position=position
  )
  variables = draw(model)
  whole = apply(model, variables, TOKENS)
  prompt, mask = np.full((3, 5), 10), np.zeros((3, 5))
  part = {'left': slice(2, 5), 'right': slice(0, 3), 'none': slice(0, 3)}
  prompt[:, part[padding]] = TOKENS[:, :3]
  mask[:, part[padding]] = 1
  inputs = {'mask': mask}
  if padding == 'none':
    prompt, inputs = prompt[:, :3], {}
  logits, state = prefill(model, variables, prompt, 9, inputs)
  np.testing.assert_allclose(logits, whole[:, 2], atol=1e-5)
  for at in range(3, 7):
    logits, state = step(model, variables, state, TOKENS[:, at])
    np.testing.assert_allclose(logits, whole[:, at], atol=1e-5)
  if padding == 'left':  # A row of padding alone begins at the first place.
    _, state = prefill(model, variables, prompt, 9, {'mask': 0 * mask})
    logits, _ = step(model, variables, state, TOKENS[:, 0])
    np.testing.assert_allclose(logits, whole[:, 0], atol=1e-5)
  # The positions tell tokens apart: a text backwards is another one.
  backwards = apply(model, variables, TOKENS[:, ::-1])
  assert np.abs(backwards[:, 0] - whole[:, -1]).max() > 1e-2


def test_encoder_decoder_decodes_as_it_is_teacher_forced():
  model = transformer.EncoderDecoder(
    **TINY, norm='post', embedding_norm=True, num_decoder_layers=1
  )
  inputs = {'source': SOURCE, 'source_mask': SOURCE_MASK}
  variables = draw(model, **inputs)
  whole = apply(model, variables, TOKENS, **inputs)
  logits, state = prefill(model, variables, TOKENS[:, :1], 7, inputs)
  np.testing.assert_allclose(logits, whole[:, 0], atol=1e-5)
  for at in range(1, 7):
    logits, state = step(model, variables, state, TOKENS[:, at])
    np.testing.assert_allclose(logits, whole[:, at], atol=1e-5)
  # Padding of the source counts for nothing, the rest of it does.
  other = np.where(SOURCE_MASK > 0, SOURCE, (SOURCE + 1) % 11)
  again = apply(model, variables, TOKENS, **{**inputs, 'source': other})
  np.testing.assert_array_equal(again, whole)
  moved = apply(model, variables, TOKENS, **{**inputs, 'source': SOURCE[::-1]})
  assert np.abs(moved - whole).max() > 1e-2


@pytest.mark.parametrize('kind', ['masked', 'first', 'mean'])
def test_padding_changes_no_output_of_an_encoder(kind):
  model = {
    'masked': text_heads.MaskedLM(**TINY),
    'first': text_heads.Classifier(**TINY, num_classes=3),
    'mean': text_heads.Classifier(
      **TINY, num_classes=3, pool='mean', pooler=False
    ),
  }[kind]
  variables = draw(model)
  bare = apply(model, variables, TOKENS[:, :4])
  mask = np.arange(7) < 4
  padded = apply(
    model, variables, TOKENS, mask=np.broadcast_to(mask, TOKENS.shape)
  )
  if kind == 'masked':
    padded = padded[:, :4]
  np.testing.assert_allclose(padded, bare, atol=1e-5)
  assert np.isfinite(bare).all()


def test_recomputing_blocks_changes_no_gradient_and_no_dropout():
  def gradient(**fields):
    model = transformer.DecoderLM(
      **TINY, dropout_rate=0.3, attention_dropout_rate=0.2, **fields
    )
    variables = draw(model)

    @jax.jit
    def fn(variables):
      rngs = {'dropout': jax.random.key(1)}
      logits = model.apply(variables, TOKENS, train=True, rngs=rngs)
      return jnp.square(logits).mean()

    return jax.grad(fn)(variables)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    gradient(),
    gradient(remat=True),
  )


def test_dropout_needs_train_and_a_key():
  model = transformer.DecoderLM(**TINY, dropout_rate=0.5)
  variables = draw(model)
  calm = apply(model, variables, TOKENS)
  keys = [{'dropout': jax.random.key(i)} for i in (0, 0, 1)]
  first, again, other = (
    apply(model, variables, TOKENS, train=True, rngs=rngs) for rngs in keys
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3
  assert np.abs(first - calm).max() > 1e-3


def test_types_of_the_computation():
  model = transformer.DecoderLM(**TINY, dtype=jnp.bfloat16)
  variables = draw(model)
  shapes = jax.eval_shape(
    lambda v: model.apply(
      v,
      TOKENS,
      train=False,
      capture_intermediates=True,
      mutable='intermediates',
    ),
    variables,
  )
  logits, inside = shapes
  assert logits.dtype == jnp.float32
  block = inside['intermediates']['decoder']['block_0']
  assert block['attention']['__call__'][0][0].dtype == jnp.bfloat16
  exact = apply(transformer.DecoderLM(**TINY), variables, TOKENS)
  rough = apply(model, variables, TOKENS)
  assert 0 < np.abs(exact - rough).max() < 0.15 * np.abs(exact).max()


class Recording:
  """Attention that counts its calls; stands for any other `attention_fn`."""

  causal = True

  def __init__(self):
    self.masks = []

  def __call__(self, query, key, value, mask=None, **settings):
    self.masks.append(None if mask is None else mask.shape)
    return attention.softmax_attention(query, key, value, mask=mask)


def test_attention_is_injected_for_self_and_cross_separately():
  encoder, decoder, cross = Recording(), Recording(), Recording()
  model = transformer.EncoderDecoder(
    **TINY,
    attention_fn=encoder,
    decoder_attention_fn=decoder,
    cross_attention_fn=cross,
  )
  jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    TOKENS,
    source=SOURCE,
    source_mask=jnp.asarray(SOURCE_MASK),
  )
  # Linear attention takes masks of keys alone, with one query.
  assert encoder.masks == [(3, 1, 1, 5)]
  assert decoder.masks == [None]
  assert cross.masks == [(3, 1, 1, 5)]


def test_attention_weights_can_be_seen():
  model = transformer.DecoderLM(**TINY)
  forward = functools.partial(
    model.apply, train=False, mutable=['intermediates']
  )
  _, sown = jax.jit(forward)(draw(model), TOKENS)
  block = sown['intermediates']['decoder']['block_0']
  weights = block['attention']['attention_weights'][0]
  assert weights.shape == (3, 2, 7, 7)
  assert not np.triu(weights, 1).any()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(num_heads=3), 'multiple of num_heads'),
    (dict(norm='batch'), "norm must be one of .*got 'batch'"),
    (dict(position='none'), 'position must be one of'),
    (dict(activation='gelu'), "activation must be .*got 'gelu'"),
    (dict(num_positions=None), 'needs num_positions'),
    (dict(num_positions=6), '7 positions are more than num_positions=6'),
    (dict(attention_fn=attention.Softmax()), 'causal=True'),
  ],
)
def test_wrong_settings_are_refused_before_compilation(fields, message):
  model = transformer.DecoderLM(**{**TINY, **fields})
  with pytest.raises(InputError, match=message):
    jax.eval_shape(
      functools.partial(model.init, train=False), jax.random.key(0), TOKENS
    )


@pytest.mark.parametrize(
  ('kind', 'inputs'),
  [
    (transformer.Encoder, dict(mask=(3, 6))),
    (transformer.Encoder, dict(mask=(7,))),
    (transformer.DecoderLM, dict(mask=(1, 7))),
    (transformer.DecoderLM, dict(mask=(3, 1, 1, 7))),
    (
      transformer.EncoderDecoder,
      dict(source=(3, 5), source_mask=(3, 7)),
    ),
    (transformer.EncoderDecoder, dict(source=(3, 5), mask=(3, 5))),
  ],
)
@pytest.mark.parametrize('position', ['learned', 'rotary'])
def test_masks_of_another_shape_are_refused(kind, inputs, position):
  model = kind(**TINY, position=position)
  inputs = {name: np.ones(shape, np.int32) for name, shape in inputs.items()}
  with pytest.raises(InputError, match=r'mask must be .*one value a token'):
    jax.eval_shape(
      functools.partial(model.init, train=False),
      jax.random.key(0),
      TOKENS,
      **inputs,
    )


def test_attention_that_cannot_decode_is_refused():
  model = transformer.DecoderLM(**TINY, attention_fn=Recording())
  with pytest.raises(InputError, match='cannot decode'):
    jax.eval_shape(
      functools.partial(model.init, method='prefill', max_length=9),
      jax.random.key(0),
      TOKENS,
    )


def test_packed_texts_need_a_number_of_positions_too():
  model = transformer.DecoderLM(
    11, hidden_dim=8, mlp_dim=8, num_heads=2, num_layers=1
  )
  tokens = np.ones((1, 4), np.int32)
  with pytest.raises(InputError, match='needs num_positions'):
    model.init(jax.random.key(0), tokens, train=False, segments=tokens)
