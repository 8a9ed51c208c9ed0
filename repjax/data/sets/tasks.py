"""Host side: tasks made of one or several sets of images.

A stream is a list of `Task`s for learning one after the other. Rows carry
'task', the number of their task: what chooses a head (`methods.multitask`) and
what `grad_fn.per_task` divides rows by. `data.batches.mixtures` draws all tasks
of a stream into every batch.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from repjax import types
from repjax.data.images import transforms
from repjax.data.reading import decode as decoding
from repjax.data.reading import decoded
from repjax.data.reading import source as sources


class Task(NamedTuple):
  """One task of a stream.

  Attributes:
    name: For messages and plots.
    train: Rows with 'image', 'label' and 'task'.
    test: Rows for evaluation, with the same columns.
  """

  name: str
  train: sources.Source
  test: sources.Source


# Streams.


def permuted(
  train: sources.Source, test: sources.Source, *, num_tasks: int, seed: int
) -> list[Task]:
  """The same set with its pixels in a random order of each task's own.

  As in the authors' code of GPM (https://arxiv.org/abs/2103.09762), the first
  task is permuted, too. Channels stay together.

  Args:
    train: Images of one size.
    test: Images of that size for evaluation.
    num_tasks: Number of orders.
    seed: Decides the orders.
  """
  height, width, _ = _fixed_shape(train)
  orders = [
    np.random.default_rng([seed, task]).permutation(height * width)
    for task in range(num_tasks)
  ]
  return [
    _task(f'permuted {task}', train, test, task, _Permute(order))
    for task, order in enumerate(orders)
  ]


def rotated(
  train: sources.Source, test: sources.Source, *, degrees: Sequence[float]
) -> list[Task]:
  """The same set, turned counterclockwise by an angle of each task's own.

  Args:
    train: Images of one size.
    test: Images of that size for evaluation.
    degrees: One angle a task.
  """
  _fixed_shape(train)
  return [
    _task(f'{angle:g} degrees', train, test, task, _Rotate(float(angle)))
    for task, angle in enumerate(degrees)
  ]


def split(
  train: sources.Source,
  test: sources.Source,
  *,
  num_tasks: int,
  seed: int | None = None,
  relabel: bool = True,
) -> list[Task]:
  """The classes of one set, equally many a task.

  Args:
    train: Has class labels.
    test: Rows of the same classes for evaluation.
    num_tasks: Divides the number of classes: 10 and 20 in CIFAR-100.
    seed: Decides the order of classes; None keeps it.
    relabel: Whether labels count from 0 inside each task, for one head a task;
      False keeps them, for one head of all classes.

  Raises:
    InputError: If the classes cannot be divided, or a task has no rows.
  """
  num_classes = train.num_classes
  if num_classes is None or num_tasks < 1 or num_classes % num_tasks:
    raise types.InputError(
      f'The {num_classes} classes of {train.name} cannot be divided into '
      f'{num_tasks=}.'
    )
  classes = np.arange(num_classes)
  if seed is not None:
    classes = np.random.default_rng(seed).permutation(classes)
  stream = []
  for task, chosen in enumerate(np.split(classes, num_tasks)):
    parts = [of_classes(x, chosen, relabel=relabel) for x in (train, test)]
    name = 'classes ' + ', '.join(map(str, chosen.tolist()))
    stream.append(Task(name, *(with_task(x, task) for x in parts)))
  return stream


def sets(
  names: Sequence[str],
  *,
  size: int,
  channels: int = 3,
  train_split: str = 'train',
  test_split: str = 'test',
  data_dir: str = '',
) -> list[Task]:
  """Several sets, one a task, all at one size.

  The five of the GPM paper, in its order, are 'cifar10', 'mnist',
  'svhn_cropped', 'fashion_mnist' and notMNIST, at 32 pixels. notMNIST is no
  TFDS set: prepare one with the columns 'image' and 'label', or join `resized`
  sources by `stream`.

  Args:
    names: As TFDS writes them.
    size: Side of the images, in pixels; others are resized.
    channels: 1 or 3; grey images are repeated, colour ones averaged.
    train_split: What is learnt from, as TFDS writes it: 'train[:10%]'.
    test_split: What is evaluated on, as TFDS writes it: 'test'.
    data_dir: Folder of prepared sets; '' means $TFDS_DATA_DIR, or
      ~/tensorflow_datasets.
  """
  load = lambda name, part: resized(  # noqa: E731
    sources.load(name, part, data_dir=data_dir), size, channels
  )
  return stream(
    [(name, load(name, train_split), load(name, test_split)) for name in names]
  )


def stream(
  parts: Sequence[tuple[str, sources.Source, sources.Source]],
) -> list[Task]:
  """Numbers (name, train, test) as the tasks 0, 1, ... of one stream.

  Raises:
    InputError: If their images differ in shape.
  """
  shapes = {_fixed_shape(x) for _, *pair in parts for x in pair}
  if len(shapes) != 1:
    raise types.InputError(
      f'The images of one stream must have one shape, got {sorted(shapes)}: '
      'resize them (repjax.data.sets.tasks.resized).'
    )
  return [
    Task(name, with_task(train, task), with_task(test, task))
    for task, (name, train, test) in enumerate(parts)
  ]


def with_task(source: sources.Source, task: int) -> sources.Source:
  """The source with `task` as the task of all its rows."""
  return source.with_columns(task=np.full(len(source), task, np.int32))


def resized(
  source: sources.Source, size: int, channels: int = 3
) -> sources.Source:
  """The source with all images at one size, [size, size, channels]."""
  if channels not in (1, 3):
    raise types.InputError(f'channels must be 1 or 3, got {channels}.')
  if source.image_shape is None:
    # Sets whose images differ in size are resized one by one.
    source = decoded.decoded(source, decoding.resize(size))
  return _mapped(source, _Resize(size, channels), (size, size, channels))


# How rows are changed. Callable classes, so that workers can unpickle them.


@dataclasses.dataclass(frozen=True)
class _Permute:
  order: np.ndarray

  def __call__(self, images):
    shape = images.shape
    flat = images.reshape(shape[0], -1, shape[-1])
    return flat[:, self.order].reshape(shape)


@dataclasses.dataclass(frozen=True)
class _Rotate:
  degrees: float

  def __call__(self, images):
    from scipy import ndimage

    # From the row axis towards the column axis is clockwise on the screen.
    return ndimage.rotate(
      images, self.degrees, axes=(1, 2), reshape=False, order=1
    )


@dataclasses.dataclass(frozen=True)
class _Resize:
  size: int
  channels: int

  def __call__(self, images):
    if images.shape[1:3] != (self.size, self.size):
      resize = transforms.resize(self.size, self.size)
      images = resize.apply({'image': images}, None)['image']
    if images.shape[-1] == self.channels:
      return images
    if self.channels == 3 and images.shape[-1] == 4:
      return images[..., :3]  # The fourth is how much one sees of it.
    if self.channels == 3:
      return np.repeat(images[..., :1], 3, axis=-1)
    grey = images[..., :3].mean(-1, keepdims=True)
    if np.issubdtype(images.dtype, np.integer):
      grey = np.rint(grey)
    return grey.astype(images.dtype)


@dataclasses.dataclass(frozen=True)
class _Mapped:
  source: sources.Source
  fn: Callable[[np.ndarray], np.ndarray]

  def __call__(self, indices):
    columns = self.source.read(indices)
    return {**columns, 'image': self.fn(columns['image'])}


def _mapped(source, fn, shape):
  return dataclasses.replace(
    source, reader=_Mapped(source, fn), image_shape=shape, encoded={}
  )


def _task(name, train, test, task, fn):
  parts = [_mapped(x, fn, x.image_shape) for x in (train, test)]
  return Task(name, *(with_task(x, task) for x in parts))


def of_classes(
  source: sources.Source, chosen: np.ndarray, *, relabel: bool
) -> sources.Source:
  """The rows of some classes, which are numbered anew where asked for."""
  labels = source.column('label')
  rows = np.flatnonzero(np.isin(labels, chosen))
  if not rows.size:
    raise types.InputError(
      f'{source.name} {source.split} has no row of the classes '
      f'{chosen.tolist()}.'
    )
  part = source.select(rows)
  if not relabel:
    return part
  place = np.zeros(source.num_classes or 0, np.int32)
  place[chosen] = np.arange(len(chosen))
  part = part.with_columns(label=place[labels[rows]])
  names = source.class_names
  return dataclasses.replace(
    part,
    num_classes=len(chosen),
    class_names=None if names is None else tuple(names[i] for i in chosen),
  )


def _fixed_shape(source):
  source.check_images()
  if source.image_shape is None:
    raise types.InputError(
      f'{source.name} has no images of one size: resize them '
      '(repjax.data.sets.tasks.resized).'
    )
  return source.image_shape
