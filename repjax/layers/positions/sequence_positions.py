"""Device code: what tells a transformer where a token stands in a sequence."""

import jax
import jax.numpy as jnp

from repjax.types import InputError


def from_mask(mask: jax.Array) -> jax.Array:
  """Places of the real tokens, counted from 0 without the padding.

  Padding may lie on either side; it gets the place of a neighbour, or 0.

  Args:
    mask: [B, L], 0 for padding.

  Returns:
    [B, L] int32.
  """
  counts = jnp.cumsum((mask > 0).astype(jnp.int32), axis=-1)
  return jnp.maximum(counts - 1, 0)


def from_segments(segments: jax.Array) -> jax.Array:
  """Places of tokens in the text of a packed row that they are of.

  Args:
    segments: [B, L], integers: which text a token is of, 0 for padding. Equal
      ones are neighbours.

  Returns:
    [B, L] int32, from 0 in each text. Padding, which may be longer than any
    text, is at 0: at a missing place it would be NaN for all tokens, whatever
    they see.
  """
  place = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
  begins = jnp.diff(segments, axis=1, prepend=segments[:, :1] - 1) != 0
  places = place - jax.lax.cummax(jnp.where(begins, place, 0), axis=1)
  return jnp.where(segments > 0, places, 0)


def sinusoids(
  positions: jax.Array, dim: int, *, base: float = 10_000.0
) -> jax.Array:
  """Sines and cosines of places (Vaswani et al., 2017, sec. 3.5).

  https://arxiv.org/abs/1706.03762

  Channels 2 i and 2 i + 1 are sin and cos of place / base^(2 i / dim).

  Args:
    positions: [...], integers.
    dim: D, even.
    base: Ratio of the slowest wave length to the fastest, nearly.

  Returns:
    [..., D] float32.

  Raises:
    InputError: `dim` is odd.
  """
  angle = _angles(positions, dim, base)
  waves = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
  return waves.reshape(*positions.shape, dim)


def rotate(
  x: jax.Array, positions: jax.Array, *, base: float = 10_000.0
) -> jax.Array:
  """Rotary positions (Su et al., 'RoFormer', 2021, eq. 34).

  https://arxiv.org/abs/2104.09864

  Turns each pair of channels (2 i, 2 i + 1) by the angle place / base^(2 i /
  D). Products of rotated queries and keys depend on the distance alone. (Other
  code, LLaMA's among it, pairs channel i with D / 2 + i.)

  Args:
    x: Queries or keys, [B, L, H, D].
    positions: [B, L] or [L], integers.
    base: Ratio of the slowest wave length to the fastest, nearly.

  Returns:
    [B, L, H, D], dtype of `x`; the angles are float32.

  Raises:
    InputError: D is odd.
  """
  angle = _angles(positions, x.shape[-1], base)[..., None, :]
  angle = angle.reshape((1,) * (x.ndim - angle.ndim) + angle.shape)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  even, odd = (x[..., i::2].astype(jnp.float32) for i in (0, 1))
  turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
  return turned.reshape(x.shape).astype(x.dtype)


def _angles(positions, dim, base):
  """[..., dim / 2] float32."""
  if dim % 2:
    raise InputError(
      f'sinusoidal and rotary positions need an even width; got {dim}'
    )
  # Where float64 is enabled, a quotient of integers is of that type.
  frequency = (base ** -(jnp.arange(0, dim, 2) / dim)).astype(jnp.float32)
  frequency = jnp.expand_dims(frequency, tuple(range(jnp.ndim(positions))))
  return positions[..., None].astype(jnp.float32) * frequency
