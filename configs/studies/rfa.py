"""What RFA claims, measured: byte language models with its gate and without.

The paper reports language models on WikiText-103 at or below the perplexity of
the baseline with the gate (sec. 3.2) and slightly above it without (table 1),
translation at equal BLEU and 1.8 to 1.9 times the decoding speed (table 2), and
classification of long texts (table 3). Here: language models at equal steps,
seeds side by side; the gate must not cost bits per byte, and exact attention
stands beside both.

The gate gains about 0.35 bits per byte. With it RFA is 2 % behind exact
attention, without it 13 %.
"""

from ml_collections import config_dict
import numpy as np

from configs import rfa
from configs.parts import attention
from configs.parts import language
from configs.parts import language_study
from repjax import plots
from repjax import types

SEEDS = (0, 1, 2, 3, 4)

# The thresholds stood here before the first run.
CLAIMS = dict(
  gate_gain=dict(
    says='byte language model, equal steps: bits per byte, RFA without its '
    'gate minus with it',
    paper='perplexity 35.7 without, 32.7 with (WikiText-103, small, table 1, '
    'the first from a secondary source)',
    at_least=0.0,
  ),
  rfa_over_exact=dict(
    says='bits per byte, RFA without its gate over exact attention',
    paper='perplexity 35.7 against 34.5 (table 1, from a secondary source)',
  ),
  gated_over_exact=dict(
    says='bits per byte, RFA with its gate over exact attention',
    paper='perplexity 32.7 against 34.5 (table 1, from a secondary source)',
  ),
)

get_config = rfa.get_config


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Language models with exact attention, RFA and gated RFA."""
  data = language.read(config)
  train, test = language_study.rows(config, data, seeds)
  fit = language_study.trainer(config, train, test, seeds)
  trained = {}
  for name, changes in (
    ('exact', dict(kind='exact')),
    ('RFA', dict(gate='none')),
    ('gated RFA', dict(gate='learned')),
  ):
    fn = attention.attention_fn({**config.attention, **changes}, causal=True)
    trained[name] = fit(
      name, language.method(config, data, fn), steps=data.steps
    )
  score = {name: np.asarray(x.score) for name, x in trained.items()}
  return types.Report(
    scalars={
      'gate_gain': score['RFA'] - score['gated RFA'],
      'rfa_over_exact': score['RFA'] / score['exact'],
      'gated_over_exact': score['gated RFA'] / score['exact'],
      **{f'{name} bits per byte': x for name, x in score.items()},
    },
    arrays={},
    figures={
      'bits_per_byte': plots.seed_curves(
        {name: x.curve for name, x in trained.items()},
        ylabel='validation bits per byte',
      )
    },
  )
