"""Device code: random projections and the feature maps made of them.

A feature map turns queries and keys [..., H, L, D] into features [..., H, L, M]
whose dot products are, in the mean over projections, a kernel of the two:

  kernel(x, y) = E[values(x) . values(y)] exp(log_scale(x) + log_scale(y)).

Every position has a scale of its own, so that features neither overflow nor
underflow, and no position's features depend on another position.

Choromanski et al., 'Rethinking Attention with Performers', ICLR 2021
(https://arxiv.org/abs/2009.14794); Peng et al., 'Random Feature Attention',
ICLR 2021 (https://arxiv.org/abs/2103.02143).
"""

from collections.abc import Callable
from typing import Literal
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.types import InputError


class Features(NamedTuple):
  """What a feature map gives.

  Attributes:
    values: [..., H, L, M], float32.
    log_scale: What `values` are to be multiplied by, as a logarithm,
      [..., H, L]; None for a factor of 1.
  """

  values: jax.Array
  log_scale: jax.Array | None


# [..., H, L, D] -> Features.
FeatureMap = Callable[[jax.Array], Features]


def identity(features: jax.Array) -> Features:
  """The map for queries and keys that are features already."""
  return Features(features, None)


# Projections.


def haar_orthogonal(rng: jax.Array, dim: int) -> jax.Array:
  """A rotation or reflection from the uniform (Haar) measure, [dim, dim].

  The signs of R's diagonal go into Q. The authors' code leaves them out, and
  its Householder QR then prefers some directions: features of such rows are
  biased, by about a quarter at D = 16.
  """
  q, r = jnp.linalg.qr(jax.random.normal(rng, (dim, dim)))
  return q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)[None]


def draw_projection(
  rng: jax.Array,
  num_features: int,
  dim: int,
  *,
  kind: Literal['orthogonal', 'iid'] = 'orthogonal',
  lengths: Literal['random', 'equal'] = 'random',
) -> jax.Array:
  """Rows of a random projection, [num_features, dim].

  Args:
    rng: Key.
    num_features: M, > 0.
    dim: D, size of a head.
    kind: 'iid' draws from N(0, I); 'orthogonal' makes blocks of D rows
      orthogonal to each other, which keeps the mean of any estimate of the
      softmax kernel and lowers its variance.
    lengths: Of orthogonal rows: 'random' as those of N(0, I), 'equal' to
      sqrt(D) (the authors' scaling 0 and 1; the second is biased).

  Raises:
    ValueError: An argument is out of range.
  """
  if num_features < 1 or dim < 1:
    raise ValueError(
      f'Need num_features >= 1 and dim >= 1; got {num_features=}, {dim=}'
    )
  if kind not in ('orthogonal', 'iid') or lengths not in ('random', 'equal'):
    raise ValueError(
      "kind is 'orthogonal' or 'iid', lengths are 'random' or 'equal'; got "
      f'{kind=}, {lengths=}'
    )
  rng_rows, rng_lengths = jax.random.split(rng)
  if kind == 'iid':
    return jax.random.normal(rng_rows, (num_features, dim))
  rngs = jax.random.split(rng_rows, -(-num_features // dim))
  blocks = jax.vmap(lambda rng: haar_orthogonal(rng, dim))(rngs)
  rows = blocks.reshape(-1, dim)[:num_features]
  if lengths == 'equal':
    return rows * dim**0.5
  gaussian = jax.random.normal(rng_lengths, (num_features, dim))
  return rows * jnp.linalg.norm(gaussian, axis=-1, keepdims=True)


class RandomProjection(nn.Module):
  """A projection that is saved with the model and drawn anew on a schedule.

  Everything lies in the collection 'projection': the 'matrix', a 'key' (drawn
  from the rngs 'params' at init) and the number of 'calls'. Where the caller
  makes that collection mutable, as training does, a call counts, and every
  `redraw_every`-th one draws before it uses. Where not, as in evaluation, the
  projection stands still. What is drawn depends on key and count alone: it is
  equal on all devices, and in all passes of a step that start from the same
  collections (SAM's two). A step of n microbatches makes n calls: there
  `redraw_every` should be a multiple of n. Under vmap every call draws, and
  most drop what they drew.

  Attributes:
    draw: Key -> projection.
    redraw_every: Calls between two draws, >= 0; 0 never draws again.
  """

  draw: Callable[[jax.Array], jax.Array]
  redraw_every: int = 0

  @nn.compact
  def __call__(self) -> jax.Array:
    """The projection as `draw` makes it."""
    if self.is_initializing():
      if not self.has_rng('params'):
        raise InputError(
          "a random projection is drawn from the rngs 'params': pass them to "
          'init'
        )
    elif not self.has_variable('projection', 'matrix'):
      raise InputError(
        "the variables have no collection 'projection': pass all that init "
        'returned, not the parameters alone'
      )
    redraws = (
      self.redraw_every > 0
      and not self.is_initializing()
      and self.is_mutable_collection('projection')
    )
    if redraws and not (
      self.has_variable('projection', 'key')
      and self.has_variable('projection', 'calls')
    ):
      raise InputError(
        "the collection 'projection' has no 'key' or no 'calls', which a "
        'redraw needs: keep them, or set redraw_every=0'
      )
    if self.is_initializing() or redraws:
      # Raw bits, because a state's leaves are plain arrays; of one kind, so
      # that they can be wrapped again whatever kind of key init was given.
      key = self.variable(
        'projection',
        'key',
        lambda: jax.random.bits(self.make_rng('params'), (2,), jnp.uint32),
      )
      calls = self.variable(
        'projection', 'calls', lambda: jnp.zeros((), jnp.int32)
      )
    matrix = self.variable(
      'projection', 'matrix', lambda: self._draw(key.value, 0)
    )
    drawn = jax.eval_shape(self.draw, jax.random.key(0)).shape
    if matrix.value.shape != drawn:
      raise InputError(
        f'the saved projection is {matrix.value.shape}, this layer draws '
        f'{drawn}, [..., features, size of a head]: it was made for another '
        'num_features or num_heads'
      )
    if redraws:
      count = calls.value
      matrix.value = jax.lax.cond(
        (count > 0) & (count % self.redraw_every == 0),
        lambda: self._draw(key.value, count // self.redraw_every),
        lambda: matrix.value,
      )
      calls.value = count + 1
    return matrix.value

  def _draw(self, key, index):
    rng = jax.random.wrap_key_data(key, impl='threefry2x32')
    return self.draw(jax.random.fold_in(rng, index)).astype(jnp.float32)


# Maps of the softmax kernel exp(x . y).


def positive(
  x: jax.Array, projection: jax.Array, *, epsilon: float = 0.0
) -> Features:
  """FAVOR+'s exp(w . x - |x|^2 / 2) / sqrt(M).

  Args:
    x: [..., H, L, D].
    projection: [M, D], or [H, M, D] with rows of each head's own.
    epsilon: Added to each position's features, whose largest is 1 then, before
      they are divided by sqrt(M).
  """
  x, projected = _project(x, projection)
  top = jax.lax.stop_gradient(projected.max(-1, keepdims=True))
  values = jnp.exp(projected - top) + epsilon
  return Features(
    values * projected.shape[-1] ** -0.5, top[..., 0] - _half_square(x)
  )


def hyperbolic(
  x: jax.Array, projection: jax.Array, *, epsilon: float = 0.0
) -> Features:
  """`positive` for w and -w together: 2 M features, less variance."""
  x, projected = _project(x, projection)
  both = jnp.concatenate([projected, -projected], axis=-1)
  top = jax.lax.stop_gradient(both.max(-1, keepdims=True))
  values = jnp.exp(both - top) + epsilon
  return Features(
    values * both.shape[-1] ** -0.5, top[..., 0] - _half_square(x)
  )


def trigonometric(x: jax.Array, projection: jax.Array) -> Features:
  """exp(|x|^2 / 2) [cos(w . x), sin(w . x)] / sqrt(M): 2 M features.

  Estimates small kernel values badly, and with either sign.
  """
  features, _ = gaussian(x, projection)
  return Features(features, _half_square(_wide(x)))


# Maps of other kernels.


def generalized(
  x: jax.Array,
  projection: jax.Array | None,
  *,
  kernel_fn: Callable[[jax.Array], jax.Array],
  epsilon: float,
) -> Features:
  """kernel_fn(w . x) + epsilon (generalized attention).

  Args:
    x: [..., H, L, D].
    projection: [M, D] or [H, M, D]; None takes x itself, M = D.
    kernel_fn: Elementwise: `jax.nn.relu` is the authors' choice; `jnp.exp`,
      `elu_plus_one`, `jax.nn.gelu`, `jax.nn.sigmoid`, `jnp.tanh`, `jnp.cos` ...
    epsilon: Keeps denominators from 0.
  """
  x = _wide(x) if projection is None else _project(x, projection)[1]
  return Features(kernel_fn(x) + epsilon, None)


def elu_plus_one(x: jax.Array) -> jax.Array:
  """Feature map of linear transformers (https://arxiv.org/abs/2006.16236)."""
  return jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))


def gaussian(x: jax.Array, projection: jax.Array) -> Features:
  """[sin(w . x), cos(w . x)] / sqrt(M): 2 M features (RFA).

  Kernel: exp(-|x - y|^2 / 2) for rows from N(0, I).
  """
  _, projected = _project(x, projection)
  values = jnp.concatenate([jnp.sin(projected), jnp.cos(projected)], axis=-1)
  return Features(values * projected.shape[-1] ** -0.5, None)


def arccos(x: jax.Array, projection: jax.Array) -> Features:
  """relu(w . x) / sqrt(M) (RFA; Cho and Saul, 2009).

  Kernel: |x| |y| (sin(a) + (pi - a) cos(a)) / (2 pi) for an angle of a;
  https://papers.nips.cc/paper/3628-kernel-methods-for-deep-learning.
  """
  _, projected = _project(x, projection)
  return Features(jax.nn.relu(projected) * projected.shape[-1] ** -0.5, None)


def _project(x, projection):
  x = _wide(x)
  # Errors of products turn into factors under exp: no half precision here.
  projected = jnp.einsum(
    '...hld,md->...hlm' if projection.ndim == 2 else '...hld,hmd->...hlm',
    x,
    projection.astype(x.dtype),
    precision=jax.lax.Precision.HIGHEST,
  )
  return x, projected


def _half_square(x):
  return jnp.square(x).sum(-1) / 2


def _wide(x):
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
