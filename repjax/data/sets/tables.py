"""Host side: small tables, one number or word a cell, with names of columns.

'breast_cancer' and 'wine' come with scikit-learn; 'compas' (ProPublica's
records of two years) and 'divorce' (54 answers of couples) are read as TFDS
sets that somebody has prepared; 'planted' and 'incomes' are drawn here; 'csv'
and 'jsonl' are tables of your own (`data.own.tables`), numbers and words.

A column of words becomes one column of 0 and 1 for each word, all of which
belong to one player of `repjax.analysis.games`.
"""

from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.own import names as own_names
from repjax.data.own import tables as own_tables
from repjax.data.reading import prepared
from repjax.data.reading import source as sources
from repjax.data.sets import incomes

EMBEDDED = ('breast_cancer', 'wine', 'planted', 'incomes')
NAMES = (*EMBEDDED, 'compas', 'divorce')

# Which columns of COMPAS are numbers and which are words. All are known before
# the two years; `score_text` is `decile_score` in three words and `age_cat` is
# `age` in three, so that each makes another one redundant. What says whether
# somebody was charged again (`is_recid`) is left out, and so is
# `days_b_screening_arrest`, which the table has not for all.
_COMPAS_NUMBERS = (
  *('age', 'priors_count', 'juv_fel_count', 'juv_misd_count'),
  *('juv_other_count', 'decile_score', 'v_decile_score'),
)
_COMPAS_WORDS = dict(
  sex=2, race=6, c_charge_degree=2, age_cat=3, score_text=3, v_score_text=3
)

# Of a column of one's own; a name or an address is none to explain by.
_MOST_WORDS = 100
# How files write that a cell has no value.
_NO_VALUE = ('', 'na', 'n/a', 'nan', 'null', 'none', '?')


class Table(NamedTuple):
  """Rows of a table, and what its columns are.

  Attributes:
    features: [N, C] float32.
    label: [N] int32, from 0 on.
    owner: Player of each column, [C].
    names: One a player, [d].
    is_test: Of rows that somebody has split, [N]; None: `split` does.
    class_names: In the order of labels, of somebody's own table.
  """

  features: np.ndarray
  label: np.ndarray
  owner: np.ndarray
  names: tuple[str, ...]
  is_test: np.ndarray | None = None
  class_names: tuple[str, ...] | None = None


class Scale(NamedTuple):
  """Mean and deviation of training rows, [C] each."""

  mean: np.ndarray
  deviation: np.ndarray

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """Rows in units of these, [N, C] float32."""
    return ((features - self.mean) / self.deviation).astype(np.float32)


def load(name: str, *, data_dir: str = '') -> Table:
  """All rows of a table.

  Args:
    name: One of `NAMES`, or 'csv' or 'jsonl' as `data.own.names` reads them:
      'csv:label=income'.
    data_dir: Folder of prepared TFDS sets, for those that need it, or a file.

  Raises:
    InputError: There is no such table, it is not prepared, or a column of words
      has too many, or one of numbers has cells without.
  """
  if prepared.is_own(name, 'train'):
    return _own(name, data_dir)
  types.check_choice('config.data.name', name, (*NAMES, 'csv', 'jsonl'))
  if name == 'planted':
    return planted()
  if name == 'incomes':
    return generated(4000)
  if name in EMBEDDED:
    from sklearn import datasets

    read = dict(
      breast_cancer=datasets.load_breast_cancer, wine=datasets.load_wine
    )[name]()
    return _numbers(read.data, read.target, read.feature_names)
  columns = sources.load(name, 'train', data_dir=data_dir).columns()
  if name == 'divorce':
    names = [f'answer {i}' for i in range(1, columns['answers'].shape[1] + 1)]
    return _numbers(columns['answers'], columns['label'], names)
  numbers = {x: columns[x] for x in _COMPAS_NUMBERS}
  words = {x: np.eye(n)[columns[x]] for x, n in _COMPAS_WORDS.items()}
  return _columns({**numbers, **words}, columns['label'])


def planted() -> Table:
  """All rows of ten bits, by whose label it is known what is redundant.

  label = (a1 or a2) and (b1 or b2 or b3) and (c1 or (c2 and c3)); n1 and n2 say
  nothing. Where all are 1 and absent means 0, a1 and a2 are mutually redundant,
  and so are the three b; c1 makes c2 and c3 redundant, but not they it; and
  everybody makes n1 and n2 redundant. One a, one b and c1 are enough, though
  both a have larger Shapley values than any b.
  """
  bits = np.arange(1024)[:, None] >> np.arange(10) & 1
  a, b, c = bits[:, :2], bits[:, 2:5], bits[:, 5:8]
  label = a.any(1) & b.any(1) & (c[:, 0] | c[:, 1] & c[:, 2]).astype(bool)
  names = ('a1', 'a2', 'b1', 'b2', 'b3', 'c1', 'c2', 'c3', 'n1', 'n2')
  return _numbers(bits, label, names)


def generated(num_rows: int) -> Table:
  """People of `incomes`: 6 columns of numbers and 8 of words."""
  made = incomes.draw(num_rows, seed=0)
  words = {k: np.eye(len(made.names[k]))[x] for k, x in made.words.items()}
  return _columns({**made.numbers, **words}, made.label)


def split(table: Table, name: str) -> Table:
  """The rows of a split: 'train' or 'test'.

  Of files of one's own as they are split. Else fixed and of all classes alike:
  of the rows of each class, in the table's order, every fourth is a test row.

  Args:
    table: The whole table.
    name: Of the split.
  """
  types.check_choice('split', name, ('train', 'test'))
  test = table.is_test
  if test is None:
    test = np.zeros(len(table.label), bool)
    for label in np.unique(table.label):
      test[np.flatnonzero(table.label == label)[3::4]] = True
  rows = test if name == 'test' else ~test
  return table._replace(
    features=table.features[rows],
    label=table.label[rows],
    is_test=None if table.is_test is None else table.is_test[rows],
  )


def scale(train: Table) -> Scale:
  """What gives columns of training rows mean 0 and deviation 1.

  A column without deviation is only moved to 0.
  """
  rows, deviation = train.features, train.features.std(0)
  # Rounding gives equal numbers a mean beside them, and so a deviation.
  varies = (rows != rows[0]).any(0) & (deviation > 0)
  return Scale(
    np.where(varies, rows.mean(0), rows[0]), np.where(varies, deviation, 1.0)
  )


def as_source(table: Table, scale: Scale, *, name: str) -> sources.Source:
  """Rows to train on: 'features' [N, C] and 'label' [N].

  Args:
    table: Of one split.
    scale: What the features are brought to.
    name: For messages.
  """
  names = table.class_names
  return sources.from_arrays(
    name,
    {'features': scale(table.features), 'label': table.label},
    num_classes=len(names) if names else int(table.label.max()) + 1,
    class_names=names,
  )


def _own(name, data_dir) -> Table:
  """Rows of somebody's own: those of the splits 'train' and 'test'."""
  said = own_names.parse(name)
  types.check_choice('config.data.name', said.kind, ('csv', 'jsonl'))
  parts = [sources.load(name, x, data_dir=data_dir) for x in ('train', 'test')]
  columns = [x.read(np.arange(len(x))) for x in parts]
  if 'label' not in columns[0]:
    raise types.InputError(
      f'{data_dir} has no column of classes called label: say which it is by '
      f'--config.data.name={said.kind}:label=COLUMN.'
    )
  wanted = said.renamed.get('features', '')
  keys = wanted.split('+') if wanted else [*columns[0]]
  made = {}
  for key in keys:
    cells = np.concatenate([x[key] for x in columns])
    if key in ('features', 'label', 'index', 'mask'):
      continue
    if cells.dtype != object:
      if not np.isfinite(cells).all():
        raise types.InputError(
          f'{data_dir}: the column {key!r} has no finite number in '
          f'{(~np.isfinite(cells)).sum()} row(s): fill them in, or remove them.'
        )
      if own_tables.are_lost(cells):
        raise types.InputError(
          f'{data_dir}: float32 does not tell the numbers of the column '
          f'{key!r} apart: subtract a constant from it, or remove it.'
        )
      made[key] = cells
      continue
    texts = np.array([x.decode().strip() for x in cells])
    if odd := _gaps_among_numbers(np.unique(texts)):
      raise types.InputError(
        f'{data_dir}: the column {key!r} holds numbers, and {odd[0]!r} in '
        f'{np.isin(texts, odd).sum()} row(s): fill them in, or remove them.'
      )
    count = len(np.unique(texts))
    if count > _MOST_WORDS:
      raise types.InputError(
        f'{data_dir}: the column {key!r} has {count} words, more than '
        f'{_MOST_WORDS}: leave it out, or group them.'
      )
    # Those of training rows; another one of a test row is none of them.
    made[key] = texts[:, None] == np.unique(texts[: len(parts[0])])
  whole = _columns(made, np.concatenate([x['label'] for x in columns]))
  is_test = np.repeat([False, True], [len(x) for x in parts])
  return whole._replace(is_test=is_test, class_names=parts[0].class_names)


def _columns(columns, label) -> Table:
  """A player a column: numbers [N], or 0 and 1 for each of its words [N, n]."""
  parts = [np.reshape(x, (len(label), -1)) for x in columns.values()]
  return Table(
    np.concatenate(parts, 1).astype(np.float32),
    np.asarray(label, np.int32),
    np.repeat(np.arange(len(parts)), [x.shape[1] for x in parts]),
    tuple(columns),
  )


def _numbers(features, label, names) -> Table:
  return Table(
    np.asarray(features, np.float32),
    np.asarray(label, np.int32),
    np.arange(np.shape(features)[1]),
    tuple(str(x) for x in names),
  )


def _gaps_among_numbers(words) -> list[str]:
  """Words that stand for no value, where all others are numbers."""
  odd = [str(x) for x in words if x.lower() in _NO_VALUE]
  try:
    numbers = [float(x) for x in words if x not in odd]
  except ValueError:
    return []
  return odd if numbers else []
