"""What configs of language models share: their data, model and optimizer."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import optax

from repjax import experiment
from repjax import optim
from repjax import types
from repjax.data import fasta
from repjax.data import recipes
from repjax.data import source
from repjax.data import text
from repjax.data import tokens
from repjax.data import transforms
from repjax.methods import language_modeling
from repjax.models import transformer


class Data(NamedTuple):
  """What a config of a language model says about its data, read.

  Attributes:
    train: Rows of 'tokens' [T]; of 'image' where `recipe` makes tokens.
    sources: Split -> rows of 'tokens' and 'weights'.
    recipe: What rows go through.
    vocab_size: Number of tokens.
    show: Tokens as text.
    length: Tokens that the model reads.
    steps: Number of updates.
  """

  train: source.Source
  sources: Callable[[str], source.Source]
  recipe: recipes.Recipe
  vocab_size: int
  show: Callable[..., str]
  length: int
  steps: int


def read(config) -> Data:
  """Reads texts, proteins or images as `config.data` says."""
  readers = {'text': _text, 'proteins': _proteins, 'pixels': _pixels}
  if config.data.kind not in readers:
    raise types.InputError(
      f'config.data.kind is one of {", ".join(readers)}; got '
      f'{config.data.kind!r}.'
    )
  data = readers[config.data.kind](config.data)
  steps = experiment.num_steps(
    len(data.train),
    batch_size=config.batch_size,
    epochs=config.epochs,
    min_steps=config.min_steps,
  )
  return data._replace(steps=steps)


def _text(data):
  def texts(split):
    return text.load(data.name, split, data_dir=data.dir, column=data.column)

  return _windows(data, texts, tokens.Bytes())


def _proteins(data):
  if not data.path:
    raise types.InputError(
      'config.data.path is empty: name a FASTA file of proteins, or give '
      '--config.data.kind=text or pixels with a --config.data.name.'
    )
  return _windows(
    data,
    lambda split: fasta.read(data.path, split=split),
    fasta.Residues(),
  )


def _windows(data, texts, tokenizer):
  def sources(split):
    rows = texts(split)
    made = text.eval_windows(
      text.stream(rows, tokenizer),
      length=data.length,
      stride=data.eval_stride,
      name=split,
    )
    return experiment.with_bytes(made, text.num_bytes(rows))

  return Data(
    train=text.train_windows(
      text.stream(texts(data.train_split), tokenizer),
      length=data.length,
      stride=data.train_stride,
      name=data.name or data.path,
    ),
    sources=sources,
    recipe=experiment.AS_IT_IS,
    vocab_size=tokenizer.vocab_size,
    show=tokenizer.decode,
    length=data.length,
    steps=0,
  )


def _pixels(data):
  """Images in raster order, a token a pixel and channel; 256 starts a row."""

  def sources(split):
    rows = source.load(data.name, split, data_dir=data.dir)
    if rows.image_shape is None:
      raise types.InputError(
        f'The images of {data.name} differ in size: pixels are predicted of '
        'sets whose images have one size.'
      )
    return rows

  def apply(columns, draws):
    del draws  # Nothing is random.
    images = columns['image']
    ids = images.reshape((len(images), -1)).astype(np.int32)
    start = np.full((len(ids), 1), 256, np.int32)
    rest = {name: x for name, x in columns.items() if name != 'image'}
    return {**rest, 'tokens': np.concatenate([start, ids], 1)}

  as_tokens = transforms.Transform(0, apply)
  train = sources(data.train_split)
  return Data(
    train=train,
    sources=sources,
    recipe=experiment.AS_IT_IS._replace(train=as_tokens, evaluate=as_tokens),
    vocab_size=257,
    show=lambda ids: ' '.join(f'{int(i):x}' for i in ids) + ' ',
    length=int(np.prod(train.image_shape)),
    steps=0,
  )


def model(config, data: Data, attention_fn) -> transformer.DecoderLM:
  """The decoder that a config names, for its data."""
  return transformer.DecoderLM(
    data.vocab_size,
    attention_fn=attention_fn,
    num_positions=data.length,
    **config.model,
  )


def adamw(config, steps: int) -> optax.GradientTransformation:
  """Warm-up, cosine, clipping; matrices decay."""
  tx = config.tx
  return optax.chain(
    optax.clip_by_global_norm(tx.clip),
    optax.adamw(
      optim.warmup_cosine(tx.learning_rate, steps=steps, warmup=tx.warmup),
      weight_decay=tx.weight_decay,
      mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    ),
  )


def build(config, attention_fn) -> types.Experiment:
  """A language model with the given causal attention."""
  data = read(config)
  return experiment.token_predictor(
    config,
    language_modeling.make(
      model(config, data, attention_fn),
      adamw(config, data.steps),
      **config.step,
    ),
    train=data.train,
    sources=data.sources,
    steps=data.steps,
    show=data.show,
    recipe=data.recipe,
  )
