"""Speed of training: loop, SAM, input, gradients of tasks, PyTorch's ViT."""

import functools
import itertools
import time
from typing import Any

from absl import logging
import numpy as np

from launch.lib import recipes
from launch.lib import timing
from repjax import types

# The geometry of the `small` ViT on its data.
_BATCH_SIZE = 64
_RHO = 0.05


def _experiment(
  rho: float | None,
  batch_size: int = _BATCH_SIZE,
  optimizer: types.Optimizer | None = None,
) -> types.Experiment:
  """The `small` ViT with this radius of SAM, 0 for none, None for its own.

  Its optimizer is AdamW, unless told.
  """
  module = recipes.load_config_module(recipes.own_recipe('configs/vit.py'))
  config = module.get_config('small')
  config.batch_size = batch_size
  if rho is not None:
    config.sam.rho = rho
  return module.build(config, *([] if optimizer is None else [optimizer]))


def training_loop(rounds: int) -> dict[str, float]:
  """`loop.fit`, its input pipeline and progress line against the bare step.

  A round is 25 pairs of ten steps of the ViT, and of 200 of a network that is
  so small that most of a step is what comes before it, so that both sides meet
  the same load; CPU time does not count what other machines of the host take.
  """
  vit = {'as launched': _experiment(None), 'without SAM': _experiment(0.0)}
  forms = {name: (x.method, x.train, 10) for name, x in vit.items()}
  tiny = _experiment(0.0, batch_size=32).train
  forms['MLP of 9,610 parameters, batch 32'] = (_tiny_method(), tiny, 200)
  return {
    f'{name}, {what}': value
    for name, form in forms.items()
    for what, value in _fit_over_bare(*form, pairs=25 * rounds).items()
  }


def _tiny_method() -> types.Method:
  import optax

  from repjax.methods import supervised
  from repjax.models import mlp

  return supervised.make(mlp.Mlp(10, features=(128,)), optax.adamw(1e-3))


def _fit_over_bare(
  method: types.Method, train: types.Batches, steps: int, *, pairs: int
):
  import jax

  from repjax import loop

  bare = timing.Bare(method, train.batch(0))
  bare.run(steps)
  wall, cpu = [], []

  class Alternate:
    """After every `steps` steps of `fit`, times as many bare ones."""

    def __init__(self):
      self._start = None

    def __call__(self, step, state, sums):
      if step % steps:
        return
      jax.block_until_ready((state, sums))
      now = _clocks()
      if self._start is not None:
        fit = now - self._start
        bare.run(steps)
        ratio = (_clocks() - now) / fit
        wall.append(ratio[0])
        cpu.append(ratio[1])
      self._start = _clocks()

  total = (pairs + 1) * steps
  progress = loop.Progress(
    every=2 * steps,
    steps=total,
    batch_size=round(train.expected_rows),
    write=lambda step, values: None,
  )
  loop.fit(
    method,
    train.iterate,
    steps=total,
    seed=0,
    hooks=(progress, Alternate()),
  )
  quartiles = np.quantile(wall, (0.25, 0.75))
  logging.info('%d pairs, quartiles %.3f and %.3f', pairs, *quartiles)
  return {
    'throughput of fit over bare step': float(np.median(wall)),
    'CPU time of fit over bare step': float(1 / np.median(cpu)),
  }


def _clocks():
  return np.array([time.perf_counter(), time.process_time()])


def sam(rounds: int) -> dict[str, float]:
  """A step with SAM against the same step without, and optax.contrib's SAM."""
  plain, sam, peer = (
    timing.Bare(e.method, e.train.batch(0))
    for e in (
      _experiment(0.0),
      _experiment(_RHO),
      _experiment(0.0, optimizer=_sam_of_optax),
    )
  )
  times = timing.alternate(rounds, lambda: sam.run(20), lambda: plain.run(20))
  return {
    'time_of_sam_over_plain_step': times,
    'flops_of_sam_over_plain_step': sam.flops / plain.flops,
    'temporary_memory_of_sam_over_plain_step': sam.temporary_bytes
    / plain.temporary_bytes,
    'time of sam over that of optax.contrib': timing.alternate(
      rounds, lambda: sam.run(20), lambda: peer.run(20)
    ),
    'flops of sam over those of optax.contrib': sam.flops / peer.flops,
  }


def _sam_of_optax(*args, **kwargs):
  """AdamW behind optax's SAM, whose climb is a step of normalised SGD."""
  import optax
  from optax import contrib

  peer = contrib.sam(
    optax.adamw(*args, **kwargs),
    optax.chain(contrib.normalize(), optax.sgd(_RHO)),
    opaque_mode=True,
  )

  def update_fn(updates, state, params=None, *, grad_fn=None, **extra):
    del extra
    return peer.update(
      updates, state, params, grad_fn=lambda params, _: grad_fn(params)[0]
    )

  return optax.GradientTransformationExtraArgs(peer.init, update_fn)


def input_pipeline(rounds: int) -> dict[str, float]:
  """Rows a second of 32 x 32 images, cropped, flipped and normalised."""
  from repjax.data.batches import in_order
  from repjax.data.images import transforms
  from repjax.data.reading import source

  rng = np.random.default_rng(0)
  rows = source.from_arrays(
    'random',
    {
      'image': rng.integers(0, 256, (20_000, 32, 32, 3), np.uint8),
      'label': rng.integers(0, 10, 20_000),
    },
    num_classes=10,
  )
  augment = transforms.compose(
    transforms.random_crop(4),
    transforms.random_flip(),
    transforms.normalise(mean=(0.5,) * 3, std=(0.25,) * 3),
  )
  rates = []
  for _ in range(rounds):
    stream: Any = in_order.train_batches(
      rows, batch_size=128, seed=0, transform=augment
    ).iterate(0)
    next(stream)
    start = time.perf_counter()
    for _ in itertools.islice(stream, 200):
      pass
    rates.append(200 * 128 / (time.perf_counter() - start))
    stream.close()
  return {'rows_per_second': float(np.median(rates))}


def task_gradients(rounds: int) -> dict[str, float]:
  """Gradients of tasks: backward passes side by side over one after another.

  Of a ViT like `small`, 64 rows of T tasks; `grad_fn.per_task` chooses the
  first form up to 4 tasks.
  """
  from repjax.methods import supervised
  from repjax.models import vit

  rng = np.random.default_rng(0)
  model = vit.ViT(
    10, patch_size=7, hidden_dim=96, mlp_dim=192, num_heads=4, num_layers=4
  )
  batch = {
    'image': rng.normal(size=(64, 28, 28, 1)).astype(np.float32),
    'label': rng.integers(0, 10, 64).astype(np.int32),
    'mask': np.ones(64, np.float32),
  }
  result = {}
  for num_tasks in (2, 4, 8, 16):
    batch['task'] = np.arange(64, dtype=np.int32) % num_tasks
    vectorized, scanned = (
      timing.Bare(supervised.make(model, _per_task(num_tasks, how)), batch)
      for how in ('vectorized', 'scanned')
    )
    result[f'{num_tasks} tasks, temporary memory'] = (
      vectorized.temporary_bytes / scanned.temporary_bytes
    )
    result[f'{num_tasks} tasks, time'] = timing.alternate(
      rounds,
      functools.partial(vectorized.run, 5),
      functools.partial(scanned.run, 5),
    )
  return result


def _per_task(num_tasks, how):
  """SGD on the mean of the gradients of all tasks."""
  import jax
  import optax

  def update_fn(updates, state, params=None, *, grad_fn=None, **extra):
    del updates, extra
    grads, _, _ = grad_fn.per_task(params, num_tasks, how=how)
    return jax.tree.map(lambda x: x.mean(0), grads), state

  link = optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(), update_fn
  )
  return optax.chain(link, optax.sgd(1e-2))


def against_torch(rounds: int) -> dict[str, float | str]:
  """A training step of ViT against PyTorch's on the same geometry."""
  try:
    import torch
    import transformers
  except ImportError:
    return {'skipped': 'needs pip install -e ".[parity]"'}
  import jax
  import optax

  from repjax.methods import supervised
  from repjax.models import vit

  if jax.default_backend() != 'cpu':
    return {
      'skipped': 'PyTorch would run on the CPU here: --platform=gpu --only=vit '
      'has both on the card'
    }
  vit_config: Any = transformers.ViTConfig  # Its type lacks `num_labels`.
  result: dict[str, float | str] = {}
  shapes = {
    'small (17 tokens, width 96, 4 layers, batch 64)': (
      *(28, 7, 1),
      *(96, 192, 4, 4, 64),
    ),
    'S/16 at 224, 2 layers, batch 8': (224, 16, 3, 384, 1536, 6, 2, 8),
  }
  for name, shape in shapes.items():
    size, patch, channels, width, mlp, heads, layers, rows = shape
    rng = np.random.default_rng(0)
    image = rng.normal(size=(rows, size, size, channels)).astype(np.float32)
    label = rng.integers(0, 10, rows).astype(np.int32)
    model = vit.ViT(
      10,
      patch_size=patch,
      hidden_dim=width,
      mlp_dim=mlp,
      num_heads=heads,
      num_layers=layers,
    )
    ours = timing.Bare(
      supervised.make(model, optax.adamw(1e-3)),
      {'image': image, 'label': label, 'mask': np.ones(rows, np.float32)},
    )
    peer = transformers.ViTForImageClassification(
      vit_config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
        image_size=size,
        patch_size=patch,
        num_channels=channels,
        hidden_act='gelu_pytorch_tanh',
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=10,
      )
    )
    adamw = torch.optim.AdamW(peer.parameters(), lr=1e-3)
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(label.astype(np.int64))

    def theirs(peer=peer, adamw=adamw, pixels=pixels, labels=labels, n=10):
      start = time.perf_counter()
      for _ in range(n):
        adamw.zero_grad()
        peer(pixel_values=pixels, labels=labels).loss.backward()
        adamw.step()
      return time.perf_counter() - start

    result[f'speed over PyTorch, {name}'] = timing.alternate(
      rounds, theirs, functools.partial(ours.run, 10)
    )
  return result
