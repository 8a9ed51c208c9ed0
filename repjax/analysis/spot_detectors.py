"""Host side: trains detectors of small squares and shows them one everywhere.

The blind spots of Alsallakh et al., 'Mind the Pad - CNNs Can Develop Blind
Spots', ICLR 2021 (https://openreview.net/forum?id=m1CD7tPubNy, figure 1), of a
detector in one shot on a small residual network.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

import numpy as np
import optax

from repjax.analysis import blind_spots
from repjax.data.sets import spots
from repjax.layers import padding
from repjax.methods import detection
from repjax.models import shot_detector
from repjax.protocols import side_by_side


def probe(
  name: str,
  *,
  mode: padding.Mode | None,
  seeds: Sequence[int],
  drawing: Mapping[str, Any],
  rows: int,
  blank_rows: int,
  repeats: int,
  width: int,
  batch_size: int,
  steps: int,
  learning_rate: float,
  least_overlap: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Trains one detector a seed, and sweeps a square over each.

  Args:
    name: For the progress lines.
    mode: Padding of its convolutions, one of `padding.MODES`; None leaves
      it as the model has it.
    seeds: S seeds.
    drawing: side, size, contrast and noise of `spots.draw`.
    rows: Training images, of which half have a square.
    blank_rows: Images without one are half of these.
    repeats: Images for each place of the sweep.
    width: Channels of the detector's first stage.
    batch_size: Rows of a step.
    steps: Number of updates.
    learning_rate: Of Adam, at the start; it falls by half a cosine.

    least_overlap: From which default boxes stand for a square. Low enough that
      several do: with one each, scores depend on how places of the image and
      of default boxes fall together, which is unlike at 32 and at 33 pixels.

  Returns:
    (how surely a square is found in each place, [S, P, P]; mean of the largest
    score in an image without one, [S]).
  """
  model: Any = shot_detector.ShotDetector(width=width)
  if mode is not None:
    model = padding.Padded(model, mode)
  rate = optax.cosine_decay_schedule(learning_rate, steps)
  method = detection.make(model, optax.adam(rate), least_overlap=least_overlap)
  swept = blind_spots.sweep(
    functools.partial(spots.paint, **drawing),
    side=drawing['side'],
    size=drawing['size'],
    repeats=repeats,
  )
  blank = spots.draw(blank_rows, seed=1, **drawing).columns()

  def found(outputs, test):
    del test  # The sweep itself.
    return blind_spots.seen(outputs, swept).mean((-2, -1))

  trained = side_by_side.train(
    name,
    method,
    {},
    _scaled(swept.columns),
    shared=_scaled(spots.draw(rows, seed=0, **drawing).columns()),
    seeds=seeds,
    batch_size=batch_size,
    steps=steps,
    points=1,
    # On CPUs convolutions of several seeds at once are slow.
    vectorize=False,
    score=found,
  )
  predict = side_by_side.predict_fn(method, vectorize=False)
  none = {k: x[blank['label'] == 0] for k, x in _scaled(blank).items()}
  alarms = predict(trained.states, none)['score'].max(-1).mean(-1)
  return blind_spots.seen(trained.outputs, swept), alarms


def _scaled(columns):
  return {**columns, 'image': columns['image'] / np.float32(127.5)}
