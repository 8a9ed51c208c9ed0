"""What the noise costs that stops an imprint: a classifier with it and without.

Fowl et al., ICLR 2022. https://arxiv.org/abs/2110.13057
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
import optax

from configs.parts import imprint_study
from configs.parts import imprints
from repjax import trees
from repjax import types
from repjax.experiments import of_images
from repjax.experiments import private
from repjax.protocols import private_runs
from repjax.protocols import rate_search
from repjax.protocols import side_by_side


def plan_of(config: Any, num_rows: int, **changes: Any) -> private.Plan:
  """The plan by `config.study.dp`, made again from the seed: no claim of a run.

  Batches have `config.study.num_rows` rows on average, as rounds have.
  """
  return private.plan(
    num_rows,
    batch_size=config.study.num_rows,
    seed=config.seed,
    nonce=b'',
    **{**config.study.dp, **changes},
  )


class Learned(NamedTuple):
  """What was learned from private rows, 'private' and 'plain'.

  Attributes:
    accuracy: Of the test rows, one value a seed.
    rate: The best on public rows.
    networks: Parameters of all networks, a list a seed.
  """

  accuracy: dict[str, np.ndarray]
  rate: dict[str, float]
  networks: list[list[types.PyTree]]


def learned(
  config: Any,
  rows: Mapping[str, np.ndarray],
  held_out: Mapping[str, np.ndarray],
  test: Mapping[str, np.ndarray],
  num_classes: int,
  seeds: Sequence[int],
) -> Learned:
  """Trains the network without an imprint, clipped with noise and without.

  Args:
    config: With study.dp and study.rates.
    rows: Private rows, name -> [N, ...].
    held_out: Public rows, which choose a rate for each arm.
    test: Test rows.
    num_classes: Of the labels.
    seeds: Of initialization and batches.
  """
  count, rates = len(rows['label']), config.study.rates
  runs = [seed for seed in seeds for _ in rates]
  asked = {x: np.concatenate([held_out[x], test[x]]) for x in test}
  found = Learned({}, {}, [[] for _ in seeds])
  for name, epsilon in (
    ('private', config.study.dp.epsilon),
    ('plain', math.inf),
  ):
    # Side by side, all networks are small enough for it.
    plan = plan_of(config, count, epsilon=epsilon, method='vmap')
    tx = side_by_side.swept(optax.sgd(1.0, momentum=0.9))
    trained = private_runs.train(
      f'classifier, {name}',
      imprints.method(
        imprints.classifier(config, num_classes),
        optax.chain(plan.link(), tx),
        config,
      ),
      side_by_side.per_seed(rows, runs),
      asked,
      plan=plan,
      seeds=runs,
      rates=list(rates) * len(seeds),
      points=1,
    )
    right = trained.outputs['logits'].argmax(-1) == asked['label']
    right = right.reshape((len(seeds), len(rates), -1))
    cut = len(held_out['label'])
    place = rate_search.best_mean(right[..., :cut].mean(-1).T)
    found.accuracy[name] = right[:, place, cut:].mean(-1)
    found.rate[name] = rates[place]
    networks = trees.unstack(jax.device_get(trained.states.params))
    for i, network in enumerate(networks):
      found.networks[i // len(rates)].append(network)
  return found


def measure(
  bench: imprint_study.Bench,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(scalars, figures): the cost, and who is flagged by the auditor."""
  config = bench.config
  test, public = (
    side_by_side.rows(of_images.load(config, x), bench.data.recipe.evaluate)
    for x in (config.data.eval_splits[0], config.imprint.bins)
  )
  found = learned(
    config,
    bench.rows,
    public,
    test,
    bench.data.train.num_classes,
    bench.seeds,
  )
  plain, noisy = (found.accuracy[x] for x in ('plain', 'private'))
  flagged, alarms = imprint_study.audited(bench, found.networks)
  return {
    'plain_good': plain,
    'noise_cost': plain - noisy,
    'flagged': flagged,
    'false_alarms': alarms,
    **{f'{name}: rate': [x] for name, x in found.rate.items()},
    **{f'{name}: test accuracy': x for name, x in found.accuracy.items()},
  }, {}
