"""Host side: CivilComments and Amazon as WILDS publishes them.

Columns, splits and metadata are those of PyPI's `wilds` 2.0.0. Inputs are
'text', UTF-8 bytes; `tokenized` makes tokens of them.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from repjax import types
from repjax.benchmarks.wilds import datasets
from repjax.benchmarks.wilds import evaluation
from repjax.benchmarks.wilds import folders
from repjax.benchmarks.wilds import metrics
from repjax.data.reading import source as sources
from repjax.data.text import running_text
from repjax.data.text import tokens

IDENTITIES = (
  'male',
  'female',
  'LGBTQ',
  'christian',
  'muslim',
  'other_religions',
  'black',
  'white',
)
_AUXILIARY = (
  'identity_any',
  'severe_toxicity',
  'obscene',
  'threat',
  'insult',
  'identity_attack',
  'sexual_explicit',
)


def civilcomments(root: str, *, unlabelled: bool = False) -> datasets.Dataset:
  """Toxicity of comments, by the identities that they mention.

  Unlabelled rows have 2 in all fields but 'y', which no labelled row has: they
  make groups of their own.

  Args:
    root: Folder of `civilcomments_v1.0`, with all_data_with_identities.csv (or
      `civilcomments_unlabeled_v1.0`, unlabeled_data_with_identities.csv).
    unlabelled: Whether the rows without labels are read.
  """
  name = 'civilcomments_unlabeled' if unlabelled else 'civilcomments'
  file = f'{"unlabeled" if unlabelled else "all"}_data_with_identities.csv'
  path = folders.locate(f'{name}_v1.0', root, needs=(file,)) / file
  fields = (*IDENTITIES, *_AUXILIARY)
  own = () if unlabelled else ('split', *fields)
  table = folders.read_table(path, ('comment_text', 'toxicity', *own))

  def above_half(column):
    values = folders.real(table[column], what=f"'{column}' of {path}")
    return (values >= 0.5).astype(np.int64)  # What is not known is not.

  label = above_half('toxicity')
  ids = {'train': 0, 'val': 1, 'test': 2}
  if unlabelled:
    ids = {'extra_unlabeled': 13}
    split = np.full(len(label), 13)
    metadata = {x: np.full(len(label), 2) for x in fields}
  else:
    split = folders.codes(table['split'], tuple(ids), what=f'split of {path}')
    metadata = {x: above_half(x) for x in fields}
  return datasets.make(
    name,
    split_ids=ids,
    split=split,
    label=label,
    num_classes=2,
    metadata=dict(**metadata, y=label),
    names={},
    inputs=folders.texts(name, table['comment_text']),
    evaluate=None
    if unlabelled
    else lambda table: evaluation.identities(table, IDENTITIES),
    source_splits=(10,) if unlabelled else (0,),
  )


def amazon(
  root: str, *, unlabelled: bool = False, scheme: str = 'official'
) -> datasets.Dataset:
  """Stars of reviews, by their authors.

  Args:
    root: Folder of `amazon_v2.1`, with reviews.csv and splits/ (the same for
      the rows without labels).
    unlabelled: Whether the rows without labels are read.
    scheme: 'official', which is 'user': unseen authors; labelled also 'time',
      'category_subpopulation', and '..._generalization' and '..._baseline' of
      the files in splits/.
  """
  scheme = 'user' if scheme == 'official' else scheme
  if unlabelled:
    types.check_choice('scheme', scheme, ('user',))
  ids, source_splits, field = _scheme(scheme)
  # PyPI's `wilds` 2.0.0 takes the same file for both, and numbers from 11 on
  # of its splits are those without labels.
  file = f'splits/{scheme}.csv'
  name = 'amazon_unlabeled' if unlabelled else 'amazon'
  folder = folders.locate('amazon_v2.1', root, needs=('reviews.csv', file))
  table = folders.read_table(
    folder / 'reviews.csv',
    (
      'reviewerID',
      'asin',
      'category',
      'reviewYear',
      'overall',
      'reviewText',
    ),
  )
  splits = folders.read_table(folder / file, ('split',))['split']
  split = folders.whole(splits, what=f"'split' of {folder / file}")
  if len(split) != len(table['asin']):
    raise types.InputError(
      f'{folder / file} has {len(split)} rows, reviews.csv {len(table["asin"])}'
      ': the metadata are of other rows.'
    )
  inside = split != -1
  split, table = split[inside], {k: x[inside] for k, x in table.items()}
  numbers = {
    x: folders.whole(table[x], what=f"'{x}' of {folder / 'reviews.csv'}")
    for x in ('reviewYear', 'overall')
  }
  # Names are numbered as they come, split after split. PyPI's `wilds` sorts
  # without keeping the order inside of a split: there the numbers depend on the
  # machine's instructions, and only names can be compared.
  order = np.argsort(split, kind='stable')
  metadata: dict[str, np.ndarray] = {}
  names: dict[str, Sequence] = {}
  for own, column in (
    ('user', 'reviewerID'),
    ('product', 'asin'),
    ('category', 'category'),
  ):
    known = tuple(dict.fromkeys(table[column][order]))
    names[own] = known
    metadata[own] = folders.codes(table[column], known, what=column)
  year, stars = numbers['reviewYear'], numbers['overall']
  label = stars - 1
  names |= dict(year=range(year.min(), year.max() + 1), y=range(1, 6))
  if unlabelled:
    ids = {'val_unlabeled': 11, 'test_unlabeled': 12, 'extra_unlabeled': 13}
    source_splits = (10,)

  def evaluate(table):
    if scheme == 'user':
      return evaluation.users(table)
    return datasets.by_fields((field,), metrics.ACCURACY)(table)

  return datasets.make(
    name,
    split_ids=ids,
    split=split,
    label=label,
    num_classes=5,
    metadata=dict(**metadata, year=year - year.min(), y=label),
    names=names,
    inputs=folders.texts(name, table['reviewText']),
    evaluate=None if unlabelled else evaluate,
    source_splits=source_splits,
  )


def tokenizer(path: str) -> tokens.Tokenizer:
  """What `tokens.Subwords.save` wrote into a file, or bytes where it is ''."""
  return tokens.Subwords.load(path) if path else tokens.Bytes()


def tokenized(
  dataset: datasets.Dataset, tokenizer: tokens.Tokenizer, *, length: int
) -> datasets.Dataset:
  """The set with 'tokens' [length] and 'token_mask' in place of 'text'.

  Args:
    dataset: Of texts.
    tokenizer: What makes ids of them.
    length: Tokens of a row, `START` among them; longer texts are cut.

  Raises:
    InputError: Its inputs are no texts.
  """
  types.check_range('[2, inf)', length=length)
  ids, mask = running_text.pad(
    [
      np.append(tokens.START, tokenizer.encode(x)[: length - 1])
      for x in dataset.inputs.column('text')
    ],
    length=length,
  )
  made = sources.from_arrays(dataset.name, {'tokens': ids, 'token_mask': mask})
  return dataclasses.replace(dataset, inputs=made)


def _scheme(scheme):
  """(splits, those of the source domains, field of the evaluated groups)."""
  far = {'train': 0, 'val': 1, 'id_val': 2, 'test': 3, 'id_test': 4}
  near = {'train': 0, 'val': 1, 'test': 2}
  if scheme == 'user':
    return far, (0, 2, 4), 'user'
  if scheme == 'time':
    return far, (0, 2, 4), 'year'
  if scheme.endswith('_generalization'):
    return far, (0, 2, 4), 'category'
  if scheme == 'category_subpopulation':
    return near, (0,), 'category'
  if scheme == 'time_baseline':
    return near, (0,), 'year'
  if scheme.endswith('_baseline'):
    return near, (0,), 'user'
  raise types.InputError(
    "scheme is 'official', 'user', 'time', 'category_subpopulation', "
    f"'..._generalization' or '..._baseline'; got {scheme!r}."
  )
