"""Device code: pyramidal attention and the coarse nodes that it needs.

Liu et al., 'Pyraformer', ICLR 2022, sections 3.1 and 3.2.
https://openreview.net/forum?id=0EXmFzUn5I
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from repjax.layers import norms
from repjax.layers import pyramid_graph
from repjax.layers.attention import signature
from repjax.types import InputError

# Numbers of an array of rows that are handled at once on CPUs, so that some
# ten of them stay in a core's cache, and the least nodes that are worth a loop.
_BLOCK_NUMBERS, _SMALLEST_BLOCK = 2**15, 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pyramidal(signature.Attention):
  """Attention of each node to its neighbours, children and parent (eq. 2-3).

  O(n (A + C + 1)) time and memory, forward and backward: rows are gathered by
  lists of neighbours, one place of the lists at a time, on CPUs one block of
  nodes after the other, and no n x n mask is ever made. (The authors' code
  masks dense attention, but for a CUDA kernel.)
  Gradients of keys and values are gathered, too, in place of scattered: the
  graph is the same backward. They can be taken again, but not forward-mode.

  Attributes:
    pyramid: The graph. Queries, keys and values are its nodes.
  """

  pyramid: pyramid_graph.Pyramid

  def _attend(self, query, key, value, settings):
    num_nodes = self.pyramid.num_nodes
    for name, x in (('queries', query), ('keys', key), ('values', value)):
      if x.ndim != 4 or x.shape[1] != num_nodes:
        raise InputError(
          f'the pyramid has {num_nodes} nodes (levels {self.pyramid.sizes}), '
          f'but {name} have shape {x.shape}'
        )
    if settings.bias is not None or settings.mask is not None:
      raise InputError('pyramidal attention takes no bias and no mask')
    _, valid, _ = pyramid_graph.neighbours(self.pyramid)
    batch, _, heads, _ = query.shape
    keep = jnp.ones((), jnp.float32)
    if settings.drops:
      rate = settings.dropout_rate
      shape = (1 if settings.broadcast_dropout else batch, *valid.shape, heads)
      kept = jax.random.bernoulli(settings.dropout_rng, 1 - rate, shape)
      keep = kept.astype(jnp.float32) / (1 - rate)
    return _attend(self.pyramid, query, key, value, keep)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(pyramid, query, key, value, keep):
  """[B, n, H, V]; `keep` [B, n, K, H] multiplies the weights, or [] is 1."""
  return _forward(pyramid, query, key, value, keep)[0]


def _forward(pyramid, query, key, value, keep):
  num_heads, dim = query.shape[2:]
  q, k, v = (_flat(x) for x in (query, key, value))

  def attended(take):
    index, valid, _ = _lists(pyramid, take)
    q_here = take(q)
    scores = jnp.stack(
      [_per_head(q_here * k[:, x], num_heads) for x in index], 2
    )  # [B, n, K, H]
    scores = jnp.where(valid, scores * dim**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=2)
    return _weighted(weights * take(keep), v, index), weights

  output, weights = _in_blocks(attended, pyramid, q, v)
  output = output.reshape(*query.shape[:3], value.shape[3]).astype(value.dtype)
  return output, (query, key, value, weights, keep)


def _backward(pyramid, saved, grad):
  query, key, value, weights, keep = saved
  num_heads, dim = query.shape[2:]
  q, k, v, g = (_flat(x) for x in (query, key, value, grad))

  def of_seers(take):
    index, _, _ = _lists(pyramid, take)
    g_here, here = take(g), take(weights)
    of_weights = take(keep) * jnp.stack(
      [_per_head(g_here * v[:, x], num_heads) for x in index], 2
    )
    inner = (here * of_weights).sum(2, keepdims=True)
    of_scores = here * (of_weights - inner) * dim**-0.5
    return _weighted(of_scores, k, index), of_scores

  of_query, of_scores = _in_blocks(of_seers, pyramid, q, v)

  def of_seen(take):
    index, valid, back = _lists(pyramid, take)

    def reversed_(x):
      """What the neighbours' lists say of a node, [B, n, K, H]."""
      rows = x.reshape(x.shape[0], x.shape[1] * x.shape[2], num_heads)[:, back]
      return jnp.where(valid, rows, 0)

    return (
      _weighted(reversed_(of_scores), q, index),
      _weighted(reversed_(weights * keep), g, index),
    )

  of_key, of_value = _in_blocks(of_seen, pyramid, q, v)
  shaped = (
    x.reshape(like.shape).astype(like.dtype)
    for x, like in ((of_query, query), (of_key, key), (of_value, value))
  )
  return (*shaped, jnp.zeros_like(keep))  # What is drawn has no gradient.


_attend.defvjp(_forward, _backward)


def _lists(pyramid, take):
  """Neighbours K x [n], valid [1, n, K, 1] and back [n, K] of some nodes."""
  index, valid, back = pyramid_graph.neighbours(pyramid)
  return (
    take(index[None])[0].T,
    take(valid[None, ..., None]),
    take(back[None])[0],
  )


def _in_blocks(fn, pyramid, *rows):
  """Arrays that `fn` gives of all nodes, [B, n, ...], some nodes at a time.

  On CPUs each product of rows is written down. Of all nodes, they leave the
  caches, and the allocator gives what is so large back to the system after each
  call: at 16,384 steps of 4 heads of 32, blocks were 5 times as fast forward
  and 7 times with the gradient; at 512, 0.9 and 2 times.

  Args:
    fn: (take) -> arrays; `take` cuts the nodes in question from [B, n, ...].
    pyramid: Whose nodes they are.
    *rows: [B, n, W] each; how large they are tells how many nodes to take.
  """
  num_nodes = pyramid.num_nodes
  numbers = max(x[:, 0].size for x in rows)  # Of a node, in all of the batch.
  size = max(_SMALLEST_BLOCK, _BLOCK_NUMBERS // max(numbers, 1))
  if jax.default_backend() != 'cpu' or size >= num_nodes:
    return fn(lambda x: x)
  # Blocks as even as can be; the last one begins where it ends with the last
  # node, and what it shares with the one before is made twice.
  size = -(-num_nodes // -(-num_nodes // size))
  starts = np.minimum(np.arange(0, num_nodes, size), num_nodes - size)

  def cut(start):
    def take(x):
      return (
        jax.lax.dynamic_slice_in_dim(x, start, size, 1) if jnp.ndim(x) else x
      )

    return fn(take)

  def step(made, start):
    made = [
      jax.lax.dynamic_update_slice_in_dim(x, part, start, 1)
      for x, part in zip(made, cut(start), strict=True)
    ]
    return made, None

  empty = [
    jnp.zeros((x.shape[0], num_nodes, *x.shape[2:]), x.dtype)
    for x in jax.eval_shape(cut, 0)
  ]
  return jax.lax.scan(step, empty, jnp.asarray(starts))[0]


def _flat(x):
  """Heads side by side: rows of one stretch of memory, float32 [B, n, H D]."""
  batch, num_nodes, heads, dim = x.shape  # No -1: a batch may be empty.
  return jnp.asarray(x, jnp.float32).reshape(batch, num_nodes, heads * dim)


def _heads(width, num_heads):
  """Which numbers of a row belong to which head, [width, H]."""
  return jnp.repeat(jnp.eye(num_heads), width // num_heads, axis=0)


def _per_head(x, num_heads):
  """Sums of each head's numbers, [B, n, H D] -> [B, n, H].

  As a product of matrices: XLA:CPU makes no vector code of sums over the last
  axis, which were six times as slow.
  """
  return jnp.matmul(x, _heads(x.shape[-1], num_heads), precision='highest')


def _weighted(weights, rows, index):
  """Sums of the neighbours' rows, [B, n, K, H] and [B, n, H D]."""
  spread = _heads(rows.shape[-1], weights.shape[-1]).T
  return sum(
    jnp.matmul(weights[:, :, i], spread, precision='highest') * rows[:, x]
    for i, x in enumerate(index)
  )


class CoarseNodes(nn.Module):
  """Makes the nodes of the coarser levels, in a narrow space (section 3.2).

  The coarser-scale construction module with its bottleneck: a projection to
  `bottleneck` features, one convolution of kernel and stride C a level, each
  with batch normalisation and ELU, and a projection back. The finest nodes stay
  as they are; a layer normalisation goes over all.

  Attributes:
    pyramid: The graph.
    bottleneck: Width of the convolutions.
    momentum: Weight of the old value in running statistics.
  """

  pyramid: pyramid_graph.Pyramid
  bottleneck: int
  momentum: float = 0.9

  @nn.compact
  def __call__(
    self, tokens: jax.Array, *, train: bool, mask: jax.Array | None = None
  ) -> jax.Array:
    """[B, L, D] -> nodes [B, n, D].

    Args:
      tokens: The finest nodes.
      train: Whether batch statistics are those of this batch.
      mask: [B], 1 for a real row.
    """
    batch, length, dim = tokens.shape
    if length != self.pyramid.length:
      raise InputError(
        f'the pyramid is of {self.pyramid.length} steps, not of {length}'
      )
    if not self.pyramid.children:
      return _norm('norm')(tokens)
    x = nn.Dense(self.bottleneck, name='down')(tokens)
    levels = []
    for i, (count, size) in enumerate(
      zip(self.pyramid.children, self.pyramid.sizes[1:], strict=True)
    ):
      # The last nodes that fill no group of C: the convolution leaves them out,
      # or sees zeros behind them where they have a parent of their own.
      missing = max(0, size * count - x.shape[1])
      x = jnp.pad(x, ((0, 0), (0, missing), (0, 0)))[:, : size * count]
      x = x.reshape(batch, size, count * self.bottleneck)
      x = nn.Dense(self.bottleneck, name=f'conv{i}')(x)
      x = norms.BatchNorm(momentum=self.momentum, name=f'norm{i}')(
        x, train=train, mask=mask
      )
      x = nn.elu(x)
      levels.append(x)
    coarse = nn.Dense(dim, name='up')(jnp.concatenate(levels, 1))
    return _norm('norm')(jnp.concatenate([tokens, coarse], 1))


def _norm(name):
  # Accurate variance; epsilon as in the authors' code.
  return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)
