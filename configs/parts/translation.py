"""What recipes of multilingual translation read, train on and measure."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import optax

from configs import presets
from configs.parts import language
from repjax import types
from repjax.data.batches import mixtures
from repjax.data.reading import source
from repjax.data.sets import grammar
from repjax.data.sets import languages
from repjax.data.text import tokens
from repjax.data.text import translations
from repjax.experiments import kept_tokens
from repjax.methods import language_modeling
from repjax.models import transformer


class Data(NamedTuple):
  """Languages, read.

  Attributes:
    names: Of the T languages.
    train: Training rows of each.
    sources: Split -> rows of all languages, with 'task'.
    vocab_size: Number of tokens.
    length: Tokens of a row.
    show: Tokens as text.
    tokenizer: Of texts; None of what is made.
  """

  names: tuple[str, ...]
  train: list[source.Source]
  sources: Callable[[str], source.Source]
  vocab_size: int
  length: int
  show: Callable[..., str]
  tokenizer: tokens.Tokenizer | None = None


def read(config) -> Data:
  """Reads synthetic languages or a TFDS set, as `config.data.kind` says."""
  kinds = dict(family=_family, tfds=_tfds)
  return presets.choose('data.kind', config.data.kind, kinds)(config)


def family(config) -> languages.Family:
  """The synthetic languages of the group `config.family`."""
  group = config.family
  return languages.Family(
    tree=group.tree, grammar=grammar.Grammar(**group.words)
  )


def _family(config):
  group, relatives = config.family, family(config)
  names = tuple(relatives.languages)
  counts = tuple(group.num_rows)
  counts = counts * len(names) if len(counts) == 1 else counts
  if len(counts) != len(names):
    raise types.InputError(
      f'config.family.num_rows={counts} gives {len(counts)} numbers to '
      f'{len(names)} languages: {", ".join(names)}.'
    )

  def test(split):
    return mixtures.of_tasks(
      relatives.load(name, group.num_test_rows, seed=0, split=split)
      for name in names
    )

  return Data(
    names=names,
    # Each language has sentences of its own.
    train=[
      relatives.load(name, count, seed=task)
      for task, (name, count) in enumerate(zip(names, counts, strict=True))
    ],
    sources=test,
    vocab_size=relatives.vocab_size,
    length=relatives.length,
    show=relatives.decode,
  )


def _tfds(config):
  data = config.data
  names = tuple(data.languages)

  def rows(split):
    return source.load(data.name, split, data_dir=data.dir)

  train = rows(data.train_split)
  if data.tokenizer and not kept_tokens.is_kept(config):
    tokenizer = tokens.Subwords.load(data.tokenizer)
  else:
    tokenizer = kept_tokens.learn(
      config,
      lambda: translations.sentences(
        train, languages=(data.pivot, *names), num_rows=data.tokenizer_rows
      ),
    )

  def parts(rows):
    return translations.from_pivot(
      rows,
      pivot=data.pivot,
      languages=names,
      tokenizer=tokenizer,
      length=data.length,
    )

  return Data(
    names=names,
    train=parts(train),
    sources=lambda split: mixtures.of_tasks(parts(rows(split))),
    vocab_size=tokenizer.vocab_size + len(names),
    length=data.length,
    show=tokenizer.decode,
    tokenizer=tokenizer,
  )


def batches(config, data: Data) -> mixtures.MixtureBatches:
  """Training batches that mix the languages, at config.data.temperature."""
  return mixtures.mixture(
    data.train,
    batch_size=config.batch_size,
    seed=config.seed,
    temperature=config.data.temperature,
    num_workers=config.data.num_workers,
  )


def method(
  config,
  data: Data,
  link: optax.GradientTransformation,
  *,
  optimizer: types.Optimizer = optax.adamw,
) -> types.Method:
  """The translator of all languages; `link` sees their gradients first."""
  model = transformer.EncoderDecoder(
    data.vocab_size, num_positions=data.length, **config.model
  )
  return language_modeling.make(
    model,
    optax.chain(link, language.adamw(config, config.steps, optimizer)),
    objective='translation',
    **config.step,
  )


def with_accuracies(
  experiment: types.Experiment, names: Sequence[str]
) -> types.Experiment:
  """The experiment, which measures the accuracy of each language, too."""

  def measure(outputs, columns):
    of_tasks = accuracies(outputs, columns['task'], len(names))
    return {
      **experiment.measure(outputs, columns),
      'mean_task_accuracy': float(of_tasks.mean()),
      **{
        f'accuracy_{name}': float(x)
        for name, x in zip(names, of_tasks, strict=True)
      },
    }

  return experiment._replace(measure=measure)


def accuracies(outputs, task, num_tasks: int) -> np.ndarray:
  """Token accuracy of each task, [..., T] from hits and tokens [..., N]."""
  rows = np.equal.outer(np.arange(num_tasks), np.asarray(task))  # [T, N]
  hits = (outputs['hits'][..., None, :] * rows).sum(-1)
  return hits / (outputs['tokens'][..., None, :] * rows).sum(-1)
