"""What Anomaly Transformer claims, measured: on every metric, against anybody.

The paper scores points by the reconstruction's error times a softmax of minus
the association discrepancy, and reports the highest F1 after point adjustment
on five sets, of which MSL and SMAP are here in part (`msl`, `smap`). Its public
code takes thresholds from training and test scores together and stops training
by the test loss.

Here: five planted series, a network and a seed each. The same network is
trained with and without the game of associations, each at the rate with the
least error on validation rows; thresholds are the 99th percentile of validation
scores, for every detector, and nothing else is known of anomalies. Beside the
two stand the norm of the scaled inputs, and uniform random numbers. The score
is that of the public code's temperature; the paper's own (1), the same score of
associations that never played, the error of the network that plays, and the
discrepancy are measured, too.

On planted series the score has .05 more F1 after point adjustment than the
error of the plain network, and by every other metric it is far below that error
(AUROC .22 against .93, F1 .06 against .68): points rank worse than at random.
Associations that never played give the same adjusted F1, .94, and random
numbers give .92. On channels of SMAP and MSL no raw F1 is above .051; the
highest adjusted one is that of the norm of the inputs (.92, the score's .87)
and that of random numbers (.98, the score's .95). A guess: the softmax leaves
about one alarm a window, and a long segment has many windows.

Trials on two series of other seeds were in view when the thresholds were
written, which are no difference but for `fitted` and random scores. After the
first record came `random_adjusted_mean`: one draw may miss by luck.
nab: seven series of known causes, one column each, at the same thresholds.
Anomalies are among the rows to learn from, too, and among those of validation.
Adjusted F1 is .96 against .82 of the error and .95 of random scores, raw F1 .04
against .34, AUROC .50 against .76. One pilot was in view, of 60 steps at one
rate with two other seeds: adjusted F1 .97 against .77. Of nab, smap and msl all
seeds have the same series: intervals are of networks and of random scores.
"""

from absl import logging
import jax
from ml_collections import config_dict
import numpy as np

from configs import anomaly_transformer as recipe
from configs import presets
from repjax import plots
from repjax import types
from repjax.experiments import anomaly_data
from repjax.experiments import anomaly_figures
from repjax.experiments import wiring
from repjax.methods import anomaly_transformer
from repjax.metrics import anomaly
from repjax.protocols import anomaly_detection

SEEDS = (0, 1, 2, 3, 4)
GRIDS = {'^rate, ': 'study.rates'}

_ALONE = 'the same network without associations'


def _more(measure, other, **fields):
  return dict(
    says=f'{measure}, Anomaly Transformer minus {other}',
    at_least=0.0,
    **{'paper': 'not reported here', **fields},
  )


def _gain(measure, **fields):
  return _more(measure, _ALONE, needs=('fitted',), **fields)


CLAIMS = dict(
  fitted=dict(
    kind='first',
    says='squared error of the reconstruction on validation rows, of variance '
    '1, without associations',
    paper='not reported',
    at_most=0.25,
  ),
  adjusted_gain=_gain(
    'F1 after point adjustment',
    paper='the best of its kind on all five sets (MSL 93.59, SMAP 96.69, main '
    "table, authors' repository)",
  ),
  auroc_gain=_gain('AUROC'),
  auprc_gain=_gain('AUPRC'),
  raw_gain=_gain('F1 without adjustment'),
  pa20_gain=_gain(
    'F1, of segments those filled that are hit by more than 20 %'
  ),
  events_gain=_gain('F1 of events'),
  game_adjusted=_more(
    'F1 after point adjustment',
    'the same score of associations that were never at odds',
    needs=('fitted',),
  ),
  over_norm_adjusted=_more('F1 after point adjustment', 'input norm'),
  over_norm_auroc=_more('AUROC', 'input norm'),
  over_random_adjusted=_more('F1 after point adjustment', 'random scores'),
  over_random_auroc=_more('AUROC', 'random scores'),
  random_adjusted=dict(
    says='random scores: F1 after point adjustment',
    paper='not reported here',
    at_least=0.85,
  ),
  random_adjusted_mean=dict(
    says='random scores: F1 after point adjustment, mean of 100 draws a series',
    paper='not reported here',
    at_least=0.85,
  ),
  random_raw=dict(
    kind='theory',
    by_chance=True,
    says='random scores: F1 without adjustment, minus that of chance',
    paper='0 (by definition)',
    at_least=-0.02,
    at_most=0.02,
  ),
)

_SHOWN = ('anomaly_transformer', 'reconstruction', 'input_norm', 'random')
_MEASURES = ('auroc', 'auprc', 'f1', 'f1_adjusted', 'f1_pa20', 'f1_events')

_STUDY = dict(
  # Of which the one with the least error on validation rows counts.
  paper=dict(study=dict(rates=(1e-4,))),
  small=dict(study=dict(rates=(1e-3, 3e-3, 1e-2, 3e-2))),
  smoke=dict(study=dict(rates=(3e-3, 1e-2))),
  nab=dict(study=dict(rates=(3e-4, 1e-3, 3e-3, 1e-2))),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """The recipe's numbers and the study's own."""
  return presets.get_config(preset, presets.RUN, recipe.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Trains both networks on the series of each seed, and judges detectors."""
  data = [anomaly_data.read(_changed(config, {'seed': seed})) for seed in seeds]
  ours, ours_rate = _best(
    'Anomaly Transformer', config, data, seeds, weight=config.anomaly.weight
  )
  plain, plain_rate = _best(
    'without associations', config, data, seeds, weight=0.0
  )
  scored = anomaly_detection.score(
    ours,
    data,
    {
      'anomaly_transformer': lambda x: x['score'],
      'temperature 1': lambda x: anomaly_transformer.score(
        x['error'], x['discrepancy'], temperature=1.0
      ),
      'own error': lambda x: x['error'],
      'discrepancy': lambda x: x['discrepancy'],
    },
    seeds=seeds,
  )
  alone = anomaly_detection.score(
    plain,
    data,
    {
      'reconstruction': lambda x: x['error'],
      'score without the game': lambda x: x['score'],
    },
    seeds=seeds,
  )
  rate = config.alarms.rate
  table = {
    **anomaly_detection.judge(scored, rate=rate),
    **anomaly_detection.judge(alone, rate=rate),
  }
  return types.Report(
    scalars={
      **_scalars(table, alone, rate),
      'rate, Anomaly Transformer': np.full(len(seeds), ours_rate),
      'rate, without associations': np.full(len(seeds), plain_rate),
    },
    arrays={},
    figures={
      'measures': plots.bars(
        {
          measure: {name: table[name][measure] for name in _SHOWN}
          for measure in _MEASURES
        },
        ylabel='test rows',
      ),
      'scores': _scores(data[0], scored[0], alone[0], rate),
      'associations': _associations(config, data[0], ours),
    },
  )


def _changed(config, fields):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(fields)
  return config


def _best(name, config, data, seeds, *, weight):
  """(networks of the rate with the least validation error, that rate)."""
  found = {}
  num_windows = len(anomaly_data.training_windows(data[0], **config.window))
  for rate in config.study.rates:
    changes = {'anomaly.weight': weight, 'tx.learning_rate': rate}
    trained = anomaly_detection.train(
      f'{name}, rate {rate:g}',
      recipe.method(_changed(config, changes), num_windows),
      data,
      windows=config.window,
      seeds=seeds,
      batch_size=config.batch_size,
      steps=wiring.steps_of(config, num_windows),
    )
    scored = anomaly_detection.score(
      trained, data, {'error': lambda x: x['error']}, seeds=seeds
    )
    errors = [known.scores['error'].mean() for known, _ in scored]
    logging.info(
      '%s, rate %g: validation error %.4f', name, rate, np.mean(errors)
    )
    found[rate] = (float(np.mean(errors)), trained)
  best = min(found, key=lambda rate: found[rate][0])
  return found[best][1], best


def _scalars(table, alone, rate):
  ours, plain, norm, random = (table[x] for x in _SHOWN)

  def gain(measure, other):
    return ours[measure] - other[measure]

  anomalous = np.array([test.labels.mean() for _, test in alone])
  chance = 2 * rate * anomalous / (rate + anomalous)
  return {
    'fitted': np.array(
      [known.scores['reconstruction'].mean() for known, _ in alone]
    ),
    'adjusted_gain': gain('f1_adjusted', plain),
    'auroc_gain': gain('auroc', plain),
    'auprc_gain': gain('auprc', plain),
    'raw_gain': gain('f1', plain),
    'pa20_gain': gain('f1_pa20', plain),
    'events_gain': gain('f1_events', plain),
    'game_adjusted': gain('f1_adjusted', table['score without the game']),
    'over_norm_adjusted': gain('f1_adjusted', norm),
    'over_norm_auroc': gain('auroc', norm),
    'over_random_adjusted': gain('f1_adjusted', random),
    'over_random_auroc': gain('auroc', random),
    'random_adjusted': random['f1_adjusted'],
    'random_adjusted_mean': anomaly_detection.adjusted_at_random(
      alone, rate=rate
    ),
    'random_raw': random['f1'] - chance,
    'anomalous rows': anomalous,
    **{
      f'{name}: {measure}': values
      for name, measures in table.items()
      for measure, values in measures.items()
    },
  }


def _scores(data, scored, alone, rate):
  """Scores of the first test series, around its first long anomaly."""
  series = data.parts['test'][0]
  found = anomaly.segments(series.labels)
  start, stop = found[np.argmax(found[:, 1] - found[:, 0])]
  known, test = (
    {**x.scores, **y.scores} for x, y in zip(scored, alone, strict=True)
  )
  first = scored[1].entity == scored[1].entity[0]
  names = ('anomaly_transformer', 'reconstruction', 'discrepancy', 'random')
  return anomaly_figures.scores_under_series(
    series,
    {name: test[name][first] for name in names},
    thresholds={name: anomaly.threshold(known[name], rate) for name in names},
    rows=(max(0, start - 500), min(len(series), stop + 500)),
  )


def _associations(config, data, trained):
  """Maps of the first seed's network, where a long anomaly begins."""
  series = data.parts['test'][0]
  found = anomaly.segments(series.labels)
  start = found[np.argmax(found[:, 1] - found[:, 0]), 0]
  length = config.window.length
  begin = int(np.clip(start - length // 2, 0, len(series) - length))
  params = jax.tree.map(lambda x: x[0], trained.states.params)
  output = recipe.network(config).apply(
    {'params': params},
    series.filled()[None, begin : begin + length],
    train=False,
  )
  return anomaly_figures.association_maps(
    np.stack([x.prior[0] for x in output.associations]),
    np.stack([x.series[0] for x in output.associations]),
    marked=[start - begin],
  )
