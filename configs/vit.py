"""ViT (Dosovitskiy et al., ICLR 2021): an image is a sequence of patches.

    python -m launch.train --config=configs/vit.py:small --workdir=runs/demo
    python -m launch.reproduce --papers=vit

The first reaches about 98 % test accuracy on `digits`; the second measures the
claims (`configs/studies/vit.py`): on 100 images a convolutional network is some
30 points ahead. https://arxiv.org/abs/2010.11929

paper: B/16 trained from scratch on ImageNet-1k (table 3).
small: ViT with SAM and Mixup on `digits`, or on `mnist` by one override.
"""

import functools
import math

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import attention
from repjax import optim
from repjax import start
from repjax import types
from repjax.experiments import of_images
from repjax.methods import mixup
from repjax.models import vit
from repjax.weights import stored_config
from repjax.weights import vit_weights

PRESETS = dict(
  paper=dict(
    batch_size=4096,
    eval_batch_size=1024,
    epochs=300.0,
    data=dict(
      name='imagenet2012',
      train_split='train[:99%]',
      eval_splits=('train[99%:]', 'validation'),
      num_workers=8,
    ),
    # Images of a set without fixed size are cut and resized to size x size.
    augment=dict(
      size=224,
      area=(0.05, 1.0),
      flip=True,
      rand_augment_layers=0,
      rand_augment_magnitude=10,
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
      pool='token',
      position='learned',
      dropout_rate=0.1,
      drop_path_rate=0.0,
      remat=False,
      scan_layers=False,
    ),
    # kind: 'exact'; 'flash', by a fused kernel where there is one; or linear in
    # the number of patches: 'performer' or 'rfa', with `num_features` random
    # features a head.
    attention=dict(kind='flash', num_features=64),
    # Published weights to start from: .npz or safetensors; '' trains from
    # scratch.
    weights='',
    tx=dict(learning_rate=3e-3, weight_decay=0.3, warmup=0.1, clip=1.0),
    sam=dict(rho=0.0, sync=True, groups=1),
    mixup=dict(alpha=0.0, kind='mixup', per='example'),
    step=dict(label_smoothing=0.0, compute_dtype='bfloat16'),
    run=dict(eval_every=5000, best='validation/accuracy'),
  ),
  small=dict(
    batch_size=64,
    eval_batch_size=512,
    # Eight passes over `mnist`, or 1,500 steps where that is more.
    epochs=8.0,
    min_steps=1500,
    data=dict(train_split='train', eval_splits=('test',), num_workers=0),
    # No shifts: one pixel is an eighth of a digit's width.
    augment=dict(size=0, flip=False),
    patch_grid=4,
    model=dict(
      hidden_dim=64,
      mlp_dim=128,
      num_heads=4,
      num_layers=3,
      pool='average',
      dropout_rate=0.0,
    ),
    attention=dict(kind='exact'),
    tx=dict(learning_rate=4e-3, weight_decay=0.05),
    sam=dict(rho=0.02),
    mixup=dict(alpha=0.2),
    step=dict(compute_dtype='float32'),
    run=dict(eval_every=500, save_every=500, best='test/accuracy'),
  ),
  smoke=dict(
    batch_size=16,
    epochs=0.0,
    min_steps=8,
    model=dict(hidden_dim=16, mlp_dim=32, num_heads=2, num_layers=1),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One training run."""
  data = of_images.read(config)
  num_classes = data.train.num_classes
  network = model(config, num_classes, data.recipe.shape, **config.model)
  if config.weights:
    stored_config.warn_of_other_pixels(config.weights, config.augment)
    network = vit_weights.as_stored(config.weights, network)
  method = mixup.make(
    network,
    adamw(config, data.steps, config.sam.rho, optimizer),
    num_classes=num_classes,
    **config.mixup,
    **config.step,
  )
  return of_images.classifier(
    config,
    data,
    method,
    # Mixup mixes neighbours.
    multiple=math.lcm(2, config.sam.groups if config.sam.rho else 1),
    warm_start=functools.partial(_warm_start, config.weights),
  )


def _warm_start(file, state):
  if not file:
    return state
  load = functools.partial(vit_weights.load_vit, file, head='replace')
  return start.fill(state, load)


def model(config, num_classes: int, image_shape, **fields) -> vit.ViT:
  """The network for images [H, W, C], with further fields of `vit.ViT`."""
  height, width, _ = image_shape
  if height % config.patch_grid or width % config.patch_grid:
    raise types.InputError(
      f'config.patch_grid={config.patch_grid} does not divide images of '
      f'{height} x {width}.'
    )
  return vit.ViT(
    num_classes,
    patch_size=(height // config.patch_grid, width // config.patch_grid),
    attention_fn=attention.attention_fn(config.attention, causal=False),
    **fields,
  )


def adamw(
  config, steps: int, rho: float, optimizer: types.Optimizer = optax.adamw
) -> optax.GradientTransformation:
  """Warm-up, cosine, clipping, and SAM in front where rho > 0."""
  tx = config.tx
  rate = optim.warmup_cosine(tx.learning_rate, steps=steps, warmup=tx.warmup)
  links = [optim.sam(**{**config.sam, 'rho': rho})] if rho else []
  return optax.chain(
    *links,
    optax.clip_by_global_norm(tx.clip or math.inf),
    optimizer(rate, weight_decay=tx.weight_decay),
  )
