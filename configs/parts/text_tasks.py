"""What the config of adapters learns: texts with classes, or text from text."""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any
from typing import NamedTuple

import numpy as np

from configs import presets
from configs.parts import text_models
from repjax import types
from repjax.data.reading import prepared
from repjax.data.reading import source
from repjax.data.text import labelled_text
from repjax.data.text import paired_text
from repjax.data.text import running_text
from repjax.data.text import tokens
from repjax.experiments import kept_tokens


class Task(NamedTuple):
  """What is learned.

  Attributes:
    train: Training rows.
    sources: Split -> its rows.
    tokenizer: Has `vocab_size` and `decode`.
    num_classes: Of 'sentences'.
    public: Rows for pretraining, or None.
    subwords: What makes ids of texts; None where texts are made.
  """

  train: source.Source
  sources: Callable[[str], source.Source]
  tokenizer: Any
  num_classes: int | None = None
  public: Mapping[str, np.ndarray] | None = None
  subwords: tokens.Tokenizer | None = None


def read(config) -> Task:
  """Reads what `config.data` names, in the way of its `kind`.

  Raises:
    InputError: Adapters have nothing to adapt, or weights, tokens and data do
      not belong together.
  """
  if config.adapter.kind != 'full' and not (
    config.weights or _pretrains(config)
  ):
    raise types.InputError(
      f'config.adapter.kind={config.adapter.kind} adapts a pretrained model: '
      'name one by --config.weights=FOLDER, or train all of one by '
      '--config.adapter.kind=full'
      + ', or learn one here by --config.pretraining.steps'
      * (config.data.kind != 'completions')
      + '.'
    )
  kinds = dict(sentences=_sentences, pairs=_pairs, completions=_completions)
  return presets.choose('data.kind', config.data.kind, kinds)(config)


def _pretrains(config):
  """Whether a model learns here what it is fine-tuned from."""
  return (
    config.pretraining.steps > 0
    and not config.weights
    and config.data.kind != 'completions'
  )


def _sentences(config):
  if config.data.name == 'python_topics':
    return _topics(config)
  data = config.data
  public = data.public or (f'{data.name}:{data.column}',)

  @functools.cache
  def texts():
    return [text for x in public for text in _texts(config, x)]

  tokenizer = _tokenizer(config, texts)
  load = functools.partial(_intents, config, tokenizer)
  if data.name != 'clinc_oos':
    load = text_models.sentences(config, tokenizer)
  train = load(data.train_split)
  if not _pretrains(config):
    return Task(train, load, tokenizer, train.num_classes, subwords=tokenizer)
  windows = running_text.train_windows(
    running_text.stream(texts(), tokenizer),
    length=data.length - 1,
    name=data.name,
  )
  return Task(
    train,
    load,
    _Hiding(tokenizer.vocab_size + 1),
    train.num_classes,
    windows.columns(),
    tokenizer,
  )


def _topics(config):
  """Chapters of `python_topics`, told from some characters."""
  from repjax.data.sets import topic_tasks

  data = config.data
  # None learns one.
  tokenizer = text_models.tokenizer(config, learn=lambda: None)
  task = topic_tasks.read(
    length=data.length,
    vocab_size=data.vocab_size,
    tokenizer=tokenizer,
    frame=text_models.frame(tokenizer),
    **config.topics,
  )

  def load(split):
    _check_made(split, data)
    columns = task.train if split == data.train_split else task.test
    return source.from_arrays(
      data.name, columns, num_classes=task.num_classes, split=split
    )

  return Task(
    load(data.train_split),
    load,
    _Hiding(task.vocab_size),
    task.num_classes,
    task.public if _pretrains(config) else None,
  )


def _texts(config, public: str) -> list[bytes]:
  """Training texts of a set, 'name:column'; of two columns first, then last."""
  name, _, column = public.rpartition(':')
  if not name:
    raise types.InputError(
      f"config.data.public names sets and columns, 'name:column'; got "
      f'{public!r}.'
    )
  read = source.load(name, config.data.train_split, data_dir=config.data.dir)
  columns = paired_text.names(column, read.read([0]))
  return [text for x in columns for text in read.column(x)]


def _intents(config, tokenizer, split: str) -> source.Source:
  """Some intents of `clinc_oos`; of training rows a few of each."""
  from repjax.data.sets import intents

  data, group = config.data, config.intents
  read = intents.load(
    split,
    num_classes=group.num_classes,
    rows_per_class=group.rows_per_class if split == data.train_split else 0,
    data_dir=data.dir,
  )
  return labelled_text.rows(
    read.column(data.column),
    read.column('label'),
    tokenizer=tokenizer,
    length=data.length,
    num_classes=group.num_classes,
    name=data.name,
    split=split,
    frame=text_models.frame(tokenizer),
  )


def _check_made(split, data):
  """Refuses splits that a set that is made on the spot has not."""
  if split.partition(':')[0] in (prepared.INPUTS, prepared.LABELLED):
    raise types.InputError(
      f'config.data.name={data.name} is made on the spot and has no other '
      'rows: train on a set of texts to predict files.'
    )
  known = data.train_split, 'test'
  types.check_choice('config.data.eval_splits', split, known)


class _Hiding(NamedTuple):
  """The size of a vocabulary whose last id hides others in pretraining."""

  vocab_size: int


def _relatives(config):
  """Sentences of one synthetic language, told in another."""
  from configs.parts import unread
  from repjax.data.sets import relatives

  unread.refuse_text(config, 'config.data.name=relatives has its own words')
  task = relatives.read(**config.relatives)

  def made(split):
    _check_made(split, config.data)
    return task.train if split == config.data.train_split else task.test

  return Task(
    task.train,
    made,
    task.family,
    public=task.public if _pretrains(config) else None,
  )


def _pairs(config):
  if config.data.name == 'relatives':
    return _relatives(config)
  data = config.data
  both = functools.partial(text_models.columns, config)
  tokenizer = _tokenizer(
    config, lambda: [x for part in both(data.train_split) for x in part]
  )

  def load(split):
    return labelled_text.pairs(
      *both(split),
      tokenizer=tokenizer,
      length=data.length,
      target_length=data.target_length,
      name=data.name,
      split=split,
      frame=text_models.frame(tokenizer),
    )

  train = load(data.train_split)
  public = None
  if _pretrains(config):
    from repjax.protocols import pretraining

    # It learns to write what it will write, before it learns when.
    public = pretraining.denoising(train.columns(), rate=0.3, seed=config.seed)
  return Task(train, load, tokenizer, public=public, subwords=tokenizer)


def _completions(config):
  data = config.data
  both = functools.partial(text_models.columns, config)
  tokenizer = _tokenizer(
    config, lambda: [x for part in both(data.train_split) for x in part]
  )
  load = text_models.completions(config, tokenizer)
  return Task(load(data.train_split), load, tokenizer, subwords=tokenizer)


def _tokenizer(config, texts):
  learn = functools.partial(kept_tokens.learn, config, texts)
  if kept_tokens.is_kept(config):
    return learn()
  return text_models.tokenizer(config, learn=learn)
