"""Orbax checkpoints: state and config of a run, whole or not at all.

A checkpoint is a flat table of arrays, path -> array, without a device axis:
it does not know how many devices or processes wrote it. Orbax writes in the
background into a temporary folder and renames it, so a killed process leaves
whole checkpoints only. Each array's CRC-32 is stored beside it and compared on
reading, so that a file damaged later is noticed, too.
"""

from collections.abc import Mapping
import math
import pathlib
import time
from typing import Any
from typing import NamedTuple
import zlib

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from repjax import files
from repjax import parallel
from repjax import trees
from repjax import types

_FORMAT = 'repjax-1'


class Stored(NamedTuple):
  """A checkpoint as it is on disk.

  Attributes:
    path: Its folder.
    arrays: Path in the state, joined by '/', -> array; keys are their words.
    config: What it was saved with.
    sums: Of the interval that was being averaged; see `loop.Progress`.
  """

  path: pathlib.Path
  arrays: dict[str, np.ndarray]
  config: dict[str, Any]
  sums: dict[str, tuple[float, float]]


class Checkpoints:
  """The checkpoints of one run.

  Keeps the newest `keep`, and the best one by a metric.
  """

  def __init__(
    self,
    directory: str,
    *,
    keep: int = 2,
    best: str = '',
    best_mode: str = 'max',
    read_only: bool = False,
  ):
    """Opens (and makes) the folder.

    Args:
      directory: Where the checkpoints are, one folder a step.
      keep: How many of the newest to keep, >= 1.
      best: Metric by which one more is kept; '' for none.
      best_mode: 'max' or 'min'.
      read_only: Whether to leave the folder as it is.
    """
    if keep < 1:
      raise types.InputError(f'config.run.keep must be >= 1; got {keep}.')
    self.directory = files.path_of(directory)
    if best and not self._metrics_are_whole(read_only):
      best = ''
    policies = [checkpoint_managers.LatestN(keep)]
    best_fn = None
    if best:
      worst = -math.inf if best_mode == 'max' else math.inf

      def best_fn(metrics):
        # Missing, or None as it was not finite.
        value = metrics.get(best)
        return worst if value is None else value

      policies.append(
        checkpoint_managers.BestN(
          get_metric_fn=best_fn,
          reverse=best_mode == 'min',
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._tracks_best = bool(best)
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        best_fn=best_fn,
        best_mode=best_mode,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        create=not read_only,
        read_only=read_only,
        # What a killed process left half written.
        cleanup_tmp_directories=not read_only,
      ),
    )

  def save(
    self,
    state: types.TrainState,
    config: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
    *,
    sums: Mapping[str, tuple[float, float]] | None = None,
  ) -> None:
    """Starts to save; returns as soon as the state is on the host.

    Args:
      state: A state of the loop; its `step` names the checkpoint.
      config: What the run is, as plain numbers, strings, lists and mappings.
      metrics: Of this state, for the best checkpoint.
      sums: Of the interval that is being averaged.

    Raises:
      NonFiniteError: If a parameter is NaN or infinite: nothing is written.
      OSError: If an earlier save failed in the background (a full disk).
    """
    name = trees.first_nonfinite(jax.device_get(state.params))
    if name is not None:
      raise types.NonFiniteError(
        f'parameter {name} is not finite at step {int(state.step)}'
      )
    arrays = trees.to_arrays(parallel.whole(state))
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    meta = {
      'format': _FORMAT,
      'config': config,
      'sums': sums or {},
      'crc32': {name: _crc32(x) for name, x in arrays.items()},
    }
    self._call(
      self._manager.save,
      step,
      args=ocp.args.Composite(
        # Orbax does not take arrays without elements; their shape says all.
        state=ocp.args.StandardSave(
          {name: x for name, x in arrays.items() if x.size}
        ),
        meta=ocp.args.JsonSave(meta),
      ),
      metrics=files.plain(metrics) if metrics and self._tracks_best else None,
      force=True,
    )

  def wait(self) -> None:
    """Returns when everything is on disk; raises what failed meanwhile."""
    self._call(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits, then frees the threads."""
    self.wait()
    self._manager.close()

  def steps(self) -> list[int]:
    """Steps of the checkpoints on disk, oldest first."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """Step of the best checkpoint, or None."""
    return self._manager.best_step() if self._tracks_best else None

  def restore(
    self, like: types.TrainState, *, step: int | None = None
  ) -> tuple[types.TrainState, dict[str, Any]] | None:
    """Reads the newest whole checkpoint.

    Args:
      like: A state of the wanted structure, shapes and dtypes.
      step: Read this one and no other.

    Returns:
      (state, the config it was saved with), or None if there is no checkpoint.

    Raises:
      InputError: As `read` does, or if the checkpoint belongs to another
        program or network (the message lists missing, unexpected and
        differently shaped arrays).
    """
    stored = self.read(step=step)
    if stored is None:
      return None
    return as_state(stored, like), stored.config

  def read(self, *, step: int | None = None) -> Stored | None:
    """Reads the newest whole checkpoint as it is, whatever it is of.

    Args:
      step: Read this one and no other.

    Returns:
      What is stored, or None if there is no checkpoint.

    Raises:
      InputError: If `step` does not exist, or if none is whole.
    """
    steps = self.steps()
    if step is not None and step not in steps:
      raise types.InputError(
        f'{self.directory} holds no checkpoint of step {step}; '
        f'it holds {steps}.'
      )
    wanted = [step] if step is not None else list(reversed(steps))
    for candidate in wanted:
      path = self.directory / str(candidate)
      try:
        stored = self._manager.restore(
          candidate,
          args=ocp.args.Composite(
            state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()
          ),
        )
        arrays, meta = dict(stored.state), stored.meta
        damaged = _damaged(arrays, meta)
      # Whatever Orbax, TensorStore and JSON raise on damaged files.
      except Exception as error:
        damaged = [*str(error).strip().splitlines(), type(error).__name__][0]
      if not damaged:
        # Earlier versions did not save them.
        return Stored(path, arrays, meta['config'], meta.get('sums', {}))
      logging.warning(
        'Skipping the damaged checkpoint %s: %s', path, damaged[:200]
      )
    if wanted:
      raise types.InputError(
        f'No checkpoint in {self.directory} is whole (steps {wanted}): '
        'delete that folder, or give another --workdir, to start again.'
      )
    return None

  def set_aside_after(self, step: int) -> None:
    """Renames checkpoints newer than `step`: damaged ones that were skipped.

    The run makes those steps again and must be free to save them; what is
    there is not deleted, since it may have been a passing fault.
    """
    for newer in self.steps():
      if newer > step and jax.process_index() == 0:
        path = self.directory / str(newer)
        path.rename(path.with_name(f'damaged-{newer}-{time.time_ns()}'))
    parallel.barrier('repjax-set-aside')
    self._manager.reload()

  def _metrics_are_whole(self, read_only) -> bool:
    """Whether all metrics can be read, which Orbax insists on.

    Damaged ones are set aside, and their checkpoints stay, without metrics.
    """
    whole = True
    for path in self.directory.glob('[0-9]*/metrics/metrics'):
      try:
        files.read_json(path)
      except types.InputError as error:
        logging.warning('%s: not looked at to find the best', error)
        if read_only:
          whole = False
        elif jax.process_index() == 0:
          path.parent.rename(path.parents[1] / f'damaged-{time.time_ns()}')
    if not read_only:
      parallel.barrier('repjax-metrics')
    return whole

  def _call(self, fn, *args, **kwargs):
    try:
      return fn(*args, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
      # TensorStore reports a full disk as ValueError or RuntimeError.
      whole = self.steps()
      # TensorStore puts the system's reason behind the paths of its layers.
      text = getattr(error, 'strerror', None) or str(error).rsplit(': ', 1)[-1]
      text = ' '.join(text.split())[:300]
      raise OSError(
        f'Could not save a checkpoint in {self.directory}: {text}. '
        f'Whole checkpoints there: {whole or "none"}. Free some space and '
        'run the same command again to go on from the newest.'
      ) from error


def as_state(stored: Stored, like: types.TrainState) -> types.TrainState:
  """A checkpoint as a state of the structure, shapes and dtypes of another.

  Raises:
    InputError: As `Checkpoints.restore` does.
  """
  like = parallel.whole(like)
  return trees.from_arrays(stored.arrays, like, where=stored.path)


def differing_fields(
  stored: Mapping[str, Any], current: Mapping[str, Any], prefix: str = ''
) -> list[str]:
  """Lines 'field: stored value -> current value', one a field that differs.

  >>> differing_fields({'tx': {'rho': 0.1}}, {'tx': {'rho': 0.2}})
  ['tx.rho: 0.1 -> 0.2']
  """
  lines = []
  for name in sorted({*stored, *current}):
    path = f'{prefix}{name}'
    old, new = stored.get(name, _ABSENT), current.get(name, _ABSENT)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
      lines += differing_fields(old, new, f'{path}.')
    elif old != new:
      lines.append(f'{path}: {old} -> {new}')
  return lines


_ABSENT = '(absent)'


def _crc32(x: np.ndarray) -> int:
  return zlib.crc32(np.ascontiguousarray(x).tobytes())


def _damaged(arrays, meta) -> str:
  """What is wrong with a checkpoint that could be read, or ''."""
  if not isinstance(meta, Mapping) or meta.get('format') != _FORMAT:
    return 'it was not written by repjax'
  if not isinstance(meta.get('config'), Mapping):
    return 'it says no config'
  for name, crc in meta['crc32'].items():
    if name in arrays and _crc32(np.asarray(arrays[name])) != crc:
      return f'the array {name} does not have the checksum it was saved with'
  return ''
