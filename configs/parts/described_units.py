"""Captioned units, and the two models that learn from them.

Hernandez et al., ICLR 2022. https://arxiv.org/abs/2201.11114
"""

from collections.abc import Sequence

import numpy as np

from configs import presets
from configs.parts import encoders
from configs.parts import planted_captions
from repjax import optim
from repjax import types
from repjax.analysis import masked_features
from repjax.data.reading import source as sources
from repjax.data.sets import milannotations
from repjax.data.sets import planted_units
from repjax.data.text import captions as texts
from repjax.data.text import words
from repjax.methods import describing
from repjax.models import describer


def annotated(config, seen_by: encoders.Encoder) -> planted_captions.Captioned:
  """Units that people have described: MILANNOTATIONS, split by unit."""
  seen, said = [], []
  for name in config.data.networks:
    units = milannotations.read(_folder(config, name), field='config.data.dir')
    for unit in units:
      seen.append(
        masked_features.of_images(
          seen_by.apply_fn,
          seen_by.variables,
          encoders.standardised(config, unit.image[: config.units.k]),
          unit.mask[: config.units.k],
          config.encoder.layers,
          batch_size=config.units.k,
        )
      )
      said.append(unit.captions)
  order = np.random.default_rng(config.seed).permutation(len(seen))
  count = max(1, round(config.data.heldout * len(order)))
  parts = order[count:], order[:count]
  tokenizer = words.Words.of(
    (x for i in parts[0] for x in said[i]), at_least=config.units.at_least
  )
  made = []
  for part in parts:
    rows = [(i, tokenizer.known(x)) for i in part for x in said[i]]
    encoded = texts.encode(
      [' '.join(x.split()[: config.units.length - 2]) for _, x in rows],
      tokenizer,
      length=config.units.length,
    )
    made.append(
      dict(
        features=np.stack([seen[i] for i, _ in rows]),
        tokens=encoded['tokens'],
      )
    )
  return planted_captions.Captioned(*made, tokenizer, ())


def read(config) -> planted_captions.Captioned:
  """The captioned units that a config names, as its encoder sees them."""
  if config.data.name == 'milannotations':
    for name in config.data.networks:  # Before anything is computed.
      milannotations.annotations(_folder(config, name), field='config.data.dir')
    return annotated(config, encoders.build(config))
  planted_captions.check(config)
  return planted_captions.draw(config, encoders.build(config), config.seed)


def _folder(config, name):
  return f'{config.data.dir or "."}/{name}'


def measure(
  units: planted_captions.Captioned, outputs, columns
) -> dict[str, float]:
  """Nats a token of both models, and how many captions name all they should.

  Args:
    units: What was learned from.
    outputs: Of `predict`.
    columns: Of the rows.
  """
  count = float(outputs['counted'].sum())
  numbers = {
    'loss': float(outputs['nll'].sum()) / count,
    'prior_loss': float(outputs['prior_nll'].sum()) / count,
    'evidence': float(outputs['evidence'].mean()),
  }
  if 'concept' in columns:
    said = [units.tokenizer.decode(x) for x in outputs['description']]
    numbers['names_all'] = float(
      names_all(said, columns['concept'], units.names).mean()
    )
  return numbers


def names_all(said: Sequence[str], concept: np.ndarray, names) -> np.ndarray:
  """Which captions name all attributes of a concept and no other, bool [N]."""
  found = np.array([planted_units.named(x, names) for x in said])
  return (found == concept).all(1)


def source(units: planted_captions.Captioned, split: str) -> sources.Source:
  """Rows of captioned units: 'train' or 'heldout'."""
  columns = presets.choose(
    'data.eval_splits', split, dict(train=units.train, heldout=units.heldout)
  )
  return sources.from_arrays('captioned units', columns, split=split)


def method(
  config,
  units: planted_captions.Captioned,
  steps: int,
  optimizer: types.Optimizer,
) -> types.Method:
  """Both models, their optimizer and their loss."""
  tx = config.tx
  # The authors' AdamW is PyTorch's as it comes; what is planted, and recorded,
  # has optax's as it comes.
  decay = 1e-2 if config.data.name == 'milannotations' else 1e-4
  rate = optim.warmup_cosine(
    tx.learning_rate, steps=steps, warmup=tx.warmup, end=tx.end
  )
  return describing.make(
    model(config, units.tokenizer.vocab_size),
    optimizer(rate, weight_decay=decay),
    **config.describing,
    **config.step,
  )


def model(config, vocab_size: int) -> describer.Describer:
  """p(d | E) and p(d)."""
  return describer.Describer(
    describer.Captioner(vocab_size, **config.captioner),
    describer.LanguageModel(vocab_size, **config.language_model),
  )
