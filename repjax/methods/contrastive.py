"""Device code: losses that contrast embeddings, over all devices.

One core, `info_nce`: how likely a row's positives are among all that it is
compared with. NT-Xent, MoCo's loss and SupCon say which these are.

Rows are compared with those of all devices: each device has the losses of its
own rows, the others' embeddings come by a gather that gradients go back
through, and the sum of the devices' gradients is that of one device with all
rows. So a loss must see all rows that its device has: no microbatches, and no
link of an optax chain that takes rows apart. Rows of padding are nobody's
positives or negatives; their embeddings must be finite.

All is float32, whatever the embeddings are, in products as exact as the device
has: divided by a temperature of .07, errors are 14 times as large.

van den Oord, Li and Vinyals, 'Representation Learning with Contrastive
Predictive Coding', 2018. https://arxiv.org/abs/1807.03748
"""

from typing import Literal

import jax
import jax.numpy as jnp

from repjax import parallel
from repjax import types


def info_nce(
  query: jax.Array,
  pool: jax.Array,
  *,
  positive: jax.Array,
  counted: jax.Array,
  temperature: jax.typing.ArrayLike,
) -> jax.Array:
  """-log softmax of a row's positives among all that it is compared with.

  Args:
    query: [B, D]. For cosines, queries and pool have unit norm (`unit`).
    pool: [A, D].
    positive: Which of the pool are a row's positives, bool [B, A]. Those that
      are not counted are none.
    counted: What is in the softmax, bool [A] or [B, A]: positives and
      negatives, without the row itself and without padding.
    temperature: Similarities are divided by it, > 0.

  Returns:
    The mean over a row's positives, [B], float32; 0 without one.
  """
  logits = jnp.matmul(
    query.astype(jnp.float32),
    pool.astype(jnp.float32).T,
    precision=jax.lax.Precision.HIGHEST,
  )
  logits = logits / temperature
  counted = jnp.broadcast_to(counted > 0, logits.shape)
  positive = (positive > 0) & counted
  number = positive.sum(-1)
  # One that is not counted may be anything, and a row may have none at all: the
  # masks are before the logarithm, so that no gradient is NaN.
  low = jnp.finfo(jnp.float32).min
  total = jax.nn.logsumexp(jnp.where(counted, logits, low), axis=-1)
  mean = jnp.where(positive, logits, 0).sum(-1) / jnp.maximum(number, 1)
  return jnp.where(number > 0, total - mean, 0)


def nt_xent(
  first: jax.Array, second: jax.Array, mask: jax.Array, *, temperature: float
) -> jax.Array:
  """SimCLR's loss: each view finds the other among all views of all rows.

  Chen, Kornblith, Norouzi and Hinton, 'A Simple Framework for Contrastive
  Learning of Visual Representations', ICML 2020, eq. 1.
  https://arxiv.org/abs/2002.05709

  The mean over 2N views, as in the paper; the authors' code has the sum of the
  two directions' means, which is twice as much.

  Args:
    first: Unit embeddings of one view of this device's rows, [B, D].
    second: Those of another one.
    mask: 1 for a real row, [B].
    temperature: Similarities are divided by it, > 0.

  Returns:
    The mean of a row's two losses, [B].
  """
  # Every row is a class of its own.
  own = parallel.places(len(mask))
  views = jnp.stack([first, second])
  return sup_con(views, own, mask, temperature=temperature)


def moco(
  query: jax.Array,
  key: jax.Array,
  queue: jax.Array,
  *,
  temperature: float,
  filled: jax.typing.ArrayLike = True,
) -> jax.Array:
  """MoCo's loss: a row finds its own key among those in a queue.

  He, Fan, Wu, Xie and Girshick, 'Momentum Contrast for Unsupervised Visual
  Representation Learning', CVPR 2020, eq. 1. https://arxiv.org/abs/1911.05722

  Args:
    query: Unit embeddings, [B, D].
    key: Those of the momentum encoder, [B, D]; they get no gradient.
    queue: Keys of earlier steps, [K, D].
    temperature: Similarities are divided by it, > 0.
    filled: Which places of the queue hold a key, bool [K], or all.

  Returns:
    [B].
  """
  own = jnp.eye(len(query), dtype=bool)
  earlier = jnp.broadcast_to(filled, (len(query), len(queue)))
  return info_nce(
    query,
    jax.lax.stop_gradient(jnp.concatenate([key, queue])),
    positive=jnp.concatenate([own, jnp.zeros_like(earlier)], 1),
    counted=jnp.concatenate([own, earlier], 1),
    temperature=temperature,
  )


def sup_con(
  views: jax.Array,
  label: jax.Array,
  mask: jax.Array,
  *,
  temperature: float,
  anchors: Literal['all', 'one'] = 'all',
) -> jax.Array:
  """SupCon: a row's positives are all views of all rows with its label.

  Khosla et al., 'Supervised Contrastive Learning', NeurIPS 2020, eq. 2.
  https://arxiv.org/abs/2004.11362

  The authors' code has a further factor, temperature / base_temperature, with
  .07 for the latter.

  Args:
    views: Unit embeddings of V views of this device's rows, [V, B, D].
    label: Integers, [B].
    mask: 1 for a real row, [B].
    temperature: Similarities are divided by it, > 0.
    anchors: Whether 'all' views look for their positives, or the first 'one'.

  Returns:
    The mean over a row's views that look, [B].

  Raises:
    InputError: If `anchors` is neither.
  """
  types.check_choice('anchors', anchors, ('all', 'one'))
  num_views, num_rows = views.shape[:2]
  everyone = parallel.all_gather(views.swapaxes(0, 1))  # [N, V, D]
  labels, real = parallel.all_gather((label, mask))
  place = jnp.arange(everyone.shape[0] * num_views)
  pool_row, pool_view = place // num_views, place % num_views
  positive = label[:, None] == labels[pool_row][None]
  own = parallel.places(num_rows)[:, None] == pool_row[None]

  def loss(view, query):
    return info_nce(
      query,
      everyone.reshape((len(place), -1)),
      positive=positive,
      counted=(real[pool_row] > 0)[None] & ~(own & (pool_view == view)[None]),
      temperature=temperature,
    )

  looking = 1 if anchors == 'one' else num_views
  return sum(loss(i, views[i]) for i in range(looking)) / looking


def unit(x: jax.Array, *, epsilon: float = 1e-12) -> jax.Array:
  """Rows of norm 1, float32; a row of zeros stays one, with gradient.

  Args:
    x: [..., D].
    epsilon: Least norm that a row is divided by.
  """
  x = x.astype(jnp.float32)
  square = jnp.square(x).sum(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, epsilon**2))
