"""Exact attention against loops in NumPy and against flax's."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax.layers import attention
from repjax.types import InputError

pytestmark = pytest.mark.versions


def inputs(batch=(2,), queries=3, keys=5, heads=2, depth=4, values=4):
  rng = np.random.default_rng(0)

  def draw(length, width):
    shape = (*batch, length, heads, width)
    return rng.normal(size=shape).astype(np.float32)

  return draw(queries, depth), draw(keys, depth), draw(keys, values)


def by_loops(query, key, value):
  output = np.zeros((*query.shape[:3], value.shape[-1]))
  for b, q, h in np.ndindex(*query.shape[:3]):
    scores = key[b, :, h] @ query[b, q, h] / np.sqrt(query.shape[-1])
    weights = np.exp(scores)
    output[b, q, h] = weights @ value[b, :, h] / weights.sum()
  return output


class SoftmaxAttentionTest(parameterized.TestCase):
  def test_each_query_gets_the_softmax_mean_of_the_values(self):
    query, key, value = inputs(values=3)
    np.testing.assert_allclose(
      jax.jit(attention.softmax_attention)(query, key, value),
      by_loops(query, key, value),
      atol=1e-6,
    )

  @parameterized.parameters('plain', 'bias', 'mask', 'dropout', 'own_dropout')
  def test_outputs_and_gradients_are_those_of_flax(self, case):
    rng = np.random.default_rng(1)
    settings = {
      'plain': {},
      'bias': {'bias': rng.normal(size=(2, 3, 5)).astype(np.float32)},
      'mask': {'mask': rng.random((2, 1, 3, 5)) < 0.6},
      'dropout': {'dropout_rng': jax.random.key(0), 'dropout_rate': 0.4},
      'own_dropout': {
        'dropout_rng': jax.random.key(0),
        'dropout_rate': 0.4,
        'broadcast_dropout': False,
      },
    }[case]

    @jax.jit
    def both(*arrays):
      outputs = []
      for attention_fn in (
        attention.softmax_attention,
        nn.dot_product_attention,
      ):
        output, vjp = jax.vjp(
          lambda q, k, v, fn=attention_fn: fn(q, k, v, **settings), *arrays
        )
        outputs.append((output, vjp(jnp.cos(output))))
      return outputs

    with jax.numpy_rank_promotion('allow'):  # Flax promotes the bias.
      ours, theirs = both(*inputs())
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), ours, theirs
    )

  def test_dropout_keeps_the_expectation(self):
    query, key, value = inputs(batch=(1,))
    many = jax.jit(
      jax.vmap(
        lambda rng: attention.softmax_attention(
          query, key, value, dropout_rng=rng, dropout_rate=0.5
        )
      )
    )(jax.random.split(jax.random.key(0), 4000))
    error = np.abs(np.asarray(many).mean(0) - by_loops(query, key, value))
    deviation = np.asarray(many).std(0) / np.sqrt(4000)
    self.assertLess((error / deviation).max(), 5)

  def test_deterministic_needs_no_key(self):
    query, key, value = inputs()
    found = jax.jit(
      functools.partial(
        attention.softmax_attention, dropout_rate=0.5, deterministic=True
      )
    )(query, key, value)
    np.testing.assert_allclose(found, by_loops(query, key, value), atol=1e-6)

  @parameterized.parameters(
    ('mask', (2, 5)),  # [B, K] without axes for heads and queries.
    ('mask', (2, 1, 3, 3)),
    ('mask', (3, 1, 1, 5)),
    ('mask', (7, 2, 1, 1, 5)),
    ('bias', (2, 3, 4)),
  )
  def test_what_does_not_fit_the_scores_is_refused(self, name, shape):
    settings = {name: np.ones(shape, np.float32)}
    with self.assertRaisesRegex(InputError, f'^{name} of shape .* scores'):
      attention.softmax_attention(*inputs(), **settings)

  def test_any_leading_axes_and_vmap_are_the_same(self):
    arrays = inputs(batch=(2, 3))
    whole = np.asarray(jax.jit(attention.softmax_attention)(*arrays))
    mapped = jax.jit(jax.vmap(attention.softmax_attention))(*arrays)
    np.testing.assert_allclose(whole, mapped, atol=1e-6)
    np.testing.assert_allclose(
      whole[1], by_loops(*(array[1] for array in arrays)), atol=1e-6
    )

  def test_forward_derivative_is_the_finite_difference(self):
    query, key, value = inputs()
    _, slope = jax.jit(
      lambda *x: jax.jvp(
        lambda q: attention.softmax_attention(q, key, value), *x
      )
    )((query,), (key[:, :3],))
    step = 1e-4
    ahead = by_loops(query + step * key[:, :3].astype(np.float64), key, value)
    behind = by_loops(query - step * key[:, :3].astype(np.float64), key, value)
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), atol=1e-5)

  def test_softmax_of_bfloat16_is_float32(self):
    # 1,000 equal scores: each weight is 1e-3, and bfloat16 could not add them.
    query = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
    key = jnp.ones((1, 1000, 1, 4), jnp.bfloat16)

    class Sower(nn.Module):
      @nn.compact
      def __call__(self):
        return attention.softmax_attention(query, key, key, module=self)

    output, sown = jax.jit(
      functools.partial(Sower().apply, mutable=['intermediates'])
    )({})
    weights = sown['intermediates']['attention_weights'][0]
    self.assertEqual(weights.dtype, jnp.float32)
    self.assertEqual(output.dtype, jnp.bfloat16)
    self.assertAlmostEqual(float(weights.sum()), 1, delta=1e-5)


def causal_by_loops(query, key, value, mask):
  """Each query alone with the real keys that it may see; 0 if there is none."""
  output = np.zeros((*query.shape[:3], value.shape[-1]))
  for b, q in np.ndindex(*query.shape[:2]):
    seen = np.flatnonzero(mask[b, : q + 1])
    if seen.size:
      output[b, q] = by_loops(
        query[b : b + 1, q : q + 1],
        key[b : b + 1, seen],
        value[b : b + 1, seen],
      )[0, 0]
  return output


class SoftmaxTest(parameterized.TestCase):
  causal = attention.Softmax(causal=True)

  def state(self, max_length=6, **settings):
    return self.causal.init_state(
      batch_size=2,
      max_length=max_length,
      num_heads=2,
      head_dim=4,
      value_dim=3,
      **settings,
    )

  def test_without_causality_it_is_the_function(self):
    arrays = inputs(values=3)
    np.testing.assert_array_equal(
      jax.jit(attention.Softmax())(*arrays),
      jax.jit(attention.softmax_attention)(*arrays),
    )

  @parameterized.parameters('none', 'right', 'left', 'hole')
  def test_prefill_and_steps_are_the_causal_form_over_real_keys(self, padding):
    arrays = inputs(queries=6, keys=6, values=3)
    mask = np.ones((2, 6))
    prompt = {'none': [1, 1, 1], 'right': [1, 1, 0], 'left': [0, 1, 1]}
    mask[1, :3] = prompt.get(padding, [1, 0, 1])
    expected = causal_by_loops(*arrays, mask)
    whole = jax.jit(self.causal)(*arrays, mask=mask[:, None, None] > 0)
    real = mask > 0
    np.testing.assert_allclose(
      np.asarray(whole)[real], expected[real], atol=1e-6
    )

    output, state = jax.jit(self.causal.prefill)(
      self.state(),
      *(x[:, :3] for x in arrays),
      mask=None if padding == 'none' else mask[:, :3],
    )
    outputs = [output]
    step = jax.jit(self.causal.step)
    for at in range(3, 6):
      output, state = step(state, *(x[:, at : at + 1] for x in arrays))
      outputs.append(output)
    decoded = np.concatenate(outputs, axis=1)
    np.testing.assert_allclose(decoded[real], expected[real], atol=1e-6)
    np.testing.assert_array_equal(state.length, [6, 6])

  def test_the_future_changes_nothing(self):
    query, key, value = inputs(queries=6, keys=6)
    later = key.copy()
    later[:, 4:] *= 6
    causal = jax.jit(self.causal)
    first, second = (np.asarray(causal(query, x, value)) for x in (key, later))
    np.testing.assert_array_equal(first[:, :4], second[:, :4])
    self.assertGreater(np.abs(first - second)[:, 4:].max(), 1e-3)

  def test_a_prompt_longer_than_the_cache_is_refused(self):
    arrays = inputs(queries=5, keys=5, values=3)
    with self.assertRaisesRegex(InputError, '5 tokens .*max_length=4'):
      jax.eval_shape(self.causal.prefill, self.state(4), *arrays)

  @parameterized.parameters((1, 5), (2, 4), (2, 1, 1, 5))
  def test_a_mask_of_another_shape_is_refused(self, *shape):
    arrays = inputs(queries=5, keys=5, values=3)
    with self.assertRaisesRegex(InputError, r'mask .*\(2, 5\), got'):
      self.causal.prefill(self.state(), *arrays, mask=np.ones(shape))
    with self.assertRaisesRegex(InputError, '^mask of shape .* scores'):
      self.causal(*arrays, mask=np.ones((2, 5)))

  def test_steps_past_the_end_are_refused_or_nan(self):
    arrays = inputs(queries=4, keys=4, values=3)
    _, state = jax.jit(self.causal.prefill)(self.state(4), *arrays)
    last = [x[:, :1] for x in arrays]
    with self.assertRaisesRegex(InputError, 'max_length=4 is full'):
      self.causal.step(state, *last)
    output, _ = jax.jit(self.causal.step)(state, *last)
    self.assertTrue(np.isnan(output).all())

  def test_what_cannot_be_causal_is_refused(self):
    with self.assertRaisesRegex(InputError, '3 queries and 5 keys'):
      self.causal(*inputs())
    with self.assertRaisesRegex(InputError, 'causal=True'):
      attention.Softmax().step(self.state(), *inputs(queries=1, keys=1))
    with self.assertRaisesRegex(InputError, 'max_length=0'):
      self.state(0)

  def test_every_leaf_has_the_batch_in_front_and_the_type_asked_for(self):
    state = self.state(dtype=jnp.bfloat16)
    self.assertEqual([len(x) for x in jax.tree.leaves(state)], [2] * 4)
    self.assertEqual(state.key.dtype, jnp.bfloat16)
    one = [x.astype(jnp.bfloat16) for x in inputs((2,), 1, 1, values=3)]
    output, state = jax.jit(self.causal.step)(state, *one)
    self.assertEqual(output.dtype, jnp.bfloat16)
    self.assertEqual(state.value.dtype, jnp.bfloat16)


if __name__ == '__main__':
  absltest.main()
