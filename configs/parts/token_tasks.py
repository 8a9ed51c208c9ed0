"""What is learned of rows of tokens beside language models.

A synthetic language pair, nested lists and labelled bytes, each with the
attention, model and optimizer that a recipe's config names.
"""

from collections.abc import Callable
import functools

import numpy as np

from configs.parts import attention
from configs.parts import language
from repjax import types
from repjax.data.reading import source
from repjax.data.sets import grammar
from repjax.data.sets import listops
from repjax.data.text import running_text
from repjax.data.text import tokens
from repjax.experiments import of_tokens
from repjax.experiments import wiring
from repjax.methods import language_modeling
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.models import text_heads
from repjax.models import transformer


def _translation(config, optimizer: types.Optimizer) -> types.Experiment:
  """A synthetic language pair by an encoder-decoder."""
  pair = grammar.Grammar()
  sources = _drawn(config, functools.partial(_held_out, pair))
  train = sources(config.data.train_split)
  steps = wiring.steps_of(config, len(train))
  model = transformer.EncoderDecoder(
    pair.vocab_size,
    attention_fn=attention.attention_fn(config.attention, causal=False),
    decoder_attention_fn=attention.attention_fn(config.attention, causal=True),
    cross_attention_fn=attention.attention_fn(config.attention, causal=False),
    num_positions=pair.max_words + 2,
    **config.model,
  )
  return of_tokens.predictor(
    config,
    language_modeling.make(
      model,
      language.adamw(config, steps, optimizer),
      objective='translation',
      **config.step,
    ),
    batches=wiring.shuffled(config, train),
    sources=sources,
    steps=steps,
    show=lambda ids: pair.decode(ids) + ' ',
  )


def _listops(config, optimizer: types.Optimizer) -> types.Experiment:
  """Nested operations on lists of digits (Long Range Arena)."""
  sources = _drawn(
    config,
    listops.load,
    max_length=config.data.length,
    min_length=config.data.length // 4,
  )
  return _classifier(
    config, sources, listops.VOCAB_SIZE, listops.NUM_CLASSES, optimizer
  )


def _classification(config, optimizer: types.Optimizer) -> types.Experiment:
  """Bytes of a labelled TFDS set, such as glue/sst2 or imdb_reviews."""
  tokenizer = tokens.Bytes()

  @functools.cache
  def sources(split):
    rows = source.load(config.data.name, split, data_dir=config.data.dir)
    if rows.num_classes is None:
      raise types.InputError(
        f'config.data.name={config.data.name} has no classes: name a set with '
        "a 'label', such as glue/sst2."
      )
    ids, mask = running_text.pad(
      [tokenizer.encode(x) for x in rows.column(config.data.column)],
      length=config.data.length,
      truncate=True,
    )
    return source.from_arrays(
      config.data.name,
      {'tokens': ids, 'token_mask': mask, 'label': rows.column('label')},
      num_classes=rows.num_classes,
      class_names=rows.class_names,
      split=split,
    )

  num_classes = sources(config.data.train_split).num_classes
  return _classifier(
    config, sources, tokenizer.vocab_size, num_classes, optimizer
  )


def _held_out(pair, num_rows, *, seed, split):
  """Rows of a language; those of validation are further held-out sentences."""
  if split != 'validation':
    return pair.load(num_rows, seed=seed, split=split)
  both = pair.load(2 * num_rows, seed=seed, split='test')
  return both.select(np.arange(num_rows, 2 * num_rows))


def _drawn(config, load, **settings) -> Callable[[str], source.Source]:
  """Split -> rows of a generator: of training, validation or test."""

  def sources(split):
    is_train = split == config.data.train_split
    if not is_train:
      known = 'validation', 'test'
      types.check_choice('config.data.eval_splits', split, known)
    return load(
      config.data.num_rows if is_train else config.data.num_test_rows,
      seed=0,
      split='train' if is_train else split,
      **settings,
    )

  return sources


def _classifier(config, sources, vocab_size, num_classes, optimizer):
  train = sources(config.data.train_split)
  steps = wiring.steps_of(config, len(train))
  model = text_heads.Classifier(
    vocab_size,
    num_classes=num_classes,
    pool='mean',
    pooler=False,
    attention_fn=attention.attention_fn(config.attention, causal=False),
    num_positions=config.data.length,
    **config.model,
  )
  return of_tokens.classifier(
    config,
    supervised.make(
      model,
      language.adamw(config, steps, optimizer),
      inputs=model_inputs.text,
      **config.step,
    ),
    batches=wiring.shuffled(config, train),
    sources=sources,
    steps=steps,
  )


# config.data.kind -> (config, optimizer) -> experiment.
BUILDERS = dict(
  translation=_translation, listops=_listops, classification=_classification
)
