"""Device code: how the stages of a network make their maps smaller.

By convolutions with strides, by spectral pooling (`layers.spectral_pooling`) or
by learnt strides (`layers.diffstride`). As in Riad et al., ICLR 2022, section
3.2 (https://arxiv.org/abs/2202.01653), a convolution whose stride goes to a
pooling keeps its places, and the pooling comes behind it. A network has one
field for it (`models.resnet`), and knows nothing of it but what `stages` gives.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
from typing import Literal

import jax

from repjax import types
from repjax.layers import diffstride
from repjax.layers import spectral_pooling
from repjax.types import InputError

Kind = Literal['strided', 'spectral', 'diffstride']
_KINDS = ('strided', 'spectral', 'diffstride')


@dataclasses.dataclass(frozen=True)
class Downsampling:
  """Of a whole network.

  Attributes:
    kind: 'strided' convolutions; 'spectral' pooling by fixed strides;
      'diffstride', whose strides are learnt.
    strides: Of each stage behind the first, whole numbers where 'strided';
      where 'diffstride' they are what learning starts from. () for the
      network's own, which are 2.
    smoothness: Of 'diffstride'; see `diffstride.DiffStride`.
    shared: Whether both axes have one learnt stride.
    sizes: Of 'diffstride': places that each stage keeps, 'initial' or 'full'.
    room: Of 'initial'; see `diffstride.DiffStride`.
    scale: 'amplitude' or 'public_code'.
    layout: 'centred' or 'public_code', of 'diffstride'.
  """

  kind: Kind = 'strided'
  strides: Sequence[float] = ()
  smoothness: float = 4.0
  shared: bool = False
  sizes: Sequence[Sequence[int]] | Literal['initial', 'full'] = 'initial'
  room: float = 1.0
  scale: spectral_pooling.Scale = 'amplitude'
  layout: spectral_pooling.Layout = 'centred'

  def stages(self, count: int) -> 'list[int | Pooling]':
    """Stride or pooling of each of so many stages; the first has stride 1.

    Raises:
      InputError: If numbers of strides or sizes do not fit.
    """
    types.check_choice('kind', self.kind, _KINDS)
    strides = tuple(self.strides) or (2,) * (count - 1)
    sizes: list[Sequence[int] | Literal['initial', 'full']]
    if isinstance(self.sizes, str):
      sizes = [self.sizes] * len(strides)
    else:
      sizes = [tuple(map(int, size)) for size in self.sizes]
    if len(strides) != count - 1 or len(sizes) != len(strides):
      raise InputError(
        f'A network of {count} stages has {count - 1} strides, of which each '
        f'may have a size; got strides={strides}, sizes={self.sizes}.'
      )
    types.check_range(
      '[1, inf)', **{f'strides {strides}': min(strides, default=1)}
    )
    if self.kind == 'strided':
      if any(stride != int(stride) for stride in strides):
        raise InputError(
          f'Convolutions have whole strides; got {strides}: round them, or '
          "take 'spectral' or 'diffstride'."
        )
      return [1, *map(int, strides)]
    return [
      1,
      *(
        Pooling(self, float(stride), size)
        for stride, size in zip(strides, sizes, strict=True)
      ),
    ]


@dataclasses.dataclass(frozen=True)
class Pooling:
  """Of one stage.

  Attributes:
    of: What it is one of.
    stride: Of both axes, or where both start.
    sizes: Places that are kept where strides are learnt.
  """

  of: Downsampling
  stride: float
  sizes: Sequence[int] | Literal['initial', 'full']

  def layer(self, name: str) -> Callable[[jax.Array], jax.Array]:
    """The pooling by a name, [B, H, W, C] -> [B, h, w, C]; call it twice."""
    if self.of.kind == 'spectral':
      return self._fixed
    return diffstride.DiffStride(
      strides=(self.stride, self.stride),
      smoothness=self.of.smoothness,
      shared=self.of.shared,
      sizes=self.sizes,
      room=self.of.room,
      scale=self.of.scale,
      layout=self.of.layout,
      name=name,
    )

  def _fixed(self, x):
    sizes = [
      spectral_pooling.pooled_size(length, self.stride)
      for length in x.shape[1:-1]
    ]
    return spectral_pooling.spectral_pooling(x, sizes, scale=self.of.scale)
