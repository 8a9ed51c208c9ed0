"""Per-example losses -> the gradient as a function of the parameters.

`GradFn` implements `types.GradFn`: it holds one batch and answers the
questions that optimizer papers ask about the gradient on it.
"""

from collections.abc import Mapping
import copy
import functools

import jax
import jax.numpy as jnp

from repjax import parallel
from repjax import trees
from repjax import types

# Up to so many tasks `per_task` takes backward passes side by side, as fast as
# one after the other (on CPUs, an MLP, a small ViT). With 16 tasks activations'
# gradients take twice the time and ten times the memory, in the MLP.
_VECTORIZED = 4


class GradFn:
  """The gradient of a mean loss over one batch, at any point.

  Rows with mask 0 are blanked before the loss sees them, so that not even a
  NaN in them reaches a gradient. All passes use the same key: dropout masks
  are equal at every point that a link asks about.
  """

  def __init__(
    self,
    loss_fn: types.LossFn,
    batch: types.Batch,
    rng: jax.Array,
    model_state: types.PyTree,
    *,
    microbatches: int = 1,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    over_devices: bool = True,
  ):
    """Binds a loss to a batch.

    Args:
      loss_fn: (params, model_state, batch, rng) -> `types.Losses`.
      batch: This device's rows.
      rng: This device's key.
      model_state: Other collections of the model before the step.
      microbatches: Parts in which the rows are gone through, one after the
        other; the gradient is the same (but for batch norm's), memory a part's.
      compute_dtype: What the parameters are cast to for the loss, which does
        what it must with its inputs. Gradients come back in the parameters'
        own dtype.
      over_devices: Whether to average over devices; False makes a gradient of
        this device's rows alone.
    """
    num_rows = batch['mask'].shape[0]
    if microbatches < 1 or num_rows % microbatches:
      raise ValueError(
        f'{num_rows} rows on a device cannot be divided into {microbatches=}'
      )
    self._loss_fn = loss_fn
    self._batch = blank_padding(batch)
    self._rng = rng
    self._model_state = model_state
    self._microbatches = microbatches
    self._compute_dtype = compute_dtype
    self._over_devices = over_devices
    self._known = None  # (params, their local sums): see `_local`.
    # `types.Aux` of the last `clipped`, or None. Whoever drops the plain
    # gradient reports these sums, so that XLA drops its forward pass, too.
    self.clipped_aux = None
    self.asked = types.Asked()

  def __call__(self, params, *, sync=True):
    """Mean gradient at `params`: see `types.GradFn`."""
    self.asked.check_open()
    grads, weight, model_state, sums = self._local(params)
    if self._over_devices and sync:
      grads, weight, sums = parallel.psum((grads, weight, sums))
      model_state = _mean_state(model_state)
    grads = _divide(grads, weight)
    if sync and self._is_known(params):
      self.asked.plain = jax.tree.leaves(grads)
    return grads, types.Aux(model_state, sums)

  def over_groups(self, num_groups, fn):
    """Averages what `fn` makes of each group: see `types.GradFn`."""
    self.asked.check_open()
    num_rows = self._batch['mask'].shape[0]
    if num_groups < 1 or num_rows % num_groups:
      raise ValueError(
        f'{num_rows} rows on a device cannot be divided into {num_groups=}'
      )

    def weighed(grad_fn, batch):
      weight = batch['mask'].sum()
      grads = fn(grad_fn)  # The weight is float32, which they need not be.
      return jax.tree.map(lambda x: (x * weight).astype(x.dtype), grads), weight

    if num_groups == 1:  # No second pass at a point that is known.
      alone = copy.copy(self)
      alone._over_devices = False
      return self._mean(*weighed(alone, self._batch))

    def one(numbered):
      index, batch = numbered
      grad_fn = GradFn(
        self._loss_fn,
        batch,
        jax.random.fold_in(self._rng, index),
        self._model_state,
        microbatches=self._microbatches,
        compute_dtype=self._compute_dtype,
        over_devices=False,
      )
      return weighed(grad_fn, batch)

    groups = _split(self._batch, num_groups)
    sums, weight = jax.tree.map(
      lambda x: x.sum(0), jax.lax.map(one, (jnp.arange(num_groups), groups))
    )
    return self._mean(sums, weight)

  def _mean(self, sums, weight):
    if self._over_devices:
      sums, weight = parallel.psum((sums, weight))
    return _divide(sums, weight)

  def clipped(self, params, clip_norm, *, rng=None, **how):
    """Sum of single examples' clipped gradients: see `types.GradFn`.

    Each example is a batch of one row with a key of its own, so dropout masks
    differ between rows, and from those of `__call__`. None of the sums is
    private. Rows of 'nonfinite' examples count for no other metric.

    Raises:
      InputError: If the model changes its other collections, which hold
        statistics of all rows (batch normalisation), if the batch has a column
        'user' and `rows_per_user` is 1 or the other way round, or if a device's
        rows are no whole users.
    """
    # Who does not ask for privacy loads none of it.
    from repjax.privacy import of_batch

    self.asked.check_open()
    if rng is not None and self._over_devices:
      rng = parallel.device_rng(rng)
    grads, measured, norms = of_batch.clipped(
      self._cast_loss,
      params,
      self._model_state,
      self._batch,
      self._rng if rng is None else rng,
      clip_norm=clip_norm,
      microbatches=self._microbatches,
      **how,
    )
    sums = {}
    for values, weights in measured:
      sums |= _weighted(values, weights)
    if self._over_devices:
      grads, sums = parallel.psum((grads, sums))
    # With no row left there is no loss: the run has diverged, and shall stop.
    bad, total = sums['nonfinite']
    lost = (total > 0) & (bad == total)
    loss, weight = sums['loss']
    sums['loss'] = (
      jnp.where(lost, jnp.nan, loss),
      jnp.where(lost, total, weight),
    )
    sums['median_norm'] = of_batch.median(
      *(parallel.all_gather(norms) if self._over_devices else norms)
    )
    self.clipped_aux = types.Aux(self._model_state, sums)
    return grads, self.clipped_aux

  def per_task(self, params, num_tasks, *, column='task', how='auto'):
    """One mean gradient a task: see `types.GradFn`.

    The forward pass is shared, with all tasks' rows in it (one set of dropout
    masks and batch statistics); its activations are kept once. Up to 4 tasks
    the backward passes go side by side, more of them one after the other, so
    that memory for activations does not grow with the number of tasks; that is
    how='auto', and 'vectorized' and 'scanned' are the one and the other.

    Raises:
      InputError: When traced, if the batch has no such column of integers.
    """
    self.asked.check_open()
    ids = self._batch.get(column)
    if ids is None or not jnp.issubdtype(ids.dtype, jnp.integer):
      raise types.InputError(
        f'grad_fn.per_task needs integers [B] in the batch as {column!r}; it '
        f'has {sorted(self._batch)}: see repjax.data.sets.tasks.'
      )
    sums_fn = functools.partial(
      self._task_sums, num_tasks=num_tasks, column=column, how=how
    )
    grads, weight, model_state, sums = self._over_parts(params, sums_fn)
    if self._over_devices:
      grads, weight, sums = parallel.psum((grads, weight, sums))
      model_state = _mean_state(model_state)
    grads = jax.tree.map(lambda x: jax.vmap(_divide)(x, weight), grads)
    return grads, weight, types.Aux(model_state, sums)

  def _local(self, params):
    """This device's sums of gradients, weights and metrics at `params`.

    Remembers the first point: the step asks for the plain gradient, then an
    unsynchronised link asks for the same one again. XLA merges equal
    computations in most cases, but not loops.
    """
    if self._is_known(params):
      return self._known[1]
    sums = self._over_parts(params, self._sums)
    if self._known is None:
      # Only the first point, which the step asks about itself: a link may ask
      # inside a scan, and what is traced there must not get out.
      self._known = (jax.tree.leaves(params), sums)
    return sums

  def _is_known(self, params):
    if self._known is None:
      return False
    known, leaves = self._known[0], jax.tree.leaves(params)
    return len(known) == len(leaves) and all(
      a is b for a, b in zip(known, leaves, strict=True)
    )

  def _over_parts(self, params, sums_fn):
    """`sums_fn` of all this device's rows, microbatch by microbatch."""
    if self._microbatches == 1:
      return sums_fn(params, self._model_state, self._batch, self._rng)
    parts = _split(self._batch, self._microbatches)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(
      sums_fn, params, self._model_state, first, self._rng
    )

    def zero(x):  # A sum in half precision stops growing at 256 equal terms.
      return jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))

    def add(carry, args):
      index, batch = args
      totals, model_state = carry
      grads, weight, model_state, sums = sums_fn(
        params, model_state, batch, jax.random.fold_in(self._rng, index)
      )
      totals = jax.tree.map(jnp.add, totals, (grads, weight, sums))
      return (totals, model_state), None

    zeros = tuple(jax.tree.map(zero, shapes[i]) for i in (0, 1, 3))
    start, index = (zeros, self._model_state), jnp.arange(self._microbatches)
    (totals, model_state), _ = jax.lax.scan(add, start, (index, parts))
    grads, weight, sums = totals
    grads = jax.tree.map(lambda x, y: x.astype(y.dtype), grads, shapes[0])
    return grads, weight, model_state, sums

  def _sums(self, params, model_state, batch, rng):
    """(sum of gradients, sum of weights, model state, sums) of some rows."""

    def total(params):
      losses, aux = self._losses(params, model_state, batch, rng)
      return losses.sum(), aux

    grads, (new_state, sums) = jax.grad(total, has_aux=True)(params)
    return grads, batch['mask'].astype(jnp.float32).sum(), new_state, sums

  def _task_sums(
    self, params, model_state, batch, rng, *, num_tasks, column, how
  ):
    """`_sums` with a leading task axis in gradients and weights."""
    _, pull_back, (new_state, sums) = jax.vjp(
      lambda params: self._losses(params, model_state, batch, rng),
      params,
      has_aux=True,
    )
    # [T, B], of the losses' type also where JAX has numbers of 64 bits.
    rows = jax.nn.one_hot(batch[column], num_tasks, axis=0, dtype=jnp.float32)
    if how == 'vectorized' or (how == 'auto' and num_tasks <= _VECTORIZED):
      (grads,) = jax.vmap(pull_back)(rows)
    else:
      (grads,) = jax.lax.map(pull_back, rows)
    weight = (rows * batch['mask'][None].astype(jnp.float32)).sum(1)
    return grads, weight, new_state, sums

  def _cast_loss(self, params, *args):
    return self._loss_fn(trees.cast(params, self._compute_dtype), *args)

  def _losses(self, params, model_state, batch, rng):
    """(loss of each row times its mask [B], (model state, sums))."""
    mask = batch['mask'].astype(jnp.float32)
    out = self._cast_loss(params, model_state, batch, rng)
    loss = out.loss.astype(jnp.float32)
    rows = {'loss': loss, **out.metrics}
    for name, x in rows.items():
      if x.shape != mask.shape and (x.ndim or name == 'loss'):
        raise ValueError(
          f'A loss gives one {name} a row, {mask.shape}; got {x.shape}'
        )
    sums = _weighted(rows, mask)
    # Other collections keep their dtype whatever the compute dtype is, so that
    # the state's structure never changes.
    new_state = jax.tree.map(
      lambda old, new: new.astype(old.dtype), model_state, out.model_state
    )
    return loss * mask, (new_state, sums)


def _mean_state(state):
  """The mean over devices; what no device changes stays, bit for bit."""
  if not isinstance(state, Mapping) or types.FROZEN not in state:
    return parallel.pmean(state)
  rest = {name: state[name] for name in state if name != types.FROZEN}
  return {**parallel.pmean(rest), types.FROZEN: state[types.FROZEN]}


def _weighted(values, weights):
  """`types.Sums` of one value a row, or a user."""
  total = weights.sum()

  def weigh(x):
    return jnp.where(weights > 0, x.astype(jnp.float32) * weights, 0).sum()

  return {name: (weigh(x), total) for name, x in values.items()}


def blank_padding(batch: types.Batch) -> types.Batch:
  """The batch with 0 in all columns of rows with mask 0."""
  real = batch['mask'] > 0

  def blank(x):
    at = real.reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.where(at, x, jnp.zeros_like(x))  # Booleans stay such.

  return {name: blank(x) for name, x in batch.items()}


def _split(batch, parts):
  return jax.tree.map(
    lambda x: x.reshape((parts, x.shape[0] // parts, *x.shape[1:])), batch
  )


def _divide(tree: types.PyTree, weight: jax.Array) -> types.PyTree:
  # A batch of padding alone has weight 0 and sums 0: its mean is 0.
  weight = jnp.maximum(weight, 1.0)
  return jax.tree.map(lambda x: x / weight.astype(x.dtype), tree)
