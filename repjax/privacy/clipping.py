"""Device code: the sum of per-example clipped gradients.

The heart of DP-SGD (Abadi et al., 'Deep Learning with Differential Privacy',
CCS 2016, algorithm 1, https://arxiv.org/abs/1607.00133): each example's
gradient is scaled down to norm C before the sum, so that one example moves the
sum by at most C.

Ghost clipping (Li et al., 'Large Language Models Can Be Strong Differentially
Private Learners', ICLR 2022, section 4, https://arxiv.org/abs/2110.05679) finds
the norms without storing a gradient of any single example. The model is not
touched: layers that have a rule (`rules`) are tapped (`taps`) where the loss
calls them. Parameters that no rule covers (`coverage`) get exact per-example
gradients of their own; for scales and biases of norms and for position
embeddings these are no larger than one activation. Where all covered layers are
called in the open, their inputs and cotangents are kept and one backward pass
does (book-keeping, https://arxiv.org/abs/2210.00038); where some are
rematerialised, scanned or compiled on their own, there is a second one
(`forms`). Sums over examples are float32, whatever layers compute in.

Examples must not see each other: the loss is called with batches of ONE row,
under `vmap`, and each row has its own key, so that dropout differs between
rows. For the privacy of users, whose rows may be many, it is called with all
rows of ONE user, whose mean gradient is clipped as a whole; the rules for norms
then sum over a layer's rows as they do over its positions, with all products
between rows. What couples rows through devices (a loss that calls
`parallel.psum`) cannot be seen here and must not be used.
"""

from collections.abc import Callable
import functools
import math
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp

from repjax import trees
from repjax import types
from repjax.privacy.ghost import coverage
from repjax.privacy.ghost import forms
from repjax.privacy.ghost import taps

Method = Literal['auto', 'ghost', 'vmap', 'microbatch']
Style = Literal['flat', 'per_layer', 'automatic']

# Added to norms before C is divided by them: as in the authors' code, and as
# 'automatic' has it (Bu et al., section 4: stability constant 0.01).
_EPS = {'flat': 1e-6, 'per_layer': 1e-6, 'automatic': 0.01}


class Clipped(NamedTuple):
  """What clipping makes of a batch.

  Attributes:
    grads: Sum of the clipped gradients of the real units.
    norms: Gradient norm of each unit before clipping, [B / rows_per_unit]; 0
      for padding, infinite or NaN where the gradient counts as 0.
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
  rows_per_unit: int = 1,
  microbatches: int = 1,
  has_aux: bool = False,
) -> Callable[..., Clipped]:
  """Sums gradients of units, each clipped to `clip_norm`.

  Guarantee: adding or removing one unit changes `grads` by at most `clip_norm`
  in l2 norm (up to float32's rounding of sums), whatever its rows hold, as long
  as units do not see each other in `loss_fn`. Where numbers of a unit cancel
  out so far that 'ghost' cannot tell its norm, it is clipped more. A gradient
  that is not finite, or whose squared norm is beyond float32, counts as 0.
  Nothing else that comes out is private: not `norms`, `loss` or `aux`.

  Args:
    loss_fn: (params, batch, rng) -> losses [rows], called with batches of
      `rows_per_unit` rows. `batch` is a tree of arrays with leading axis B.
    clip_norm: C > 0.
    method: 'ghost' (see the module), 'vmap' (gradients of all units of the
      microbatch), 'microbatch' (one unit after the other, least memory), or
      'auto': 'ghost' where gradients of units would hold more numbers than
      twice the inputs and outputs of the layers that have a rule (plus what
      has none), else 'vmap'. All give the same sum.
    style: 'flat': one norm a unit, factor min(1, C / norm). 'per_layer': each
      of the K modules that own parameters is clipped to C / sqrt(K) (stacked
      layers of an `nn.scan` count as one). 'automatic': factor C / (norm +
      0.01), small gradients are scaled up too (Bu et al., 'Automatic Clipping',
      NeurIPS 2023, https://arxiv.org/abs/2206.07136).
    rows_per_unit: U consecutive rows are one unit, which is clipped as a whole:
      the mean gradient of its real rows. 1 protects rows; for users, see
      `repjax.data.batches.users`.
    microbatches: Parts in which the units are gone through.
    has_aux: Whether `loss_fn` returns (losses, tree of arrays [rows, ...]).

  Returns:
    (params, batch, rng, mask=None) -> `Clipped`; rows with mask 0 count for
    nothing, even where they hold NaN. `rng` may be None for a loss that draws
    nothing.

  Raises:
    ValueError: If an argument is out of range.
    InputError: When called: parameters are below float32, or 'ghost' would
      round the sum (half precision where layers are not in the open; 'auto'
      takes 'vmap' there).
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
  if rows_per_unit < 1:
    raise ValueError(f'Need rows_per_unit >= 1; got {rows_per_unit=}')

  if isinstance(loss_fn, jax.stages.Wrapped):
    # Compiled functions hide their layers. (JAX does not declare the field.)
    loss_fn = loss_fn.__wrapped__  # type: ignore[attr-defined]

  def unit_loss(params, rows, rng, weights):
    out = loss_fn(params, rows, rng)
    loss, aux = out if has_aux else (out, ())
    if loss.shape != weights.shape:
      raise ValueError(
        'loss_fn returns one loss a row, '
        f'{weights.shape} for {rows_per_unit=}; got {loss.shape}'
      )
    loss = loss.astype(jnp.float32)
    return (loss * weights).sum(), (loss, aux)

  def clipped(params, batch, rng=None, mask=None):
    num_rows = jax.tree.leaves(batch)[0].shape[0]
    num_units = num_rows // rows_per_unit
    parts = num_units if method == 'microbatch' else microbatches
    if num_rows % rows_per_unit or parts < 1 or num_units % parts:
      raise ValueError(
        f'{num_rows} rows cannot be divided into units of {rows_per_unit=} and '
        f'these into {microbatches=}'
      )
    _check_types(params)
    units = _units(batch, rng, mask, num_units)
    groups = _groups(params, style)
    clip = forms.Clip(groups, _factor(clip_norm, style, max(groups) + 1))

    def total(form):
      if parts == 1:
        return form(unit_loss, params, units, clip)

      def add(total, part):
        result = form(unit_loss, params, part, clip)
        return jax.tree.map(jnp.add, total, result.grads), result[1:]

      split = (parts, num_units // parts)
      grads, rest = jax.lax.scan(
        add,
        jax.tree.map(jnp.zeros_like, params),
        jax.tree.map(lambda x: x.reshape((*split, *x.shape[1:])), units),
      )
      rest = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), rest)
      return forms.Result(grads, *rest)

    def search():
      if method in ('vmap', 'microbatch'):
        return total(forms.vmap)
      one = jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], units))
      # As `two_backwards` traces it: what is compiled is traced once for both.
      with jax.default_matmul_precision('highest'):
        found = coverage.find(unit_loss, jax.tree.map(_shape, params), *one)
      rounds = bool(found.narrow) and not found.outputs
      if method == 'auto' and (rounds or not _ghost_is_smaller(found, params)):
        return total(forms.vmap)
      if rounds:
        raise types.InputError(_ROUNDS.format(types=_names(found.narrow)))
      ghost = forms.one_backward if found.outputs else forms.two_backwards
      return total(functools.partial(ghost, found))

    try:
      grads, norms, aux = search()
    except taps.MissedError:
      # Parts of the loss are compiled functions, which were traced for the
      # first time just now. A second search knows them for what they are.
      grads, norms, aux = search()
    loss, aux = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), aux)
    return Clipped(grads, norms, loss, aux)

  return clipped


def _units(batch, rng, mask, num_units):
  """Rows are divided into units; those of padding are blanked."""
  num_rows = jax.tree.leaves(batch)[0].shape[0]
  mask = jnp.ones(num_rows) if mask is None else mask
  mask = mask.astype(jnp.float32).reshape((num_units, -1))

  def divide(x):
    x = x.reshape((*mask.shape, *x.shape[1:]))
    real = mask.reshape(mask.shape + (1,) * (x.ndim - 2)) > 0
    return jnp.where(real, x, jnp.zeros_like(x))

  return forms.Units(
    batch=jax.tree.map(divide, batch),
    rngs=None if rng is None else jax.random.split(rng, num_units),
    weights=mask / jnp.maximum(mask.sum(1, keepdims=True), 1.0),
  )


_ROUNDS = (
  "method='ghost' sums gradients in {types} here, where a single row can move "
  'the sum by more than clip_norm. In bfloat16 it needs layers in the open: '
  'no remat, no scan, no loop over layers and no compiled function in the '
  "loss. Otherwise compute in float32, or use method='vmap'."
)


def _names(dtypes):
  return ', '.join(sorted(jnp.dtype(x).name for x in dtypes))


def _check_types(params):
  """A sum that is rounded to less than float32 has no bound."""
  narrow = {
    x.dtype
    for x in jax.tree.leaves(params)
    if jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32
  }
  if narrow:
    raise types.InputError(
      f'parameters are {_names(narrow)}, and so is the sum of their gradients, '
      'which rounding moves by more than clip_norm: keep them in float32 and '
      'cast them in the loss (step.compute_dtype does).'
    )


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
  """Squared norms [N, groups] -> factors [N, groups]."""
  limit = clip_norm / math.sqrt(num_groups)

  def factor(squared):
    factors = limit / (jnp.sqrt(squared) + _EPS[style])
    return factors if style == 'automatic' else jnp.minimum(factors, 1.0)

  return factor


def _ghost_is_smaller(found, params):
  """Numbers that are stored for each example, by the one and the other form.

  Twice the activations, because the inputs live until the norms are known and
  the products of `rules` come on top; it decides as measured memory does for
  transformers from 1 to 36 million parameters and 8 to 512 tokens.
  """
  sizes = [x.size for x in jax.tree.leaves(params)]
  rest = sum(sizes[i] for i in found.leftover)
  ghost = 2 * found.activations + rest
  return ghost < rest + sum(sizes[i] for i in found.covered)
