"""Images a second of a ViT's training on a GPU, beside PyTorch's."""

import functools
from typing import Any
from typing import NamedTuple

from absl import logging
import numpy as np

from launch.lib import cards
from launch.lib import peers
from launch.lib import timing

# What is measured beside the form of the preset `paper`: name -> fields.
_OTHERS = {
  'attention by plain products': dict(fused=False),
  'blocks as one loop': dict(scan_layers=True),
}


class Sizes(NamedTuple):
  """A ViT and a batch; the defaults are B/16 at 224.

  Attributes:
    image: Pixels of a side.
    patch: Of a patch's side.
    width: Of tokens.
    mlp: Of the hidden layer of blocks.
    heads: Of attention.
    layers: Blocks.
    classes: Of the head.
    batch_size: Images.
    steps: Of a round.
    product: Of the product that measures a card of unknown peak.
  """

  image: int = 224
  patch: int = 16
  width: int = 768
  mlp: int = 3072
  heads: int = 12
  layers: int = 12
  classes: int = 1000
  batch_size: int = 256
  steps: int = 20
  product: int = 8192


def training_flops(sizes: Sizes) -> int:
  """Of an image's step: products of the forward pass, three times.

  A product of [m, k] and [k, n] has 2 m k n; norms, softmax and the optimizer
  count for nothing, so that a share of a peak cannot flatter who does more of
  them.
  """
  patches = (sizes.image // sizes.patch) ** 2
  tokens = patches + 1
  block = tokens * (
    4 * sizes.width**2 + 2 * tokens * sizes.width + 2 * sizes.width * sizes.mlp
  )
  multiplications = (
    patches * 3 * sizes.patch**2 * sizes.width
    + sizes.layers * block
    + sizes.width * sizes.classes
  )
  return 3 * 2 * multiplications


def vit_throughput(rounds: int, sizes: Sizes | None = None) -> dict[str, Any]:
  """Steps of AdamW in bfloat16 with parameters in float32; the best round.

  The form is that of the preset `paper` of `configs/vit.py`, with fused
  attention; beside it stand attention by plain products, blocks as one loop,
  and timm, eager and by `torch.compile`, or `transformers` where timm is not
  installed.
  """
  sizes = sizes or Sizes()
  theirs = _peers(rounds, sizes)
  card = cards.this(sizes.product)
  rate, step, compiling = _rate(rounds, sizes)
  tflops = rate * training_flops(sizes) / 1e12
  logging.info('%.1f images/s, %.1f TFLOP/s', rate, tflops)
  result: dict[str, Any] = {
    'images/s': rate,
    'TFLOP/s': tflops,
    "share of the card's bf16 peak": card.share(tflops),
    'temporary GiB': step.temporary_bytes / 2**30,
    'seconds to build and compile': compiling,
  }
  for name, fields in _OTHERS.items():
    result[f'speed over {name}'] = rate / _rate(rounds, sizes, **fields)[0]
  for name, numbers in theirs.items():
    result[name] = numbers
    if isinstance(numbers, str):
      continue
    for form in ('eager', 'torch.compile'):
      if f'{form}, images/s' in numbers:
        result[f'speed over {name}, {form}'] = (
          rate / numbers[f'{form}, images/s']
        )
  return result


def _rate(rounds, sizes, **fields):
  """(images a second, the compiled step, seconds to build and compile)."""
  method, batch = training(sizes, **fields)
  step, compiling = timing.compiling(lambda: timing.Bare(method, batch))
  step.run(1)
  seconds = min(step.run(sizes.steps) / sizes.steps for _ in range(rounds))
  return sizes.batch_size / seconds, step, compiling


def _peers(rounds, sizes):
  run = functools.partial(peers.run, 'torch_vit')
  settings = dict(sizes=sizes._asdict(), rounds=rounds)
  result = {}
  result['timm'] = run(
    dict(settings, library='timm', forms=('eager', 'torch.compile')),
    needs=('torch', 'timm'),
  )
  if isinstance(result['timm'], str):
    result['transformers'] = run(
      dict(settings, library='transformers', forms=('eager',)),
      needs=('torch', 'transformers'),
    )
  return {
    name: x if isinstance(x, str) else {**x, 'measured in': peers.HOW}
    for name, x in result.items()
  }


def training(sizes: Sizes, **fields: Any) -> tuple[Any, dict[str, np.ndarray]]:
  """(method, batch) of `model` and AdamW."""
  import optax

  from repjax.methods import supervised

  rng = np.random.default_rng(0)
  rows, side = sizes.batch_size, sizes.image
  batch = {
    'image': rng.normal(size=(rows, side, side, 3)).astype(np.float32),
    'label': rng.integers(0, sizes.classes, rows).astype(np.int32),
    'mask': np.ones(rows, np.float32),
  }
  return supervised.make(model(sizes, **fields), optax.adamw(1e-3)), batch


def model(
  sizes: Sizes, *, fused: bool = True, scan_layers: bool = False
) -> Any:
  """A ViT of these sizes in bfloat16, by fused attention where that can be."""
  import jax.numpy as jnp

  from repjax.layers import attention
  from repjax.models import vit

  return vit.ViT(
    sizes.classes,
    patch_size=sizes.patch,
    hidden_dim=sizes.width,
    mlp_dim=sizes.mlp,
    num_heads=sizes.heads,
    num_layers=sizes.layers,
    attention_fn=attention.Flash() if fused else attention.Softmax(),
    scan_layers=scan_layers,
    dtype=jnp.bfloat16,
  )
