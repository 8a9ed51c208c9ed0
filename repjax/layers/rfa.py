"""Device code: Random Feature Attention, with and without its gate.

Peng, Pappas, Yogatama, Schwartz, Smith and Kong, 'Random Feature Attention',
ICLR 2021 (https://arxiv.org/abs/2103.02143). `Rfa` is an `attention_fn`, `rfa`
a pure function of a projection.

Queries and keys are divided by their norms, so that exp(q . k) is the Gaussian
kernel of the two up to a factor that cancels; sines and cosines of projections
estimate it.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from repjax.layers.attention.linear import attention_sums
from repjax.layers.attention.linear import linear_attention_fn
from repjax.layers.attention.linear import random_features
from repjax.layers.attention.linear import rules
from repjax.types import InputError
from repjax.types import check_choice

FeatureName = Literal['gaussian', 'arccos']
Denominator = Literal['bounded', 'paper_code', 'paper_code_masked']

# A gate below this forgets everything to float32; sums of smaller logarithms
# would only lose digits.
_LEAST_LOG_GATE = -30.0


def rfa(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  projection: jax.Array,
  *,
  features: FeatureName = 'gaussian',
  causal: bool = False,
  gate_logits: jax.Array | None = None,
  mask: jax.Array | None = None,
  segments: jax.Array | None = None,
  denominator: Denominator = 'bounded',
  floor: float = 0.01,
  norm_epsilon: float = 1e-6,
  chunk_size: int | None = None,
  precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
  """Random feature attention, with gates or without: O(L M D) time.

  Args:
    query: [..., Q, H, D].
    key: [..., K, H, D].
    value: [..., K, H, V].
    projection: Rows of each head, [H, M, D] or [M, D] for all. Rows from
      N(0, 1 / s^2) estimate softmax(q . k / s^2) of unit vectors (the text of
      the paper has the variance s^2).
    features: 'gaussian' (2 M features), or 'arccos' (M features).
    causal: Whether a query sees no later keys.
    gate_logits: With `causal`: g = sigmoid(gate_logits), [..., L, H], is what
      the sums before a position are multiplied by, 1 - g what its own key and
      value are. None for no gate.
    mask: Which keys there are, [..., K] bool. A query that sees none gives 0.
    segments: Ids >= 0, [..., L] int32, of sequences packed side by side.
    denominator: How the sum under the fraction is kept from 0. 'bounded': the
      mean of the estimated kernel over the keys in sight is at least `floor`.
      The others are those of the authors' code, which scales features by 0.1 in
      place of 1 / sqrt(M): 'paper_code' keeps the sum at 1 or more (its
      absolute value, unless causal), so that the first outputs of a causal pass
      are too small; 'paper_code_masked' keeps its absolute value at 0.001 or
      more. They have neither arccos features nor gates.
    floor: Of 'bounded', > 0: outputs of Gaussian features are at most
      max |v| / floor.
    norm_epsilon: Added to norms; 1e-3 in the authors' code.
    chunk_size: Keys at a time, >= 1; None is 1,024, or if causal 128 on CPUs
      and 256 elsewhere.
    precision: Of the sums' products; features are float32 in any case.

  Returns:
    [..., Q, H, V].
  """
  if gate_logits is not None and gate_logits.shape != key.shape[:-1]:
    raise InputError(
      f'gate_logits must be {key.shape[:-1]}, one a position and head; got '
      f'{gate_logits.shape}'
    )
  return rules.attend(
    query,
    key,
    value,
    _rule(
      projection,
      query.shape[-1],
      features=features,
      causal=causal,
      gate_logits=None if gate_logits is None else lambda _: gate_logits,
      denominator=denominator,
      floor=floor,
      norm_epsilon=norm_epsilon,
    ),
    causal=causal,
    mask=mask,
    segments=segments,
    chunk_size=chunk_size,
    precision=precision,
  )


def _rule(
  projection,
  head_dim,
  *,
  features,
  causal,
  gate_logits,
  denominator,
  floor,
  norm_epsilon,
):
  """RFA as a rule; `gate_logits` is a function of the keys."""
  _check(
    features, denominator, floor, causal=causal, gated=gate_logits is not None
  )
  rules.check_head_dim(projection, head_dim)
  feature_map = {
    'gaussian': random_features.gaussian,
    'arccos': random_features.arccos,
  }[features]

  def on_sphere(x):
    return feature_map(_unit(x, norm_epsilon), projection)

  if denominator == 'bounded':
    divide = functools.partial(_divide_bounded, floor=floor)
  else:
    divide = functools.partial(
      _divide_paper_code,
      scale=0.01 * projection.shape[-2],
      least=1.0 if denominator == 'paper_code' else 1e-3,
      signed=denominator == 'paper_code' and causal,
    )

  def gates(key):
    logits = gate_logits(key).astype(jnp.float32)
    return (
      jax.nn.log_sigmoid(-logits),
      jnp.maximum(jax.nn.log_sigmoid(logits), _LEAST_LOG_GATE),
    )

  return rules.Rule(
    on_sphere, on_sphere, divide, None if gate_logits is None else gates
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rfa(linear_attention_fn.LinearAttention):
  """Random feature attention as an `attention_fn`.

  Its rows are sigma * w / temperature: w from N(0, I) for each layer and head,
  in the collection 'projection' (see `random_features.RandomProjection`), sigma
  learned for each head and dimension.

  The paper's gate is sigmoid(w . x) of a layer's input x. An `attention_fn`
  sees keys, not x: here the gate is sigmoid(u . k) of the keys of all heads
  side by side, before they are normalised. Keys are linear in x, so w = W_k u:
  the same gates wherever W_k is invertible, in other coordinates.

  `prefill` of one segment after another, with the state that the last one left,
  is the paper's stateful evaluation.

  Attributes:
    features: 'gaussian' (2 M features), or 'arccos' (M features).
    gate: 'learned' needs `causal`.
    gate_bias: The gate's logit at the start; 4 remembers about 50 positions.
      The paper does not say.
    sigma: 'fixed' is 1.
    temperature: What rows are divided by.
    projection: Kind of the rows; orthogonal ones estimate better.
    denominator: How it is kept from 0: 'bounded', or as in the authors' code.
    floor: Of 'bounded', > 0. The share of bounded denominators is sown in
      'intermediates' as 'clamped_denominators'.
    norm_epsilon: Added to norms of queries and keys.

  The others are those of `LinearAttention`; M is of each head, and the authors
  draw for every training step.
  """

  num_features: int = 64
  redraw_every: int = 1
  features: FeatureName = 'gaussian'
  gate: Literal['none', 'learned'] = 'none'
  gate_bias: float = 4.0
  sigma: Literal['learned', 'fixed'] = 'learned'
  temperature: float = 1.0
  projection: Literal['orthogonal', 'iid'] = 'orthogonal'
  denominator: Denominator = 'bounded'
  floor: float = 0.01
  norm_epsilon: float = 1e-6

  def __post_init__(self):
    super().__post_init__()
    if self.temperature <= 0 or self.norm_epsilon < 0:
      raise InputError(
        'Rfa needs temperature > 0 and norm_epsilon >= 0; got '
        f'{self.temperature=}, {self.norm_epsilon=}'
      )
    check_choice('gate', self.gate, ('none', 'learned'))
    check_choice('sigma', self.sigma, ('learned', 'fixed'))
    check_choice('projection', self.projection, ('orthogonal', 'iid'))
    _check(
      self.features,
      self.denominator,
      self.floor,
      causal=self.causal,
      gated=self.gate == 'learned',
    )

  def _rule(self, num_heads, head_dim):
    parts = self._inside(_Parts(self, num_heads, head_dim, name='rfa'))
    rows, gate_logits = parts()
    rule = _rule(
      rows,
      head_dim,
      features=self.features,
      causal=self.causal,
      gate_logits=gate_logits,
      denominator=self.denominator,
      floor=self.floor,
      norm_epsilon=self.norm_epsilon,
    )

    def divide(totals):
      if self.denominator == 'bounded':
        parts.sow(
          'intermediates',
          'clamped_denominators',
          clamped_share(totals, self.floor),
        )
      return rule.divide(totals)

    return rule._replace(divide=divide)

  def _num_features(self, head_dim):
    del head_dim  # Rows decide.
    return self.num_features * (2 if self.features == 'gaussian' else 1)


class _Parts(nn.Module):
  """The variables of one layer's `Rfa`."""

  settings: Rfa
  num_heads: int
  head_dim: int

  @nn.compact
  def __call__(self):
    """Rows [H, M, D], and the function of keys that gives the gates' logits."""
    settings = self.settings
    draw_one = functools.partial(
      random_features.draw_projection,
      num_features=settings.num_features,
      dim=self.head_dim,
      kind=settings.projection,
    )

    def draw(rng):
      return jax.vmap(draw_one)(jax.random.split(rng, self.num_heads))

    rows = random_features.RandomProjection(
      draw, redraw_every=settings.redraw_every, name='rows'
    )()
    if settings.sigma == 'learned':
      sigma = self.param(
        'sigma', nn.initializers.ones, (self.num_heads, self.head_dim)
      )
      rows = rows * sigma.astype(rows.dtype)[:, None, :]
    gate_logits = None
    if settings.gate == 'learned':
      width = self.num_heads * self.head_dim
      kernel = self.param(
        'gate_kernel',
        nn.initializers.lecun_normal(),
        (width, self.num_heads),
      )
      bias = self.param(
        'gate_bias',
        nn.initializers.constant(settings.gate_bias),
        (self.num_heads,),
      )

      def gate_logits(key):
        key = key.reshape(*key.shape[:-2], width).astype(jnp.float32)
        start = bias.reshape((1,) * (key.ndim - 1) + (-1,))
        return key @ kernel.astype(jnp.float32) + start.astype(jnp.float32)

    return rows / settings.temperature, gate_logits


def clamped_share(totals: attention_sums.Totals, floor: float) -> jax.Array:
  """Share of the queries that see a key whose denominator `floor` holds up.

  Near 0 in health. It grows when a small bandwidth (a large sigma) makes the
  kernel too sharp for the number of features.
  """
  sees = totals.weight > 0
  clamped = sees & (totals.denominator < floor * totals.weight)
  return clamped.sum() / jnp.maximum(sees.sum(), 1)


def _divide_bounded(totals, *, floor):
  # The true denominator is positive: an estimate that is not is noise.
  denominator = jnp.maximum(
    totals.denominator, jax.lax.stop_gradient(floor * totals.weight)
  )
  denominator = jnp.where(totals.weight > 0, denominator, 1.0)
  return totals.numerator / denominator[..., None]


def _divide_paper_code(totals, *, scale, least, signed):
  denominator = totals.denominator * scale
  denominator = denominator if signed else jnp.abs(denominator)
  denominator = jnp.maximum(denominator, least)
  return totals.numerator * scale / denominator[..., None]


def _unit(x, epsilon):
  x = x.astype(jnp.float32)
  square = jnp.square(x).sum(-1, keepdims=True)
  # The root's slope at 0 is infinite.
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0)
  return x / jnp.maximum(norm + epsilon, jnp.finfo(jnp.float32).tiny)


def _check(features, denominator, floor, *, causal, gated):
  check_choice('features', features, ('gaussian', 'arccos'))
  check_choice(
    'denominator', denominator, ('bounded', 'paper_code', 'paper_code_masked')
  )
  if denominator != 'bounded' and (gated or features != 'gaussian'):
    raise InputError(
      f'denominator={denominator!r} is that of ungated gaussian features; use '
      "'bounded' with a gate or arccos features"
    )
  if floor <= 0:
    raise InputError(f'floor must be above 0, got {floor}')
  if gated and not causal:
    raise InputError('a gate needs an order: use it with causal=True')
