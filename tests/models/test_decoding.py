"""Generation against the teacher-forced model and against counting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.models import decoding
from repjax.models import transformer
from repjax.types import InputError

pytestmark = pytest.mark.versions

VOCAB = 9
MODEL = transformer.DecoderLM(
  VOCAB,
  hidden_dim=8,
  mlp_dim=8,
  num_heads=2,
  num_layers=1,
  num_positions=12,
  embedding_init=jax.nn.initializers.normal(1.0),
  kernel_init=jax.nn.initializers.normal(1.0),
  tied=False,
)
PROMPT = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 0], [0, 1, 1]])


@pytest.fixture(scope='module')
def variables():
  init = functools.partial(MODEL.init, train=False)
  return jax.jit(init)(jax.random.key(0), PROMPT)


@pytest.fixture(scope='module')
def greedy(variables):
  """What whole forward passes write greedily, [B, 6]."""
  forward = jax.jit(functools.partial(MODEL.apply, train=False))
  tokens = np.zeros((4, 9), np.int32)
  tokens[:, :3] = PROMPT
  for at in range(3, 9):
    tokens[:, at] = forward(variables, tokens)[:, at - 1].argmax(-1)
  return tokens[:, 3:]


def test_greedy_is_the_argmax_of_whole_passes(variables, greedy):
  written = decoding.generate(MODEL, variables, PROMPT, max_new_tokens=6)
  np.testing.assert_array_equal(written.tokens, greedy)
  np.testing.assert_array_equal(written.length, [6] * 4)
  assert len(np.unique(greedy)) > 2  # It does not write one token alone.


def test_rows_end_one_by_one_and_the_rest_is_padding(variables, greedy):
  end = int(greedy[0, 2])
  written = decoding.generate(
    MODEL, variables, PROMPT, max_new_tokens=6, end_id=end, pad_id=VOCAB
  )
  for row, tokens in enumerate(greedy):
    ends = np.flatnonzero(tokens == end)
    length = ends[0] + 1 if ends.size else 6
    assert written.length[row] == length
    expected = [*tokens[:length], *[VOCAB] * (6 - length)]
    np.testing.assert_array_equal(written.tokens[row], expected)
  assert min(written.length) < 6


def test_padded_prompts_write_the_same(variables, greedy):
  padded = np.full((4, 5), 2)
  padded[:2, 2:], padded[2:, :3] = PROMPT[:2], PROMPT[2:]
  mask = np.zeros((4, 5))
  mask[:2, 2:] = mask[2:, :3] = 1
  written = decoding.generate(
    MODEL, variables, padded, mask=mask, max_new_tokens=6
  )
  np.testing.assert_array_equal(written.tokens, greedy)


def test_sampling_follows_its_key(variables):
  write = functools.partial(
    decoding.generate,
    MODEL,
    variables,
    PROMPT,
    max_new_tokens=6,
    sampler=decoding.Sampler(),
  )
  first, again, other = (write(rng=jax.random.key(i)).tokens for i in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert (np.asarray(first) != other).any()


def test_encoder_decoder_writes_from_its_source():
  model = transformer.EncoderDecoder(
    VOCAB,
    hidden_dim=8,
    mlp_dim=8,
    num_heads=2,
    num_layers=1,
    num_positions=8,
    kernel_init=jax.nn.initializers.normal(1.0),
  )
  source = np.random.default_rng(0).integers(0, VOCAB, (4, 5))
  start = np.ones((4, 1), np.int32)
  init = functools.partial(model.init, train=False)
  variables = jax.jit(init)(jax.random.key(1), start, source=source)
  written = decoding.generate(
    model, variables, start, source=source, max_new_tokens=5
  )
  tokens = np.concatenate([start, written.tokens], axis=1)
  forward = jax.jit(functools.partial(model.apply, train=False))
  logits = forward(variables, tokens[:, :-1], source=source)
  np.testing.assert_array_equal(written.tokens, logits.argmax(-1))


LOGITS = np.log([[0.05, 0.4, 0.1, 0.25, 0.2], [0.9, 0.02, 0.03, 0.04, 0.01]])


def nucleus(shares, top_k, top_p):
  """Shares after leaving out, by a loop over falling shares."""
  order = np.argsort(-shares)[:top_k]
  kept, total = [], 0.0
  for token in order:
    if total >= top_p - 1e-6:
      break
    kept.append(token)
    total += shares[token] / shares[order].sum()
  result = np.zeros_like(shares)
  result[kept] = shares[kept] / shares[kept].sum()
  return result


@pytest.mark.parametrize(
  ('temperature', 'top_k', 'top_p'),
  [
    (1.0, None, 1.0),
    (0.5, None, 1.0),
    (1.0, 2, 1.0),
    (1.0, None, 0.7),
    (2.0, 4, 0.6),
    (1.0, 99, 1e-3),
  ],
)
def test_shares_of_what_is_drawn(temperature, top_k, top_p):
  sampler = decoding.Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
  draws = jax.jit(
    jax.vmap(lambda rng: sampler(jnp.asarray(LOGITS, jnp.float32), rng))
  )(jax.random.split(jax.random.key(0), 4000))
  for row, logits in enumerate(LOGITS):
    shares = np.exp(logits / temperature)
    expected = nucleus(shares / shares.sum(), top_k, top_p)
    found = np.bincount(draws[:, row], minlength=5) / 4000
    assert not found[expected == 0].any()
    deviation = np.sqrt(expected * (1 - expected) / 4000)
    assert (np.abs(found - expected) <= 4.5 * deviation + 1e-9).all()


def test_temperature_zero_is_greedy():
  sampler = decoding.Sampler(temperature=0.0, top_k=3, top_p=0.5)
  drawn = sampler(jnp.asarray(LOGITS), None)
  np.testing.assert_array_equal(drawn, [1, 0])


@pytest.mark.parametrize(
  'fields',
  [dict(temperature=-1.0), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5)],
)
def test_samplers_out_of_range_are_refused(fields):
  with pytest.raises(InputError, match='temperature >= 0'):
    decoding.Sampler(**fields)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(max_new_tokens=0), 'max_new_tokens >= 1'),
    (dict(max_new_tokens=4, max_length=5), 'need max_length >= 6'),
    (dict(max_new_tokens=11), '13 positions are more than num_positions=12'),
    (dict(max_new_tokens=1, sampler=decoding.Sampler()), 'needs rng'),
  ],
)
def test_lengths_and_keys_are_checked_before_compilation(
  variables, settings, message
):
  with pytest.raises(InputError, match=message):
    decoding.generate(MODEL, variables, PROMPT, **settings)
  with pytest.raises(InputError, match='at least one token'):
    decoding.generate(MODEL, variables, PROMPT[:, :0], max_new_tokens=1)
  with pytest.raises(InputError, match=r'mask must be .*one value a token'):
    mask = np.ones((4, 2))
    decoding.generate(MODEL, variables, PROMPT, mask=mask, max_new_tokens=1)
