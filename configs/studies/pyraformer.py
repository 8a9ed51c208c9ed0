"""What Pyraformer claims, measured: as good as full attention at less cost.

The paper reports lower errors than other efficient transformers (its tables
were not checked here), at a cost linear in length. Its public code picks the
best epoch on the test set; here validation picks the epoch and the rate, for
every network alike. Full attention here is the same network with exact
attention between all its nodes: equal size, the graph alone differs. Beside
both stand the last value, the last season and a linear map solved for on the
training windows, which the paper leaves out.

When the thresholds were written, a pilot of 60 steps with two other seeds was
in view: a test MSE of 0.22 for Pyraformer, 2.1 for the last value, 1.2 for the
last day and 0.022 for the linear map; and single timings of attention. The
rates were moved up by a second one, before the run of record: at full length
the best of 0.003 and 0.01 was the larger for both networks.

small: sines of 24 and 168 hours with the paper's noise, 168 hours ahead.
etth1: ETTh1 by the same small network: a test MSE of .82, as with exact
attention, against .57 of the last day and .41 of the linear map. gpu: the
authors' settings; the epoch is the best of five on validation.

Of ETTh1 the error itself stands beside the published one, whose epoch the test
set chose. It has no threshold: etth1 had been measured before it was asked for.
`exact_learned`, with the threshold of `learned`, came with its figures in view:
it only withdraws what is said of a network that learns nothing.
"""

from collections.abc import Callable
import time
from typing import Any

import jax
from ml_collections import config_dict
import numpy as np
import optax

from configs import presets
from configs import pyraformer
from configs.parts import forecasts
from repjax import plots
from repjax import types
from repjax.data.series import splits
from repjax.experiments import of_series
from repjax.experiments import series_figures
from repjax.layers import attention
from repjax.layers import pyramid
from repjax.layers import pyramid_graph
from repjax.methods import naive_forecasts
from repjax.protocols import forecasting
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)
GRIDS = {' rate$': 'study.rates'}

CLAIMS = dict(
  error_ratio=dict(
    says='test MSE, Pyraformer over the same network with exact attention',
    paper='NRMSE .324 against .328, .161 against .175, .366 against .407 (one '
    'step ahead, three sets, table 2)',
    at_most=1.1,
    needs=('learned', 'exact_learned'),
  ),
  learned=dict(
    kind='first',
    says='test MSE, Pyraformer over repeating the last value',
    paper='not reported',
    at_most=0.5,
  ),
  exact_learned=dict(
    kind='first',
    says='test MSE, exact attention over repeating the last value',
    paper='not reported',
    at_most=0.5,
  ),
  seasonal_ratio=dict(
    says='test MSE, Pyraformer over repeating the last day',
    paper='not reported',
    at_most=1.0,
  ),
  linear_ratio=dict(
    says='test MSE, Pyraformer over a linear map',
    paper='not reported',
    at_most=1.0,
  ),
  memory_ratio=dict(
    says='memory of attention with its gradient at 2,048 steps, exact over '
    'pyramidal',
    paper='linear against quadratic (section 3.1)',
    at_least=4.0,
  ),
  time_ratio=dict(
    says='seconds of attention with its gradient at 2,048 steps, exact over '
    'pyramidal',
    paper='linear against quadratic (section 3.1)',
    at_least=4.0,
  ),
  etth1_mse=dict(
    says='ETTh1, 168 hours ahead: test MSE, epoch chosen on validation',
    paper='0.808 (ETTh1, 168, table 3; the public code chooses the epoch on '
    'the test set)',
  ),
  edges_per_step=dict(
    kind='theory',
    says='edges a step for A = 3, C = 4, S = 4 at 64 to 16,384 steps: largest '
    'distance from 6.6, relative',
    paper='O(A L) edges (section 3.1)',
    at_most=0.03,
  ),
)

_STUDY = dict(
  paper=dict(study=dict(rates=(1e-4,), points=5, length=2048, rounds=2)),
  small=dict(study=dict(rates=(3e-3, 1e-2, 3e-2))),
  smoke=dict(study=dict(rates=(1e-3,), points=2, length=256, rounds=1)),
)


def get_config(preset: str) -> config_dict.ConfigDict:
  """The recipe's numbers, and the study's own."""
  return presets.get_config(
    preset, presets.RUN, forecasts.SERIES, pyraformer.PRESETS, _STUDY
  )


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Trains both networks at all rates, all seeds side by side."""
  data = of_series.read(config)
  rows = {split: data.sources(split).columns() for split in splits.NAMES}
  test = rows['test']
  naive = forecasting.naive(
    data.train, data.sources('validation'), test, period=config.data.period
  )
  config.tx.learning_rate = 1.0  # The rates are those of the study.
  chosen = {}
  for name, kind in (('Pyraformer', 'pyramid'), ('exact', 'exact')):
    config.attention.kind = kind
    method = forecasts.method(
      config, data, lambda rate: side_by_side.swept(optax.adam(rate))
    )
    chosen[name] = forecasting.train(
      name,
      method,
      rows,
      seeds=seeds,
      rates=config.study.rates,
      batch_size=config.batch_size,
      steps=data.steps,
      points=config.study.points,
    )
  scores = {name: x.scores(test) for name, x in chosen.items()}
  error = scores['Pyraformer']['mse']
  seconds, memory = _costs(config, seeds)
  return types.Report(
    scalars={
      'error_ratio': error / scores['exact']['mse'],
      'learned': error / naive['last']['mse'],
      'exact_learned': scores['exact']['mse'] / naive['last']['mse'],
      'seasonal_ratio': error / naive['seasonal']['mse'],
      'linear_ratio': error / naive['linear']['mse'],
      'memory_ratio': memory,
      'time_ratio': seconds,
      **({'etth1_mse': error} if is_published(config.data) else {}),
      'edges_per_step': [_edges()] * len(seeds),
      **{
        f'{name} test {kind}': values
        for name, found in scores.items()
        for kind, values in found.items()
      },
      **{
        f'{name} test {kind}': [value] * len(seeds)
        for name, found in naive.items()
        for kind, value in found.items()
      },
      **{f'{name} rate': [x.rate] * len(seeds) for name, x in chosen.items()},
      **{f'{name} best step': x.step for name, x in chosen.items()},
    },
    arrays={
      f'{name}, validation mse by rate': np.stack([*x.by_rate.values()])
      for name, x in chosen.items()
    },
    figures={
      'validation': plots.seed_curves(
        {name: x.curve for name, x in chosen.items()},
        ylabel='mean squared error on validation (scaled)',
      ),
      'test_errors': plots.bars(
        {
          name: {'test MSE': np.atleast_1d(x['mse'])}
          for name, x in {**scores, **naive}.items()
        },
        ylabel='mean squared error (scaled)',
        log=True,
      ),
      **_figures(config, data, chosen, test),
    },
  )


def is_published(data) -> bool:
  """Whether the windows are those of the published ETTh1, 168."""
  sizes = (data.length, data.horizon)
  return data.split == 'ett_hours' and sizes == (168, 168)


def _figures(config, data, chosen, test):
  """Forecasts of the first seed, and the graph."""
  linear = naive_forecasts.linear(
    naive_forecasts.fit_linear(data.train, data.sources('validation'))
  )
  seasonal = naive_forecasts.seasonal(
    config.data.horizon, config.data.period, config.data.length
  )
  outputs = {
    **{name: test[name] for name in ('target', 'target_observed')},
    'forecast': chosen['Pyraformer'].outputs['forecast'][0],
    'exact forecast': chosen['exact'].outputs['forecast'][0],
    'seasonal forecast': np.asarray(seasonal(test)),
    'linear forecast': np.asarray(linear(test)),
  }
  model = forecasts.network(config, len(data.series))
  return {
    **series_figures.forecasts(
      data.sources('test'),
      outputs,
      {'index': np.arange(len(test['series']))},
      data.series[0].columns,
    ),
    'graph': series_figures.graph(model.pyramid),
  }


def _edges() -> float:
  """Largest relative distance of the edges a step from 6.6."""
  counts = [
    pyramid_graph.neighbours(pyramid_graph.Pyramid(length=length)).valid.sum()
    / length
    for length in (64, 256, 1024, 4096, 16_384)
  ]
  return float(np.max(np.abs(np.asarray(counts) / 6.6 - 1)))


def _costs(config, seeds) -> tuple[list[float], list[float]]:
  """(seconds, temporary bytes) of exact over pyramidal attention, a seed each.

  Of one sequence, 4 heads of 8, forward and backward; exact attention is
  between the steps alone, without the pyramid's coarse nodes.
  """
  length = config.study.length
  graph = pyramid_graph.Pyramid(length=length)
  forms: dict[str, tuple[Callable[..., Any], int]] = {
    'pyramid': (pyramid.Pyramidal(pyramid=graph), graph.num_nodes),
    'exact': (attention.Softmax(), length),
  }
  calls, memory = {}, {}
  for name, (form, nodes) in forms.items():
    x = jax.random.normal(jax.random.key(0), (3, 1, nodes, 4, 8))
    step = jax.jit(
      jax.grad(lambda x, form=form: (form(x[0], x[1], x[2]) ** 2).sum())
    )
    compiled = step.lower(x).compile()
    memory[name] = compiled.memory_analysis().temp_size_in_bytes
    calls[name] = lambda compiled=compiled, x=x: jax.block_until_ready(
      compiled(x)
    )
    calls[name]()
  ratios = []
  for _ in seeds:
    best = dict.fromkeys(calls, np.inf)
    # In turn, and the best of all rounds: what disturbs only adds.
    for _ in range(config.study.rounds):
      for name, call in calls.items():
        start = time.perf_counter()
        call()
        best[name] = min(best[name], time.perf_counter() - start)
    ratios.append(best['exact'] / best['pyramid'])
  return ratios, [memory['exact'] / memory['pyramid']] * len(seeds)
