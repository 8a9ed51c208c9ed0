"""Host side: pairs whose text is not that of images that look alike.

A filter against poisoned pairs (`attacks.contrastive_poisoning`): whoever hangs
a wrong caption on an image disagrees with the image's neighbours, as long as
the neighbours are found in features that the poison has not made, such as
pixels or those of a model trained on other data.
"""

import numpy as np

from repjax import types
from repjax.analysis import finite_rows

_CHUNK = 2048


def agreement(
  features: np.ndarray, text: np.ndarray, *, neighbours: int
) -> np.ndarray:
  """Mean cosine of a row's text with the texts of its nearest images.

  Args:
    features: Of the images, [N, D]; neighbours are by Euclidean distance.
    text: Unit embeddings of the texts, or unit bags of words, [N, F].
    neighbours: k, in [1, N).

  Returns:
    [N], in [-1, 1].

  Raises:
    InputError: `neighbours` is out of range, texts are of other rows, or a
      number is not finite.
  """
  count = len(features)
  if not 1 <= neighbours < count:
    raise types.InputError(
      f'neighbours must be in [1, {count}), the rows besides one itself; got '
      f'{neighbours}'
    )
  if len(text) != count:
    raise types.InputError(
      f'features are of {count} rows and text of {len(text)}: give one each'
    )
  x = np.asarray(features, np.float64).reshape(count, -1)
  finite_rows.check(features=x, text=text)
  x = x - x.mean(0)
  square = np.square(x).sum(1)
  result = np.empty(count)
  for start in range(0, count, _CHUNK):
    part = slice(start, min(start + _CHUNK, count))
    distance = square[part, None] + square[None] - 2 * x[part] @ x.T
    # Nobody is a neighbour of himself; a copy is.
    rows = np.arange(part.start, part.stop)
    distance[np.arange(len(rows)), rows] = np.inf
    nearest = np.argpartition(distance, neighbours - 1)[:, :neighbours]
    result[part] = np.einsum('nf,nkf->n', text[part], text[nearest])
  return result / neighbours


def bags(tokens: np.ndarray, mask: np.ndarray, *, size: int) -> np.ndarray:
  """Unit bags of words without a model: how often each id stands in a text.

  Ids count by how rare they are, log(N / texts that have them), so that what
  all texts have counts for nothing.

  Args:
    tokens: Ids in [0, size), [N, L].
    mask: 0 for padding, [N, L].
    size: Number of ids.

  Returns:
    [N, size]; zero for a text without a rare id.
  """
  count = np.zeros((len(tokens), size))
  np.add.at(count, (np.arange(len(tokens))[:, None], tokens), mask)
  texts = (count > 0).sum(0)
  count *= np.log(len(tokens) / np.maximum(texts, 1))
  length = np.linalg.norm(count, axis=1, keepdims=True)
  return count / np.maximum(length, 1e-12)
