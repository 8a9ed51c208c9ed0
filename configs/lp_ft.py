"""LP-FT (Kumar et al., ICLR 2022): probe first, then fine-tune everything.

    python -m launch.reproduce --papers=lp_ft

measures the claims (`configs/studies/lp_ft.py`): about 20 points more accuracy
out of distribution (OOD) than fine-tuning.
https://arxiv.org/abs/2202.10054

paper: a published ViT-B/16 (config.weights) to CIFAR-10, OOD CIFAR-10.1, with
  the authors' recipe. They start from MoCo-v2's ResNet-50, for which there is
  no reader here.
small: an MLP that learned, without labels, to see the grey image in digits of
  six colours is taught the ten digits in one of them; OOD are two others.
mnist: the same with 3,000 labels of MNIST.
"""

import functools

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import transfer
from repjax import optim
from repjax import types
from repjax.experiments import of_images
from repjax.methods import lp_ft

_PRIMARY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_MIXED = ((1.0, 1.0, 0.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0))

PRESETS = dict(
  paper=dict(
    batch_size=64,
    eval_batch_size=512,
    epochs=20.0,
    # The head of stage 1 is chosen on `val_split`, and so are rates.
    data=dict(
      name='cifar10',
      train_split='train[:90%]',
      val_split='train[90%:]',
      test_split='test',
      ood=dict(name='cifar10_1/v6', split='test'),
      eval_splits=('val', 'test', 'ood'),
    ),
    # Resized alone, as the authors' of CIFAR-10 are.
    augment=dict(
      **dict(size=224, flip=False, area=(1.0, 1.0)),
      **dict(mean=(0.5,), std=(0.5,)),
    ),
    # Published weights, .npz or safetensors.
    weights='',
    # 'lp_ft' fits the head exactly and tunes from there; 'ft' tunes from a
    # random head; 'lp' trains the head alone, by SGD.
    stage='lp_ft',
    # Weight of the pull towards the pretrained backbone; 0 for none.
    l2_sp=0.0,
    probe=dict(
      num=50, low=-7.0, high=2.0, max_iter=200, tol=1e-4, solver='sklearn'
    ),
    # head_factor: the head's rate over the backbone's.
    tx=dict(learning_rate=1e-3, momentum=0.9, head_factor=1.0),
    step=dict(label_smoothing=0.0),
    run=dict(eval_every=1000, best='val/accuracy'),
  ),
  small=dict(
    eval_batch_size=360,
    epochs=0.0,
    min_steps=400,
    data=dict(train_split='train[:15%]', val_split='train[15%:]'),
    # Black is 0, so that a colour that is not there sends no gradient.
    augment=dict(size=0, flip=False, mean=(0.0,), std=(0.37,)),
    colours=dict(
      pretraining=_PRIMARY + _MIXED, id=_PRIMARY[:1], ood=_PRIMARY[1:]
    ),
    mlp=dict(features=(128, 128)),
    pretraining=dict(
      split='train', steps=2000, batch_size=128, learning_rate=3e-3
    ),
    tx=dict(learning_rate=1e-2),
    run=dict(eval_every=200, save_every=200),
  ),
  mnist=dict(
    on='small',
    eval_batch_size=1000,
    min_steps=600,
    data=dict(
      name='mnist', train_split='train[:3000]', val_split='train[3000:5000]'
    ),
    augment=dict(std=(0.31,)),
    pretraining=dict(split='train[:5000]'),
  ),
  smoke=dict(
    batch_size=16,
    min_steps=8,
    mlp=dict(features=(16, 16)),
    probe=dict(num=2, low=-2.0, high=-1.0),
    pretraining=dict(steps=4, batch_size=16),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.IMAGES, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.sgd
) -> types.Experiment:
  """One run: a probe where it is asked for, then training from there."""
  data = of_images.data(config, transfer.load(config, 'train'))
  model = transfer.network(config, data.train.num_classes)
  pull = [optim.l2_sp(config.l2_sp)] if config.l2_sp else []
  sgd = transfer.links(config, data.steps, config.tx.learning_rate, optimizer)
  made = of_images.classifier(
    config,
    data,
    lp_ft.make(
      transfer.trained(config, model), optax.chain(*pull, sgd), **config.step
    ),
    sources=functools.partial(transfer.load, config),
  )
  return made._replace(
    warm_start=functools.partial(transfer.begin, config, model, made)
  )
