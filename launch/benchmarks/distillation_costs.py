"""Time of a step of EsViT against the passes that it is made of."""

import time
from typing import Any

import numpy as np

from launch.lib import timing

# A small Swin on rows like CIFAR's; two large views and eight small ones.
_ROWS, _SIDE, _LOCAL, _NUM_LOCAL = 8, 32, 16, 8
_PROTOTYPES = 1024


def esvit(rounds: int) -> dict[str, Any]:
  """A step over the sum of its passes, on views of the same sizes.

  The passes: forward and backward of the student on all views, and a forward
  pass of the teacher on the large ones. The step also makes the views, has
  heads, both losses and the optimizer. Memory is that of the region loss of one
  pair of views, in chunks over at once; flops and memory are XLA's counts.
  """
  import jax
  import jax.numpy as jnp
  import optax

  from repjax.methods import esvit as method
  from repjax.methods import multi_crop
  from repjax.models import swin

  rng = np.random.default_rng(0)
  batch = {
    'image': rng.normal(size=(_ROWS, _SIDE, _SIDE, 3)).astype(np.float32),
    'mask': np.ones(_ROWS, np.float32),
  }
  model = swin.Swin(
    2,
    hidden_dim=48,
    depths=(2, 2, 2),
    num_heads=(3, 6, 12),
    patch_size=2,
    window=4,
  )
  crops = multi_crop.MultiCrop(
    size=_SIDE, local_size=_LOCAL, num_local=_NUM_LOCAL
  )
  whole = timing.Bare(
    method.make(
      model,
      optax.adamw(1e-3),
      crops=crops,
      num_prototypes=_PROTOTYPES,
      hidden_dim=256,
      dim=128,
    ),
    batch,
  )

  def draw(number, side):
    x = rng.normal(size=(number * _ROWS, side, side, 3))
    return jnp.asarray(x, jnp.float32)

  large, small = draw(2, _SIDE), draw(_NUM_LOCAL, _LOCAL)

  def encode(params, image, train):
    return model.apply({'params': params}, image, train=train, method='encode')

  def squares(params):
    views = [encode(params, x, True) for x in (large, small)]
    return sum(jnp.square(x).mean() for x in views)

  params = jax.jit(
    lambda key: model.init(key, large[:1], train=False, method='encode')
  )(jax.random.key(0))['params']
  student: Any = jax.jit(jax.grad(squares)).lower(params).compile()
  teacher: Any = (
    jax.jit(lambda params: encode(params, large, False)).lower(params).compile()
  )

  def passes(steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
      found = student(params), teacher(params)
    jax.block_until_ready(found)
    return time.perf_counter() - start

  flops = sum(x.cost_analysis()['flops'] for x in (student, teacher))
  return {
    'step over the sum of its passes, time': timing.alternate(
      rounds, lambda: whole.run(1), lambda: passes(1)
    ),
    'step over the sum of its passes, flops': whole.flops / flops,
    'region loss in chunks over at once, temporary memory': _region_memory(64)
    / _region_memory(_REGIONS),
  }


_REGIONS = 16 * 49


def _region_memory(chunk: int) -> int:
  """Bytes of the backward pass of the region loss of 16 rows of 49 regions."""
  import jax
  import jax.numpy as jnp

  from repjax.methods import self_distillation

  shape = jax.ShapeDtypeStruct((16, 49, 64), jnp.float32)
  kernel = jax.ShapeDtypeStruct((64, 8192), jnp.float32)

  def loss(student, student_kernel, teacher, teacher_kernel):
    return self_distillation.region_loss(
      student,
      student_kernel,
      teacher,
      teacher_kernel,
      jnp.zeros((16, 49), jnp.int32),
      jnp.zeros(8192),
      student_temperature=0.1,
      teacher_temperature=0.04,
      chunk=chunk,
    ).sum()

  compiled: Any = (
    jax.jit(jax.grad(loss, (0, 1)))
    .lower(shape, kernel, shape, kernel)
    .compile()
  )
  return compiled.memory_analysis().temp_size_in_bytes
