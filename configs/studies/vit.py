"""What ViT says of few images, measured: a convolutional network against it.

The paper reports that a plain transformer over patches matches or beats
convolutional networks when it is pre-trained on enough images, and that it is
behind them when images are few, since it must learn what a convolution has
built in (sec. 4.3: 'the convolutional inductive bias is useful for smaller
datasets'). Here the second half: on 100 images of `digits` a convolutional
network of like size must be ahead, and less so on all of them. Both holds.
"""

from ml_collections import config_dict
import numpy as np

from configs import presets
from configs import vit
from repjax import plots
from repjax import types
from repjax.experiments import of_images
from repjax.methods import supervised
from repjax.models import resnet
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)

# The thresholds stood here before the first run.
CLAIMS = dict(
  gap_few=dict(
    says='100 training images: test accuracy, CNN minus ViT of like size',
    paper='ResNets ahead on 9M images of JFT, behind on 90M (sec. 4.3)',
    at_least=0.03,
    needs=('fits',),
  ),
  gap_shrinks=dict(
    says='that lead at 100 images minus the lead on all of them',
    paper='the order turns with the number of images (figures 3 and 4)',
    at_least=0.0,
    needs=('fits',),
  ),
  # Came with the record in view (1.0): it can only withdraw.
  fits=dict(
    kind='first',
    says='100 training images: accuracy of the ViT on these',
    paper='not reported',
    at_least=0.95,
  ),
)

_STUDY = dict(
  paper=dict(
    study=dict(
      few=100,
      steps=200,
      vit=dict(hidden_dim=64, mlp_dim=128, num_heads=4, num_layers=2),
      cnn=dict(depth=10, widen=1, norm='group'),
    )
  ),
  smoke=dict(study=dict(few=40, steps=4)),
)


def get_config(preset: str) -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(preset, presets.IMAGES, vit.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """ViT against a small CNN, on few and on all training images."""
  train, recipe, _ = of_images.read(config)
  test = of_images.load(config, 'test')
  steps, few = config.study.steps, config.study.few
  num_classes = train.num_classes
  networks = {
    'ViT': vit.model(config, num_classes, recipe.shape, **config.study.vit),
    'CNN': resnet.WideResNet(num_classes=num_classes, **config.study.cnn),
  }
  rows = side_by_side.rows(train, recipe.evaluate)
  test_rows = side_by_side.rows(test, recipe.evaluate)
  accuracy, curves = {}, {}
  for num_rows in (few, len(train)):
    for name, network in networks.items():
      key = f'{name}, {num_rows:,} images'
      method = supervised.make(network, vit.adamw(config, steps, rho=0.0))
      trained = side_by_side.train(
        key,
        method,
        side_by_side.per_seed(rows, seeds, num_rows=num_rows),
        test_rows,
        seeds=seeds,
        batch_size=config.batch_size,
        steps=steps,
        points=10,
        vectorize=name == 'ViT',  # See `seed_loop.fit`.
      )
      accuracy[name, num_rows] = trained.score
      curves[key] = trained.curve
      if (name, num_rows) == ('ViT', few):
        predict = side_by_side.predict_fn(method)
        right = predict(trained.states, rows)['logits'].argmax(-1)
        places = {'at': np.arange(len(train))}
        seen = side_by_side.per_seed(places, seeds, num_rows=few)['at']
        right = np.take_along_axis(right == rows['label'], seen, 1)
  gap_few = accuracy['CNN', few] - accuracy['ViT', few]
  gap_all = accuracy['CNN', len(train)] - accuracy['ViT', len(train)]
  return types.Report(
    scalars={
      'gap_few': gap_few,
      'gap_shrinks': gap_few - gap_all,
      'fits': right.mean(1),
      **{f'{name} {n} accuracy': x for (name, n), x in accuracy.items()},
    },
    arrays={},
    figures={'accuracy': plots.seed_curves(curves, ylabel='test accuracy')},
  )
