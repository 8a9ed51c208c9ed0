"""Device code: cuts sequences into chunks, so that a scan goes through them.

What linear attention is made of: positions are cut and heads moved in front of
them in one copy, after which products inside a chunk need no other layout.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Chunks(NamedTuple):
  """Inputs of attention, cut: [T, ..., H, C, ...] of T chunks, or None.

  Attributes:
    query: [T, ..., H, C, D].
    key: [T, ..., H, C, D].
    value: [T, ..., H, C, V].
    real: 1 for a key, 0 for what is masked or fills up, [T, ..., 1, C].
    segments: Ids, -1 for what fills up, [T, ..., 1, C].
    log_weight: [T, ..., H, C].
    log_decay: [T, ..., H, C].
  """

  query: jax.Array | None
  key: jax.Array
  value: jax.Array
  real: jax.Array
  segments: jax.Array | None
  log_weight: jax.Array | None
  log_decay: jax.Array | None


def cut(
  chunk_size: int,
  query: jax.Array | None,
  key: jax.Array,
  value: jax.Array,
  *,
  mask: jax.Array | None,
  segments: jax.Array | None = None,
  log_weight: jax.Array | None = None,
  log_decay: jax.Array | None = None,
) -> Chunks:
  """Cuts all inputs of a self-attention, or keys and values alone.

  What is masked becomes 0, so that it may hold anything, NaN for one.

  Args:
    chunk_size: Largest C.
    query: [..., L, H, D] or None.
    key: [..., L, H, D].
    value: [..., L, H, V].
    mask: [..., L] bool or None.
    segments: [..., L] int32 or None.
    log_weight: [..., L, H] or None.
    log_decay: [..., L, H] or None.
  """
  size = chunk_length(key.shape[-3], chunk_size)
  key, value = wide(key), wide(value)
  real = jnp.ones(()) if mask is None else mask
  real = jnp.broadcast_to(real, key.shape[:-2])[..., None].astype(key.dtype)

  def blank(x):
    if x is None or mask is None:
      return x
    return jnp.where(
      real.reshape(*real.shape, *[1] * (x.ndim - real.ndim)) > 0, x, 0
    )

  def cut_rows(x, fill=0):
    return None if x is None else split(x[..., None], size, fill)[..., 0]

  if segments is not None:
    segments = jnp.broadcast_to(segments, key.shape[:-2])[..., None]
  return Chunks(
    None if query is None else split(wide(query), size),
    split(blank(key), size),
    split(blank(value), size),
    cut_rows(real),
    cut_rows(segments, -1),
    cut_rows(blank(log_weight)),
    cut_rows(blank(log_decay)),
  )


def chunk_length(length: int, chunk_size: int) -> int:
  """Positions of a chunk: as few chunks as can be, all nearly full."""
  if chunk_size < 1:
    raise ValueError(f'Need chunk_size >= 1; got {chunk_size=}')
  num_chunks = max(-(-length // chunk_size), 1)
  return max(-(-length // num_chunks), 1)


def split(x: jax.Array, size: int, fill: int = 0) -> jax.Array:
  """[..., L, H, D] -> [T, ..., H, size, D]; fills up the last chunk."""
  pad = [(0, 0)] * x.ndim
  pad[-3] = (0, -x.shape[-3] % size)
  x = jnp.pad(x, pad, constant_values=fill)
  x = x.reshape(*x.shape[:-3], -1, size, *x.shape[-2:])
  return jnp.moveaxis(x, (-4, -3), (0, -2))


def join(x: jax.Array, length: int) -> jax.Array:
  """[T, ..., H, C, D] -> [..., length, H, D]."""
  x = jnp.moveaxis(x, (0, -2), (-4, -3))
  x = x.reshape(*x.shape[:-4], -1, *x.shape[-2:])
  return x[..., :length, :, :]


def grouped(chunks: Chunks, size: int) -> Chunks:
  """[T, ...] -> [T / size, size, ...]; fills up with chunks without a key."""
  missing = -chunks.key.shape[0] % size

  def group(x, fill=0):
    if x is None:
      return None
    pad = [(0, missing)] + [(0, 0)] * (x.ndim - 1)
    x = jnp.pad(x, pad, constant_values=fill)
    return x.reshape(-1, size, *x.shape[1:])

  made = Chunks(*(group(x) for x in chunks))
  return made._replace(segments=group(chunks.segments, -1))


def scan(
  body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, chunks: Any
) -> tuple[Any, Any]:
  """`jax.lax.scan` whose backward pass makes a chunk's features again.

  It holds the carries, one a chunk, and the inputs. A single chunk is simply
  computed: to make its features again would cost a third more time.
  """
  if jax.tree.leaves(chunks)[0].shape[0] == 1:
    carry, out = body(carry, jax.tree.map(lambda x: x[0], chunks))
    return carry, jax.tree.map(lambda x: x[None], out)
  return jax.lax.scan(jax.checkpoint(body, prevent_cse=False), carry, chunks)


def wide(x: jax.Array) -> jax.Array:
  """At least float32."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
