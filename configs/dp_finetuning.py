r"""DP fine-tuning (Li et al., ICLR 2022): pretrained models learn privately.

    python -m launch.reproduce --papers=dp_finetuning

measures the claims (`configs/studies/dp_finetuning.py`): at (3, 1e-5), 94 % of
`digits` and 96.8 % of MNIST are right; with --preset=mnist, large batches are a
point ahead of small ones.
https://arxiv.org/abs/2110.05679

    python -m launch.train --config=configs/dp_finetuning.py:small \
      --workdir=runs/private --config.dp.key_file=KEY

paper: sentiment of SST-2 with an encoder of RoBERTa-base's size, epsilon 3, by
  DP-Adam on Poisson-sampled batches. weights=FOLDER starts from published ones;
  without it trains from scratch. The authors' text-infilling form of the task
  is not here.
paper_generation: E2E restaurant descriptions with a decoder of GPT-2's size.
small: a linear model on oriented gradients of `digits`.
mnist: a linear model on oriented gradients of MNIST.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import private
from repjax import types
from repjax.models import transformer

PRESETS = dict(
  paper=dict(
    batch_size=1000,
    eval_batch_size=256,
    epochs=3.0,
    min_steps=0,
    # kind: 'sentences' (a text and its class; column='premise+hypothesis' reads
    # two), 'completions' (a prompt and what follows) or 'images'.
    data=dict(
      kind='sentences',
      name='glue/sst2',
      eval_splits=('validation',),
      column='sentence',
      target='',
      length=256,
      # '' is that of the weights or, without any, reads bytes; or a
      # tokenizer.json: that of the weights, if their folder has none, or
      # without weights one that `tokens.Subwords.save` wrote, learned from
      # public text.
      tokenizer='',
    ),
    # A folder of Hugging Face: config.json, model.safetensors, tokenizer.json.
    # Its geometry then stands in for `model`. '' trains from scratch.
    weights='',
    model=dict(transformer.ROBERTA, remat=False, scan_layers=False),
    # Of a text model: what trains, see `finetuning.adapt`. The paper has all
    # parameters and, as another row, LoRA: adapter.kind=lora.
    adapter=dict(kind='full', rank=16, length=16, scale=2.0, hidden_dim=0),
    # delta 0 is 1 / (2 n). sampling_rate 0 is batch_size / n. user_column says
    # whose a row is: batches and n are then of users, each with up to
    # rows_per_user rows, which are clipped and protected together.
    dp=dict(
      epsilon=3.0,
      delta=0.0,
      overflow=0.0,
      clip_norm=0.1,
      sampling_rate=0.0,
      key_file='',
      accountant='pld',
      method='auto',
      user_column='',
      rows_per_user=1,
    ),
    # decay: 'linear' or 'constant'.
    tx=dict(learning_rate=5e-4, weight_decay=0.0, decay='linear'),
    step=dict(microbatches=8),
    # Nothing without noise may choose what is published: no best checkpoint.
    run=dict(log_every=10, eval_every=100, save_every=100, best=''),
  ),
  paper_generation=dict(
    on='paper',
    batch_size=1024,
    epochs=10.0,
    data=dict(
      kind='completions',
      name='e2e_nlg',
      eval_splits=('validation', 'test'),
      column='meaning_representation',
      target='human_reference',
      length=512,
    ),
    # `transformer.GPT2`: what it has over RoBERTa's.
    model=dict(
      num_positions=1024,
      position_offset=0,
      num_token_types=0,
      norm='pre',
      embedding_norm=False,
      activation='gelu_tanh',
    ),
    dp=dict(delta=8e-6),
    tx=dict(learning_rate=2e-3, decay='constant'),
  ),
  small=dict(
    # Of each set alike by dp.sampling_rate, beside which this is not read: an
    # override is refused unless dp.sampling_rate=0.
    batch_size=private.UNREAD_BATCH_SIZE,
    eval_batch_size=360,
    epochs=10.0,
    data=dict(kind='images', name='digits', eval_splits=('test',), column=''),
    bins=8,
    dp=dict(delta=1e-5, clip_norm=0.5, sampling_rate=0.1),
    tx=dict(learning_rate=0.1),
    step=dict(microbatches=1),
    run=dict(log_every=20, eval_every=50, save_every=50),
  ),
  smoke=dict(
    batch_size=48, epochs=0.25, dp=dict(sampling_rate=0.0, accountant='rdp')
  ),
  mnist=dict(on='small', data=dict(name='mnist')),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, paper_generation, small, smoke or mnist."""
  return presets.get_config(preset, presets.RUN, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One private training run."""
  kind = config.data.kind
  types.check_choice(
    'config.data.kind', kind, ('images', 'sentences', 'completions')
  )
  if kind == 'images':
    return private.images(config, optimizer)
  from configs.parts import private_texts  # Who learns images loads none of it.

  if kind == 'sentences':
    return private_texts.sentences(config, optimizer)
  return private_texts.completions(config, optimizer)
