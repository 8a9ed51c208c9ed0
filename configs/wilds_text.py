"""U-WILDS on texts (Sagawa et al., ICLR 2022): masked words of new domains.

    python -m launch.reproduce --papers=wilds_text

measures the claims (`configs/studies/wilds_text.py`); --config.algorithm names
the method. https://arxiv.org/abs/2112.05090

paper: Amazon's reviews, with an encoder of DistilBERT's size; --data_dir holds
  `amazon_v2.1`. Nothing is pretrained but by 'masked_lm' here; there, all
  methods start from DistilBERT, at a rate that is too small for less, and learn
  by AdamW with a warm-up, where `build` takes SGD unless it is given another
  optimizer. 'noisy_student' needs --config.teacher=WORKDIR.
small: a transformer of one block on 'shops', texts of drawn words.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import domains
from repjax import types
from repjax.benchmarks.wilds import algorithms
from repjax.benchmarks.wilds import experiment
from repjax.benchmarks.wilds import text_runs
from repjax.methods import model_inputs
from repjax.models import text_heads
from repjax.models import transformer

PRESETS = dict(
  paper=dict(
    batch_size=24,
    eval_batch_size=256,
    epochs=3.0,
    min_steps=0,
    unlabelled='test_unlabeled',
    unlabelled_batch_size=24,
    data=dict(
      kind='published_text',
      name='amazon',
      group_by=('user',),
      eval_splits=('val', 'id_val', 'test'),
      # tokenizer: a file of `tokens.Subwords.save`; '' reads bytes.
      **dict(tokenizer='', length=512),
      # looks: seed of shops' words; num_reviews: of all shops.
      **dict(fraction=1.0, looks=0, num_reviews=0),
    ),
    model=dict(
      {**transformer.BERT, 'num_layers': 6, 'dropout_rate': 0.1},
      **dict(remat=False, scan_layers=False),
    ),
    tx=dict(
      learning_rate=1e-5, momentum=0.9, weight_decay=1e-2, dann_divisor=10.0
    ),
    masked_lm=dict(learning_rate=1e-4),
    run=dict(best='val/accuracy'),
  ),
  small=dict(
    batch_size=32,
    unlabelled_batch_size=32,
    eval_batch_size=500,
    epochs=10.0,
    data=dict(
      **dict(kind='shops', name='shops', group_by=('shop',)),
      **dict(length=12, num_reviews=1000),
    ),
    model=dict(
      **dict(hidden_dim=32, mlp_dim=64, num_heads=2, num_layers=1),
      **dict(num_positions=13, dropout_rate=0.0),
    ),
    tx=dict(learning_rate=0.03, weight_decay=0.0, dann_divisor=1.0),
    masked_lm=dict(learning_rate=3e-3),
    irm=dict(at=60),
    adversary=dict(features=(32,), normalize=False),
    run=dict(log_every=100, eval_every=300, save_every=300),
  ),
  smoke=dict(epochs=0.0, min_steps=8, data=dict(num_reviews=100)),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.RUN, domains.ALGORITHMS, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One training run."""
  return domains.build(
    config, method, text_runs.build, optimizer, kinds=experiment.TEXTS
  )


def method(
  config: config_dict.ConfigDict,
  data: experiment.Data,
  optimizer: types.Optimizer = optax.sgd,
  algorithm: str = '',
) -> types.Method:
  """The network and the algorithm, that of the config if ''."""
  algorithm = algorithm or config.algorithm
  vocab_size = text_runs.vocab_size(config)
  if algorithm == 'masked_lm':
    from repjax.protocols import pretraining

    return pretraining.masked_language_model(
      vocab_size,
      config.model,
      steps=data.steps,
      **config.masked_lm,
      **config.step,
    )
  return algorithms.make(
    algorithm,
    text_heads.Classifier(
      vocab_size,
      num_classes=data.labelled.num_classes or 0,
      pool='mean',
      pooler=False,
      **config.model,
    ),
    config,
    optimizer,
    group_counts=data.group_counts,
    steps=data.steps,
    inputs=model_inputs.text,
  )
