"""Host side: 'shops', reviews with the splits of U-WILDS, made of drawn words.

The form of Amazon's: a label, positive or not, and texts about different kinds
of goods. Some words of praise and of blame are everybody's, others those of a
shop ('crisp', 'crackles'), which no other shop uses. So a model that has learnt
from labels of some shops can tell reviews of a new one by the shared words
alone; but there, too, words of praise stand beside words of praise, which rows
without labels show (Blitzer, Dredze and Pereira, 'Biographies, Bollywood,
Boom-boxes and Blenders', ACL 2007, https://aclanthology.org/P07-1056, call the
shared ones pivots).
"""

import numpy as np

from repjax import types
from repjax.benchmarks.wilds import datasets
from repjax.benchmarks.wilds import hospitals
from repjax.benchmarks.wilds import metrics
from repjax.data.reading import source as sources
from repjax.data.text import tokens

# Reviews of each split, in parts of those of training.
_SHARES = {
  'train': 1.0,
  'id_val': 0.5,
  'val': 0.5,
  'test': 0.5,
  'id_test': 0.5,
  'train_unlabeled': 8.0,
  'val_unlabeled': 0.5,
  'test_unlabeled': 8.0,
  'extra_unlabeled': 0.5,
}
# Words without a judgement, that all shops share and of each shop; and those of
# praise, and as many of blame, likewise.
PLAIN, PLAIN_OWN, JUDGING, JUDGING_OWN = 40, 8, 4, 6
_FIRST = tokens.END + 1
_SHARED = PLAIN + 2 * JUDGING
_OWN = PLAIN_OWN + 2 * JUDGING_OWN
VOCAB_SIZE = _FIRST + _SHARED + len(hospitals.NAMES) * _OWN
# Of the words of a review: those that judge; of these, those that all shops
# share, and those that say the opposite of the label.
JUDGED, PIVOTS, AGAINST = 0.5, 0.3, 0.1


def load(
  *,
  seed: int = 0,
  num_reviews: int = 1000,
  length: int = 12,
  pivots: float = PIVOTS,
  unlabelled: bool = False,
) -> datasets.Dataset:
  """The labelled splits of the shops, or their rows without labels.

  Args:
    seed: Of all words; labelled and unlabelled rows of a seed share no review.
    num_reviews: Of the training split; other splits have a half or, where
      they are learnt from, eight times as many.
    length: Words of a review.
    pivots: Share of the judging words that are everybody's, in [0, 1].
    unlabelled: Whether the rows without labels are made.

  Returns:
    A data set with 'tokens' int32 [1 + length], begun by `START`, the label
    whether a review is positive, and the metadata 'shop' and 'y'.

  Raises:
    InputError: A number is out of range.
  """
  types.check_range('[12, inf)', num_reviews=num_reviews)
  types.check_range('[1, inf)', length=length)
  types.check_range('[0, 1]', pivots=pivots)
  ids = hospitals.UNLABELLED_IDS if unlabelled else hospitals.SPLIT_IDS
  counts = {x: int(num_reviews * _SHARES[x]) for x in ids}
  split = np.repeat(list(ids.values()), list(counts.values()))
  shop = np.concatenate(
    [np.resize(hospitals.HOMES[x], n) for x, n in counts.items()]
  )
  rng = np.random.default_rng([seed, 2022, unlabelled])
  label = rng.integers(2, size=len(shop))
  words = reviews(rng, shop, label, length=length, pivots=pivots)
  return datasets.make(
    'shops_unlabeled' if unlabelled else 'shops',
    split_ids=ids,
    split=split,
    label=label,
    num_classes=2,
    metadata=dict(shop=shop, y=label),
    names=dict(shop=hospitals.NAMES, y=('blame', 'praise')),
    inputs=sources.from_arrays('shops', {'tokens': words}),
    evaluate=None
    if unlabelled
    else datasets.by_fields(('shop',), metrics.ACCURACY),
    source_splits=(10,) if unlabelled else (0, 1, 4),
  )


def reviews(
  rng: np.random.Generator,
  shop: np.ndarray,
  label: np.ndarray,
  *,
  length: int,
  pivots: float,
) -> np.ndarray:
  """Draws a review a row.

  Args:
    rng: Of all words, each on its own.
    shop: Of each row, [N], in [0, 7).
    label: Of each row, [N], 1 for praise.
    length: L, words of a review.
    pivots: Share of the judging words that are everybody's.

  Returns:
    Ids [N, 1 + L], int32.
  """
  shape = (len(shop), length)
  judges = rng.random(shape) < JUDGED
  # Of the plain words, as many are everybody's as there are of them.
  shared = rng.random(shape) < np.where(
    judges, pivots, PLAIN / (PLAIN + PLAIN_OWN)
  )
  praises = label[:, None] ^ (rng.random(shape) < AGAINST)
  place = rng.random(shape)
  own = (_FIRST + _SHARED + shop * _OWN)[:, None]

  def draw(first, number):
    return first + np.floor(place * number).astype(int)

  plain = np.where(shared, draw(_FIRST, PLAIN), draw(own, PLAIN_OWN))
  judging = np.where(
    shared,
    draw(_FIRST + PLAIN + praises * JUDGING, JUDGING),
    draw(own + PLAIN_OWN + praises * JUDGING_OWN, JUDGING_OWN),
  )
  start = np.full((len(shop), 1), tokens.START)
  words = np.where(judges, judging, plain)
  return np.concatenate([start, words], 1).astype(np.int32)


def word(number: int) -> str:
  """What a word is called: 'plain3', 'praise0', 'C:blame5'."""
  place, name = number - _FIRST, ''
  plain, judging = PLAIN, JUDGING
  if not 0 <= place < VOCAB_SIZE - _FIRST:
    return ''
  if place >= _SHARED:
    shop, place = divmod(place - _SHARED, _OWN)
    plain, judging, name = PLAIN_OWN, JUDGING_OWN, f'{hospitals.NAMES[shop]}:'
  if place < plain:
    return f'{name}plain{place}'
  praises, place = divmod(place - plain, judging)
  return f'{name}{("blame", "praise")[praises]}{place}'
