"""The inputs that each unit of a network likes best, by one pass over a set.

As in network dissection (Bau, Zhou, Khosla, Oliva and Torralba, CVPR 2017,
https://arxiv.org/abs/1704.05796) and MILAN (Hernandez et al., ICLR 2022,
https://arxiv.org/abs/2201.11114, section 3): the k images with the largest
maximum over places, and in each the places above a quantile of all that the
unit ever gives. The network is not modified; whatever the size of the set,
memory is that of the k best maps and of a histogram.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from repjax import types
from repjax.analysis import quantile_sketch
from repjax.layers import layer_outputs


class Exemplars(NamedTuple):
  """What the U units of one layer like best.

  Attributes:
    row: Numbers of the images ('index' of the batches, or their order), the
      best first, [U, k].
    peak: Largest value in each, [U, k].
    maps: The unit's values there, [U, k, h, w].
    threshold: The quantile of all values of a unit, [U].
    is_active: False for units that give one and the same number for all that
      was seen, or nothing above 0: nothing can be said of them. [U]
  """

  row: np.ndarray
  peak: np.ndarray
  maps: np.ndarray
  threshold: np.ndarray
  is_active: np.ndarray


class _State(NamedTuple):
  """Of one layer, on the device: what `Exemplars` are made of."""

  row: jax.Array
  peak: jax.Array
  maps: jax.Array
  counts: jax.Array
  low: jax.Array


# (state, batch) -> anything; `predict` of a method is one.
Predict = Callable[[Any, Mapping[str, Any]], Any]


def collect(
  predict: Predict,
  state: Any,
  batches: Iterable[Mapping[str, Any]],
  layers: Sequence[str],
  *,
  k: int = 15,
  quantile: float = 0.99,
  positions: int | None = None,
) -> dict[str, Exemplars]:
  """Exemplars of all units of some layers.

  Args:
    predict: Applies a linen model once. Calls with the same one are compiled
      once.
    state: Its first argument, such as a state or variables.
    batches: Of one shape, with 'mask' (1 for a real row) and optionally
      'index'; those of `in_order.eval_batches` are.
    layers: Names of modules that give [B, h, w, C], [B, T, C] (T is a square,
      or one more: then the first token is left out) or [B, C].
    k: Exemplars of a unit.
    quantile: In (0, 1); values above it are where a unit is at work.
    positions: How many places of each image the quantile is made of, evenly
      spaced from one of the image's own; None takes all. The best maps are
      whole in any case.

  Returns:
    Layer -> its exemplars.

  Raises:
    InputError: A number is out of range, a layer is missing or has no places,
      there are fewer images than exemplars, or a unit gives what is no number.
  """
  types.check_range(
    '[1, inf)', k=k, positions=1 if positions is None else positions
  )
  types.check_range('(0, 1)', quantile=quantile)
  if not layers:
    raise types.InputError('exemplars need at least one layer in `layers`.')
  shapes, advance = _programs(predict, tuple(layers), positions)
  found: dict[str, _State] = {}
  count = 0
  for batch in batches:
    num_rows = len(batch['mask'])
    batch = {
      'index': count + np.arange(num_rows, dtype=np.int32),
      **batch,
    }
    count += num_rows
    if not found:
      found = {n: _empty(x, k) for n, x in shapes(state, batch).items()}
    found = advance(state, found, batch)
    _check_room(found, count, positions)
  if not found:
    raise types.InputError('exemplars need images: there is no batch.')
  return {
    name: _finish(name, jax.device_get(x), quantile)
    for name, x in found.items()
  }


def masks(
  exemplars: Exemplars,
  size: tuple[int, int],
  units: Sequence[int] | None = None,
) -> np.ndarray:
  """Where units are at work in their exemplars, [U, k, *size] bool.

  Maps grow to the size of the images, linearly, before they are compared with
  the threshold, as in the authors' code.

  Args:
    exemplars: Of U units.
    size: (height, width) of the images.
    units: Which ones; None for all.
  """
  chosen = slice(None) if units is None else np.asarray(units)
  maps, level = exemplars.maps[chosen], exemplars.threshold[chosen]
  grown = _grown(jnp.asarray(maps), tuple(size))
  return np.asarray(grown > level[:, None, None, None])


@functools.partial(jax.jit, static_argnames='size')
def _grown(maps, size):
  return jax.image.resize(maps, (*maps.shape[:2], *size), 'linear')


@functools.lru_cache(maxsize=16)
def _programs(predict, layers, positions):
  """((state, batch) -> shapes of maps, (state, found, batch) -> found)."""

  def maps_of(state, batch):
    _, outputs = layer_outputs.with_outputs_of(
      lambda: predict(state, batch), layers
    )
    return {name: _as_maps(name, x) for name, x in outputs.items()}

  def shapes(state, batch):
    return jax.eval_shape(maps_of, state, batch)

  @functools.partial(jax.jit, donate_argnums=1)
  def advance(state, found, batch):
    return {
      name: _advance(found[name], x, batch, positions)
      for name, x in maps_of(state, batch).items()
    }

  return shapes, advance


def _as_maps(name, output):
  """What a layer gave as maps, [B, h, w, C]."""
  if output.ndim == 2:
    return output[:, None, None]
  if output.ndim == 3:
    for left_out in (0, 1):
      side = math.isqrt(output.shape[1] - left_out)
      if side and side**2 == output.shape[1] - left_out:
        tokens = output[:, left_out:]
        return tokens.reshape(len(tokens), side, side, -1)
  if output.ndim != 4:
    raise types.InputError(
      f'The layer {name!r} gives arrays of shape {output.shape}: its units '
      'have no places in an image.'
    )
  return output


def _empty(shape, k):
  _, height, width, units = shape.shape
  return _State(
    jnp.full((units, k), -1, jnp.int32),
    jnp.full((units, k), -jnp.inf),
    jnp.zeros((units, k, height, width)),
    quantile_sketch.empty(units),
    jnp.full(units, jnp.inf),
  )


def _advance(found, maps, batch, positions):
  """The state after one more batch of maps [B, h, w, C]."""
  real = batch['mask'] > 0
  k = found.peak.shape[1]
  peak = jnp.where(real[:, None], maps.max((1, 2)), -jnp.inf)
  low = jnp.where(real[:, None], maps.min((1, 2)), jnp.inf)
  best, place = jax.lax.top_k(jnp.concatenate([found.peak, peak.T], 1), k)
  units = jnp.arange(len(place))[:, None]
  is_old = place < k
  old, new = jnp.minimum(place, k - 1), jnp.maximum(place - k, 0)
  row = jnp.where(is_old, found.row[units, old], batch['index'][new])
  # Only the maps that stay are gathered, not those of the whole batch.
  kept = jnp.where(
    is_old[..., None, None], found.maps[units, old], maps[new, :, :, units]
  )
  return _State(
    row.astype(jnp.int32),
    best,
    kept,
    _count(found.counts, maps, real, positions),
    jnp.minimum(found.low, low.min(0)),
  )


def _count(counts, maps, real, positions):
  batch_size, height, width, units = maps.shape
  values = maps.reshape(batch_size, height * width, units)
  if positions is not None and positions < height * width:
    places = height * width
    # No two neighbours begin alike, whatever the stride; and around the end, so
    # that none is left out where positions do not divide the places.
    first = (jnp.arange(batch_size) * 7919) % places
    apart = np.arange(positions) * places // positions
    at = (first[:, None] + apart[None]) % places
    values = values[jnp.arange(batch_size)[:, None], at]
  weight = jnp.repeat(real, values.shape[1])
  return quantile_sketch.add(counts, values.reshape(-1, units), weight)


def _check_room(found, num_rows, positions):
  for name, x in found.items():
    size = x.maps.shape[2] * x.maps.shape[3]
    if num_rows * min(size, positions or size) >= 2**32:
      raise types.InputError(
        f'{num_rows:,} images have more places in the layer {name!r} than can '
        'be counted: take some of each by `positions`.'
      )


def _finish(name, found, quantile):
  k = found.peak.shape[1]
  broken = np.isnan(found.peak).any(1) | np.isinf(found.peak[:, 0])
  missing = np.isneginf(found.peak).any()
  if broken.any() and not missing:
    raise types.InputError(
      f'Unit {int(np.flatnonzero(broken)[0])} of the layer {name!r} gives what '
      'is no number: its exemplars mean nothing.'
    )
  if missing:
    seen = int(np.isfinite(found.peak[0]).sum())
    raise types.InputError(
      f'There are {seen} images for {k} exemplars a unit: give more images, or '
      f'a smaller k.'
    )
  top = found.peak[:, 0]
  return Exemplars(
    found.row,
    found.peak,
    found.maps,
    quantile_sketch.quantile(found.counts, quantile),
    (top > 0) & (top > found.low),
  )
