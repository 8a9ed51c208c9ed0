"""The only file that spreads work over devices (pmap) and processes.

The state is replicated and carries no device axis, but for tables of all rows
(`trees.PerRow`); of several devices, batches carry one in front. The same
functions serve one device, n devices of one process and n processes, so
checkpoints do not know the number of devices.

One device has nobody to exchange with: its step is plain jit, whose dispatch
costs a fraction of pmap's, and makes the same numbers.

Memory: on one process the state is donated, so a step keeps one copy of it.
With several processes pmap turns its host-local arguments into global arrays
and back, and a donated buffer would be deleted under the host-local array
that still stands for it ('Array has been deleted'): there the state is not
donated, and a step briefly holds two copies of it.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repjax import trees
from repjax import types

AXIS = 'devices'


# Inside a step: collectives that are the identity outside of one.


def axis_name() -> str | None:
  """Returns AXIS inside a mapped step and None under plain jit or eagerly."""
  try:
    jax.lax.axis_index(AXIS)
  except NameError:  # How JAX reports an unbound axis.
    return None
  return AXIS


def psum(tree: types.PyTree) -> types.PyTree:
  """Sums over devices."""
  return jax.lax.psum(tree, AXIS) if _several() else tree


def pmean(tree: types.PyTree) -> types.PyTree:
  """Averages the floating-point leaves over devices; leaves the others."""

  def mean(x):
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jax.lax.pmean(x, AXIS) if floating else x

  return jax.tree.map(mean, tree) if _several() else tree


def all_gather(tree: types.PyTree) -> types.PyTree:
  """Rows of all devices in the order of the global batch, on every device."""
  if not _several():
    return tree
  return jax.lax.all_gather(tree, AXIS, tiled=True)


def sum_of_own(rows: jax.Array) -> jax.Array:
  """Sums rows of the global batch over devices; of them this device's own."""
  return jax.lax.psum_scatter(rows, AXIS, tiled=True) if _several() else rows


def device_rng(rng: jax.Array) -> jax.Array:
  """A key of this device's own, from one that is equal everywhere."""
  return jax.random.fold_in(rng, _device_index())


def places(num_rows: int) -> jax.Array:
  """Places of this device's rows in the GLOBAL batch, [num_rows]."""
  return _device_index() * num_rows + jnp.arange(num_rows)


def row_rngs(rng: jax.Array, num_rows: int) -> jax.Array:
  """One key a row, [num_rows], by the row's place in the GLOBAL batch.

  What is drawn from them does not depend on the number of devices.
  """
  return jax.vmap(lambda x: jax.random.fold_in(rng, x))(places(num_rows))


def _several():
  """Whether there is more than one device to exchange with."""
  # XLA keeps a collective of one, and a step of many small leaves waits for it:
  # 8 % of the small ViT's.
  return axis_name() is not None and jax.lax.psum(1, AXIS) > 1


def _device_index():
  return 0 if axis_name() is None else jax.lax.axis_index(AXIS)


# Around a step.


def train_step(
  update: Callable[..., Any], devices: Sequence[jax.Device] | None = None
) -> Callable[..., Any]:
  """Spreads a method's `update` over devices.

  Args:
    update: (state, batch, rng) -> (state, sums), as in `types.Method`.
    devices: Devices of this process to use; all devices of all processes if
      None.

  Returns:
    (state, sharded batch, rng) -> (state, sums). The key is the run's: that of
    the step is derived from it and `state.step` on the devices.
  """

  def step(state, batch, rng):
    return update(state, batch, jax.random.fold_in(rng, state.step))

  if (only := _only(devices)) is not None:
    # Without them, what comes out of the first step is placed otherwise than
    # what went in, and the second one compiles again.
    place = _replicated(only)
    return jax.jit(
      step, in_shardings=place, out_shardings=place, donate_argnums=0
    )
  return _Mapped(step, (0, None), devices, gives_state=True)


def predict_step(
  predict: Callable[..., Any], devices: Sequence[jax.Device] | None = None
) -> Callable[..., Any]:
  """Spreads a method's `predict` and brings all rows back to every process.

  Args:
    predict: (state, batch) -> name -> [rows, ...], as in `types.Method`.
    devices: Devices of this process to use; all of all processes if None.

  Returns:
    (state, sharded batch) -> (outputs, columns): the predictions and the
    batch's one-dimensional columns (label, mask, ...), in the same row order.
  """

  def step(state, batch):
    columns = {name: x for name, x in batch.items() if x.ndim == 1}
    return all_gather((dict(predict(state, batch)), columns))

  if (only := _only(devices)) is not None:
    place = _replicated(only)
    return jax.jit(step, in_shardings=place, out_shardings=place)
  return _Mapped(step, (0,), devices)


class _Mapped:
  """`jax.pmap` of (state, ...); each device brings its parts of tables."""

  def __init__(self, step, axes, devices, *, gives_state=False):
    def with_parts(state, parts, *rest):
      made = step(trees.joined(state, parts), *rest)
      if not gives_state:
        return made, None
      state, parts = trees.apart(made[0])
      return (state, made[1]), parts

    self._step = jax.pmap(
      with_parts,
      axis_name=AXIS,
      # By leaf they could not be hashed, as several processes need it.
      in_axes=(None, 0, *axes),
      out_axes=(None, 0),
      donate_argnums=(0, 1) if gives_state and jax.process_count() == 1 else (),
      devices=devices,
    )
    self._any = None  # Whether something is spread.

  def _arguments(self, state, rest):
    if self._any is None:
      self._any = bool(trees.apart(state)[1])
    return (*(trees.apart(state) if self._any else (state, ())), *rest)

  def __call__(self, state, *rest):
    made, parts = self._step(*self._arguments(state, rest))
    return (trees.joined(made[0], parts), *made[1:]) if parts else made

  def lower(self, state, *rest):
    return self._step.lower(*self._arguments(state, rest))


def shard(
  batch: types.HostBatch, devices: Sequence[jax.Device] | None = None
) -> types.HostBatch:
  """Splits this process's rows over its devices: [B, ...] -> [n, B / n, ...].

  On the host: a step places what it is called with as soon as it is queued,
  which is ahead of its turn, and for small batches ten times cheaper than to
  place each column before. One device gets the rows as they are.
  """
  if _only(devices) is not None:
    return {name: np.asarray(x) for name, x in batch.items()}
  devices = jax.local_devices() if devices is None else devices

  def split(x):
    x = np.asarray(x)
    return x.reshape((len(devices), x.shape[0] // len(devices), *x.shape[1:]))

  return {name: split(x) for name, x in batch.items()}


def replicate(
  tree: types.PyTree, devices: Sequence[jax.Device] | None = None
) -> types.PyTree:
  """Copies every leaf once to all devices of this process; spreads tables.

  Always a copy: a state that holds one buffer twice (a teacher that starts as
  the student) must not be donated as it is.
  """
  local = jax.local_devices() if devices is None else devices
  # One of several devices would share what it has, whatever `may_alias` says.
  own = lambda x: jnp.array(x) if isinstance(x, jax.Array) else x  # noqa: E731
  put = functools.partial(
    jax.device_put, device=_replicated(local), may_alias=False
  )
  tree = jax.tree.map(lambda x: put(own(x)), whole(tree))
  if _only(devices) is not None:
    return tree
  return trees.map_tables(lambda x: _spread(x, devices, len(local)), tree)


def whole(tree: types.PyTree) -> types.PyTree:
  """Brings tables together that are spread by row; leaves all others."""

  def together(table):
    if not table.spread:
      return table
    if jax.process_count() == 1:
      values = np.asarray(table.values).reshape(-1, *table.values.shape[2:])
    else:
      values = jax.pmap(all_gather, AXIS, out_axes=None)(table.values)
    return trees.PerRow(values[: table.num_rows], table.num_rows)

  return trees.map_tables(together, tree)


def _spread(table, devices, num_local):
  def own(values, _):
    part = -(-table.num_rows // jax.lax.psum(1, AXIS))
    return jnp.take(values, places(part), axis=0, mode='fill', fill_value=0)

  split = jax.pmap(own, axis_name=AXIS, in_axes=(None, 0), devices=devices)
  values = split(table.values, np.zeros(num_local))
  return trees.PerRow(values, table.num_rows, spread=True)


def _replicated(devices):
  """Where a whole copy is on each of these devices."""
  kinds = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,), axis_types=kinds)
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _only(devices):
  """The devices of a step if it is on one alone, else None."""
  devices = jax.devices() if devices is None else devices
  return devices if len(devices) == 1 else None


def check_batch_size(
  batch_size: int, *, microbatches: int = 1, multiple: int = 1
) -> None:
  """Raises unless the global batch divides evenly.

  Args:
    batch_size: Rows of one step over all devices.
    microbatches: Parts in which each device goes through its rows.
    multiple: What a device's microbatch must be a multiple of (2 where rows
      are mixed in pairs).

  Raises:
    InputError: With the nearest sizes that work.
  """
  types.check_range('[1, inf)', **{'config.step.microbatches': microbatches})
  unit = jax.device_count() * microbatches * multiple
  if batch_size > 0 and batch_size % unit == 0:
    return
  below = max(batch_size, 0) // unit * unit
  near = f'{below} or {below + unit}' if below else f'{unit}'
  parts = f'{jax.device_count()} device(s)'
  parts += f' x {microbatches} microbatch(es)' if microbatches > 1 else ''
  parts += f' x {multiple} rows that are mixed' if multiple > 1 else ''
  raise types.InputError(
    f'config.batch_size={batch_size} cannot be divided over {parts}: '
    f'use --config.batch_size={near}.'
  )


def round_up(batch_size: int) -> int:
  """Smallest size >= `batch_size` that divides over all devices.

  Raises:
    InputError: If it is < 1; such rows are those of evaluation.
  """
  types.check_range('[1, inf)', **{'config.eval_batch_size': batch_size})
  return -(-batch_size // jax.device_count()) * jax.device_count()


# Between processes, that `clusters` joined.


def agree_to_stop(step: int, *, asked: bool) -> bool:
  """Whether all processes stop after this step.

  Args:
    step: The step just finished, equal on all processes.
    asked: Whether this process got a signal. With several processes JAX's
      preemption notice (SIGTERM to any of them) decides instead, at a step
      that it chooses for all.
  """
  if jax.process_count() == 1:
    return asked
  from jax.experimental import multihost_utils

  return multihost_utils.reached_preemption_sync_point(step)


def any_process(value: bool) -> bool:
  """Whether a value is true on any process; all must ask."""
  return any(x == b'\1' for x in gather(bytes([value])))


def gather(data: bytes) -> list[bytes]:
  """What each process gives, of any length, on all of them."""
  if jax.process_count() == 1:
    return [data]
  from jax.experimental import multihost_utils

  all_of = multihost_utils.process_allgather
  lengths = np.asarray(all_of(np.int32(len(data)))).reshape(-1)
  padded = np.frombuffer(data.ljust(lengths.max(), b'\0'), np.uint8)
  rows = np.asarray(all_of(padded))
  return [x[:n].tobytes() for x, n in zip(rows, lengths, strict=True)]


def barrier(name: str) -> None:
  """Waits for all processes."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)
