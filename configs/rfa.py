"""RFA (Peng et al., ICLR 2021): random feature attention, with a gate.

    python -m launch.reproduce --papers=rfa

measures the claims (`configs/studies/rfa.py`): with the gate about 0.3 bits a
byte better than without, on `python_topics`. https://arxiv.org/abs/2103.02143

paper: byte language model of WikiText-103's size of model and segment.
small: byte language model on `python_topics`.
tiny_shakespeare: byte language model on that set, in half as many steps.

By data.kind also 'translation' (a synthetic grammar, encoder-decoder),
'listops' (as in Long Range Arena) and 'classification' (bytes of a labelled
TFDS set, as glue/sst2 or imdb_reviews). What the paper is about, decoding in
constant time and state, is timed by `launch.benchmark --only=decoding`.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import attention
from configs.parts import language
from configs.parts import token_tasks
from repjax import types

PRESETS = dict(
  paper=dict(
    batch_size=64,
    eval_batch_size=64,
    epochs=30.0,
    # kind: that of `language.STREAM`, or 'translation', 'listops' or
    # 'classification'. The first two draw num_rows and num_test_rows.
    data=dict(
      name='wiki40b/en',
      length=512,
      train_stride=512,
      eval_stride=512,
      num_rows=100_000,
      num_test_rows=2000,
    ),
    model=dict(
      hidden_dim=1024,
      mlp_dim=4096,
      num_heads=8,
      num_layers=16,
      position='sinusoidal',
      # Else waves drown tokens, whose initial size is 0.02.
      scale_embedding=True,
      dropout_rate=0.1,
    ),
    # kind: 'rfa' or 'exact'; gate: 'learned' or 'none'.
    attention=dict(
      kind='rfa',
      num_features=64,
      features='gaussian',
      gate='learned',
      redraw_every=1,
    ),
    tx=dict(learning_rate=3e-4, weight_decay=0.0, warmup=0.05, clip=0.25),
    run=dict(best='validation/loss', best_mode='min'),
  ),
  small=dict(
    min_steps=300,
    data=dict(num_rows=4000, num_test_rows=400),
    run=dict(eval_every=150, save_every=150),
  ),
  smoke=dict(
    data=dict(num_rows=64, num_test_rows=32), attention=dict(num_features=8)
  ),
  tiny_shakespeare=dict(
    on='small', min_steps=150, data=dict(name='tiny_shakespeare')
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small, smoke or tiny_shakespeare."""
  return presets.get_config(preset, *language.STREAM, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One training run."""
  if config.data.kind in token_tasks.BUILDERS:
    return token_tasks.BUILDERS[config.data.kind](config, optimizer)
  fn = attention.attention_fn(config.attention, causal=True)
  return language.build(config, fn, optimizer)
