"""Device code: exact attention by cuDNN's fused kernel where it can be.

Dao, Fu, Ermon, Rudra and Re, 'FlashAttention', NeurIPS 2022
(https://arxiv.org/abs/2205.14135): scores are made tile by tile and never
stored. `jax.nn.dot_product_attention` calls cuDNN's form of it.
"""

import dataclasses
import functools
import math
from typing import Literal
from typing import NamedTuple

from absl import logging
from flax.linen import dtypes
import jax
import jax.numpy as jnp

from repjax.layers.attention import softmax

# cuDNN refuses some lengths in training, 197 for one; it takes multiples of it.
_MULTIPLE = 64
_LEAST_CAPABILITY = (8, 0)
_ANY_PRECISION = (None, 'default', jax.lax.Precision.DEFAULT)


class Device(NamedTuple):
  """What cuDNN's conditions are about.

  Attributes:
    platform: As JAX calls it: 'cpu', 'gpu', 'tpu'.
    capability: Compute capability of an NVIDIA GPU, else ().
  """

  platform: str
  capability: tuple[int, ...] = ()

  @classmethod
  def first(cls) -> 'Device':
    """What programs run on here: that of `jax.default_device`, or the first."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None or isinstance(device, str):  # Names a platform.
      device = jax.devices(device)[0]
    # AMD's have one, too, that is a name ('gfx90a').
    found = str(getattr(device, 'compute_capability', '')).split('.')
    is_nvidia = all(x.isdigit() for x in found)
    return cls(device.platform, tuple(map(int, found)) if is_nvidia else ())


class Plan(NamedTuple):
  """Which form computes an attention.

  Attributes:
    form: 'cudnn'; or 'softmax', that of `attention.Softmax`.
    why: What decided, for people.
  """

  form: Literal['cudnn', 'softmax']
  why: str

  def __str__(self) -> str:
    name = {'cudnn': "cuDNN's fused kernel", 'softmax': 'plain products'}
    return f'exact attention by {name[self.form]} ({self.why})'


def plan(
  device: Device,
  query: jax.ShapeDtypeStruct,
  key: jax.ShapeDtypeStruct,
  value: jax.ShapeDtypeStruct,
  *,
  drops: bool = False,
  shows: bool = False,
  precision: jax.lax.PrecisionLike = None,
) -> Plan:
  """Chooses the form; cuDNN's wherever it computes the same thing.

  Args:
    device: Where it runs.
    query: Shape and type of the queries [..., Q, H, D].
    key: Of the keys [..., K, H, D].
    value: Of the values [..., K, H, V].
    drops: Whether weights are dropped.
    shows: Whether weights are sown, which the fused form never has.
    precision: Of the products; cuDNN's is its own.
  """
  dim, dtype = query.shape[-1], jnp.dtype(query.dtype)
  most = 256 if device.capability >= (9, 0) else 128
  if device.platform != 'gpu' or device.capability < _LEAST_CAPABILITY:
    return Plan('softmax', 'no NVIDIA GPU of compute capability 8.0 or more')
  if dtype not in (jnp.bfloat16, jnp.float16):
    return Plan('softmax', f'{dtype.name}: cuDNN needs bfloat16 or float16')
  if dim % 8 or dim > most or value.shape[-1] != dim:
    return Plan(
      'softmax',
      f'heads of {dim} and values of {value.shape[-1]}: cuDNN needs equal '
      f'ones, multiples of 8 up to {most}',
    )
  if drops:
    return Plan('softmax', 'weights are dropped')
  if shows:
    return Plan('softmax', 'weights are shown')
  if precision not in _ANY_PRECISION:
    return Plan('softmax', f'{precision=} is asked for')
  lengths = [x.shape[-3] for x in (query, key)]
  padded = [_padded(x) for x in lengths]
  said = [
    f'{x} positions' + (f' padded to {y}' if x != y else '')
    for x, y in zip(lengths, padded, strict=True)
  ]
  return Plan('cudnn', ' and '.join(dict.fromkeys(said)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flash(softmax.Softmax):
  """`Softmax` in its place, by cuDNN's fused kernel where `plan` finds that.

  Elsewhere it is `Softmax`, bit for bit; which of them runs is logged once for
  each kind of call. The fused form agrees with it to the rounding of its type
  (2e-2 in bfloat16), but for a query that may look nowhere: what it sees is
  finite, and not the mean of all values. It has no forward mode (`jax.jvp`).
  Under `jax.vmap` JAX takes a bias that has all rows and heads of its own, and
  a mask that has or that all rows share; it refuses the shapes of others, and
  `jax.jacobian`: use `Softmax` there.

  Decoding is that of `Softmax`: a step of one query has nothing to fuse.
  """

  def _attend(self, query, key, value, settings):
    query, key, value = dtypes.promote_dtype(
      query, key, value, dtype=settings.dtype
    )
    chosen = plan(
      Device.first(),
      *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)),
      drops=settings.drops,
      shows=settings.module is not None,
      precision=settings.precision,
    )
    _say(chosen)
    if chosen.form == 'softmax':
      return super()._attend(query, key, value, settings)
    self._check_lengths(query, key)
    return fused(
      query,
      key,
      value,
      bias=softmax.fitting('bias', settings.bias, query, key),
      mask=softmax.fitting('mask', settings.mask, query, key),
      causal=self.causal,
    )


@functools.cache
def _say(chosen: Plan) -> None:
  logging.info('%s', chosen)


def fused(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  bias: jax.Array | None = None,
  mask: jax.Array | None = None,
  causal: bool = False,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> jax.Array:
  """Exact attention over positions that are padded to what cuDNN takes.

  Args:
    query: [..., Q, H, D].
    key: [..., K, H, D].
    value: [..., K, H, D].
    bias: Added to scores, with as many axes as [..., H, Q, K].
    mask: Where a query may look, with as many axes as [..., H, Q, K].
    causal: Whether a query sees its own and earlier positions only.
    implementation: That of `jax.nn.dot_product_attention`; 'xla' runs the same
      padding anywhere.

  Returns:
    [..., Q, H, D].
  """
  batch = query.shape[:-3]
  rows = math.prod(batch)
  queries, keys = query.shape[-3], key.shape[-3]
  room = _padded(queries), _padded(keys)
  tied = _tied_to(query, key, value, bias, mask)

  def padded(x, length):
    x = x.reshape(rows, *x.shape[-3:])
    return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))

  def of_scores(x):
    """[..., H or 1, Q or 1, K or 1] -> [rows or 1, H or 1, *room]."""
    leading = batch
    if math.prod(x.shape[:-3]) == 1:  # One for all rows is stored once.
      leading, x = (1,), x.reshape(1, *x.shape[-3:])
    x = jnp.broadcast_to(x, (*leading, x.shape[-3], queries, keys))
    x = x.reshape(-1, *x.shape[-3:])
    missing = [(0, y - n) for y, n in zip(room, (queries, keys), strict=True)]
    return jnp.pad(x, [(0, 0), (0, 0), *missing])

  real: list[jax.Array | None] = [None, None]
  if room != (queries, keys):
    real = [tied(jnp.full(rows, x, jnp.int32)) for x in (queries, keys)]
  output = jax.nn.dot_product_attention(
    tied(padded(query, room[0])),
    tied(padded(key, room[1])),
    tied(padded(value, room[1])),
    bias=None if bias is None else tied(of_scores(bias).astype(query.dtype)),
    mask=None if mask is None else of_scores(mask > 0),
    is_causal=causal,
    query_seq_lengths=real[0],
    key_value_seq_lengths=real[1],
    implementation=implementation,
  )
  output = tied(output)  # So that its cotangent is mapped, too.
  return output[:, :queries].reshape(*batch, queries, *output.shape[-2:])


def _tied_to(*arrays):
  """A function of x that is x, mapped by `jax.vmap` if one of `arrays` is.

  The rule of JAX for cuDNN's kernel takes for granted that all it gets is
  mapped (until https://github.com/jax-ml/jax/pull/39451): else it fails, and
  sums the gradient of a bias that all share over the mapped axis in silence.
  Without `jax.vmap` the compiler leaves nothing of this.
  """
  first = [jnp.ravel(x)[:1].any() for x in arrays if x is not None]
  one = jnp.ones((), bool)
  one = jnp.where(jnp.stack(first).any(), one, one)
  return lambda x: x * one.astype(x.dtype)


def _padded(length):
  return -(-length // _MULTIPLE) * _MULTIPLE
