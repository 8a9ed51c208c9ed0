"""Trains learnt strides, and now and then crops their maps anew.

Riad et al., ICLR 2022, section 2.3 (https://arxiv.org/abs/2202.01653): a layer
keeps what its present stride leaves. A compiled step has fixed shapes, so here
the strides come to the host between stretches of training, crops are chosen for
the smallest of them over seeds, and the step of these crops is compiled, unless
one that holds them is at hand.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging
import jax
import numpy as np

from repjax import types
from repjax.layers import crop_sizes
from repjax.optim import strides as learnt
from repjax.protocols import seed_loop
from repjax.protocols import side_by_side


class Recropped(NamedTuple):
  """S models whose strides were learnt.

  Attributes:
    trained: As `side_by_side.train` has it; its outputs are of the last crops.
    strides: Layer -> (steps [T], strides [T, S, n]) along the way.
    sizes: Crops of each stretch, one a layer, in order.
    num_compiled: How many steps were compiled.
  """

  trained: side_by_side.Trained
  strides: dict[str, tuple[np.ndarray, np.ndarray]]
  sizes: list[tuple[crop_sizes.Sizes, ...]]
  num_compiled: int


def train(
  name: str,
  make_method: Callable[[tuple[crop_sizes.Sizes, ...]], types.Method],
  columns: Mapping[str, np.ndarray],
  test: Mapping[str, np.ndarray],
  *,
  seeds: Sequence[int],
  batch_size: int,
  steps: int,
  every: int,
  start: Sequence[Sequence[float]],
  smoothness: float,
  multiple: int = 2,
  room: float = 1.2,
  max_compiled: int = 6,
  vectorize: bool = True,
) -> Recropped:
  """Trains one model a seed, and crops anew every few steps.

  Args:
    name: For the progress lines.
    make_method: Crops, one a layer in the order of `learnt.in_order` ->
      the method. Its state must not depend on them.
    columns: Training rows a seed, [S, N, ...], with 'image' [S, N, H, W, C].
    test: Test rows, shared by the seeds.
    seeds: S seeds.
    batch_size: Rows of a step.
    steps: Number of updates.
    every: Steps between two looks at the strides.
    start: Strides that the layers begin with, one or two a layer.
    smoothness: R of all layers.
    multiple: Crops are rounded up to multiples of it: fewer programs.
    room: Factor by which strides may fall before the next look, >= 1.
    max_compiled: Programs that are kept.
    vectorize: As `side_by_side.train` has it.
  """
  types.check_range('[1, inf)', every=every, room=room)
  shape = columns['image'].shape[2:4]
  order = seed_loop.epochs(
    columns['image'].shape[1], seeds, steps=steps, batch_size=batch_size
  )

  def make(sizes):
    method = make_method(sizes)
    predict = side_by_side.predict_fn(method, vectorize=vectorize)
    return sizes, method, predict

  compiled = crop_sizes.Compiled(make, max_kept=max_compiled)
  strides = [np.asarray(x, np.float64) for x in start]
  states: types.PyTree = None
  outputs: dict[str, np.ndarray] = {}
  sizes, at, scores = [], [], []
  along: dict[str, list[np.ndarray]] = {}
  for begin in range(0, steps, every):
    roomy = [np.maximum(x / room, 1.0).tolist() for x in strides]
    wanted = crop_sizes.chain(shape, roomy, smoothness, multiple=multiple)
    own, method, predict = compiled(wanted)
    sizes.append(own)
    if states is None:
      states = side_by_side.begin(method, columns, seeds)
    part = order[:, begin : begin + every]
    for _, after, means in seed_loop.fit(
      method,
      states,
      columns,
      part,
      seeds=seeds,
      every=part.shape[1],
      vectorize=vectorize,
    ):
      states, seen = after, means
    outputs = predict(states, test)
    at.append(begin + part.shape[1])
    scores.append(side_by_side.accuracy(outputs, test))
    found = learnt.in_order(jax.device_get(states.params))
    if len(found) != len(start):
      raise types.InputError(
        f'{len(start)} layers begin with strides, but the network learns those '
        f'of {len(found)}: {["/".join(path) for path, _ in found]}.'
      )
    strides = [np.maximum(x.min(0), 1.0) for _, x in found]
    for path, x in found:
      along.setdefault('/'.join(path), []).append(np.asarray(x))
    logging.info(
      '%s: step %s/%s  crops %s  strides %s  loss %.3f  test/accuracy %.4f',
      name,
      f'{at[-1]:,}',
      f'{steps:,}',
      ' '.join('x'.join(map(str, x)) for x in own),
      ' '.join(f'{x.mean():.3f}' for _, x in found),
      seen['loss'].mean(),
      scores[-1].mean(),
    )
  trained = side_by_side.Trained(
    states, outputs, scores[-1], (np.asarray(at), np.stack(scores))
  )
  return Recropped(
    trained,
    {path: (np.asarray(at), np.stack(x)) for path, x in along.items()},
    sizes,
    compiled.num_made,
  )
