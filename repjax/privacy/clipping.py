"""Device code: the sum of per-example clipped gradients.

The heart of DP-SGD (Abadi et al., 'Deep Learning with Differential Privacy',
CCS 2016, algorithm 1): each example's gradient is scaled down to norm C before
the sum, so that one example moves the sum by at most C.

Ghost clipping (Li et al., 'Large Language Models Can Be Strong Differentially
Private Learners', ICLR 2022, section 4) finds the norms without storing a
gradient of any single example: one forward pass, a backward pass for the norms,
and a second one that weighs each example's loss. The model is not touched:
every layer that has a rule (`norms`) is tied to a carrier (`taps`), zeros whose
cotangent is the sum of the layers' squared gradient norms. Parameters that no
rule covers (`coverage`) get exact per-example gradients of their own; for
scales and biases of norms and for position embeddings these are no larger than
one activation.

Examples must not see each other: the loss is called with batches of ONE row,
under `vmap`, and each row has its own key, so that dropout differs between
rows. What couples rows through devices (a loss that calls `parallel.psum`)
cannot be seen here and must not be used.
"""

from collections.abc import Callable
import math
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax import trees
from repjax import types
from repjax.privacy import coverage
from repjax.privacy import taps

Method = Literal['auto', 'ghost', 'vmap', 'microbatch']
Style = Literal['flat', 'per_layer', 'automatic']

# Added to norms before C is divided by them: as in the authors' code, and as
# 'automatic' has it (Bu et al., section 4: stability constant 0.01).
_EPS = {'flat': 1e-6, 'per_layer': 1e-6, 'automatic': 0.01}


class Clipped(NamedTuple):
  """What clipping makes of a batch.

  Attributes:
    grads: Sum of the clipped gradients of the real rows.
    norms: Gradient norm of each row before clipping, [B]; 0 for padding.
    loss: [B].
    aux: What the loss function returned besides, a row an example.
  """

  grads: types.PyTree
  norms: jax.Array
  loss: jax.Array
  aux: types.PyTree


def clipped_gradient(
  loss_fn: Callable[..., Any],
  clip_norm: float | jax.Array,
  *,
  method: Method = 'auto',
  style: Style = 'flat',
  microbatches: int = 1,
  has_aux: bool = False,
) -> Callable[..., Clipped]:
  """Sums gradients of single examples, each clipped to `clip_norm`.

  Guarantee: adding or removing one row changes `grads` by at most `clip_norm`
  in l2 norm (up to rounding), whatever the row holds, as long as rows do not
  see each other in `loss_fn` and gradients are finite. Nothing else that comes
  out is private: not `norms`, `loss` or `aux`.

  Args:
    loss_fn: (params, batch, rng) -> losses [B], called with batches of one
      row. `batch` is a tree of arrays with leading axis B.
    clip_norm: C > 0.
    method: 'ghost' (see the module), 'vmap' (per-example gradients of the whole
      microbatch), 'microbatch' (one example after the other, least memory), or
      'auto': 'ghost' where per-example gradients would hold more numbers than
      twice the inputs and outputs of the layers that have a rule (plus what
      has none), else 'vmap'. All give the same sum.
    style: 'flat': one norm an example, factor min(1, C / norm). 'per_layer':
      each of the K modules that own parameters is clipped to C / sqrt(K)
      (stacked layers of an `nn.scan` count as one). 'automatic': factor
      C / (norm + 0.01), small gradients are scaled up too (Bu et al.,
      'Automatic Clipping', NeurIPS 2023).
    microbatches: Parts in which the rows are gone through.
    has_aux: Whether `loss_fn` returns (losses, tree of arrays [B, ...]).

  Returns:
    (params, batch, rng, mask=None) -> `Clipped`; rows with mask 0 count for
    nothing. `rng` may be None for a loss that draws nothing.

  Raises:
    ValueError: If an argument is out of range.
  """
  if method not in ('auto', 'ghost', 'vmap', 'microbatch'):
    raise ValueError(
      f"method is 'auto', 'ghost', 'vmap' or 'microbatch'; got {method=}"
    )
  if style not in _EPS:
    raise ValueError(
      f"style is 'flat', 'per_layer' or 'automatic'; got {style=}"
    )
  if isinstance(clip_norm, (int, float)) and not 0 < clip_norm < math.inf:
    raise ValueError(f'Need a finite clip_norm > 0; got {clip_norm=}')

  if isinstance(loss_fn, jax.stages.Wrapped):
    loss_fn = loss_fn.__wrapped__  # Compiled functions hide their layers.

  def one(params, row, rng):
    out = loss_fn(params, jax.tree.map(lambda x: x[None], row), rng)
    loss, aux = out if has_aux else (out, ())
    if loss.shape != (1,):
      raise ValueError(
        f'loss_fn returns one loss a row, (1,) for one row; got {loss.shape}'
      )
    return loss[0].astype(jnp.float32), jax.tree.map(lambda x: x[0], aux)

  def clipped(params, batch, rng=None, mask=None):
    num_rows = jax.tree.leaves(batch)[0].shape[0]
    parts = num_rows if method == 'microbatch' else microbatches
    if parts < 1 or num_rows % parts:
      raise ValueError(
        f'{num_rows} rows cannot be divided into {microbatches=}'
      )
    mask = jnp.ones(num_rows) if mask is None else mask.astype(jnp.float32)
    rngs = None if rng is None else jax.random.split(rng, num_rows)
    groups = _groups(params, style)
    factor = _factor(clip_norm, style, max(groups) + 1)
    rows = (batch, rngs, mask)

    def total(form):
      if parts == 1:
        return form(one, params, rows, factor, groups)

      def add(total, part):
        result = form(one, params, part, factor, groups)
        return jax.tree.map(jnp.add, total, result.grads), result[1:]

      split = (parts, num_rows // parts)
      grads, rest = jax.lax.scan(
        add,
        jax.tree.map(jnp.zeros_like, params),
        jax.tree.map(lambda x: x.reshape((*split, *x.shape[1:])), rows),
      )
      rest = jax.tree.map(lambda x: x.reshape((num_rows, *x.shape[2:])), rest)
      return Clipped(grads, *rest)

    if method in ('vmap', 'microbatch'):
      return total(_vmap)
    single = jax.tree.map(lambda x: x[0], (batch, rngs))
    shapes = jax.tree.map(_shape, (params, *single))

    def search():
      found = coverage.find(one, *shapes)
      ghost = method == 'ghost' or _ghost_is_smaller(found, params)
      return total(_ghost(found) if ghost else _vmap)

    try:
      return search()
    except taps.MissedError:
      # Parts of the loss are compiled functions, which were traced for the
      # first time just now. A second search knows them for what they are.
      return search()

  return clipped


def _shape(x):
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _groups(params, style):
  """Number of the group of each leaf that is clipped on its own."""
  paths = list(trees.flatten(params))
  if style != 'per_layer':
    return [0] * len(paths)
  owners = [path[:-1] for path in paths]
  numbers = {owner: i for i, owner in enumerate(dict.fromkeys(owners))}
  return [numbers[owner] for owner in owners]


def _factor(clip_norm, style, num_groups):
  """(squared norms [B, groups], mask [B]) -> factors [B, groups]."""
  limit = clip_norm / math.sqrt(num_groups)

  def factor(squared, mask):
    factors = limit / (jnp.sqrt(squared) + _EPS[style])
    if style != 'automatic':
      factors = jnp.minimum(factors, 1.0)
    return factors * mask[:, None]

  return factor


def _ghost_is_smaller(found, params):
  """Numbers that are stored for each example, by the one and the other form.

  Twice the activations, because the inputs live until the norms are known and
  the products of `norms` come on top; it decides as measured memory does for
  transformers from 1 to 4 million parameters and 8 to 64 tokens.
  """
  sizes = [x.size for x in jax.tree.leaves(params)]
  rest = sum(sizes[i] for i in found.leftover)
  ghost = 2 * found.activations + rest
  return ghost < rest + sum(sizes[i] for i in found.covered)


def _weighted_sum(factors, grads, groups, mask):
  """Sum of per-example gradients; a NaN in a row of padding is harmless."""

  def one(grad, group):
    real = mask.reshape((-1,) + (1,) * (grad.ndim - 1)) > 0
    grad = jnp.where(real, grad, 0).astype(jnp.float32)
    return jnp.einsum(
      'b,b...->...', factors[:, group], grad, precision='highest'
    )

  return [one(grad, i) for grad, i in zip(grads, groups, strict=True)]


def _squared(grads, groups, shape):
  """Squared norms of per-example gradients, [B, groups]."""
  squared = jnp.zeros(shape)
  for grad, group in zip(grads, groups, strict=True):
    square = jnp.square(grad.astype(jnp.float32))
    squared = squared.at[:, group].add(square.reshape((shape[0], -1)).sum(1))
  return squared


def _result(params, leaves, squared, mask, loss, aux):
  old, treedef = jax.tree.flatten(params)
  leaves = [x.astype(p.dtype) for x, p in zip(leaves, old, strict=True)]
  norms = jnp.sqrt(squared.sum(1)) * mask
  return Clipped(jax.tree.unflatten(treedef, leaves), norms, loss, aux)


def _vmap(loss_fn, params, rows, factor, groups):
  """Per-example gradients of all rows at once."""
  batch, rngs, mask = rows

  def one(row, rng):
    return jax.value_and_grad(loss_fn, has_aux=True)(params, row, rng)

  (loss, aux), grads = jax.vmap(one)(batch, rngs)
  grads = jax.tree.leaves(grads)
  squared = _squared(grads, groups, (mask.shape[0], max(groups) + 1))
  squared = jnp.where(mask[:, None] > 0, squared, 0.0)
  factors = factor(squared, mask)
  leaves = _weighted_sum(factors, grads, groups, mask)
  return _result(params, leaves, squared, mask, loss, aux)


def _ghost(found):
  """Norms without gradients of single examples, then a weighted backward."""

  def form(loss_fn, params, rows, factor, groups):
    batch, rngs, mask = rows
    leaves, treedef = jax.tree.flatten(params)
    num_rows, num_groups = mask.shape[0], max(groups) + 1
    covered = {i: leaves[i] for i in found.covered}
    # Their gradients come out one an example; the values are all the same.
    leftover = {
      i: jnp.broadcast_to(leaves[i], (num_rows, *leaves[i].shape))
      for i in found.leftover
    }
    carrier = jnp.zeros((num_rows, num_groups))

    def losses(covered, leftover, carrier, weigh=None):
      def one(leftover, carrier, weigh, row, rng):
        own = {**dict(enumerate(leaves)), **covered, **leftover}
        tree = jax.tree.unflatten(treedef, [own[i] for i in range(len(own))])
        with taps.tapped(found, groups, carrier, weigh):
          return loss_fn(tree, row, rng)

      return jax.vmap(one)(leftover, carrier, weigh, batch, rngs)

    loss, backward, aux = jax.vjp(
      losses, covered, leftover, carrier, has_aux=True
    )
    _, grads, squared = backward(mask)
    rest = [groups[i] for i in found.leftover]
    grads = [grads[i] for i in found.leftover]
    squared += _squared(grads, rest, squared.shape)
    squared = jnp.where(mask[:, None] > 0, squared, 0.0)
    factors = factor(squared, mask)
    if num_groups == 1:
      sums, _, _ = backward(factors[:, 0])
    else:  # Layers with factors of their own need a forward pass that has them.
      sums = jax.grad(
        lambda covered: losses(covered, leftover, carrier, factors)[0].sum()
      )(covered)
    sums.update(
      zip(
        found.leftover,
        _weighted_sum(factors, grads, rest, mask),
        strict=True,
      )
    )
    total = [sums.get(i, jnp.zeros_like(x)) for i, x in enumerate(leaves)]
    return _result(params, total, squared, mask, loss, aux)

  return form
