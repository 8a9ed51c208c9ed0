r"""FLAN (Wei et al., ICLR 2022): tasks that are told can be done unseen.

    python -m launch.reproduce --papers=flan

measures the claims (`configs/studies/flan.py`).
https://arxiv.org/abs/2109.01652

    python -m launch.train --config=configs/flan.py:paper --workdir=runs/flan \
      --config.weights=FOLDER --config.data.file=tasks.jsonl \
      --config.data.held_out=rte,cb

tunes published T5 on examples of one's own, a JSON object a line (inputs,
targets, task, options), without the tasks that are held out.

paper: the shape of T5 1.1 base in place of LaMDA, which is not published.
gpu: seven tasks of real text but those on sentiment, a T5 of 6 layers.
text: the same for two cores: a T5 of two layers; reading is held out.
small: 30 tasks on five digits by a T5 of two layers, from scratch.
"""

import functools

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import instruction_tasks
from repjax import parallel
from repjax import types
from repjax.experiments import kept_tokens
from repjax.experiments import wiring
from repjax.models import t5

PRESETS = dict(
  paper=dict(
    batch_size=128,
    eval_batch_size=256,
    epochs=0.0,
    min_steps=30_000,
    # kind: 'jsonl', 'text' or 'digit_maps'. told: by 'instruction' or 'name';
    # digits by 'nothing', too; text by 'instruction_with_stray', the published
    # slip (`templates.with_stray`). held_out: the cluster, or tasks of a file.
    # num_rows: of a task that is no file's; mixing_cap: rows by which its share
    # counts. vocab_size: without weights. packed: several examples of a task in
    # a row. eval_splits: 'held_out' and 'known' rows as they are written, token
    # by token; 'held_out_ranked' and 'known_ranked', options by all templates.
    data=dict(
      **dict(kind='jsonl', file='', held_out='', told='instruction'),
      **dict(num_rows=15_000, num_eval_rows=200, cap=30_000, mixing_cap=3000),
      **dict(vocab_size=32_000, source_length=1024, target_length=256),
      **dict(packed=True, eval_splits=('held_out', 'known')),
    ),
    # Geometry and dropout of these weights stand in for `model`.
    weights='',
    # num_positions: longest text, where tokens have learned places; 0 for none.
    model=dict(
      t5.SIZES['base'],
      **dict(head_dim=64, num_decoder_layers=12, num_positions=0),
      **dict(dropout_rate=0.1, remat=False),
    ),
    # What trains: see `finetuning.adapt`.
    adapter=dict(kind='full', rank=16, length=16, scale=2.0, hidden_dim=0),
    sam=dict(rho=0.0),
    # 'tokens', or 'rows' where each row must count by itself (private links).
    mean='tokens',
    tx=dict(learning_rate=1e-4, weight_decay=0.0, warmup=0.02, clip=1.0),
    run=dict(eval_every=2000, save_every=2000, best='', tokenizer=''),
  ),
  gpu=dict(
    on='paper',
    min_steps=20_000,
    data=dict(
      kind='text', held_out='sentiment', vocab_size=8000, source_length=256
    ),
    model=dict(t5.SIZES['small'], num_layers=6, num_decoder_layers=6),
    tx=dict(learning_rate=5e-4),
  ),
  text=dict(
    on='gpu',
    batch_size=8,
    min_steps=1200,
    data=dict(
      **dict(held_out='reading', num_rows=3000, num_eval_rows=100),
      **dict(vocab_size=2000, source_length=192, target_length=96),
    ),
    model=dict(
      **dict(hidden_dim=96, head_dim=24, mlp_dim=192, num_heads=4),
      **dict(num_layers=2, num_decoder_layers=2, dropout_rate=0.0),
    ),
    tx=dict(learning_rate=3e-3),
    run=dict(eval_every=400, save_every=400),
  ),
  small=dict(
    eval_batch_size=300,
    min_steps=500,
    data=dict(
      **dict(kind='digit_maps', held_out='0', num_rows=2000, num_eval_rows=50),
      **dict(source_length=12, target_length=3, packed=False),
    ),
    model=dict(
      **dict(hidden_dim=64, head_dim=16, mlp_dim=128, num_heads=4),
      **dict(num_layers=2, num_decoder_layers=1),
      **dict(num_positions=12, dropout_rate=0.0),
    ),
    tx=dict(learning_rate=3e-3, weight_decay=0.1, warmup=0.05),
    run=dict(eval_every=100, save_every=100),
  ),
  smoke=dict(
    batch_size=16,
    min_steps=8,
    data=dict(num_rows=20, num_eval_rows=10),
    model=dict(hidden_dim=16, head_dim=8, mlp_dim=16, num_layers=1),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, gpu, text, small or smoke."""
  return presets.get_config(preset, presets.RUN, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One training run."""
  parallel.check_batch_size(
    config.batch_size, microbatches=config.step.microbatches
  )
  data = instruction_tasks.read(config)
  batches = instruction_tasks.batches(config, data)
  # Of packed rows, which have several examples.
  steps = wiring.steps_of(config, len(batches.source))
  model = instruction_tasks.network(config, data)
  made = wiring.of_sources(
    config,
    instruction_tasks.method(config, model, steps, optimizer),
    batches=batches,
    sources=lambda split: instruction_tasks.split_of(config, data, split),
    steps=steps,
    measure=functools.partial(instruction_tasks.measure, names=data.names),
    figures=lambda rows, outputs, columns: {},
    warm_start=lambda state: instruction_tasks.begin(config, state),
  )
  tables = functools.partial(instruction_tasks.tables, names=data.names)
  kept = kept_tokens.companion(data.tokenizer)
  return made._replace(tables=tables, companion=kept)
