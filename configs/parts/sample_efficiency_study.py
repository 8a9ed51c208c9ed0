"""Parts of the study of sample efficiency: one training of each kind.

Li et al., ICLR 2021. https://arxiv.org/abs/2010.08515
"""

import numpy as np
import optax

from configs import sample_efficiency as recipe
from repjax import plots
from repjax.analysis import equivariance
from repjax.analysis import sample_efficiency
from repjax.data.sets import norm_tasks
from repjax.methods import model_inputs
from repjax.methods import regression
from repjax.methods import supervised
from repjax.models import quadratic
from repjax.protocols import side_by_side

FULL, CONV = 'fully connected', 'convolution'
# Rows to choose from, over those of the largest training set: seeds are to have
# sets of their own.
POOL = 4


def curve(config, seeds, name, sizes, rate):
  """On the first of the splits of `config.data.eval_splits`."""
  config.tx.learning_rate = rate
  full = config.network == 'fully_connected'
  steps = config.study.full_steps if full else config.study.conv_steps
  return sample_efficiency.curve(
    f'{name}, rate {rate:g}',
    recipe.method(config, steps),
    recipe.rows(config, 'train').columns(),
    recipe.rows(config, config.data.eval_splits[0]).columns(),
    sizes=sizes,
    seeds=seeds,
    batch_size=64,
    steps=steps,
  )


def _changes(config, seeds, network, tx, groups) -> dict[str, np.ndarray]:
  """`check_equivariance` of one network: group -> one change a seed, relative.

  Seeds draw rows and elements of the group; all begin with one network.
  """
  dim, full = config.study.equivariance_dim, network == FULL
  learner = equivariance.gradient_descent(
    quadratic.FullyConnected(2, width=2 * dim)
    if full
    else quadratic.PooledConv(2),
    tx,
    loss_fn=optax.softmax_cross_entropy_with_integer_labels,
    first='hidden' if full else None,
    steps=config.study.equivariance_steps,
    batch_size=32,
  )
  found = {group: [] for group in groups}
  for seed in seeds:
    train, test = (
      norm_tasks.halves(64, dim=dim, seed=[seed, place]).columns()
      for place in (0, 1)
    )
    for group in groups:
      change = equivariance.check_equivariance(
        learner,
        train['features'],
        train['label'],
        test['features'],
        group=group,
        seed=seed,
      )
      found[group].append(change.relative)
  return {group: np.asarray(x) for group, x in found.items()}


def equivariance_of(config, seeds):
  """Changes of outputs by rotations, permutations and signs."""
  adam = optax.adam(0.03)
  sgd = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.02, 0.9))
  all_groups = ('orthogonal', 'permutation', 'sign')
  changes = {
    f'{name}, {group}': x
    for name, network, tx, groups in (
      ('SGD', FULL, sgd, all_groups),
      ('Adam', FULL, adam, all_groups),
      ('convolution', CONV, sgd, ('permutation',)),
    )
    for group, x in _changes(config, seeds, network, tx, groups).items()
  }
  scalars = {
    'sgd_rotated': changes['SGD, orthogonal'],
    'adam_rotated': changes['Adam, orthogonal'],
    'adam_permuted': np.maximum(
      changes['Adam, permutation'], changes['Adam, sign']
    ),
    'conv_permuted': changes['convolution, permutation'],
    **{f'change of outputs, {name}': x for name, x in changes.items()},
  }
  return scalars, {}


def regression_task(config, seeds):
  """Explained variance of signed squares: (scalars, figures)."""
  study, dim = config.study, config.study.regression_dim
  bound = dim * (dim + 3) // 2
  curves = {}
  for name, model, rate, sizes in (
    (
      FULL,
      quadratic.FullyConnected(1, width=2 * dim),
      0.03,
      (bound // 4, bound // 2, bound, 2 * bound),
    ),
    # One tap, and weights of the output for each place: what sec. 5 compares.
    (
      CONV,
      quadratic.PooledConv(1, num_parts=dim, taps=1),
      0.03,
      (dim // 2, dim, 2 * dim, 4 * dim),
    ),
  ):
    curves[name] = sample_efficiency.curve(
      f'signed squares, {name}',
      regression.make(
        model,
        optax.chain(
          optax.clip_by_global_norm(1.0),
          optax.sgd(optax.cosine_decay_schedule(rate, study.full_steps), 0.9),
        ),
        inputs=model_inputs.features,
      ),
      _squares(config, POOL * max(sizes), 0),
      _squares(config, config.num_rows.test, 1),
      sizes=sizes,
      seeds=seeds,
      batch_size=64,
      steps=study.full_steps,
      score=explained,
    )
  scalars = {
    'full_regression': curves[FULL].scores[0],
    'regression_fits': curves[FULL].fitted[0],
    'conv_regression': curves[CONV].scores[2],
    **{
      f'signed squares, {name}, {size} rows': row
      for name, x in curves.items()
      for size, row in zip(x.sizes, x.scores, strict=True)
    },
  }
  figure = plots.seed_curves(
    {k: (np.log2(x.sizes), x.scores) for k, x in curves.items()},
    xlabel='log2(rows)',
    ylabel='explained variance of signed squares',
  )
  return scalars, {'signed_squares': figure}


def explained(outputs, rows) -> np.ndarray:
  """Explained share of the variance of the targets, [S]."""
  return 1 - regression.unexplained(outputs, rows)


def _squares(config, num_rows, place):
  return norm_tasks.weighted_squares(
    num_rows,
    dim=config.study.regression_dim,
    seed=[config.seed, place],
    weights_seed=config.seed,
  ).columns()


def texture_task(config, seeds):
  """Accuracy on pairs of pixels that were not trained on."""
  study = config.study
  everything = norm_tasks.texture(study.texture_dim).columns()
  chosen = [
    norm_tasks.positions(study.texture_dim, study.texture_rows, seed=seed)
    for seed in seeds
  ]
  found, fits = {}, {}
  for name, model in (
    (FULL, quadratic.FullyConnected(2, width=128, activation='relu')),
    (
      CONV,
      quadratic.PooledConv(
        2, num_parts=1, channels=8, padding='circular', activation='relu'
      ),
    ),
  ):
    trained = side_by_side.train(
      f'texture, {name}',
      supervised.make(model, optax.adam(0.003), inputs=model_inputs.features),
      {k: np.stack([x[i] for i, _ in chosen]) for k, x in everything.items()},
      everything,
      seeds=seeds,
      batch_size=study.texture_rows,
      steps=study.texture_steps,
      points=1,
    )
    right = trained.outputs['logits'].argmax(-1) == everything['label']
    fits[name], found[name] = (
      np.asarray([x[y[of]].mean() for x, y in zip(right, chosen, strict=True)])
      for of in (0, 1)
    )
  return {
    'full_texture': found[FULL],
    'conv_texture': found[CONV],
    'texture_fits': fits[FULL],
  }, {}


def images(config, seeds):
  """Accuracy on which colour is longer, rates chosen on validation rows."""
  study, best, scalars = config.study, {}, {}
  for network, rates, count in (
    ('fully_connected', study.image_full_rates, study.image_full_rows),
    ('image_conv', study.image_conv_rates, study.image_conv_rows),
  ):
    own = config.copy_and_resolve_references()
    own.data.kind, own.num_rows.train = 'channels', POOL * count
    own.network = network
    own.fully_connected.width = 3 * own.data.side**2

    def fit(rate, split, seeds, own=own, network=network, count=count):
      own.data.eval_splits = (split,)
      return curve(own, seeds, network, (count,), rate)

    tried = {
      rate: fit(rate, 'validation', seeds[:2]).scores[0].mean()
      for rate in rates
    }
    rate = max(tried, key=lambda rate, tried=tried: tried[rate])
    found = fit(rate, 'test', seeds)
    best[network] = found.scores[0]
    if network == 'fully_connected':
      scalars['images_fit'] = found.fitted[0]
    scalars[f'images, {network}, {count} rows'] = best[network]
    scalars[f'images, {network}, rate'] = np.full(len(seeds), rate)
    scalars |= {
      f'images, {network}, validation, rate {x:g}': [score]
      for x, score in tried.items()
    }
  scalars['image_gap'] = best['image_conv'] - best['fully_connected']
  return scalars, {}
