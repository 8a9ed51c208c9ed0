"""What recipes of language models share: layers, data, model, optimizer.

A recipe lays its own fields over the layers here. These tell no paper from
another: what a paper reports, and the sizes and rates of its recipe, stand in
its own layer. `language_study` has what only studies use.
"""

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import numpy as np
import optax

from configs import presets
from repjax import optim
from repjax import types
from repjax.data.images import transforms
from repjax.data.reading import source
from repjax.data.text import fasta
from repjax.data.text import running_text
from repjax.data.text import tokens
from repjax.experiments import of_tokens
from repjax.experiments import wiring
from repjax.methods import language_modeling
from repjax.models import transformer

# Models of any texts.
TEXTS: presets.Layer = dict(
  paper=dict(
    data=dict(eval_splits=('validation', 'test')),
    step=dict(label_smoothing=0.0, compute_dtype='bfloat16'),
    run=dict(eval_every=5000),
  ),
  small=dict(
    model=dict(dropout_rate=0.0),
    step=dict(compute_dtype='float32'),
    run=dict(log_every=50, eval_every=250, save_every=250),
  ),
  smoke=dict(batch_size=16),
)

# Models of one stream of tokens. At `small` all are measured on one byte
# language model, so that its figures can be compared between papers.
STREAM: tuple[presets.Layer, ...] = (
  presets.RUN,
  TEXTS,
  dict(
    paper=dict(
      min_steps=0,
      # kind: 'text' (a TFDS set of texts), 'pixels' (a TFDS set of images, one
      # token a pixel and channel) or 'proteins' (the FASTA file `path`).
      data=dict(kind='text', name='', path='', column='text'),
      model=dict(remat=True, scan_layers=False),
    ),
    small=dict(
      batch_size=8,
      eval_batch_size=32,
      epochs=0.0,
      data=dict(
        kind='text',
        name='python_topics',
        eval_splits=('validation',),
        length=256,
        train_stride=64,
        eval_stride=256,
      ),
      model=dict(
        hidden_dim=64,
        mlp_dim=256,
        num_heads=2,
        num_layers=2,
        position='rotary',
        scale_embedding=False,
        remat=False,
      ),
      tx=dict(learning_rate=3e-3, warmup=0.1, clip=1.0),
    ),
    smoke=dict(
      min_steps=8,
      data=dict(length=32, train_stride=32, eval_stride=32),
      model=dict(hidden_dim=16, mlp_dim=32, num_heads=2, num_layers=1),
    ),
  ),
)


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
  recipe: transforms.Recipe
  vocab_size: int
  show: Callable[..., str]
  length: int
  steps: int


def read(config) -> Data:
  """Reads texts, proteins or images as `config.data` says."""
  readers = {'text': _text, 'proteins': _proteins, 'pixels': _pixels}
  if config.data.path and config.data.kind != 'proteins':
    raise types.InputError(
      f'config.data.path={config.data.path} counts for nothing with '
      f'config.data.kind={config.data.kind}: set --config.data.kind=proteins.'
    )
  data = presets.choose('data.kind', config.data.kind, readers)(config.data)
  return data._replace(steps=wiring.steps_of(config, len(data.train)))


def _text(data):
  def texts(split):
    return running_text.load(
      data.name, split, data_dir=data.dir, column=data.column
    )

  return _windows(data, texts, tokens.Bytes(), name=data.name)


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
    name=data.path,
  )


def _windows(data, texts, tokenizer, *, name):
  def sources(split):
    rows = texts(split)
    made = running_text.eval_windows(
      running_text.stream(rows, tokenizer),
      length=data.length,
      stride=data.eval_stride,
      name=f'{name} {split}',
    )
    return of_tokens.with_bytes(made, running_text.num_bytes(rows))

  return Data(
    train=running_text.train_windows(
      running_text.stream(texts(data.train_split), tokenizer),
      length=data.length,
      stride=data.train_stride,
      name=f'{name} {data.train_split}',
    ),
    sources=sources,
    recipe=transforms.AS_IT_IS,
    vocab_size=tokenizer.vocab_size,
    show=tokenizer.decode,
    length=data.length,
    steps=0,
  )


def _pixels(data):
  """Images in raster order, a token a pixel and channel; 256 starts a row."""

  def images(split):
    rows = source.load(data.name, split, data_dir=data.dir)
    rows.check_images()
    if rows.image_shape is None:
      raise types.InputError(
        f'The images of {data.name} differ in size: pixels are predicted of '
        'sets whose images have one size.'
      )
    return rows

  def sources(split):
    rows = images(split)
    each = np.full(len(rows), np.prod(rows.image_shape), np.float32)
    return rows.with_columns(num_bytes=each)  # A pixel is a byte.

  def apply(columns, draws):
    del draws  # Nothing is random.
    pixels = columns['image']
    ids = pixels.reshape((len(pixels), -1)).astype(np.int32)
    start = np.full((len(ids), 1), 256, np.int32)
    rest = {name: x for name, x in columns.items() if name != 'image'}
    return {**rest, 'tokens': np.concatenate([start, ids], 1)}

  as_tokens = transforms.Transform(0, apply)
  train = images(data.train_split)
  return Data(
    train=train,
    sources=sources,
    recipe=transforms.AS_IT_IS._replace(train=as_tokens, evaluate=as_tokens),
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


def adamw(
  config, steps: int, optimizer: types.Optimizer = optax.adamw
) -> optax.GradientTransformation:
  """Warm-up, cosine, clipping; matrices decay, those of positions too."""
  tx = config.tx
  return optax.chain(
    optax.clip_by_global_norm(tx.clip or math.inf),
    optimizer(
      optim.warmup_cosine(tx.learning_rate, steps=steps, warmup=tx.warmup),
      weight_decay=tx.weight_decay,
      mask=functools.partial(optim.weight_decay_mask, exempt=('bias',)),
    ),
  )


def method(
  config,
  data: Data,
  attention_fn,
  *,
  steps: int | None = None,
  optimizer: types.Optimizer = optax.adamw,
) -> types.Method:
  """A language model with the given causal attention.

  Args:
    config: With the groups model, tx and step.
    data: `read(config)`.
    attention_fn: Causal.
    steps: Of its training; those of the data if None.
    optimizer: The last link of its chain.
  """
  return language_modeling.make(
    model(config, data, attention_fn),
    adamw(config, data.steps if steps is None else steps, optimizer),
    **config.step,
  )


def build(
  config, attention_fn, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """An experiment with `method` on the data that a config names."""
  data = read(config)
  return of_tokens.predictor(
    config,
    method(config, data, attention_fn, optimizer=optimizer),
    batches=wiring.shuffled(config, data.train, data.recipe),
    sources=data.sources,
    steps=data.steps,
    show=data.show,
    recipe=data.recipe,
  )
