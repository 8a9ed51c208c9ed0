"""What Mixup claims, measured: accuracy, calibration, accuracy under attack.

The first paper reports lower test error on CIFAR and ImageNet; the second ('How
Does Mixup Help With Robustness and Generalization?', ICLR 2021) derives what
mixing regularizes and reports higher accuracy under FGSM; Thulasidasan et al.
(2019, https://arxiv.org/abs/1905.11001) report a lower calibration error, of
networks that are far over-confident without Mixup. Here: an MLP on 300 images
of `digits`, seeds side by side, against the same training without Mixup, and
`cifar10`, a small convolutional network on 3,000 images of CIFAR-10. Accuracy
under FGSM has no threshold, since a pilot on an MLP did not confirm the paper's
direction.

On CIFAR-10 both claims hold. Digits are the counter-example: the MLP is only
about two points more confident there than it is accurate (measured), and Mixup
makes it several points less confident than that.

`cifar10` was chosen, and the precondition set, when trials had shown an MLP's
over-confidence on both sets and its calibration; its learning rate is the best
of three for both arms on training rows that are not used. `gpu` is the paper's
network on all images, in 60 epochs and without crops or flips. The recorded
accuracies of `cifar10` under FGSM are from before its pixels were told from
standardised values: these were moved by epsilon and cut at [0, 1].
"""

import jax
import jax.numpy as jnp
from ml_collections import config_dict
import numpy as np
import optax

from configs import mixup
from configs import presets
from repjax import plots
from repjax import types
from repjax.attacks import fgsm
from repjax.experiments import of_images
from repjax.metrics import classification
from repjax.protocols import side_by_side

SEEDS = (0, 1, 2, 3, 4)

# The thresholds stood here before the first run.
CLAIMS = dict(
  overconfidence=dict(
    kind='first',
    says='without Mixup: mean confidence minus accuracy',
    paper='far above 0 (Thulasidasan et al., 2019, figure 2)',
    at_least=0.05,
  ),
  # Came with records in view (.85, .31): it can only withdraw.
  learned=dict(
    kind='first',
    says='without Mixup: accuracy minus the share of the commonest class',
    paper='not reported',
    at_least=0.2,
  ),
  accuracy_gain=dict(
    says='test accuracy, with Mixup minus without',
    paper='+1.4 points (CIFAR-10, PreAct ResNet-18, ICLR 2018, table 2)',
    at_least=-0.005,
    needs=('learned',),
  ),
  ece_gain=dict(
    says='expected calibration error (15 bins), without Mixup minus with it',
    paper='lower with Mixup on CIFAR, Fashion-MNIST and STL-10 '
    '(Thulasidasan et al., 2019, figure 2)',
    at_least=0.0,
    needs=('overconfidence',),
  ),
  overconfidence_gain=dict(
    says='mean confidence minus accuracy, without Mixup minus with it',
    paper='positive: networks are over-confident without Mixup '
    '(Thulasidasan et al., 2019, figure 2)',
  ),
  nll_gain=dict(
    says='test negative log-likelihood, without Mixup minus with it',
    paper='not reported',
  ),
  fgsm_gain=dict(
    says='accuracy under FGSM (pixels in [0, 1], epsilon 0.05), with Mixup '
    'minus without',
    paper='higher with Mixup (ICLR 2021, figure 1)',
  ),
)

_STUDY = dict(
  # num_rows: of the training images; 0 for all.
  paper=dict(study=dict(num_rows=0, epsilon=0.05, vectorize=True)),
  small=dict(study=dict(num_rows=300)),
  cifar10=dict(on='small', study=dict(num_rows=3000, vectorize=False)),
  # Networks one after the other: each fills an accelerator.
  gpu=dict(on='paper', epochs=60.0, study=dict(vectorize=False)),
  smoke=dict(study=dict(num_rows=60)),
)


def get_config(preset: str) -> config_dict.ConfigDict:
  """Numbers of a preset of the recipe, and of the study."""
  return presets.get_config(preset, presets.IMAGES, mixup.PRESETS, _STUDY)


def run(config: config_dict.ConfigDict, seeds=SEEDS) -> types.Report:
  """Trains with and without Mixup on few images; measures the whole rest."""
  train, recipe, steps = of_images.read(config)
  test = of_images.load(config, 'test')
  rows = side_by_side.rows(train, recipe.evaluate)
  test_rows = side_by_side.rows(test, recipe.evaluate)
  columns = side_by_side.per_seed(
    rows, seeds, num_rows=config.study.num_rows or None
  )
  numbers, curves, logits = {}, {}, {}
  for name, alpha in (('plain', 0.0), ('Mixup', config.mixup.alpha)):
    method = mixup.method(_with_alpha(config, alpha), train.num_classes, steps)
    trained = side_by_side.train(
      name,
      method,
      columns,
      test_rows,
      seeds=seeds,
      batch_size=config.batch_size,
      steps=steps,
      vectorize=config.study.vectorize,
    )
    curves[name] = trained.curve
    logits[name] = np.concatenate(trained.outputs['logits'])
    numbers[name] = {
      **_measure(trained, test_rows['label']),
      'fgsm': _attacked(method, trained.states, test_rows, config),
    }
  plain, mixed = numbers['plain'], numbers['Mixup']
  labels = np.tile(test_rows['label'], len(seeds))
  return types.Report(
    scalars={
      'overconfidence': plain['overconfidence'],
      'learned': plain['accuracy']
      - np.bincount(test_rows['label']).max() / len(test_rows['label']),
      'ece_gain': plain['ece'] - mixed['ece'],
      'accuracy_gain': mixed['accuracy'] - plain['accuracy'],
      'overconfidence_gain': plain['overconfidence'] - mixed['overconfidence'],
      'nll_gain': plain['loss'] - mixed['loss'],
      'fgsm_gain': mixed['fgsm'] - plain['fgsm'],
      **{
        f'{name} {key}': values
        for name, by_key in numbers.items()
        for key, values in by_key.items()
      },
    },
    arrays={},
    figures={
      'reliability': plots.reliability(logits, labels),
      'test_accuracy': plots.seed_curves(curves, ylabel='test accuracy'),
    },
  )


def _with_alpha(config, alpha):
  config = config.copy_and_resolve_references()
  config.mixup.alpha = alpha
  return config


def _measure(trained, label):
  """Measures of classification and 'overconfidence', one a seed."""
  logits = trained.outputs['logits']
  measured = [classification.measure(x, label) for x in logits]
  confidence = np.exp(classification.log_softmax(logits)).max(-1).mean(-1)
  return {
    **{key: np.asarray([m[key] for m in measured]) for key in measured[0]},
    'overconfidence': confidence - trained.score,
  }


def _attacked(method, states, test_rows, config):
  """Accuracy on images changed by FGSM in pixels of [0, 1], one a seed."""
  label = test_rows['label']
  mean, std = (np.float32(config.augment[x]) for x in ('mean', 'std'))
  box = dict(low=-mean / std, high=(1 - mean) / std)
  mask = jnp.ones(len(label))

  def accuracy(state):
    def loss(image):
      logits = method.predict(state, {'image': image, 'mask': mask})['logits']
      return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    epsilon = config.study.epsilon / std
    image = fgsm.fgsm(loss, test_rows['image'], epsilon=epsilon, **box)
    logits = method.predict(state, {'image': image, 'mask': mask})['logits']
    return (logits.argmax(-1) == label).mean()

  return np.asarray(jax.jit(lambda x: jax.lax.map(accuracy, x))(states))
