"""Host side: data sets with domains, labelled and not, split by split.

What PyPI's `wilds` 2.0.0 calls a WILDSDataset and its subsets, in NumPy: the
same split and metadata arrays, the same results of predictions. Inputs are a
`reading.source.Source`, so that all batches of `data.batches`, and those of
`loaders` here, read them. `published` reads WILDS' own sets from a folder,
`hospitals` makes one from digits.

Koh et al., 'WILDS: A Benchmark of in-the-Wild Distribution Shifts', ICML 2021
(https://arxiv.org/abs/2012.07421); Sagawa et al., 'Extending the WILDS
Benchmark for Unsupervised Adaptation', ICLR 2022
(https://arxiv.org/abs/2112.05090).
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from repjax import types
from repjax.benchmarks.wilds import evaluation
from repjax.benchmarks.wilds import grouper as groupers
from repjax.data.reading import source as sources

# What stands in 'label' where there is none.
NO_LABEL = -1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
  """All splits of a labelled set, or of its unlabelled rows; see `make`.

  Attributes:
    name: As WILDS writes it: 'camelyon17'.
    split_ids: Split -> its number in `split`.
    split: Of each row, [N]; a number that is no split's belongs to none.
    label: Truth of each row: classes [N], or numbers [N, T]. Of unlabelled
      rows, what is known of it but must not be learnt from.
    num_classes: Of labels; None where they are numbers.
    metadata: Of all rows, with 'y' and 'from_source_domain'.
    inputs: Rows of the inputs: 'image', or 'text'.
    labelled: Whether labels may be learnt from.
    evaluate_fn: What predictions are worth; None of unlabelled rows.
  """

  name: str
  split_ids: Mapping[str, int]
  split: np.ndarray
  label: np.ndarray
  num_classes: int | None
  metadata: groupers.Metadata
  inputs: sources.Source
  labelled: bool
  evaluate_fn: evaluation.Evaluate | None

  def __len__(self) -> int:
    return len(self.split)

  def subset(
    self, split: str, *, fraction: float = 1.0, seed: int = 0
  ) -> 'Subset':
    """The rows of a split, or a random part of them in their order.

    Args:
      split: One of `split_ids`.
      fraction: Of its rows, in (0, 1]. (PyPI's `wilds` draws the part from
        NumPy's global generator: another one at each call.)
      seed: Of the part; the same seed draws the same rows.

    Raises:
      InputError: There is no such split, nothing of it is left, or one class
        alone.
    """
    if split not in self.split_ids:
      raise types.InputError(
        f'{self.name} has no split {split!r}; it has '
        f'{", ".join(self.split_ids)}.'
      )
    types.check_range('(0, 1]', fraction=fraction)
    rows = np.flatnonzero(self.split == self.split_ids[split])
    if fraction < 1:
      keep = int(np.round(len(rows) * fraction))
      rng = np.random.default_rng([seed, len(rows)])
      rows = np.sort(rng.permutation(rows)[:keep])
    if not len(rows):
      raise types.InputError(
        f'The split {split!r} of {self.name} is empty'
        + (f' at {fraction=}: raise it.' if fraction < 1 else '.')
      )
    if fraction < 1 and self.labelled and self.num_classes:
      there = np.unique(self.label[rows])
      if len(there) < 2:
        raise types.InputError(
          f'All {len(rows)} rows of {split!r} of {self.name} have the label '
          f'{there[0]} at {fraction=}: raise it, or take another split.'
        )
    return Subset(dataset=self, split=split, rows=rows)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subset:
  """Rows of one split.

  Attributes:
    dataset: What they are of.
    split: Name of the split.
    rows: Their places in the data set, rising, [n].
  """

  dataset: Dataset
  split: str
  rows: np.ndarray

  def __len__(self) -> int:
    return len(self.rows)

  @property
  def name(self) -> str:
    """What messages call it."""
    return f'{self.dataset.name} {self.split}'

  @property
  def label(self) -> np.ndarray:
    """Truth of each row, [n] or [n, T]."""
    return self.dataset.label[self.rows]

  @property
  def metadata(self) -> groupers.Metadata:
    """Of these rows."""
    whole = self.dataset.metadata
    return whole._replace(values=whole.values[self.rows])

  def source(
    self,
    grouper: groupers.Grouper | None = None,
    *,
    reveal: bool = False,
  ) -> sources.Source:
    """The rows as batches read them.

    They have the columns of the inputs; 'label' int32 (or 'target' float32
    [n, T] where truths are numbers), which is -1 of unlabelled rows; 'row',
    their places in the data set; and 'group', if there is a `grouper`.

    Args:
      grouper: What makes 'group' of the metadata.
      reveal: Whether unlabelled rows show what is known of their labels, for
        the oracle that is trained on all of them.

    Raises:
      InputError: Labels are to be shown that are not known.
    """
    data = self.dataset
    columns = {'row': self.rows.astype(np.int32)}
    if grouper is not None:
      columns['group'] = grouper(self.metadata.values).astype(np.int32)
    shown = data.labelled or reveal
    known = self.label
    if data.num_classes is None:
      columns['target'] = (known if shown else 0 * known).astype(np.float32)
    else:
      if shown and (known.min() < 0 or known.max() >= data.num_classes):
        raise types.InputError(
          f'{self.name} has labels from {known.min()} to {known.max()}, not in '
          f'[0, {data.num_classes}): they are not known.'
        )
      columns['label'] = known.astype(np.int32)
      if not shown:
        columns['label'] = np.full(len(self), NO_LABEL, np.int32)
    rows = data.inputs.select(self.rows).with_columns(**columns)
    return dataclasses.replace(
      rows,
      name=data.name,
      split=self.split,
      num_classes=data.num_classes if shown else None,
    )

  def evaluate(self, predicted: np.ndarray) -> evaluation.Evaluation:
    """What predictions of all these rows, in their order, are worth.

    Args:
      predicted: Classes [n], or numbers [n, T] where truths are.

    Raises:
      InputError: They are not one a row, or the rows have no labels.
    """
    if self.dataset.evaluate_fn is None:
      raise types.InputError(
        f'{self.name} has no labels: evaluate on a labelled split.'
      )
    predicted = evaluation.check(predicted, self.label, what=self.name)
    return self.dataset.evaluate_fn(predicted, self.label, self.metadata.values)


def make(
  name: str,
  *,
  split_ids: Mapping[str, int],
  split: np.ndarray,
  label: np.ndarray,
  num_classes: int | None,
  metadata: Mapping[str, np.ndarray],
  names: Mapping[str, Sequence],
  inputs: sources.Source,
  evaluate: Callable[[groupers.Metadata], evaluation.Evaluate] | None,
  source_splits: Sequence[int],
) -> Dataset:
  """A data set of arrays; what does not fit is refused.

  Args:
    name: For messages, files of predictions and results.
    split_ids: Split -> its number in `split`.
    split: Of each row, integers [N].
    label: Classes [N], or numbers [N, T].
    num_classes: Of labels; None where they are numbers.
    metadata: Field -> its values [N], in the order that groups are numbered in.
    names: Field -> what its values 0, 1, ... are called, where they have names.
    inputs: N rows.
    evaluate: Metadata of all rows -> what predictions are worth; None of
      unlabelled rows.
    source_splits: Numbers of the splits whose domains the training data come
      from: what the last field, 'from_source_domain', says.

  Raises:
    InputError: Arrays differ in length, a value has no name, or a label is none
      of the classes.
  """
  split, label = np.asarray(split).astype(np.int64), np.asarray(label)
  lengths = {
    'inputs': len(inputs),
    'split': len(split),
    'label': len(label),
    **{f'metadata {k!r}': len(x) for k, x in metadata.items()},
  }
  if len(set(lengths.values())) > 1:
    raise types.InputError(
      f'{name} needs arrays of one length; got '
      + ', '.join(f'{n} of {k}' for k, n in lengths.items())
      + ': the metadata are of other rows.'
    )
  for field in names:
    if field not in metadata:
      raise types.InputError(
        f'{name} names values of {field!r}, which is no metadata field.'
      )
  labelled = evaluate is not None
  if num_classes is not None and labelled:
    wrong = (label < 0) | (label >= num_classes)
    if wrong.any():
      raise types.InputError(
        f'Row {wrong.argmax()} of {name} has the label {label[wrong][0]}, not '
        f'in [0, {num_classes}).'
      )
  for field, called in names.items():
    values = np.asarray(metadata[field])
    if len(values) and values.max() >= len(called):
      raise types.InputError(
        f'Row {values.argmax()} of {name} has {field}={values.max()}, but only '
        f'{len(called)} values have names.'
      )
  columns = {
    **metadata,
    groupers.SOURCE: np.isin(split, list(source_splits)).astype(np.int64),
  }
  table = groupers.Metadata(
    np.stack([np.asarray(x) for x in columns.values()], 1),
    tuple(columns),
    # As in PyPI's `wilds`: it has a name where any other field has.
    {**names, groupers.SOURCE: (False, True)} if names else {},
  )
  return Dataset(
    name=name,
    split_ids=dict(split_ids),
    split=split,
    label=label,
    num_classes=num_classes,
    metadata=table,
    inputs=inputs,
    labelled=labelled,
    evaluate_fn=None if evaluate is None else evaluate(table),
  )


def by_fields(fields: Sequence[str], *of: Any) -> Callable:
  """`make`'s `evaluate` by the groups of some fields.

  Args:
    fields: Of the metadata.
    *of: Metrics of all rows, of each group, and of the worst.
  """
  return lambda table: evaluation.by_groups(
    groupers.Grouper(table, fields), *of
  )


def frequencies(subset: Subset, grouper: groupers.Grouper) -> dict[str, int]:
  """Name of each group -> its rows in a subset, groups without rows too."""
  counts = grouper.counts(subset.metadata.values)
  names = map(grouper.name, range(grouper.num_groups))
  return dict(zip(names, counts.tolist(), strict=True))
