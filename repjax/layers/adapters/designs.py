"""The unified view of adapters: one table, and the adapters made from it.

He, Zhou, Ma, Berg-Kirkpatrick and Neubig, 'Towards a Unified View of
Parameter-Efficient Transfer Learning', ICLR 2022
(https://arxiv.org/abs/2110.04366). Every method adds a learned change dh to a
hidden vector h of a frozen network; four choices tell them apart (their table
1). `repjax.layers.adapters` puts adapters into networks.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any
from typing import Literal
from typing import NamedTuple

from repjax.types import InputError


class Design(NamedTuple):
  """What tells one method from another.

  Attributes:
    form: dh of a vector x: 'linear' is x Wdown Wup, 'relu' is relu(x Wdown)
      Wup, 'softmax' is softmax(x Wdown / sqrt(d)) Wup.
    insertion: 'parallel' takes x from where the layer takes its input,
      'sequential' takes x = h.
    representation: What h is. 'layer': the output of any layer. 'linear layer':
      the same, and the layer multiplies by a matrix, of which dh is a change of
      low rank. 'heads': what the heads of an attention give, side by side,
      before the output projection. 'head': the same, each head with its own
      matrices and with its query as x.
    composition: 'add' is h + dh, 'scaled' is h + s dh, 'gated' is
      (1 - g) h + g dh with the share g of the softmax that falls to dh.
  """

  form: Literal['linear', 'relu', 'softmax']
  insertion: Literal['parallel', 'sequential']
  representation: Literal['layer', 'linear layer', 'heads', 'head']
  composition: Literal['add', 'scaled', 'gated']


DESIGNS: Mapping[str, Design] = {
  'prefix': Design('softmax', 'parallel', 'head', 'gated'),
  'adapter': Design('relu', 'sequential', 'layer', 'add'),
  'lora': Design('linear', 'parallel', 'linear layer', 'scaled'),
  'parallel_adapter': Design('relu', 'parallel', 'layer', 'add'),
  'parallel_attention': Design('relu', 'parallel', 'heads', 'add'),
  'multi_head_parallel': Design('relu', 'parallel', 'head', 'add'),
  'scaled_parallel': Design('relu', 'parallel', 'layer', 'scaled'),
}


class Reparametrization(NamedTuple):
  """Makes prefixes from a smaller network (Li and Liang, 2021, sec. 4.3).

  https://arxiv.org/abs/2101.00190. An embedding [l, embedding_dim] goes through
  tanh of a dense layer, which all attentions of a rule share, and through a
  dense layer for each attention. Only the prefixes that come out are needed
  after training: `adapters.collapse`.

  Attributes:
    embedding_dim: The authors take the model's width.
    hidden_dim: The authors take 800.
  """

  embedding_dim: int
  hidden_dim: int = 800


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
  """A design with its sizes; the functions below make them.

  Attributes:
    name: Key of `DESIGNS`, and of the parameters beside those of the layer.
    size: Columns of Wdown: the rank r, or the length l of a prefix.
    scale: s.
    dropout_rate: Dropout on x, where the caller gives an rng 'dropout' and does
      not call with train=False or deterministic=True.
    layer_norm: Whether x is normalised first.
    reparametrization: Of a prefix.
  """

  name: str
  size: int
  scale: float = 1.0
  dropout_rate: float = 0.0
  layer_norm: bool = False
  reparametrization: Reparametrization | None = None

  def __post_init__(self):
    if isinstance(self.size, bool) or not isinstance(self.size, int):
      raise InputError(f'{self.name}: a rank or length is an int; got {self}')
    if self.size < 1:
      raise InputError(
        f'{self.name}: a rank or length is at least 1; got {self.size}'
      )
    if not (math.isfinite(self.scale) and self.scale > 0):
      raise InputError(f'{self.name}: Need scale > 0; got {self.scale}')
    if not 0 <= self.dropout_rate < 1:
      raise InputError(
        f'{self.name}: Need 0 <= dropout_rate < 1; got {self.dropout_rate}'
      )
    if self.reparametrization is not None and min(self.reparametrization) < 1:
      raise InputError(
        f'{self.name}: sizes are at least 1; got {self.reparametrization}'
      )

  @property
  def design(self) -> Design:
    """The row of the table."""
    return DESIGNS[self.name]


def lora(
  rank: int, *, alpha: float | None = None, dropout_rate: float = 0.0
) -> Adapter:
  """Low-rank change of a matrix (Hu et al., 'LoRA', ICLR 2022).

  https://arxiv.org/abs/2106.09685. For `nn.Dense`, `nn.DenseGeneral` and
  `nn.Conv`. Starts at the base network; `adapters.merge` adds it to weights.

  Args:
    rank: r.
    alpha: The change is scaled by alpha / r; None means alpha = r.
    dropout_rate: Dropout on what the change reads.
  """
  scale = 1.0 if alpha is None or rank < 1 else alpha / rank
  return Adapter(name='lora', size=rank, scale=scale, dropout_rate=dropout_rate)


def adapter(
  rank: int, *, layer_norm: bool = False, dropout_rate: float = 0.0
) -> Adapter:
  """Bottleneck after a layer (Houlsby et al., ICML 2019).

  Houlsby et al. (https://arxiv.org/abs/1902.00751) put one after attention and
  one after each MLP, Pfeiffer et al. (https://arxiv.org/abs/2005.00247) the
  latter. Starts at the base network.

  Args:
    rank: r.
    layer_norm: Whether the bottleneck reads a normalised output, as in the
      authors' code after attention.
    dropout_rate: Dropout on what it reads.
  """
  return Adapter(
    name='adapter',
    size=rank,
    layer_norm=layer_norm,
    dropout_rate=dropout_rate,
  )


def parallel_adapter(
  rank: int, *, scale: float = 1.0, dropout_rate: float = 0.0
) -> Adapter:
  """Bottleneck beside a layer (He et al., 2022, sec. 3.3).

  Reads what the layer reads. The scaled one has s = 4 for summarisation and
  translation and s = 2 for GLUE in the authors' code. Starts at the base
  network.

  Args:
    rank: r.
    scale: s; it multiplies the bias of the second layer, too.
    dropout_rate: Dropout on what it reads.
  """
  return Adapter(
    name='parallel_adapter' if scale == 1 else 'scaled_parallel',
    size=rank,
    scale=scale,
    dropout_rate=dropout_rate,
  )


def parallel_attention(rank: int, *, dropout_rate: float = 0.0) -> Adapter:
  """Bottleneck beside an attention, added before its output projection.

  This is where the authors' code adds it. For modules with an `attention_fn`.
  Starts at the base network.
  """
  return Adapter(
    name='parallel_attention', size=rank, dropout_rate=dropout_rate
  )


def multi_head_parallel(rank: int) -> Adapter:
  """One bottleneck a head, relu(q Pk') Pv (He et al., 2022, sec. 3.3).

  As a prefix, with relu for softmax and a sum for the gate; queries are not
  scaled. It has as many weights as `parallel_attention` of equal rank. For
  modules with an `attention_fn`. Starts at the base network.
  """
  return Adapter(name='multi_head_parallel', size=rank)


def prefix(
  length: int, *, reparametrization: Reparametrization | None = None
) -> Adapter:
  """Learned keys and values before those of an attention.

  For modules with an `attention_fn`. Does NOT start at the base network, and
  cannot: l keys of any value take a share of the softmax (`adapters.gate`), at
  first about l / (l + number of keys) of it. Keys and values start small
  (normal, 0.02), or as the reparametrization makes them.

  Args:
    length: l.
    reparametrization: How keys and values are made while training; None trains
      them directly.
  """
  return Adapter(
    name='prefix', size=length, reparametrization=reparametrization
  )


def mam(
  *,
  attention: Any,
  ffn: Any,
  length: int = 30,
  rank: int = 512,
  scale: float = 4.0,
  reparametrization: Reparametrization | None = None,
) -> dict[Any, Adapter]:
  """The mix-and-match adapter (He et al., 2022, sec. 4.6) as rules of `adapt`.

  A short prefix for attention, which is good at small sizes, and a large scaled
  parallel adapter for the MLP, which makes better use of parameters.

  Args:
    attention: Rule that selects attentions.
    ffn: Rule that selects MLPs.
    length: Of the prefixes.
    rank: Of the parallel adapters.
    scale: s; the authors' code has 4 for XSum and translation, 2 for GLUE.
    reparametrization: Of the prefixes.
  """
  return {
    attention: prefix(length, reparametrization=reparametrization),
    ffn: parallel_adapter(rank, scale=scale),
  }
