"""Host side: what a slice is, in words.

Eyuboglu et al., 'Domino: Discovering Systematic Errors with Cross-Modal
Embeddings', ICLR 2022 (https://arxiv.org/abs/2203.14960), section 5: of phrases
that a model embeds beside images, those that point from the mean of a class to
the mean of a slice.
"""

from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.analysis import finite_rows

Reference = Literal['class', 'all']


class Words(NamedTuple):
  """What a slice is said to be.

  Attributes:
    phrases: Best first.
    scores: z_text . (mean of the slice - mean of its reference), one each.
  """

  phrases: tuple[str, ...]
  scores: np.ndarray


def describe(
  psi: np.ndarray,
  embeddings: np.ndarray,
  labels: np.ndarray,
  phrases: Sequence[str],
  phrase_embeddings: np.ndarray,
  *,
  num_words: int = 10,
  reference: Reference = 'class',
) -> list[Words | None]:
  """Phrases of each slice.

  Args:
    psi: How much rows belong to slices, [N, k].
    embeddings: Of rows, by a model that embeds texts, too, [N, E]; they are
      scaled to length 1, and so are phrases.
    labels: [N].
    phrases: P candidates.
    phrase_embeddings: [P, E].
    num_words: Phrases of each slice, at most P.
    reference: The mean that is subtracted: 'class' of all rows with the label
      that weighs most in the slice, as in the paper; 'all' of all rows, as in
      the authors' `MeanDescriber`.

  Returns:
    Words of each slice; None for one to which no row belongs.

  Raises:
    InputError: Numbers of rows or phrases differ, or an embedding is missing:
      of length 0 or not finite.
  """
  psi, labels = np.asarray(psi), np.asarray(labels)
  texts = np.asarray(phrase_embeddings)
  if len(phrases) != len(texts) or not len(phrases):
    raise types.InputError(
      f'{len(phrases)} phrases have {len(texts)} embeddings: each needs one.'
    )
  types.check_range(f'[1, {len(phrases)}]', num_words=num_words)
  if not len(psi) == len(embeddings) == len(labels):
    raise types.InputError(
      f'psi, embeddings and labels have {len(psi)}, {len(embeddings)} and '
      f'{len(labels)} rows: they must be of the same.'
    )
  rows = _unit('row', range(len(embeddings)), np.asarray(embeddings))
  texts = _unit('phrase', phrases, texts)
  if rows.shape[1] != texts.shape[1]:
    raise types.InputError(
      f'rows have embeddings of {rows.shape[1]} numbers and phrases of '
      f'{texts.shape[1]}: take those of one model.'
    )
  return of_cosines(
    psi,
    rows @ texts.T,
    labels,
    phrases,
    num_words=num_words,
    reference=reference,
  )


def of_cosines(
  psi: np.ndarray,
  cosines: np.ndarray,
  labels: np.ndarray,
  phrases: Sequence[str],
  *,
  num_words: int = 10,
  reference: Reference = 'class',
) -> list[Words | None]:
  """The same words, of a model that has compared rows with phrases.

  A product with a difference of means is a difference of means of products.

  Args:
    psi: How much rows belong to slices, [N, k].
    cosines: Of rows and phrases, times any number, [N, P].
    labels: [N].
    phrases: P candidates.
    num_words: Phrases of each slice; all if there are fewer.
    reference: 'class' or 'all', as in `describe`.

  Raises:
    InputError: Numbers of rows or phrases differ, a cosine is not finite, psi
      is none of probabilities, or labels are no integers.
  """
  types.check_choice('reference', reference, ('class', 'all'))
  psi, cosines, labels = _single(psi), _single(cosines), np.asarray(labels)
  if cosines.shape != (len(psi), len(phrases)) or len(labels) != len(psi):
    raise types.InputError(
      f'{len(psi)} rows and {len(phrases)} phrases have cosines of '
      f'{list(cosines.shape)} and {len(labels)} labels: give one of each pair, '
      'and one a row.'
    )
  finite_rows.check(cosines=cosines)
  if not ((psi >= 0) & (psi <= 1)).all():
    raise types.InputError(
      f'psi is of probabilities, in [0, 1]; got {psi.min()} to {psi.max()}: '
      'take those of `domino.scores`, not `log_odds`.'
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise types.InputError(f'labels are integers; got {labels.dtype}.')
  if labels.size and labels.min() < 0:
    raise types.InputError(
      f'labels are classes from 0 on; the least is {labels.min()}.'
    )
  found: list[Words | None] = []
  for share in psi.T:
    # Less than a row in all is nothing to be described.
    if share.sum() < 1:
      found.append(None)
      continue
    whole = cosines
    if reference == 'class':
      whole = cosines[labels == np.bincount(labels, share).argmax()]
    along = share @ cosines / share.sum() - whole.mean(0)
    best = np.argsort(-along, kind='stable')[:num_words]
    found.append(Words(tuple(phrases[i] for i in best), along[best]))
  return found


def _unit(what, names, values):
  values = _single(values)
  norms = np.linalg.norm(values, axis=1, keepdims=True)
  bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)))
  if bad.size:
    raise types.InputError(
      f'{what} {names[bad[0]]!r} has no embedding (of length 0, or not '
      f'finite), and so {bad.size} in all: leave them out.'
    )
  return values / norms


def _single(values):
  """In float32 at the least: sums of half precision end at 65,504."""
  values = np.asarray(values)
  return values.astype(np.promote_types(values.dtype, np.float32), copy=False)
