"""Host side: what a config of WILDS or U-WILDS says, wired for one run."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np

from repjax import loop
from repjax import parallel
from repjax import start
from repjax import types
from repjax.benchmarks.wilds import algorithms
from repjax.benchmarks.wilds import datasets
from repjax.benchmarks.wilds import grouper as groupers
from repjax.benchmarks.wilds import leaderboard
from repjax.benchmarks.wilds import loaders
from repjax.benchmarks.wilds import metrics
from repjax.benchmarks.wilds import views as viewing
from repjax.data.batches import in_order
from repjax.data.images import transforms
from repjax.experiments import of_images
from repjax.experiments import wiring
from repjax.layers import frozen

# Kinds of data whose rows are images, and those whose rows are texts.
IMAGES = ('published', 'hospitals')
TEXTS = ('shops', 'published_text')


class Data(NamedTuple):
  """What a config says about its data, read.

  Attributes:
    labelled: The labelled set.
    train: Its training rows.
    unlabelled: Rows without labels that are learnt from, or None.
    grouper: What makes domains of the metadata of both.
    groups_per_batch: Domains in a batch of 'groups', of each kind of rows.
    views: Of images; texts are learnt from as they are.
    steps: Number of updates.
  """

  labelled: datasets.Dataset
  train: datasets.Subset
  unlabelled: datasets.Subset | None
  grouper: groupers.Grouper
  groups_per_batch: int
  views: viewing.Views
  steps: int

  @property
  def group_counts(self) -> np.ndarray:
    """Rows of each domain that are learnt from, with and without labels."""
    subsets = [self.train] + ([self.unlabelled] if self.unlabelled else [])
    counts = [self.grouper.counts(x.metadata.values) for x in subsets]
    return np.sum(counts, axis=0)


def read(config: Any) -> Data:
  """Reads the sets that a config names.

  Args:
    config: With algorithm, unlabelled, groups_per_batch, batch_size, epochs,
      min_steps and the groups `data` and, for images, `augment`.

  Raises:
    InputError: A set is missing, no set of images and classes, or not what the
      algorithm needs; names the field.
  """
  types.check_choice(
    'config.algorithm', config.algorithm, tuple(algorithms.NEEDS)
  )
  needs = algorithms.NEEDS[config.algorithm]
  if needs.unlabelled in ('must', 'alone') and not config.unlabelled:
    raise types.InputError(
      f'{config.algorithm} learns from rows without labels: name a split of '
      'them, such as --config.unlabelled=test_unlabeled.'
    )
  labelled = load(config)
  if labelled.num_classes is None:
    raise types.InputError(
      f'{labelled.name} has numbers in the place of labels: give a '
      '--config.data.name that has classes.'
    )
  train = labelled.subset(
    config.data.train_split, fraction=config.data.fraction, seed=config.seed
  )
  unlabelled, tables = None, [labelled.metadata]
  if config.unlabelled and needs.unlabelled != 'not':
    other = load(config, unlabelled=True)
    unlabelled = other.subset(
      config.unlabelled, fraction=config.data.fraction, seed=config.seed
    )
    tables.append(other.metadata)
  # With rows without labels domains are two: those of training, and others.
  fields = (groupers.SOURCE,) if unlabelled else config.data.group_by
  source = train.source()
  alone = unlabelled if needs.unlabelled == 'alone' else None
  return Data(
    labelled=labelled,
    train=train,
    unlabelled=unlabelled,
    grouper=groupers.Grouper(tables, tuple(fields)),
    groups_per_batch=1 if unlabelled else config.groups_per_batch,
    views=viewing.plain()
    if config.data.kind in TEXTS
    else viewing.make(source, **config.augment),
    steps=wiring.steps_of(
      config,
      len(alone or train),
      batch_size=config.unlabelled_batch_size if alone else 0,
    ),
  )


def load(config: Any, *, unlabelled: bool = False) -> datasets.Dataset:
  """The labelled or the unlabelled set of a config.

  Args:
    config: With data.kind ('published', 'hospitals' or one of `TEXTS`),
      data.name, data.dir, and, for hospitals, data.looks and data.num_digits;
      for texts data.length, for shops data.looks and data.num_reviews, and for
      published ones data.tokenizer.
    unlabelled: Which of the two.
  """
  data = config.data
  kinds = (*IMAGES, *TEXTS)
  types.check_choice('config.data.kind', data.kind, kinds)
  if data.kind.startswith('published'):
    from repjax.benchmarks.wilds import published

    read = published.load(data.name, data.dir, unlabelled=unlabelled)
    if data.kind == 'published':
      return read
    from repjax.benchmarks.wilds import text_sets

    words = text_sets.tokenizer(data.tokenizer)
    return text_sets.tokenized(read, words, length=data.length)
  if data.kind == 'shops':
    from repjax.benchmarks.wilds import shops

    return shops.load(
      seed=data.looks,
      num_reviews=data.num_reviews,
      length=data.length,
      unlabelled=unlabelled,
    )
  from repjax.benchmarks.wilds import hospitals

  return hospitals.load(
    data.name,
    seed=data.looks,
    num_digits=data.num_digits,
    data_dir=data.dir,
    unlabelled=unlabelled,
  )


def batches(
  config: Any, data: Data, *, pseudo: dict[str, np.ndarray] | None = None
) -> types.Batches:
  """The training batches of an algorithm.

  Args:
    config: With algorithm, batch_size, unlabelled_batch_size, seed,
      data.num_workers and step.microbatches.
    data: `read(config)`.
    pseudo: Further columns of the rows without labels: a teacher's labels.
  """
  views = data.views
  needs = algorithms.NEEDS[config.algorithm]
  total = 0 if needs.unlabelled == 'alone' else config.batch_size
  if data.unlabelled is not None:
    total += config.unlabelled_batch_size
  parallel.check_batch_size(total, microbatches=config.step.microbatches)
  transform = views.strong
  if config.algorithm == 'fixmatch':
    transform = views.pair(first='strong')
  kind = needs.loader
  if needs.unlabelled == 'alone':
    assert data.unlabelled is not None  # `read` sees to it.
    rows = data.unlabelled.source(data.grouper)
    if config.algorithm == 'swav':
      transform = views.pair(first='strong')
    size = config.unlabelled_batch_size
    return _batches(config, data, rows, kind, size, transform)
  labelled = data.train.source(data.grouper)
  if pseudo:  # What a teacher says of labelled rows nobody asks.
    labelled = labelled.with_columns(
      **{
        k: np.zeros_like(x[:1]).repeat(len(labelled), 0)
        for k, x in pseudo.items()
      }
    )
  own = _batches(config, data, labelled, kind, config.batch_size, transform)
  if data.unlabelled is None:
    return own
  if config.algorithm == 'fixmatch':
    transform = views.pair(first='weak')
  rows = data.unlabelled.source(data.grouper).with_columns(**(pseudo or {}))
  size = config.unlabelled_batch_size
  return loaders.joint(own, _batches(config, data, rows, kind, size, transform))


def build(
  config: Any,
  data: Data,
  method: types.Method,
  *,
  pseudo: dict[str, np.ndarray] | None = None,
) -> types.Experiment:
  """An experiment that reports what WILDS does, split by split.

  Args:
    config: With what `of_images.classifier` and `batches` read, and pretrained:
      a run ('swav') whose network others start from, or ''.
    data: `read(config)`.
    method: What is trained; `predict` gives 'logits', or that of `swav`.
    pseudo: Labels of a teacher, as columns of the rows without labels.
  """
  recipe = transforms.Recipe(
    train=data.views.strong,
    evaluate=data.views.evaluate,
    decode_train=data.views.decode,
    decode_evaluate=data.views.decode,
    shape=None,
  )
  sources = lambda split: data.labelled.subset(split).source()  # noqa: E731
  if config.algorithm == 'swav':
    if config.pretrained:
      raise types.InputError(
        "config.pretrained is what others start from: leave it '' with swav."
      )
    return wiring.of_sources(
      config,
      method,
      batches=batches(config, data),
      sources=sources,
      steps=data.steps,
      measure=metrics.of_clusters,
      figures=lambda rows, outputs, columns: {},
      recipe=recipe,
    )
  made = of_images.classifier(
    config,
    of_images.Data(data.train.source(), recipe, data.steps),
    method,
    batches=batches(config, data, pseudo=pseudo),
    sources=sources,
    warm_start=start.begin_from(config.pretrained),
  )
  return made._replace(measure=measure(data.labelled))


def measure(dataset: datasets.Dataset) -> Callable[..., dict[str, float]]:
  """Measures of 'logits': those of all classifiers, and the leaderboard's."""
  names = leaderboard.METRICS[dataset.name]

  def of(outputs, columns):
    rows = columns['row']
    results = dataset.evaluate_fn(
      outputs['logits'].argmax(-1),
      dataset.label[rows],
      dataset.metadata.values[rows],
    ).results
    return {
      **of_images.measure(outputs, columns),
      # Other split schemes than the official one have not all of them.
      **{x: results[x] for x in names if x in results},
    }

  return of


def taught(
  config: Any, data: Data, teacher: types.Method
) -> dict[str, np.ndarray]:
  """Labels of the rows without, by the run that `config.teacher` names.

  Args:
    config: With teacher (a work directory), eval_batch_size and seed.
    data: `read(config)`.
    teacher: What that run has trained.

  Raises:
    InputError: No run is named, or it is one of another network.
  """
  from repjax.methods import noisy_student

  if not config.teacher:
    raise types.InputError(
      f'{config.algorithm} needs a teacher: train one with '
      '--config.algorithm=erm, then --config.teacher=WORKDIR.'
    )
  assert data.unlabelled is not None  # `read` sees to it.
  variables = start.from_run(
    config.teacher, field='config.teacher', which='predicted'
  )
  found = in_order.eval_batches(
    data.unlabelled.source(),
    batch_size=parallel.round_up(config.eval_batch_size),
    transform=data.views.evaluate,
    decode=data.views.decode,
  )
  state = loop.init(teacher, found.batch(0), config.seed)
  # Before the parameters: an average begins with these, too.
  statistics = {k: x for k, x in variables.items() if k in state.model_state}
  state = state.replace(model_state={**state.model_state, **statistics})
  state = start.with_params(
    state, frozen.joined(variables), what=f'config.teacher={config.teacher}'
  )
  outputs, _ = loop.Evaluator(teacher)(state, found, split=data.unlabelled.name)
  return noisy_student.labels(outputs['logits'])


def _batches(config, data, source, kind, size, transform):
  reading = dict(
    batch_size=size,
    seed=config.seed,
    transform=transform,
    decode=data.views.decode,
    num_workers=config.data.num_workers,
  )
  if kind == 'shuffled':
    return in_order.train_batches(source, **reading)
  if kind == 'uniform':
    return loaders.uniform_batches(source, **reading)
  return loaders.group_batches(
    source, groups_per_batch=data.groups_per_batch, **reading
  )
