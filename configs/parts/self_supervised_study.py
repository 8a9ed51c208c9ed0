"""What the study of learning without labels measures of its arms."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.parts import self_supervised
from repjax.analysis import correspondence
from repjax.methods import esvit
from repjax.protocols import probes
from repjax.protocols import side_by_side

_CHUNK = 2048  # Rows.
# (down, right), in regions.
_SHIFTS = ((1, 0), (-1, 0), (0, 1), (0, -1))


def spread(outputs, test) -> np.ndarray:
  """Standard deviation of features over their norm, [S]; a `Score`."""
  del test  # No label tells of a collapse.
  return np.asarray(
    [probes.spread({'features': x}, {})['spread'] for x in outputs['features']]
  )


def arm(config: Any, method: str, network: str) -> Any:
  """The config with another method and network."""
  config = config.copy_and_resolve_references()
  config.method, config.network = method, network
  return config


def judge(config: Any, rows, test, own: Any, method, states):
  """Accuracies of frozen features, and of regions' correspondences.

  Args:
    config: With `study` and `probe`.
    rows: Training rows, labels too.
    test: Test rows.
    own: The config of the arm.
    method: Its method.
    states: Of it, with a leading seed axis.

  Returns:
    'knn' and 'linear', and of a network with regions 'correspondence', [S].
  """
  predict = side_by_side.predict_fn(method, vectorize=config.study.vectorize)
  features, queries = (_predicted(predict, states, x) for x in (rows, test))
  num_classes = int(rows['label'].max()) + 1
  found: dict[str, Any] = {'knn': [], 'linear': []}
  for x, y in zip(features, queries, strict=True):
    votes = probes.nearest(
      x,
      rows['label'],
      y,
      num_classes=num_classes,
      neighbours=config.probe.neighbours,
      temperature=config.probe.temperature,
    )
    head = probes.fit_probe(
      x, rows['label'], num_classes=num_classes, strengths=probes.STRENGTHS
    )
    for kind, scores in (
      ('knn', votes),
      ('linear', y @ head.kernel + head.bias),
    ):
      found[kind].append((scores.argmax(-1) == test['label']).mean())
  if own.network != 'mlp':
    params = self_supervised.network_params(own, states)
    found['correspondence'] = _correspondences(config, own, params, test)
  return {kind: np.asarray(x) for kind, x in found.items()}


def _predicted(predict, states, columns):
  """Features, [S, N, D], of as many rows at a time as a device can take."""
  image = columns['image']
  parts = range(0, len(image), _CHUNK)
  return np.concatenate(
    [
      predict(states, {'image': image[x : x + _CHUNK]})['features']
      for x in parts
    ],
    axis=1,
  )


def _correspondences(config, own, params, test):
  """Mean over shifts of how many regions find their like, [S]."""
  model, study = self_supervised.backbone(own), config.study
  image = jnp.asarray(test['image'][:_CHUNK])

  def encode(params, image):
    out = model.apply({'params': params}, image, train=False, method='encode')
    _, regions = esvit.divided(model, out)
    # Regions of a network of one stage are smaller: their means are of a size.
    part = round(regions.shape[1] ** 0.5) // study.grid
    shape = (len(image), study.grid, part, study.grid, part, -1)
    return (
      regions.reshape(shape)
      .mean((2, 4))
      .reshape((len(image), study.grid**2, -1))
    )

  @jax.jit
  def accuracy(params, image):
    return jnp.mean(
      jnp.stack(
        [
          correspondence.shifted(
            functools.partial(encode, params),
            image,
            grid=study.grid,
            shift=shift,
            noise=study.noise,
            rng=jax.random.key(0),
            least=study.least,
          ).accuracy()
          for shift in _SHIFTS
        ]
      )
    )

  count = len(jax.tree.leaves(params)[0])
  return [
    float(accuracy(jax.tree.map(lambda x, i=i: x[i], params), image))
    for i in range(count)
  ]


def flops(config: Any, network: str, shape: Sequence[int]) -> float:
  """Operations of an image [H, W, C] on its way to regions."""
  model = self_supervised.backbone(arm(config, 'dino', network))
  image = jnp.zeros((1, *shape))
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )
  encode = functools.partial(model.apply, train=False, method='encode')
  compiled: Any = jax.jit(encode).lower(params, image).compile()
  return compiled.cost_analysis()['flops']
