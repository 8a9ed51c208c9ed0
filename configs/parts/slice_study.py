"""What Domino's study is made of: embeddings, settings, models, discoveries."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
import scipy.special

from configs.parts import worded_pairs
from repjax.analysis import domino
from repjax.analysis import slice_baselines
from repjax.analysis import slice_scores
from repjax.analysis import slice_settings
from repjax.analysis import slice_words
from repjax.data.images import recipes
from repjax.data.sets import worded
from repjax.experiments import of_images
from repjax.methods import supervised
from repjax.models import mlp
from repjax.protocols import side_by_side

SPLITS = ('train', 'validation', 'test')


class Pools(NamedTuple):
  """Rows of a seed that its settings choose from.

  Attributes:
    columns: Split -> columns, as the networks see them.
    embeddings: Name -> split -> [N, E].
    phrases: Words of all attributes.
    phrase_embeddings: By CLIP, [P, F].
    names: Of classes.
    accuracy: Zero-shot accuracy of CLIP on the test split.
  """

  columns: Mapping[str, Mapping[str, np.ndarray]]
  embeddings: Mapping[str, Mapping[str, np.ndarray]]
  phrases: tuple[str, ...]
  phrase_embeddings: np.ndarray
  names: tuple[str, ...]
  accuracy: float


class Planted(NamedTuple):
  """A setting of one seed.

  Attributes:
    kind: 'rare', 'correlated' or 'noisy'.
    word: That of the slice; '' where it has none.
    of: Split -> its rows.
  """

  kind: str
  word: str
  of: Mapping[str, slice_settings.Setting]


def pools(config, seeds) -> list[Pools]:
  """Trains CLIP of all seeds side by side and embeds their rows."""
  pairs = [worded_pairs.read(config, seed) for seed in seeds]
  recipe = recipes.images(pairs[0].train, **config.augment)
  steps = of_images.data(config, pairs[0].train).steps
  shared = pairs[0]
  method = worded_pairs.method(config, shared, steps)
  rows = [side_by_side.rows(x.train, recipe.evaluate) for x in pairs]
  drawn = [
    {
      split: side_by_side.rows(
        worded_pairs.draw(
          config, config.study.splits[split], config.study.pool, [seed, 2 + i]
        ),
        recipe.evaluate,
      )
      for i, split in enumerate(SPLITS)
    }
    for seed in seeds
  ]
  columns = {name: np.stack([x[name] for x in rows]) for name in rows[0]}
  first = side_by_side.begin(method, columns, seeds)
  trained = side_by_side.train(
    'CLIP',
    method,
    columns,
    drawn[0]['test'],
    seeds=seeds,
    batch_size=config.batch_size,
    steps=steps,
    points=2,
    vectorize=config.study.vectorize,
  )
  predict = jax.jit(method.predict)
  tokens, mask = (x[:, 0] for x in shared.prompts(config.data.length))
  found = []
  for i, columns in enumerate(drawn):
    of_seed, fresh = (
      jax.tree.map(lambda x, i=i: x[i], states)
      for states in (trained.states, first)
    )

    def embed(state, split, columns=columns):
      image, size = columns[split]['image'], config.eval_batch_size
      parts = [
        predict(state, {'image': x, 'mask': np.ones(len(x))})
        for x in np.split(image, range(size, len(image), size))
      ]
      return tuple(
        np.concatenate([x[name] for x in parts])
        for name in ('image_embedding', 'logits')
      )

    clip = {split: embed(of_seed, split) for split in SPLITS}
    texts = predict(
      of_seed,
      {'tokens': tokens, 'token_mask': mask, 'mask': np.ones(len(tokens))},
    )
    guess = clip['test'][1].argmax(-1)
    found.append(
      Pools(
        columns,
        {
          'CLIP': {x: clip[x][0] for x in SPLITS},
          'untrained': {x: embed(fresh, x)[0] for x in SPLITS},
          'pixels': {
            x: columns[x]['image'].reshape((len(columns[x]['label']), -1))
            for x in SPLITS
          },
        },
        shared.phrases,
        np.asarray(texts['text_embedding']),
        shared.names,
        float((guess == columns['test']['label']).mean()),
      )
    )
  return found


def plant(config, pools: Pools, seed: int) -> list[Planted]:
  """The settings of a seed: so many of each kind."""
  made = []
  for place, kind in enumerate(('rare', 'correlated', 'noisy')):
    for number in range(config.study.settings):
      made.append(_planted(config, pools, kind, [seed, place, number]))
  return made


def _planted(config, pools, kind, seed):
  """One setting, drawn by its seed: target, attribute, value and strength."""
  rng = np.random.default_rng([*seed, 5])
  words = worded.words(pools.names)
  positive = rng.permutation(len(pools.names))[: len(pools.names) // 2]
  # A subclass is a class or an ink; what goes with a target is an ink or place.
  attribute = ('ink', 'place' if kind == 'correlated' else 'label')[
    seed[-1] % 2
  ]
  value = int(rng.integers(len(words[attribute])))
  if attribute == 'label' and kind == 'rare':
    value = int(positive[0])
  strength = rng.uniform(*config.study.strengths[kind])
  made = {}
  for i, split in enumerate(SPLITS):
    columns = pools.columns[split]
    target = np.isin(columns['label'], positive)
    member = columns[attribute] == value
    settings = dict(
      strength=strength, num_rows=config.study.rows, seed=[*seed, 6 + i]
    )
    if kind == 'rare':
      made[split] = slice_settings.rare(target, target & member, **settings)
    elif kind == 'correlated':
      made[split] = slice_settings.correlated(target, member, **settings)
    else:
      made[split] = slice_settings.noisy(target, member, **settings)
  word = '' if kind == 'correlated' else words[attribute][value]
  return Planted(kind, word, made)


def synthetic(config, planted: Planted, seed) -> dict[str, np.ndarray]:
  """Split -> predictions that are worse on the slices, [n, 2]."""
  return {
    split: slice_settings.synthetic(
      planted.of[split], seed=[*seed, i], **config.study.synthetic
    )
    for i, split in enumerate(SPLITS[1:])
  }


def trained(config, runs) -> list[dict[str, np.ndarray]]:
  """Predictions of classifiers that were trained on settings.

  Args:
    config: With study.classifier.
    runs: (rows to choose from, setting, seed) of each.

  Returns:
    Split -> [n, 2], of each.
  """
  of = config.study.classifier
  method = supervised.make(
    mlp.Mlp(2, features=(of.width,)), optax.adam(of.learning_rate)
  )

  def columns(pools, planted, split):
    setting = planted.of[split]
    return {
      'image': pools.columns[split]['image'][setting.rows],
      'label': setting.labels,
    }

  def stacked(split):
    each = [columns(p, x, split) for p, x, _ in runs]
    return {name: np.stack([x[name] for x in each]) for name in each[0]}

  train = stacked('train')
  few = {name: x[0, :1] for name, x in train.items()}
  states = side_by_side.train(
    'classifiers',
    method,
    train,
    few,
    seeds=[seed for _, _, seed in runs],
    batch_size=of.batch_size,
    steps=of.steps,
    points=1,
  ).states

  @jax.jit
  def predict(states, columns):
    batch = {**columns, 'mask': np.ones(columns['label'].shape)}
    return jax.vmap(method.predict)(states, batch)['logits']

  logits = {x: predict(states, stacked(x)) for x in SPLITS[1:]}
  return [
    {split: np.asarray(jax.nn.softmax(x[i])) for split, x in logits.items()}
    for i in range(len(runs))
  ]


def rows_of(pools: Pools, planted: Planted, probs, split, embedding='CLIP'):
  """(embeddings, labels, predictions) of a setting's rows."""
  setting = planted.of[split]
  embeddings = pools.embeddings[embedding][split][setting.rows]
  return embeddings, setting.labels, probs[split]


def measure(
  config,
  pools: Pools,
  planted: Planted,
  probs,
  seed: int,
  names: Sequence[str],
  *,
  embeddings: bool = False,
) -> dict[str, float]:
  """Precision at 10 on test rows, mean over the setting's slices.

  Args:
    config: Of the study.
    pools: Rows of the seed.
    planted: The setting.
    probs: Split -> predictions.
    seed: Of the starts.
    names: Of the methods, which see CLIP's embeddings.
    embeddings: Whether Domino sees others, too.

  Returns:
    Name -> precision; and 'named', whether the planted word is among the first
    of Domino's best slice, where there is one.
  """
  of, truth = config.slices, planted.of['test'].slices

  def rows(split, embedding='CLIP'):
    return rows_of(pools, planted, probs, split, embedding)

  def found(weight, embedding='CLIP'):
    settings = {**of, 'label_weight': weight, 'prediction_weight': weight}
    return domino.discover(
      *rows('validation', embedding), seed=seed, **settings
    )

  valid, test = rows('validation'), rows('test')
  own = found(of.label_weight)
  odds = domino.log_odds(own, *test)
  rankings = {'Domino': odds}
  if 'plain mixture' in names:
    rankings['plain mixture'] = domino.log_odds(found(0.0), *test)
  if 'confusion' in names:
    rankings['confusion'] = slice_baselines.confusion(of.num_slices)(*test)
  if 'George-like' in names:
    rankings['George-like'] = slice_baselines.george(
      *valid, seed=seed, num_slices=of.num_slices, **config.study.george
    )(*test)
  if 'Spotlight-like' in names:
    rankings['Spotlight-like'] = slice_baselines.spotlight(
      *valid, num_slices=of.num_slices, **config.study.spotlight
    )(*test)
  if embeddings:
    for name in ('untrained', 'pixels'):
      rankings[f'Domino, {name}'] = domino.log_odds(
        found(of.label_weight, name), *rows('test', name)
      )
  result = {
    name: float(slice_scores.best_precision(x, truth).mean())
    for name, x in rankings.items()
  }
  if planted.word:
    best = int(slice_scores.precision_at(odds, truth)[:, 0].argmax())
    words = slice_words.describe(
      scipy.special.expit(odds[:, [best]]),
      *test[:2],
      pools.phrases,
      pools.phrase_embeddings,
      num_words=config.study.num_words,
    )[0]
    result['named'] = float(words is not None and planted.word in words.phrases)
  return result


def fails(planted: Planted, probs) -> bool:
  """Whether the model is worse on any slice of validation rows."""
  setting = planted.of['validation']
  wrong = probs['validation'].argmax(-1) != setting.labels
  return bool(slice_scores.worse(wrong, setting.slices).any())
