"""Device code: squared gradient norms of one layer for one example.

A layer with outputs y_t = x_t W at positions t = 1..T has, for one example
with input X [T, P] and cotangent G [T, D], the weight gradient X'G. Its squared
norm is also <XX', GG'>, which needs no gradient: Goodfellow, 'Efficient
Per-Example Gradient Computations', 2015 (https://arxiv.org/abs/1510.01799); Li
et al., 'Large Language Models Can Be Strong Differentially Private Learners',
ICLR 2022, section 4 (https://arxiv.org/abs/2110.05679); for convolutions Bu et
al., 'Scalable and Efficient Training of Large Convolutional Neural Networks
with Differential Privacy', 2022 (https://arxiv.org/abs/2205.10683).

The Gram form <XX', GG'> stores 2 T^2 numbers and the direct form P D, so the
Gram form is taken where 2 T^2 < P D, each group of a convolution alike.
Everything is float32 whatever the layer computes in: a norm that is too small
breaks the privacy guarantee.

So does rounding where positions cancel out. With a common offset of the inputs
and cotangents that add up to zero, the terms of <XX', GG'> are larger than
their sum by the square of offset over variation, and float32 may find 0 for a
gradient that is large. Each rule adds what its terms may have been rounded by:
where nothing cancels out that is rounding itself (1e-6 of the norm for layers
of 64 columns), and elsewhere it clips more, never less. As weighted sums
(`products`) add up the same positions, it bounds what they are rounded by, too.
"""

from collections.abc import Callable
import math

import flax.linen as nn
from flax.linen import dtypes
from flax.linen import linear
import jax
import jax.numpy as jnp

# (input, cotangent of the output) -> parameter's name -> squared norm.
Rule = Callable[[jax.Array, jax.Array], dict[str, jax.Array]]


def rule(module: nn.Module, method: str) -> Rule | None:
  """How the gradient norms of a layer follow from what goes through it.

  Args:
    module: A bound linen module.
    method: Name of the method that is called with one array.

  Returns:
    The rule of `nn.Dense`, `nn.DenseGeneral` (and so of the projections of
    linen's attention), `nn.Conv` or `nn.Embed` (also `attend`), for inputs of
    any leading shape that all belong to one example. None for other layers,
    for subclasses, which may compute something else, and where the layer is
    given a product, a type promotion or a mask of its own.
  """
  kind = type(module)
  if kind not in (nn.Dense, nn.DenseGeneral, nn.Conv, nn.Embed):
    return None
  changed = [
    getattr(module, name, None)
    for name in (
      'dot_general',
      'dot_general_cls',
      'conv_general_dilated',
      'conv_general_dilated_cls',
      'mask',
      'batch_dims',
    )
  ]
  if any(x is not None and x != () for x in changed):
    return None
  if getattr(module, 'promote_dtype', _PROMOTE) is not _PROMOTE:
    return None
  if kind is nn.Embed:
    return {
      '__call__': lambda x, g: {'embedding': _embedding(module, x, g)},
      'attend': lambda x, g: {'embedding': _product(_rows(x), _rows(g))},
    }.get(method)
  if method != '__call__':
    return None
  if kind is nn.Conv:
    return lambda x, g: _with_bias(_convolution(module, x, g), g)
  axes = module.axis if kind is nn.DenseGeneral else -1
  return lambda x, g: _dense(x, g, (axes,) if isinstance(axes, int) else axes)


_PROMOTE = dtypes.promote_dtype


def _dense(x, g, axes):
  axes = [axis % x.ndim for axis in axes]
  x = jnp.moveaxis(x, axes, range(-len(axes), 0))
  x = x.reshape((-1, math.prod(x.shape[x.ndim - len(axes) :])))
  g = g.reshape((x.shape[0], -1))
  return _with_bias(_product(x, g), g)


def _with_bias(kernel, g):
  g = _rows(_float(g))
  bias = jnp.square(g.sum(0)).sum() + _LEAST * jnp.square(g).sum()
  return {'kernel': kernel, 'bias': bias}


# Half of the distance between 1 and the next float32: one rounding's share.
_UNIT = 2.0**-24

# Added to squared norms of gradients that were summed over positions as they
# are, as a share of the sum of the positions' own squared norms. Such a sum
# errs by about sqrt(T) _UNIT times the root of that, 2e-6 for T = 1,000, which
# this is far above. It is for the weighted sum, which is rounded again where
# all but a little cancels out: norms are at least a thousandth of any
# position's, so that no position adds more than 1,000 times the clip norm, and
# float32 rounds that to 6e-5 of the clip norm.
_LEAST = 1e-6


def _rounding(length):
  """Share of the sum of |terms| that a sum of so many terms errs by.

  sqrt(n) units where roundings are independent, and n / 48 where all are alike
  (columns of one number), as processors sum in eight lanes and a rounding that
  repeats is a sixth of a unit in the mean over sizes. The worst that was found
  among constant, shifted and random inputs is n / 50 for n = 4,096.
  """
  return _UNIT * (math.sqrt(length) + length / 32)


def _product(x, g):
  """|X'G|^2 of X [..., T, P] and G [..., T, D], summed over groups '...'."""
  x, g = _float(multiplied(x, g.dtype)), _float(g)
  length = x.shape[-2]
  if 2 * length**2 < x.shape[-1] * g.shape[-1]:
    # Either factor may be too small or too large to be squared on its own, as
    # where a norm behind the layer divides by the size of its input.
    (x, by_x), (g, by_g) = _scaled(x), _scaled(g)
    unit = jnp.ldexp(1.0, by_x + by_g)
    xx, gg = _gram(x), _gram(g)
    # By Cauchy and Schwarz, terms of x_t . x_s add up to at most |x_t| |x_s|.
    of_x = _rounding(x.shape[-1]) * _outer(x)
    of_g = _rounding(g.shape[-1]) * _outer(g) + _UNIT * length * jnp.abs(gg)
    slack = of_x * (jnp.abs(gg) + of_g) + jnp.abs(xx) * of_g
    # Rounding may leave a negative sum.
    total = jnp.maximum((xx * gg).sum(), 0.0) + slack.sum()
    return total * unit * unit
  weight = jnp.einsum('...tp,...td->...pd', x, g, precision='highest')
  alone = (jnp.square(x).sum(-1) * jnp.square(g).sum(-1)).sum()
  return jnp.square(weight).sum() + _LEAST * alone


def _scaled(x):
  """(x / 2^n, n), with numbers of about 1 or less, and nothing rounded."""
  _, exponent = jnp.frexp(jnp.abs(x).max(initial=0.0))
  # Of NaN and infinity it is whatever it is; they stay what they are.
  exponent = jnp.clip(exponent, -126, 126)  # Whose powers are no denormals.
  return x * jnp.ldexp(1.0, -exponent), exponent


def _outer(x):
  """|x_t| |x_s|."""
  norms = jnp.linalg.norm(x, axis=-1)
  return norms[..., :, None] * norms[..., None, :]


def multiplied(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """What a layer of some type multiplies, in float32 or more; ids stay ids."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  x = x.astype(jnp.promote_types(dtype, jnp.float32))
  # A cast there and back would be skipped by compilers.
  info = jnp.finfo(dtype)
  narrow = info.bits < 32
  return jax.lax.reduce_precision(x, info.nexp, info.nmant) if narrow else x


def _gram(x):
  return jnp.einsum('...tp,...sp->...ts', x, x, precision='highest')


def _embedding(module, ids, g):
  """Rows of equal ids add up before they are squared."""
  ids, g = _looked_up(module, ids, g)
  length, width = g.shape
  if 2 * length**2 < module.num_embeddings * width:
    equal = (ids[:, None] == ids[None, :]).astype(jnp.float32)
    same = jnp.einsum('ts,sd->td', equal, g, precision='highest')
    norms = jnp.linalg.norm(g, axis=-1)
    terms = jnp.einsum('t,ts,s->', norms, equal, norms, precision='highest')
    slack = (_rounding(length) + _rounding(width)) * terms
    return jnp.maximum((same * g).sum(), 0.0) + slack
  table = jnp.zeros((module.num_embeddings, width)).at[ids].add(g)
  return jnp.square(table).sum() + _LEAST * jnp.square(g).sum()


def tied(
  module: nn.Embed, ids: jax.Array, g: jax.Array, x: jax.Array, p: jax.Array
) -> jax.Array:
  """Inner product of the gradients that an embedding gets from both its ends.

  With what it may have been rounded by, as norms have.

  The table E is looked up (E[ids_t], cotangent g_t) and multiplied with
  (x_s E', cotangent p_s): sum over t and s of p_s[ids_t] (g_t . x_s).

  Args:
    module: The embedding.
    ids: [..., T] of one example, as are all the others.
    g: [..., T, D].
    x: [..., S, D].
    p: [..., S, V].
  """
  ids, g = _looked_up(module, ids, g)
  x, p = (_rows(_float(a)) for a in (x, p))
  near = jnp.einsum('td,sd->ts', g, x, precision='highest')
  p = p[:, ids].T  # [T, S]
  norms = [jnp.linalg.norm(a, axis=-1) for a in (g, x)]
  terms = norms[0][:, None] * norms[1][None] * jnp.abs(p)
  share = _rounding(g.shape[-1]) + _UNIT * math.sqrt(p.size)
  return (near * p).sum() + share * terms.sum()


def _looked_up(module, ids, g):
  """Rows of the table, [T], and their cotangents; 0 of rows that are none."""
  if module.num_embeddings == 1:  # Linen then ignores the ids.
    ids = jnp.zeros_like(ids)
  ids, g = ids.reshape(-1), _rows(_float(g))
  ids = jnp.where(ids < 0, ids + module.num_embeddings, ids)
  inside = (ids >= 0) & (ids < module.num_embeddings)
  return jnp.where(inside, ids, 0), jnp.where(inside[:, None], g, 0.0)


def _convolution(module, x, g):
  """The product of patches and cotangents, one a group of channels."""
  kernel = module.kernel_size
  kernel = (kernel,) if isinstance(kernel, int) else tuple(kernel)
  x = x.reshape((-1, *x.shape[x.ndim - len(kernel) - 1 :]))
  g = g.reshape((-1, *g.shape[g.ndim - len(kernel) - 1 :]))
  patches = _patches(module, x, g.shape[1:-1], kernel)  # [N, ..., K, C]
  groups = module.feature_group_count
  width = x.shape[-1] // groups
  patches = patches.reshape((-1, math.prod(kernel), groups, width))
  patches = patches.transpose((2, 0, 1, 3))  # [groups, T, K, C / groups]
  patches = patches.reshape((*patches.shape[:2], -1))
  g = g.reshape((-1, groups, g.shape[-1] // groups)).swapaxes(0, 1)
  return _product(patches, g)


def _patches(module, x, out_shape, kernel):
  """What each output position sees, [N, *out_shape, K, C]."""

  def each(setting):
    setting = 1 if setting is None else setting
    single = isinstance(setting, int)
    return (setting,) * len(kernel) if single else tuple(setting)

  strides, dilation = each(module.strides), each(module.kernel_dilation)
  spread = each(module.input_dilation)
  reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
  padding = linear.canonicalize_padding(module.padding, len(kernel))
  if padding in ('CIRCULAR', 'REFLECT'):
    mode = {'CIRCULAR': 'wrap', 'REFLECT': 'reflect'}[padding]
    sides = [((r - 1) // 2, r // 2) for r in reach]
    x = jnp.pad(x, [(0, 0), *sides, (0, 0)], mode=mode)
    padding = 'VALID'
  elif padding == 'CAUSAL':
    x = jnp.pad(x, [(0, 0), (reach[0] - 1, 0), (0, 0)])
    padding = 'VALID'
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)
  around = [(*p, s - 1) for p, s in zip(padding, spread, strict=True)]
  zero = jnp.zeros((), x.dtype)
  x = jax.lax.pad(x, zero, [(0, 0, 0), *around, (0, 0, 0)])
  views = []
  for offset in _offsets(kernel):
    start = [o * d for o, d in zip(offset, dilation, strict=True)]
    limit = [
      a + (n - 1) * s + 1
      for a, n, s in zip(start, out_shape, strides, strict=True)
    ]
    views.append(
      jax.lax.slice(
        x,
        (0, *start, 0),
        (x.shape[0], *limit, x.shape[-1]),
        (1, *strides, 1),
      )
    )
  return jnp.stack(views, axis=-2)


def _offsets(kernel):
  if not kernel:
    return [()]
  return [(i, *rest) for i in range(kernel[0]) for rest in _offsets(kernel[1:])]


def _rows(x):
  return x.reshape((-1, x.shape[-1]))


def _float(x):
  return x.astype(jnp.float32)
