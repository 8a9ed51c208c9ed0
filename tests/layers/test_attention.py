"""Exact attention against loops in NumPy and against flax's."""

from absl.testing import absltest
from absl.testing import parameterized
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repjax.layers import attention


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
      attention.softmax_attention(query, key, value),
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

    ours, theirs = both(*inputs())
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), ours, theirs
    )

  def test_dropout_keeps_the_expectation(self):
    query, key, value = inputs(batch=(1,))
    many = jax.vmap(
      lambda rng: attention.softmax_attention(
        query, key, value, dropout_rng=rng, dropout_rate=0.5
      )
    )(jax.random.split(jax.random.key(0), 4000))
    error = np.abs(np.asarray(many).mean(0) - by_loops(query, key, value))
    deviation = np.asarray(many).std(0) / np.sqrt(4000)
    self.assertLess((error / deviation).max(), 5)

  def test_deterministic_needs_no_key(self):
    query, key, value = inputs()
    found = attention.softmax_attention(
      query, key, value, dropout_rate=0.5, deterministic=True
    )
    np.testing.assert_allclose(found, by_loops(query, key, value), atol=1e-6)

  def test_any_leading_axes_and_vmap_are_the_same(self):
    arrays = inputs(batch=(2, 3))
    whole = attention.softmax_attention(*arrays)
    mapped = jax.vmap(attention.softmax_attention)(*arrays)
    np.testing.assert_allclose(whole, mapped, atol=1e-6)
    np.testing.assert_allclose(
      whole[1], by_loops(*(array[1] for array in arrays)), atol=1e-6
    )

  def test_forward_derivative_is_the_finite_difference(self):
    query, key, value = inputs()
    _, slope = jax.jvp(
      lambda q: attention.softmax_attention(q, key, value),
      (query,),
      (key[:, :3],),
    )
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

    output, sown = Sower().apply({}, mutable=['intermediates'])
    weights = sown['intermediates']['attention_weights'][0]
    self.assertEqual(weights.dtype, jnp.float32)
    self.assertEqual(output.dtype, jnp.bfloat16)
    self.assertAlmostEqual(float(weights.sum()), 1, delta=1e-5)


if __name__ == '__main__':
  absltest.main()
