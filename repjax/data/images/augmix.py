"""Host side: AugMix (Hendrycks et al., 2020) on whole batches.

https://arxiv.org/abs/1912.02781, algorithm 1. Operations are those of the
paper, which none of the common corruptions contains; shifts, shears and turns
take the nearest pixel and fill with grey 128, as `randaugment` does (the
authors' code leaves black).
"""

import numpy as np

from repjax import types
from repjax.data.images import randaugment
from repjax.data.images import transforms

# Uniform numbers of one view: the weights, the mixing with the original, and of
# each chain its length and, of up to three operations, which, how strong and
# in which direction.
_WIDTH, _DEPTH = 3, 3
_PER_VIEW = _WIDTH + 2 + _WIDTH * (1 + 3 * _DEPTH)
_LEVELS = 10  # Strengths are rounded to so many, which share an operation.


def augmix(
  severity: float = 3.0, *, views: tuple[str, ...] = ('strong', 'strong_2')
) -> transforms.Transform:
  """Adds augmented views of each image as further columns.

  A view is m * image + (1 - m) * the weighted sum of three chains of one to
  three random operations, with m ~ Beta(1, 1) and weights ~ Dirichlet(1, 1, 1).

  Args:
    severity: Largest strength of an operation, in (0, 10]; 3 in the paper.
    views: Columns that are made, each with draws of its own.

  Returns:
    A transform of uint8 images with 1 or 3 channels; 'image' stays. What comes
    behind it and changes 'image' alone (scaling) does not change the views:
    put `on_views` around that.
  """
  types.check_range('(0, 10]', severity=severity)

  def apply(columns, draws):
    images = columns['image']
    if images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
      raise types.InputError(
        'AugMix needs uint8 images with 1 or 3 channels, got '
        f'{images.dtype} {images.shape}'
      )
    parts = np.split(draws, len(views), axis=1)
    made = {
      name: _view(images, part, severity)
      for name, part in zip(views, parts, strict=True)
    }
    return {**columns, **made}

  return transforms.Transform(_PER_VIEW * len(views), apply)


def on_views(
  transform: transforms.Transform,
  views: tuple[str, ...] = ('strong', 'strong_2'),
) -> transforms.Transform:
  """A transform of 'image' on the views, too, with the same draws."""

  def apply(columns, draws):
    done = transform.apply(columns, draws)
    for name in views:
      view = transform.apply({'image': columns[name]}, draws)
      done = {**done, name: view['image']}
    return done

  return transforms.Transform(transform.num_draws, apply)


def _view(images, draws, severity):
  """One view, uint8."""
  # Dirichlet(1, 1, 1) of three exponentials; Beta(1, 1) is uniform.
  rates = -np.log1p(-draws[:, :_WIDTH])
  weights = rates / np.maximum(rates.sum(1, keepdims=True), 1e-12)
  keep = draws[:, _WIDTH].reshape((-1, 1, 1, 1))
  chains = draws[:, _WIDTH + 2 :].reshape((len(images), _WIDTH, -1))
  mixed = np.zeros(images.shape, np.float64)
  for chain in range(_WIDTH):
    weight = weights[:, chain].reshape((-1, 1, 1, 1))
    mixed += weight * _chain(images, chains[:, chain], severity)
  return np.rint(keep * images + (1 - keep) * mixed).astype(np.uint8)


def _chain(images, draws, severity):
  """One to three operations on each image, one after the other."""
  done = images.copy()
  depth = 1 + transforms.randint(draws[:, 0], _DEPTH)
  steps = draws[:, 1:].reshape((len(images), _DEPTH, 3))
  for place in range(_DEPTH):
    which, level, sign = steps[:, place].T
    # Levels are uniform in (0.1, severity) of 10, as in the authors' code, but
    # for rounding to the middle of one of so many parts.
    middle = (np.ceil(level * _LEVELS).clip(1) - 0.5) / _LEVELS
    levels = middle * (severity - 0.1) + 0.1
    for strength in np.unique(levels):
      table = _operations(strength)
      chosen = transforms.randint(which, len(table))
      for number, operation in enumerate(table):
        rows = np.flatnonzero(
          (depth > place) & (levels == strength) & (chosen == number)
        )
        if rows.size:
          done[rows] = operation(done[rows], sign[rows, None])
  return done


def _operations(level):
  """The nine operations at a level in [0, 10], each of (images, draws)."""
  known = randaugment.operations(level, translate=1 / 3, cutout=0.0)
  bits, threshold = 4 - int(level * 4 / 10), 256 - int(level * 256 / 10)
  return [
    known['autocontrast'],
    known['equalize'],
    lambda images, draws: randaugment.posterize(images, bits),
    known['rotate'],
    lambda images, draws: randaugment.solarize(images, threshold),
    known['shear_x'],
    known['shear_y'],
    known['translate_x'],
    known['translate_y'],
  ]
