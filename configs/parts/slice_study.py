"""What Domino's study is made of: embeddings, settings, models, discoveries."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax

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
      image = columns[split]['image']
      out = predict(state, {'image': image, 'mask': np.ones(len(image))})
      return np.asarray(out['image_embedding']), np.asarray(out['logits'])

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


def synthetic(planted: Planted, seed) -> dict[str, np.ndarray]:
  """Split -> predictions that are worse on the slices, [n, 2]."""
  return {
    split: slice_settings.synthetic(planted.of[split], seed=[*seed, i])
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


def methods(config, seed: int):
  """Name -> (validation rows -> slicing)."""
  of = config.slices

  def mixture(weight):
    def fit(*rows):
      settings = {**of, 'label_weight': weight, 'prediction_weight': weight}
      return slice_baselines.domino_like(
        domino.discover(*rows, seed=seed, **settings)
      )

    return fit

  return {
    'Domino': mixture(of.label_weight),
    'Domino, weight 1': mixture(1.0),
    'plain mixture': mixture(0.0),
    'confusion': lambda *rows: slice_baselines.confusion(of.num_slices),
    'George-like': lambda *rows: slice_baselines.george(
      *rows, seed=seed, num_slices=of.num_slices
    ),
    'Spotlight-like': lambda *rows: slice_baselines.spotlight(
      *rows, num_slices=of.num_slices
    ),
  }


def rows_of(pools: Pools, planted: Planted, probs, split, embedding='CLIP'):
  """(embeddings, labels, predictions) of a setting's rows."""
  setting = planted.of[split]
  embeddings = pools.embeddings[embedding][split][setting.rows]
  return embeddings, setting.labels, probs[split]


def precision(method, pools, planted, probs, embedding='CLIP') -> float:
  """Precision at 10 on test rows, mean over the setting's slices."""
  ranking = method(*rows_of(pools, planted, probs, 'validation', embedding))(
    *rows_of(pools, planted, probs, 'test', embedding)
  )
  truth = planted.of['test'].slices
  return float(slice_scores.best_precision(ranking, truth).mean())


def fails(planted: Planted, probs) -> bool:
  """Whether the model is worse on any slice of validation rows."""
  setting = planted.of['validation']
  wrong = probs['validation'].argmax(-1) != setting.labels
  return bool(slice_scores.worse(wrong, setting.slices).any())


def named(config, pools, planted, probs, seed: int, most: int) -> bool:
  """Whether the planted word is among the first `most` of the best slice."""
  found = domino.discover(
    *rows_of(pools, planted, probs, 'validation'), seed=seed, **config.slices
  )
  test = rows_of(pools, planted, probs, 'test')
  ranking = domino.log_odds(found, *test)
  best = slice_scores.precision_at(ranking, planted.of['test'].slices)
  psi = domino.scores(found, *test)[:, [int(best[:, 0].argmax())]]
  words = slice_words.describe(
    psi, *test[:2], pools.phrases, pools.phrase_embeddings, num_words=most
  )[0]
  return words is not None and planted.word in words.phrases
