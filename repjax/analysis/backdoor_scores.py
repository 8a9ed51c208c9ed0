"""Host side: how well an attack on a model of images works.

Carlini and Terzis, 'Poisoning and Backdooring Contrastive Learning', ICLR 2022
(https://arxiv.org/abs/2106.09667), sections 4 and 5.
"""

import numpy as np

from repjax import types


def success(
  predicted: np.ndarray, label: np.ndarray, *, wanted: int
) -> np.ndarray:
  """Share of images with the trigger that are taken for the wanted class.

  Images of that class count for nothing: they need no attack.

  Args:
    predicted: Classes of images with the trigger, [..., N].
    label: Their true classes, [N].
    wanted: The attacker's class.

  Returns:
    [...].

  Raises:
    InputError: All images are of the wanted class.
  """
  others = np.asarray(label) != wanted
  if not others.any():
    raise types.InputError(
      f'all images are of the wanted class {wanted}: success is measured on '
      'others'
    )
  return (np.asarray(predicted)[..., others] == wanted).mean(-1)


def z_score(clean: np.ndarray, triggered: np.ndarray) -> float:
  """How much more alike images are with the trigger (section 5.2).

  The difference of mean cosines of two different images, in standard deviations
  of the cosines of clean ones. (The paper writes the variance where only a
  deviation has a unit that cancels.) It is above 0 for a model that knows no
  trigger, too, since all images share its pixels: compare with such a model.

  Args:
    clean: Unit embeddings, [N, F].
    triggered: Those of these images with the trigger, [N, F].

  Raises:
    InputError: There are fewer than three images, whose one pair has no
      deviation, an embedding is not finite, or all clean images are alike.
  """
  if len(clean) < 3 or clean.shape != triggered.shape:
    raise types.InputError(
      'the z-score compares pairs of the same images with and without the '
      f'trigger, three or more: got {clean.shape} and {triggered.shape}'
    )
  pairs = np.triu_indices(len(clean), 1)
  without, with_it = (
    (np.asarray(x, np.float64) @ np.asarray(x, np.float64).T)[pairs]
    for x in (clean, triggered)
  )
  if not np.isfinite([*without, *with_it]).all():
    raise types.InputError('embeddings must be finite: the model gives others')
  spread = without.std()
  # Cosines of equal embeddings differ by rounding alone.
  if spread <= 1e-6 * abs(without).max():
    raise types.InputError(
      f'cosines of clean images differ by {spread:.3g}, too little to measure '
      'by: does the model take all images for one?'
    )
  return float((with_it.mean() - without.mean()) / spread)
