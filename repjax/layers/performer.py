"""Device code: FAVOR+, the attention of Performers.

Choromanski et al., 'Rethinking Attention with Performers', ICLR 2021
(https://arxiv.org/abs/2009.14794). `Favor` is an `attention_fn`, `favor` a pure
function of a projection, and `diagnose` tells from queries and keys whether the
estimate can be trusted.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax.layers.attention.linear import attention_sums
from repjax.layers.attention.linear import linear_attention_fn
from repjax.layers.attention.linear import random_features
from repjax.layers.attention.linear import rules
from repjax.types import InputError
from repjax.types import check_choice

# One of the three estimates of the softmax kernel, or the elementwise function
# of a generalized one.
Kernel = (
  Literal['positive', 'hyperbolic', 'trigonometric']
  | Callable[[jax.Array], jax.Array]
)

# Added to features whose largest is 1: a denominator of the softmax kernel is
# at least this / M, and 1e-15 is too small to be seen. The authors' 1e-6 draws
# attention towards the mean of all values; PyTorch ports have 1e-4.
_SOFTMAX_EPSILON = 1e-15
_GENERALIZED_EPSILON = 1e-3


def favor(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  projection: jax.Array | None,
  *,
  kernel: Kernel = 'positive',
  causal: bool = False,
  mask: jax.Array | None = None,
  segments: jax.Array | None = None,
  epsilon: float | None = None,
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
  """FAVOR+ attention: O(L M D) time.

  The softmax kernels estimate softmax(q . k / sqrt(D)). Their relative
  variance grows as exp(|q + k|^2 / sqrt(D)) / M: they work where |q| |k| /
  sqrt(D) is about 1 or less; see `diagnose`.

  Args:
    query: [..., Q, H, D], not scaled.
    key: [..., K, H, D].
    value: [..., K, H, V].
    projection: [M, D] of `random_features.draw_projection`, or None for a
      generalized kernel of queries and keys themselves.
    kernel: 'positive', 'hyperbolic' and 'trigonometric' estimate the softmax;
      a function makes generalized attention, see
      `random_features.generalized`. Queries and keys are scaled by D^(-1/4)
      before any kernel.
    causal: Whether a query sees no later keys.
    mask: Which keys there are, [..., K] bool. A query that sees none gives 0.
    segments: Ids >= 0, [..., L] int32, of sequences packed side by side.
    epsilon: Added to features; None is 1e-15 for the positive softmax kernels
      (each position's largest feature is 1 before) and 1e-3 for generalized
      ones. The trigonometric kernel has none.
    chunk_size: Keys at a time, >= 1; None is 1,024, or if causal 128 on CPUs
      and 256 elsewhere.
    precision: Of the sums' products; see `rules.attend`.

  Returns:
    [..., Q, H, V].
  """
  return rules.attend(
    query,
    key,
    value,
    rule(projection, query.shape[-1], kernel=kernel, epsilon=epsilon),
    causal=causal,
    mask=mask,
    segments=segments,
    chunk_size=chunk_size,
    precision=precision,
  )


def rule(
  projection: jax.Array | None,
  head_dim: int,
  *,
  kernel: Kernel = 'positive',
  epsilon: float | None = None,
) -> rules.Rule:
  """FAVOR+ as a rule; arguments as in `favor`."""
  if projection is not None:
    rules.check_head_dim(projection, head_dim)
  _check_kernel(kernel, has_projection=projection is not None)
  if callable(kernel):
    feature_map = functools.partial(
      random_features.generalized,
      projection=projection,
      kernel_fn=kernel,
      epsilon=_GENERALIZED_EPSILON if epsilon is None else epsilon,
    )
  elif kernel == 'trigonometric':
    assert projection is not None  # `_check_kernel` has seen to it.
    feature_map = functools.partial(
      random_features.trigonometric, projection=projection
    )
  else:
    assert projection is not None  # `_check_kernel` has seen to it.
    feature_map = functools.partial(
      {
        'positive': random_features.positive,
        'hyperbolic': random_features.hyperbolic,
      }[kernel],
      projection=projection,
      epsilon=_SOFTMAX_EPSILON if epsilon is None else epsilon,
    )

  def scaled(x):
    return feature_map(x * head_dim**-0.25)

  # Only kernels with either sign can come near 0.
  signed = callable(kernel) or kernel == 'trigonometric'
  return rules.Rule(
    scaled,
    scaled,
    functools.partial(attention_sums.divide, floor=1e-6 if signed else 1e-30),
    positive=not signed,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Favor(linear_attention_fn.LinearAttention):
  """FAVOR+ as an `attention_fn`.

  `nn.MultiHeadDotProductAttention(attention_fn=Favor())` is a Performer's
  attention. Each layer has its own projection, shared by its heads, in the
  collection 'projection' (see `random_features.RandomProjection`): training
  keeps it beside batch statistics, evaluation leaves it as it is.

  Attributes:
    kernel: 'positive', 'hyperbolic', 'trigonometric', or a function.
    projection: Kind of the rows; 'none' for a generalized kernel of queries
      and keys themselves.
    epsilon: Added to features; None is 1e-15, or 1e-3 for a function.

  The others are those of `LinearAttention`.
  """

  num_features: int = 256
  redraw_every: int = 1000
  kernel: Kernel = 'positive'
  projection: Literal['orthogonal', 'iid', 'none'] = 'orthogonal'
  epsilon: float | None = None

  def __post_init__(self):
    super().__post_init__()
    kinds = ('orthogonal', 'iid', 'none')
    check_choice('projection', self.projection, kinds)
    _check_kernel(self.kernel, has_projection=self.projection != 'none')

  def _rule(self, num_heads, head_dim):
    del num_heads  # All heads share the rows.
    projection = None
    if self.projection != 'none':
      draw = functools.partial(
        random_features.draw_projection,
        num_features=self.num_features,
        dim=head_dim,
        kind=self.projection,
      )
      projection = self._inside(
        random_features.RandomProjection(
          draw, redraw_every=self.redraw_every, name='favor'
        )
      )()
    return rule(projection, head_dim, kernel=self.kernel, epsilon=self.epsilon)

  def _num_features(self, head_dim):
    if self.projection == 'none':
      return head_dim
    pairs = self.kernel in ('hyperbolic', 'trigonometric')
    return self.num_features * (2 if pairs else 1)


class Diagnosis(NamedTuple):
  """Relative variances of the kernel estimate, one a head: [..., H].

  Far below 1 the estimate is good; above 1 it is noise, and attention tends to
  the mean of the values or worse.

  Attributes:
    median: Over pairs of a query and a key.
    attended: Mean over pairs, weighted as exact attention weighs them: errors
      there are errors of the output.
    largest: Over pairs.
  """

  median: jax.Array
  attended: jax.Array
  largest: jax.Array


def diagnose(
  query: jax.Array,
  key: jax.Array,
  *,
  num_features: int = 256,
  kernel: Literal['positive', 'hyperbolic', 'trigonometric'] = 'positive',
  max_positions: int = 256,
) -> Diagnosis:
  """Predicts how well a kernel estimate will do, without drawing one.

  Args:
    query: [..., Q, H, D], not scaled.
    key: [..., K, H, D].
    num_features: Rows of the projection.
    kernel: The estimate.
    max_positions: Queries and keys beyond that many are thinned out evenly.
  """

  def thin(x):
    stride = -(-x.shape[-3] // max_positions)
    return x[..., ::stride, :, :].swapaxes(-3, -2).astype(jnp.float32)

  query, key = thin(query), thin(key)  # [..., H, L, D]
  scores = jnp.einsum('...qd,...kd->...qk', query, key)
  squares = (
    jnp.square(query).sum(-1)[..., :, None]
    + jnp.square(key).sum(-1)[..., None, :]
  )
  root = query.shape[-1] ** 0.5
  variance = _relative_variance(
    jnp.maximum(squares + 2 * scores, 0) / root,
    jnp.maximum(squares - 2 * scores, 0) / root,
    num_features,
    kernel,
  )
  weights = jax.nn.softmax(scores / root)
  # Where no attention is, an infinite variance does not matter: 0, not NaN.
  felt = jnp.where(weights > 0, weights * variance, 0)
  return Diagnosis(
    jnp.median(variance, axis=(-2, -1)),
    felt.sum(-1).mean(-1),
    variance.max((-2, -1)),
  )


def relative_variance(
  query: jax.Array,
  key: jax.Array,
  *,
  num_features: int,
  kernel: Literal['positive', 'hyperbolic', 'trigonometric'] = 'positive',
) -> jax.Array:
  """Variance of an estimate of exp(q . k / sqrt(D)) over its square.

  Closed forms, exact for independent rows; orthogonal ones do better. inf
  where float32 ends.

  Args:
    query: [..., D], not scaled.
    key: [..., D].
    num_features: Rows of the projection.
    kernel: The estimate.
  """
  root = query.shape[-1] ** 0.5
  return _relative_variance(
    jnp.square(query + key).sum(-1) / root,
    jnp.square(query - key).sum(-1) / root,
    num_features,
    kernel,
  )


def _relative_variance(far, apart, num_features, kernel):
  """Of squared norms of sums and differences of scaled queries and keys."""
  if kernel == 'positive':
    one = jnp.expm1(far)
  elif kernel == 'hyperbolic':
    one = -jnp.expm1(-far) * jnp.expm1(far) / 2
  elif kernel == 'trigonometric':
    one = jnp.exp(apart) * jnp.expm1(-apart) ** 2 / 2
  else:
    raise InputError(
      'kernel is positive, hyperbolic or trigonometric, the estimates of the '
      f'softmax; got {kernel!r}'
    )
  return one / num_features


def _check_kernel(kernel, *, has_projection):
  names = ('positive', 'hyperbolic', 'trigonometric')
  if not callable(kernel) and kernel not in names:
    raise InputError(f'kernel is one of {names} or a function, got {kernel!r}')
  if not has_projection and not callable(kernel):
    raise InputError(
      f'the {kernel} softmax kernel needs a projection: only a function can '
      'do without'
    )
