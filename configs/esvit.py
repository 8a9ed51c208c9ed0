"""EsViT (Li et al., ICLR 2022): learns what its average says of views, regions.

    python -m launch.reproduce --papers=esvit

measures the claims (`configs/studies/esvit.py`). --config.method is 'esvit',
'dino' (views alone), 'simclr', 'moco', or 'supcon', which reads labels; k-NN
and linear probes are measured at each evaluation, and choose nothing. A run
leaves `swin/model.safetensors`, which --config.weights reads.
https://arxiv.org/abs/2106.09785

paper: Swin-T with windows of 7 on ImageNet-1k. What differs from the authors:
  views without hue, grey, blur and solarization, cut from images that are
  224 x 224 already; one mean and deviation for all channels; weight decay stays
  at .1, where theirs rises from .04 to .4, and leaves out the norms of
  prototypes; the gradient is clipped as a whole, where theirs is in each array;
  windows of small crops are no larger than their maps, where theirs are padded.
small: a two-stage Swin on `digits` at random places; gpu: a Swin on CIFAR-10.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import self_supervised
from repjax import types
from repjax.protocols import probes

PRESETS = dict(
  paper=dict(
    **dict(batch_size=512, eval_batch_size=512, epochs=300.0),
    **dict(method='esvit', network='swin', weights=''),
    # canvas: side on which images have random places; 0 for none.
    data=dict(
      **dict(name='imagenet2012', eval_splits=('validation',)),
      **dict(canvas=0, num_workers=8),
    ),
    augment=dict(size=224, mean=(0.45,), std=(0.225,)),
    crops=dict(
      **dict(size=224, local_size=96, num_local=8, flip=True),
      **dict(area=(0.4, 1.0), local_area=(0.05, 0.4)),
      **dict(brightness=0.4, contrast=0.4, saturation=0.2),
    ),
    swin=dict(
      **dict(hidden_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
      **dict(patch_size=4, window=7, drop_path_rate=0.1),
    ),
    # warm, frozen: parts of the run in which the teacher's temperature rises,
    # and in which prototypes wait.
    esvit=dict(
      **dict(num_prototypes=65_536, hidden_dim=2048, dim=256),
      **dict(region_weight=0.5, student_temperature=0.1, chunk=1024),
      **dict(teacher_temperature=(0.04, 0.07), warm=0.1, frozen=1 / 300),
      **dict(momentum=0.996, centre_momentum=0.9, learn_norm=True),
    ),
    probe=dict(neighbours=20, temperature=0.07, strengths=()),
    # The rate is 5e-4 for 256 rows.
    tx=dict(
      **dict(learning_rate=1e-3, warmup=1 / 30, end=1e-3),
      **dict(weight_decay=0.1, clip=3.0),
    ),
    step=dict(compute_dtype='bfloat16'),
    run=dict(eval_every=25_000, best=''),
  ),
  small=dict(
    **dict(batch_size=48, eval_batch_size=360, epochs=0.0, min_steps=300),
    data=dict(canvas=12, eval_splits=('test',), num_workers=0),
    augment=dict(size=0, mean=(0.14,), std=(0.29,)),
    crops=dict(
      **dict(size=12, local_size=6, num_local=2, flip=False),
      **dict(area=(0.7, 1.0), local_area=(0.4, 0.8), saturation=0.0),
    ),
    swin=dict(
      **dict(hidden_dim=24, depths=(1, 1), num_heads=(2, 4)),
      **dict(patch_size=2, window=3, drop_path_rate=0.0),
    ),
    esvit=dict(
      **dict(num_prototypes=64, hidden_dim=64, dim=32, momentum=0.99),
      **dict(chunk=4096, frozen=0.0, learn_norm=False),
      # At .9 the teacher says the same of all rows before it is centred.
      **dict(centre_momentum=0.5, teacher_temperature=(0.02, 0.02)),
    ),
    probe=dict(strengths=probes.STRENGTHS),
    tx=dict(learning_rate=1e-3, weight_decay=0.01, warmup=0.1),
    step=dict(compute_dtype='float32'),
    run=dict(log_every=50, eval_every=200, save_every=200),
  ),
  gpu=dict(
    on='paper',
    **dict(batch_size=256, epochs=100.0),
    data=dict(name='cifar10', eval_splits=('test',), num_workers=0),
    probe=dict(strengths=probes.STRENGTHS),
    run=dict(eval_every=4000),
    augment=dict(size=0, **presets.CIFAR10),
    crops=dict(size=32, local_size=16, num_local=4, local_area=(0.1, 0.4)),
    swin=dict(
      **dict(depths=(2, 2, 2), num_heads=(3, 6, 12), patch_size=2, window=4),
      remat=False,
    ),
    esvit=dict(num_prototypes=4096, hidden_dim=1024, frozen=0.01),
  ),
  smoke=dict(
    **dict(batch_size=16, min_steps=4),
    swin=dict(hidden_dim=8, num_heads=(1, 2)),
    esvit=dict(num_prototypes=8, hidden_dim=8, dim=4),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset."""
  layers = presets.IMAGES, self_supervised.OTHERS, PRESETS
  return presets.get_config(preset, *layers)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One training run."""
  data = self_supervised.read(config)
  made = self_supervised.method(config, data.steps, optimizer)
  return self_supervised.experiment(config, data, made)
