"""Host side: WILDS' published sets by name, from folders that a user has."""

from collections.abc import Callable
from typing import Any

from repjax import types
from repjax.benchmarks.wilds import datasets
from repjax.benchmarks.wilds import image_sets
from repjax.benchmarks.wilds import satellite_sets
from repjax.benchmarks.wilds import text_sets

SETS: dict[str, Callable[..., datasets.Dataset]] = {
  'amazon': text_sets.amazon,
  'camelyon17': image_sets.camelyon17,
  'civilcomments': text_sets.civilcomments,
  'fmow': satellite_sets.fmow,
  'iwildcam': image_sets.iwildcam,
  'poverty': satellite_sets.poverty,
  'waterbirds': image_sets.waterbirds,
}


def load(
  name: str, root: str = '', *, unlabelled: bool = False, **settings: Any
) -> datasets.Dataset:
  """A published set; nothing is downloaded.

  Args:
    name: One of `SETS`.
    root: Where the folders of the sets are, `camelyon17_v1.0` and the others;
      '' means ~/wilds.
    unlabelled: Whether the rows without labels are read, a set of their own.
    **settings: Of the set: scheme, fold, seed, nightlights.

  Raises:
    InputError: There is no such set, or its folder lacks something; says what
      to place where.
  """
  if name not in SETS:
    raise types.InputError(
      f'Sets of WILDS that are read here are {", ".join(SETS)}; got {name!r}.'
    )
  if name == 'waterbirds':
    if unlabelled:
      raise types.InputError('waterbirds has no rows without labels.')
    return image_sets.waterbirds(root, **settings)
  return SETS[name](root, unlabelled=unlabelled, **settings)
