"""BEiT (Bao et al., ICLR 2022): predict the visual tokens of hidden patches.

    python -m launch.reproduce --papers=beit

measures the claims (`configs/studies/beit.py`): about 16 points more test
accuracy from 100 labels of `digits`. https://arxiv.org/abs/2106.08254

A run of `launch.train` is one stage: 'tokenizer', then 'pretrain' with
config.tokenizer.run, then 'finetune' or 'probe' with config.pretrained, each
the work directory of a run before. Settings of a stage are in config.stages.

paper: B/16 on ImageNet-1k. What differs from the authors: no colour jitter;
  fine-tuning has Mixup alone where they alternate with CutMix; the tokenizer's
  image is the model's, made smaller, where theirs is cut from the same place of
  the full one.
small: a 2-layer network on `digits`, with absolute positions, which the paper's
  does without.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import beit_stages
from repjax import types

_FEW = dict(batch_size=16, min_steps=4)

PRESETS = dict(
  paper=dict(
    stage='pretrain',
    # Work directory of a run of the stage before, or a file in Hugging Face's
    # layout.
    pretrained='',
    batch_size=2048,
    eval_batch_size=1024,
    epochs=800.0,
    data=dict(name='imagenet2012', eval_splits=('validation',), num_workers=8),
    augment=dict(
      size=224,
      area=(0.08, 1.0),
      flip=True,
      rand_augment_layers=0,
      rand_augment_magnitude=9,
      erasing=0.0,
      mean=(0.5,),
      std=(0.5,),
    ),
    # An image is cut into patch_grid x patch_grid patches.
    patch_grid=14,
    model=dict(
      hidden_dim=768,
      mlp_dim=3072,
      num_heads=12,
      num_layers=12,
      # Absolute positions: 'none' as published, or 'learned'.
      position='none',
      layer_scale=0.1,
      drop_path_rate=0.1,
    ),
    # kind: 'dalle', the published encoder's shape, or 'small'. Images are
    # resized to size x size for it, or, with 0, it sees what the model sees.
    # `untrained` allows pre-training without `run`, the work directory of a run
    # of the stage 'tokenizer' (or, for 'dalle', the published encoder's file).
    tokenizer=dict(
      kind='dalle',
      run='',
      untrained=False,
      vocab_size=8192,
      hidden_dim=256,
      num_blocks=2,
      size=112,
      kl_weight=1e-4,
      temperature=(1.0, 0.0625),
    ),
    # kind: 'blocks' as in the authors' code, 'blocks_text' as in the paper's
    # text, or 'random'; `exact` makes all counts equal.
    masks=dict(kind='blocks', num_masked=75, min_block=16, exact=False),
    tx=dict(
      learning_rate=1.5e-3,
      weight_decay=0.05,
      warmup=0.0125,
      end=0.0067,
      clip=3.0,
      layer_decay=1.0,
    ),
    mixup=dict(alpha=0.0),
    step=dict(label_smoothing=0.0, compute_dtype='bfloat16'),
    # What a stage changes above.
    stages=dict(
      tokenizer=dict(
        batch_size=512,
        epochs=20.0,
        tx=dict(learning_rate=1e-3, weight_decay=0.0),
      ),
      pretrain=dict(),
      finetune=dict(
        batch_size=1024,
        epochs=100.0,
        augment=dict(rand_augment_layers=2, erasing=0.25),
        tx=dict(
          learning_rate=4e-3,
          warmup=0.2,
          end=0.00025,
          clip=0.0,
          layer_decay=0.65,
        ),
        mixup=dict(alpha=0.8),
        step=dict(label_smoothing=0.1),
      ),
      probe=dict(
        batch_size=1024,
        epochs=100.0,
        tx=dict(learning_rate=4e-3, weight_decay=1e-4),
      ),
    ),
    run=dict(eval_every=5000, best=''),
  ),
  small=dict(
    batch_size=64,
    eval_batch_size=512,
    epochs=0.0,
    min_steps=1500,
    data=dict(eval_splits=('test',), num_workers=0),
    augment=dict(size=0, flip=False),
    patch_grid=4,
    model=dict(
      hidden_dim=64,
      mlp_dim=128,
      num_heads=4,
      num_layers=2,
      # From scratch, tables of relative positions alone do not learn from 100
      # images where a patch is.
      position='learned',
      drop_path_rate=0.0,
    ),
    tokenizer=dict(
      kind='small',
      vocab_size=32,
      hidden_dim=32,
      num_blocks=1,
      size=0,
      kl_weight=0.01,
      temperature=(1.0, 0.1),
    ),
    masks=dict(num_masked=6, min_block=2),
    tx=dict(learning_rate=3e-3, warmup=0.05, end=0.01),
    step=dict(compute_dtype='float32'),
    stages=dict(
      tokenizer=dict(
        batch_size=64, epochs=0.0, min_steps=300, tx=dict(learning_rate=3e-3)
      ),
      finetune=dict(
        batch_size=50,
        epochs=0.0,
        min_steps=300,
        augment=dict(rand_augment_layers=0, erasing=0.0),
        tx=dict(learning_rate=1e-3, warmup=0.1, end=0.0, clip=3.0),
        mixup=dict(alpha=0.0),
        step=dict(label_smoothing=0.0),
      ),
      probe=dict(
        batch_size=50,
        epochs=0.0,
        min_steps=300,
        tx=dict(learning_rate=1e-2, weight_decay=0.0),
      ),
    ),
    run=dict(eval_every=500, save_every=500),
  ),
  smoke=dict(
    batch_size=16,
    min_steps=8,
    model=dict(hidden_dim=16, mlp_dim=16, num_heads=2, num_layers=1),
    tokenizer=dict(untrained=True, vocab_size=8, hidden_dim=8, num_blocks=0),
    stages=dict(tokenizer=_FEW, finetune=_FEW, probe=_FEW),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One training run of one stage."""
  return beit_stages.build(config, optimizer)
