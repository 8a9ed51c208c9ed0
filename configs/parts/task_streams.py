"""Streams of tasks of images, and the networks that learn them."""

import flax.linen as nn
import numpy as np

from configs import presets
from repjax.data.sets import tasks
from repjax.experiments import of_images
from repjax.models import alexnet
from repjax.models import mlp
from repjax.models import resnet


def read(config) -> list[tasks.Task]:
  """All tasks, in order, as the group `data` of a config names them."""
  data = config.data

  def rows():
    splits = (data.train_split, data.eval_splits[0])
    return (of_images.load(config, split) for split in splits)

  kinds = dict(
    permuted=lambda: tasks.permuted(
      *rows(), num_tasks=data.num_tasks, seed=data.order_seed
    ),
    rotated=lambda: tasks.rotated(
      *rows(), degrees=np.linspace(0, 180, data.num_tasks, endpoint=False)
    ),
    split=lambda: tasks.split(*rows(), num_tasks=data.num_tasks),
    sets=lambda: tasks.sets(
      data.names,
      size=data.size,
      train_split=data.train_split,
      test_split=data.eval_splits[0],
      data_dir=data.dir,
    ),
  )
  return presets.choose('data.stream', data.stream, kinds)()


def network(config, num_classes: int) -> nn.Module:
  """The network, with the heads of all tasks where each has its own."""
  kinds = dict(
    mlp=mlp.Mlp, alexnet=alexnet.AlexNet, preact_resnet=resnet.PreActResNet
  )
  kind = presets.choose('network', config.network, kinds)
  num_heads = config.data.num_tasks if config.heads == 'each' else 1
  return kind(num_heads * num_classes, **config[config.network])
