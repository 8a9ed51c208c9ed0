"""Images in drawn inks and places, with captions, and the CLIP of them."""

from typing import NamedTuple

import numpy as np
import optax

from configs.parts import clip_towers
from repjax import optim
from repjax import types
from repjax.data.reading import source as sources
from repjax.data.sets import worded
from repjax.data.text import captions
from repjax.data.text import tokens
from repjax.experiments import of_images
from repjax.methods import clip as clip_method


class Worded(NamedTuple):
  """What a config says about its data, read.

  Attributes:
    train: Training rows with captions.
    names: What classes are called.
    tokenizer: Learned from captions.
  """

  train: sources.Source
  names: tuple[str, ...]
  tokenizer: tokens.Tokenizer

  @property
  def phrases(self) -> tuple[str, ...]:
    """All words of classes, inks and places, in that order."""
    return tuple(x for row in worded.words(self.names).values() for x in row)

  def prompts(self, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, masks) of a text for each phrase, [P, 1, length]."""
    said = [worded.PROMPT.format(x) for x in self.phrases]
    columns = captions.encode(said, self.tokenizer, length=length)
    return columns['tokens'][:, None], columns['token_mask'][:, None]


def draw(config, split: str, num_rows: int, seed: list[int]) -> sources.Source:
  """Rows of a split of the set that a config names, in inks and places."""
  source = of_images.load(config, split)
  return worded.draw(source, num_rows=num_rows, seed=seed, split=split)


def read(config, seed: int) -> Worded:
  """Training rows and their captions, drawn by a seed."""
  train = draw(config, config.data.train_split, config.data.num_rows, [seed, 0])
  names = captions.spoken(train.class_names, train.num_classes)
  columns = {x: train.column(x) for x in ('label', 'ink', 'place')}
  texts = worded.captions(columns, names, seed=[seed, 1])
  # The same for all seeds, so that one program trains them side by side.
  tokenizer = tokens.Subwords.train(
    worded.everything(names), vocab_size=config.data.vocab_size
  )
  encoded = captions.encode(texts, tokenizer, length=config.data.length)
  return Worded(train.with_columns(**encoded), names, tokenizer)


def num_evaluated(config, split: str) -> int:
  """Rows of `evaluated`: at least 2,000, for slices to be found in."""
  return max(2000, len(of_images.load(config, split)))


def evaluated(config, split: str) -> sources.Source:
  """Rows of a split that a run is evaluated on: one draw for all runs."""
  return draw(config, split, num_evaluated(config, split), [7, 7])


def method(
  config,
  pairs: Worded,
  steps: int,
  optimizer: types.Optimizer = optax.adamw,
) -> types.Method:
  """CLIP, which also says how near images are to each phrase.

  `predict` gives 'phrase_logits' [B, P] in addition; 'logits' are those of the
  names of classes.
  """
  tx = config.tx
  rate = optim.warmup_cosine(
    tx.learning_rate, steps=steps, warmup=tx.warmup, end=0.0
  )
  made = clip_method.make(
    clip_towers.network(config, pairs.tokenizer),
    optimizer(rate, weight_decay=tx.weight_decay),
    loss=config.clip.loss,
    max_scale=config.clip.max_scale,
    prompts=pairs.prompts(config.data.length),
    **config.step,
  )
  num_classes = len(pairs.names)

  def predict(state, batch):
    outputs = dict(made.predict(state, batch))
    if 'logits' in outputs:
      outputs['phrase_logits'] = outputs['logits']
      outputs['logits'] = outputs['logits'][:, :num_classes]
    return outputs

  return made._replace(predict=predict)
