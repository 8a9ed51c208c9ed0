"""MAM adapters (He et al., ICLR 2022): a small share of parameters suffices.

    python -m launch.reproduce --papers=mam_adapter

measures the claims (`configs/studies/mam_adapter.py`): on a new language MAM is
6 BLEU ahead of prefixes, 20 of adapters, 9 behind training all parameters.
https://arxiv.org/abs/2110.04366

paper: summaries of XSum with BART-large's geometry, weights=FOLDER with the
  published weights. The authors search by beams of 6; here texts are written
  greedily.
paper_classification: sentiment of SST-2 (GLUE) with RoBERTa-base's geometry.
small: chapters of `python_topics` told from 48 characters, by an encoder that
  has learned to fill gaps in the other chapters.
small_generation: a synthetic language, the words of one and the rules of
  another, written by an encoder-decoder that has learned to translate into
  both, from 180 rows (the study holds back 100); data.name=e2e_nlg and
  data.target=... learn from a TFDS set with two columns of text.

Composes with adapter.kind (see `finetuning.adapt`), sam.rho and attention.kind
('favor': a Performer); configs/dp_finetuning.py has adapter.kind, too.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import text_finetuning
from configs.parts import text_tasks
from repjax import types
from repjax.experiments import wiring
from repjax.methods import finetuning
from repjax.models import transformer

# What the synthetic language changes.
GENERATION = dict(
  batch_size=16,
  eval_batch_size=200,
  min_steps=250,
  data=dict(kind='pairs', name='relatives'),
  pretraining=dict(steps=800),
  adapter=dict(rank=23, length=4, scale=4.0),
  run=dict(best='test/bleu'),
)
SMOKE_GENERATION = dict(
  min_steps=8, adapter=dict(rank=3), pretraining=dict(steps=2)
)

PRESETS = dict(
  paper=dict(
    batch_size=64,
    eval_batch_size=64,
    epochs=0.0,
    min_steps=100_000,
    # kind: 'sentences' (a text and its class; column='premise+hypothesis' reads
    # two), 'pairs' (a text and what is made of it, by an encoder-decoder) or
    # 'completions' (the same by a decoder).
    data=dict(
      kind='pairs',
      name='xsum',
      eval_splits=('validation', 'test'),
      column='document',
      target='summary',
      length=512,
      target_length=64,
      # '' is that of the weights or, without any, learns `vocab_size` subwords
      # from the training texts; or a tokenizer.json: that of the weights, if
      # their folder has none, or without weights one that
      # `tokens.Subwords.save` wrote.
      tokenizer='',
      vocab_size=32_000,
      # What 'sentences' are pretrained on, 'name:column'; () is the set itself.
      public=(),
    ),
    # Of data.name 'python_topics', 'clinc_oos' and 'relatives': see
    # `topic_tasks.topic_pieces`, `intents.load` and `relatives.read`.
    topics=dict(num_classes=8, size=48, skip=1),
    intents=dict(num_classes=20, rows_per_class=10),
    relatives=dict(
      tree='((a:0.1,b:0.1):0.3,(c:0.1,d:0.1):0.3)',
      words='a',
      rules='d',
      max_adjectives=1,
      num_public_rows=4000,
      num_rows=180,
      num_test_rows=200,
    ),
    # A folder of Hugging Face: config.json, model.safetensors, tokenizer.json.
    # Its geometry then stands in for `model`. '' pretrains for
    # pretraining.steps.
    weights='',
    adapter=dict(kind='mam', rank=512, length=30, scale=4.0, hidden_dim=800),
    # kind: 'exact', 'flash' (by a fused kernel where there is one), or 'favor'
    # for that of the encoder.
    attention=dict(kind='flash', num_features=64, redraw_every=1000),
    sam=dict(rho=0.0),
    tx=dict(learning_rate=5e-5, weight_decay=0.01, warmup=0.0, clip=0.1),
    pretraining=dict(steps=0, batch_size=64, learning_rate=3e-3),
    step=dict(label_smoothing=0.1, compute_dtype='bfloat16'),
    run=dict(eval_every=10_000, best='validation/rougeL', tokenizer=''),
  ),
  paper_classification=dict(
    on='paper',
    batch_size=32,
    epochs=10.0,
    min_steps=0,
    data=dict(
      kind='sentences',
      name='glue/sst2',
      eval_splits=('validation',),
      column='sentence',
      target='',
    ),
    adapter=dict(rank=16, length=16, scale=2.0),
    tx=dict(learning_rate=1e-4, weight_decay=0.1, warmup=0.06, clip=1.0),
    step=dict(label_smoothing=0.0),
    run=dict(best='validation/accuracy'),
  ),
  small=dict(
    batch_size=32,
    eval_batch_size=256,
    min_steps=500,
    data=dict(
      kind='sentences',
      name='python_topics',
      eval_splits=('test',),
      column='sentence',
      target='',
      length=28,
      vocab_size=600,
    ),
    model=dict(
      **dict(hidden_dim=64, mlp_dim=256, num_heads=4, num_layers=1),
      **dict(remat=False, scan_layers=False),
    ),
    adapter=dict(rank=31, length=8, scale=2.0, hidden_dim=64),
    attention=dict(kind='exact'),
    tx=dict(learning_rate=4e-3, weight_decay=0.0, warmup=0.1, clip=1.0),
    pretraining=dict(steps=4000),
    step=dict(label_smoothing=0.0, compute_dtype='float32'),
    run=dict(
      log_every=50, eval_every=100, save_every=100, best='test/accuracy'
    ),
  ),
  small_generation=dict(on='small', **GENERATION),
  smoke=dict(
    batch_size=16,
    eval_batch_size=32,
    min_steps=8,
    data=dict(length=12),
    model=dict(hidden_dim=16, mlp_dim=16, num_heads=2, num_layers=1),
    relatives=dict(num_public_rows=64, num_rows=64, num_test_rows=32),
    adapter=dict(rank=3, length=2),
    pretraining=dict(steps=2, batch_size=8),
  ),
  smoke_generation=dict(on=('smoke', 'small_generation'), **SMOKE_GENERATION),
)


def get_config(
  preset: str = 'paper', *more: presets.Layer
) -> config_dict.ConfigDict:
  """Numbers of a preset; `more` layers lie over the recipe's."""
  config = presets.get_config(preset, presets.RUN, PRESETS, *more)
  if 'model' not in config:  # That of the weights that people take.
    large = dict(hidden_dim=1024, mlp_dim=4096, num_heads=16, num_layers=12)
    config.model = (
      {**transformer.BART, **large}
      if config.data.kind == 'pairs'
      else dict(transformer.ROBERTA)
    )
    config.model.update(remat=False, scan_layers=False)
  return config


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One training run."""
  task = text_tasks.read(config)
  steps = wiring.steps_of(config, len(task.train))
  model = text_finetuning.model(config, task)
  return text_finetuning.experiment(
    config,
    task,
    finetuning.adapt(model, **config.adapter),
    text_finetuning.links(config, steps, config.tx.learning_rate, optimizer),
    steps=steps,
  )
