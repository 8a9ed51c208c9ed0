"""Units of a network, described in words.

Hernandez, Schwettmann, Bau, Bagashvili, Torralba and Andreas, 'Natural Language
Descriptions of Deep Visual Features', ICLR 2022
(https://arxiv.org/abs/2201.11114): the caption d of a unit with exemplars E
that has the largest log p(d | E) - lambda log p(d) (eq. 3), among the likeliest
under p(d | E), so that what is said of everything counts less.

    found = exemplars.collect(predict, state, batches, ('norm_1',))['norm_1']
    features = masked_features.of_exemplars(...)
    units = milan.describe(model, variables, features, tokenizer, length=10)
    print(milan.table(units, layer='norm_1'))

How sure a description is: its evidence, log p(d | E) - log p(d), how much
likelier the exemplars make it. Exemplars that have nothing in common have some,
too, by chance; `null_level` is what few of them reach, and a unit below it is
'unknown'. (Neither stands in the paper.)

Scores are those of the authors' code (tests/analysis/test_milan_published.py)
but for one token: its log p(d) of a caption that ends early also counts what
stands after the end, a second end, to which its language model was never
trained.
"""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import numpy as np

from repjax import types
from repjax.data.text import tokens as tokenizing
from repjax.data.text import words as words_of
from repjax.methods import describing
from repjax.models import beam_search
from repjax.models import describer

UNKNOWN = 'unknown'
SILENT = 'never active'


class Description(NamedTuple):
  """What is said of one unit.

  Attributes:
    unit: Its number.
    text: The caption; '' where the captioner says nothing.
    score: log p(d | E) - lambda log p(d), nats.
    likelihood: log p(d | E).
    prior: log p(d).
    state: '' for a description that counts, else `UNKNOWN` or `SILENT`.
  """

  unit: int
  text: str
  score: float
  likelihood: float
  prior: float
  state: str = ''

  @property
  def evidence(self) -> float:
    """Log p(d | E) - log p(d), nats."""
    return self.likelihood - self.prior

  @property
  def words(self) -> str:
    """The caption, or why there is none."""
    return self.state or self.text


def search(
  model: describer.Describer,
  variables: types.PyTree,
  features: np.ndarray,
  *,
  length: int,
  width: int = 50,
  batch_size: int = 128,
) -> beam_search.Beams:
  """The likeliest captions of all units, on the host; any lambda chooses of it.

  Args:
    model: p(d | E) and p(d).
    variables: Of the model.
    features: Of the exemplars, [U, k, D].
    length: The most tokens of a caption, its end among them.
    width: Of the beam.
    batch_size: Units of a call, at most.

  Raises:
    InputError: A number is out of range, there is no unit, or a feature is no
      number.
    NonFiniteError: A probability is NaN.
  """
  types.check_range('[1, inf)', length=length, width=width)
  types.check_range('[1, inf)', batch_size=batch_size)
  features = _checked(features)
  # Few sizes, so that few programs are compiled.
  size = min(batch_size, 1 << (len(features) - 1).bit_length())
  parts = []
  for start in range(0, len(features), size):
    part = features[start : start + size]
    lacking = size - len(part)
    part = np.pad(part, ((0, lacking), (0, 0), (0, 0)))
    found = jax.device_get(_search(model, variables, part, width, length))
    parts.append(jax.tree.map(lambda x, n=size - lacking: x[:n], found))
  beams = jax.tree.map(lambda *x: np.concatenate(x), *parts)
  # Captions that are not there have -inf, and NaN is none of those.
  if np.isnan(beams.likelihood).any() or np.isnan(beams.prior).any():
    raise types.NonFiniteError(
      'the models give probabilities that are NaN: are their parameters finite?'
    )
  return beams


def _checked(features):
  features = np.asarray(features, np.float32)
  if features.ndim != 3 or not features.size:
    raise types.InputError(
      f'features of units are [U, k, D], none of them 0; got {features.shape}'
    )
  if not np.isfinite(features).all():
    unit = int(np.flatnonzero(~np.isfinite(features).all((1, 2)))[0])
    raise types.InputError(f'the features of unit {unit} are no numbers')
  return features


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _search(model, variables, features, width, length):
  return describing.search(
    model, variables, features, width=width, length=length
  )


def choose(
  beams: beam_search.Beams,
  tokenizer: tokenizing.Tokenizer,
  *,
  strength: float = 0.2,
  level: float = -np.inf,
  is_active: np.ndarray | None = None,
  units: Sequence[int] | None = None,
) -> list[Description]:
  """One description a unit.

  Args:
    beams: What `search` found.
    tokenizer: Of the captions.
    strength: lambda, >= 0.
    level: Evidence below which a unit is 'unknown'; `null_level` gives one.
    is_active: [U]; where False a unit is 'never active', and not described.
    units: Their numbers; None counts from 0.

  Raises:
    InputError: strength is out of range, or is_active or units are of others.
  """
  types.check_range('[0, inf)', strength=strength)
  for name, given in (('is_active', is_active), ('units', units)):
    if given is not None and len(given) != len(beams.tokens):
      raise types.InputError(
        f'{name} has {len(given)} numbers for {len(beams.tokens)} units: give '
        'one each'
      )
  scores = np.asarray(beam_search.pointwise(beams, strength))
  own = np.arange(len(scores)), scores.argmax(1)
  found = []
  for number, tokens, score, likelihood, prior, active in zip(
    range(len(scores)) if units is None else units,
    beams.tokens[own],
    scores[own],
    beams.likelihood[own],
    beams.prior[own],
    np.ones(len(scores), bool) if is_active is None else is_active,
    strict=True,
  ):
    state = UNKNOWN if likelihood - prior < level else ''
    found.append(
      Description(
        int(number),
        tokenizer.decode(tokens),
        float(score),
        float(likelihood),
        float(prior),
        state if active else SILENT,
      )
    )
  return found


def describe(
  model: describer.Describer,
  variables: types.PyTree,
  features: np.ndarray,
  tokenizer: tokenizing.Tokenizer,
  *,
  length: int,
  width: int = 50,
  batch_size: int = 128,
  **how,
) -> list[Description]:
  """One description a unit: `search`, then `choose`.

  Args:
    model: p(d | E) and p(d).
    variables: Of the model.
    features: Of the exemplars, [U, k, D].
    tokenizer: Of the captions.
    length: The most tokens of a caption, its end among them.
    width: Of the beam.
    batch_size: Units of a call.
    **how: strength, level, is_active and units, as `choose` takes them.
  """
  beams = search(
    model,
    variables,
    features,
    length=length,
    width=width,
    batch_size=batch_size,
  )
  return choose(beams, tokenizer, **how)


def null_level(
  beams: beam_search.Beams, *, strength: float = 0.2, share: float = 0.05
) -> float:
  """The evidence that a share of units that like nothing in particular reach.

  Args:
    beams: What `search` found for sets of random images and masks.
    strength: lambda, as it will be used.
    share: Of such units that would be described all the same, in (0, 1).
  """
  types.check_range('(0, 1)', share=share)
  scores = np.asarray(beam_search.pointwise(beams, strength))
  own = np.arange(len(scores)), scores.argmax(1)
  evidence = (beams.likelihood - beams.prior)[own]
  return float(np.quantile(evidence, 1 - share))


def score(
  model: describer.Describer,
  variables: types.PyTree,
  features: np.ndarray,
  captions: Sequence[str],
  tokenizer: tokenizing.Tokenizer,
) -> tuple[np.ndarray, np.ndarray]:
  """Log p(d | E) and log p(d) of given captions, [U] each.

  Args:
    model: p(d | E) and p(d).
    variables: Of the model.
    features: Of the exemplars, [U, k, D].
    captions: One a unit.
    tokenizer: Of the captions.

  Raises:
    InputError: A caption has a word that the tokenizer does not know, there are
      not as many as units, or a feature is no number.
  """
  features = _checked(features)
  if len(captions) != len(features):
    raise types.InputError(
      f'{len(captions)} captions are of {len(features)} units: give one each'
    )
  ids = [
    [tokenizing.START, *tokenizer.encode(x), tokenizing.END] for x in captions
  ]
  tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
  for row, x in zip(tokens, ids, strict=True):
    row[: len(x)] = x
  read = _read(model, variables, features, tokens[:, :-1])
  targets = tokens[:, 1:, None]
  real = targets[..., 0] != tokenizing.PAD
  likelihood, prior = (
    np.where(real, np.take_along_axis(np.asarray(x), targets, -1)[..., 0], 0)
    for x in (read.likelihood, read.prior)
  )
  return likelihood.sum(1), prior.sum(1)


@functools.partial(jax.jit, static_argnums=0)
def _read(model, variables, features, tokens) -> describer.Scores:
  return model.apply(variables, features, tokens, train=False)


def mentioning(
  descriptions: Sequence[Description], *words: str
) -> list[Description]:
  """Those that count and have one of some words in them: an audit."""
  wanted = {x.lower() for x in words}
  return [
    x
    for x in descriptions
    if not x.state and wanted & set(words_of.split(x.text))
  ]


def table(descriptions: Sequence[Description], *, layer: str) -> str:
  """The descriptions as CSV: layer, unit, description, evidence, score."""
  lines = ['layer,unit,description,evidence,score']
  for x in descriptions:
    numbers = ',' if x.state == SILENT else f'{x.evidence:.3f},{x.score:.3f}'
    words = x.words.replace('"', '""')
    lines.append(f'{layer},{x.unit},"{words}",{numbers}')
  return '\n'.join(lines) + '\n'
