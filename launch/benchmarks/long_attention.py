"""Attention over long sequences on a GPU in bfloat16, beside cuDNN's."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

from absl import logging

from launch.benchmarks import attention_speed
from launch.lib import benchmark_table


class Sizes(NamedTuple):
  """What attends.

  Attributes:
    lengths: Positions.
    heads: Of attention, batch 1.
    dim: Of a head.
    features: Of Performer; RFA draws half as many rows, a sine and a cosine of
      each.
    score_bytes: Exact attention by XLA keeps all scores in float32; lengths at
      which these are more bytes are left out.
    calls: Of a round.
  """

  lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536)
  heads: int = 12
  dim: int = 64
  features: int = 256
  score_bytes: int = 16 * 2**30
  calls: int = 10


def long_attention(rounds: int, sizes: Sizes | None = None) -> dict[str, Any]:
  """Milliseconds against length: exact attention, Performer and RFA.

  The exact forms are that by XLA, cuDNN's, and `attention.Flash`, which pads
  for it.

  'speed over cuDNN' is the time of cuDNN's fused exact attention, through
  `jax.nn.dot_product_attention`, over that of a form.
  """
  sizes = sizes or Sizes()
  result: dict[str, Any] = {}
  for causal in (False, True):
    forms = _forms(causal, sizes)
    for backward in (False, True):
      name = ('causal' if causal else 'bidirectional') + (
        ', forward and backward' if backward else ', forward'
      )
      logging.info('%s', name)
      result[name] = _against_length(forms, rounds, sizes, backward=backward)
  return result


def _forms(causal, sizes) -> dict[str, Callable[..., Any]]:
  import jax

  from repjax.layers import performer
  from repjax.layers import rfa
  from repjax.layers.attention import flash
  from repjax.layers.attention import softmax
  from repjax.layers.attention.linear import random_features

  def projection(rows):
    return random_features.draw_projection(
      jax.random.key(0), num_features=rows, dim=sizes.dim
    )

  of_performer = projection(sizes.features)
  of_rfa = projection(sizes.features // 2)
  exact = softmax.Softmax(causal=causal)
  fused = flash.Flash(causal=causal)

  def cudnn(q, k, v):
    return jax.nn.dot_product_attention(
      q, k, v, is_causal=causal, implementation='cudnn'
    )

  def gated(q, k, v):
    return rfa.rfa(q, k, v, of_rfa, causal=True, gate_logits=q.mean(-1) + 4.0)

  forms = {
    'exact, XLA': lambda q, k, v: exact(q, k, v),
    'exact, cuDNN': cudnn,
    'exact, Flash': lambda q, k, v: fused(q, k, v),
    'performer': lambda q, k, v: performer.favor(
      q, k, v, of_performer, causal=causal
    ),
    'rfa': lambda q, k, v: rfa.rfa(q, k, v, of_rfa, causal=causal),
  }
  return {**forms, 'gated rfa': gated} if causal else forms


def _against_length(forms, rounds, sizes, *, backward):
  milliseconds: dict[str, dict[int, Any]] = {name: {} for name in forms}
  for length in sizes.lengths:
    for name, form in forms.items():
      milliseconds[name][length] = _time(
        name, form, length, rounds, sizes, backward=backward
      )
    logging.info(
      '%7d: %s',
      length,
      ', '.join(f'{n} {_text(s[length])}' for n, s in milliseconds.items()),
    )
  result: dict[str, Any] = {f'{n}, ms': s for n, s in milliseconds.items()}
  cudnn = milliseconds['exact, cuDNN']
  for name, of_form in milliseconds.items():
    if name == 'exact, cuDNN':
      continue
    ratios = {
      length: cudnn[length] / of_form[length]
      for length in sizes.lengths
      if not isinstance(cudnn[length], str)
      and not isinstance(of_form[length], str)
    }
    if ratios:
      result[f'{name}, speed over cuDNN'] = ratios
  return result


def _time(name, form, length, rounds, sizes, *, backward):
  """Milliseconds of a call, or why there are none."""
  import jax.numpy as jnp

  scores = 4 * sizes.heads * length**2
  if name == 'exact, XLA' and scores > sizes.score_bytes:
    return f'not measured: scores of {scores / 2**30:.0f} GiB'
  try:
    call, _ = attention_speed.compile_attention(
      form,
      length,
      backward,
      heads=sizes.heads,
      dim=sizes.dim,
      dtype=jnp.bfloat16,
    )
    call()
    return 1e3 * min(call(sizes.calls) for _ in range(rounds))
  except (RuntimeError, ValueError, NotImplementedError) as error:
    if benchmark_table.is_full(error):
      return f'not measured: {benchmark_table.FULL}'
    if name != 'exact, cuDNN':  # Which is not there, or refuses the shape.
      raise
    return f'not measured: {str(error).splitlines()[0]}'


def _text(value):
  return value if isinstance(value, str) else f'{value:.2f} ms'
