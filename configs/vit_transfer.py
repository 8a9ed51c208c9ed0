"""Transferable attacks on ViTs (Naseer et al., ICLR 2022): ask every block.

    python -m launch.reproduce --papers=vit_transfer

measures the claims (`configs/studies/vit_transfer.py`): attacks on all blocks
of a ViT, and on their refined tokens, against attacks on its last class token.
https://arxiv.org/abs/2106.04169

A run trains what the second kind of attack needs: a token refinement behind
each block of a network that stays as it is (`methods/token_refinement.py`).
`python -m launch.attack --workdir=...` attacks any classifier that was trained.

paper: refinements of a published ViT-S/16 (config.weights), one block after the
  other, by the authors' settings, but for crops of 5 % of an image and more
  (theirs: 8 %) and whole images at evaluation (theirs: the middle). They refine
  DeiT-T, S and B, of which T and S have the geometry of ViT-Ti and S.
small: a ViT of six blocks, trained on `digits` on the spot.
gpu: a wider one, on CIFAR-10.
"""

import functools

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import refined_vits
from repjax import types
from repjax.experiments import of_images
from repjax.models import vit

PRESETS = dict(
  paper=dict(
    batch_size=256,
    eval_batch_size=500,
    epochs=11.0,
    data=dict(name='imagenet2012', eval_splits=('validation',), num_workers=8),
    augment=dict(size=224, flip=True, mean=(0.5,), std=(0.5,)),
    # Published weights, .npz or safetensors; '' trains `model` on the spot.
    weights='',
    model=dict(patch_size=16, pool='token', remat=False, **vit.SIZES['S']),
    # order: 'together' trains all refinements at once, 'in_turn' one after the
    # other. norm: 'batch' or 'layer'. shared: one convolution where two are
    # written, as in the published code.
    refinement=dict(order='in_turn', norm='batch', shared=False),
    tx=dict(learning_rate=0.01, momentum=0.9, weight_decay=1e-4),
    run=dict(eval_every=5004, best='validation/accuracy'),
  ),
  small=dict(
    batch_size=64,
    epochs=8.0,
    data=dict(eval_splits=('test',), num_workers=0),
    # Networks see pixels in [0, 1].
    augment=dict(size=0, flip=False, mean=(0.0,), std=(1.0,)),
    model=dict(
      patch_size=2, hidden_dim=32, mlp_dim=64, num_heads=4, num_layers=6
    ),
    refinement=dict(order='together', norm='layer'),
    pretraining=dict(steps=600, batch_size=64, learning_rate=2e-3),
    tx=dict(learning_rate=0.1),
    run=dict(eval_every=100, save_every=100, best='test/accuracy'),
  ),
  gpu=dict(
    on='small',
    batch_size=256,
    data=dict(name='cifar10'),
    model=dict(patch_size=4, hidden_dim=192, mlp_dim=384, num_heads=3),
    pretraining=dict(steps=8000, batch_size=256, learning_rate=1e-3),
    run=dict(eval_every=1000, save_every=1000),
  ),
  smoke=dict(
    batch_size=16,
    epochs=0.0,
    min_steps=8,
    model=dict(hidden_dim=8, mlp_dim=8, num_heads=2, num_layers=2),
    pretraining=dict(steps=4, batch_size=16),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small, gpu or smoke."""
  config = presets.get_config(preset, presets.IMAGES, PRESETS)
  if preset == 'paper':
    # Of the frozen body while refinements train. Networks that are trained on
    # the spot, by the presets that lie on this one, have none.
    config.model.drop_path_rate = 0.1
  return config


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One run: refinements of a network that is given or trained first."""
  data = of_images.read(config)
  method = refined_vits.refinement(
    config, data.train.num_classes, data.steps, optimizer
  )
  return of_images.classifier(
    config,
    data,
    method,
    warm_start=functools.partial(refined_vits.begin, config, data),
  )
