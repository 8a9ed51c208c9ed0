"""Speed and memory of attention: linear against exact, whole and decoding."""

from collections.abc import Callable
from collections.abc import Mapping
import importlib.util
import pathlib
import time
from typing import Any

from absl import flags
from absl import logging
import numpy as np

from repjax import types

_PEER = flags.DEFINE_string(
  'favor_peer',
  '',
  "File of google-research's performer/fast_attention/jax/fast_attention.py, "
  'to time it beside ours.',
)
_LONGEST = flags.DEFINE_integer(
  'longest', 65_536, 'Longest sequence of the attention benchmark.', 4096
)

_HEADS, _DIM, _FEATURES = 4, 64, 256
# Of a whole model's decoding.
_MODEL_STEPS = 128
# Exact attention beyond that needs gigabytes for its scores.
_LONGEST_EXACT = 8192


def attention(rounds: int) -> dict[str, Any]:
  """Time and memory against length, batch 1, 4 heads of 64, 256 features.

  'exponent' is the slope of log time against log length from 1,024 on;
  'crossover' the shortest power of two from which on linear is faster.
  """
  import jax

  from repjax.layers import performer
  from repjax.layers.attention import softmax
  from repjax.layers.attention.linear import random_features

  projection = random_features.draw_projection(
    jax.random.key(0), num_features=_FEATURES, dim=_DIM
  )
  result = {}
  for causal in (False, True):
    exact = softmax.Softmax(causal=causal)
    forms = {
      'performer': lambda q, k, v, causal=causal: performer.favor(
        q, k, v, projection, causal=causal
      ),
      'exact': lambda q, k, v, exact=exact: exact(q, k, v),
    }
    if _PEER.value:
      forms['public FAVOR+'] = _peer(causal)
    for backward in (False, True):
      name = ('causal' if causal else 'bidirectional') + (
        ', forward and backward' if backward else ', forward'
      )
      logging.info('%s', name)
      result[name] = _against_length(forms, rounds, backward=backward)
  return result


def _peer(causal):
  file = pathlib.Path(_PEER.value)
  if not file.is_file():
    raise types.InputError(f'--favor_peer={file}: there is no such file.')
  spec = importlib.util.spec_from_file_location('fast_attention', file)
  if spec is None or spec.loader is None:
    raise types.InputError(f'--favor_peer={file} is no file of Python.')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except ImportError as error:
    raise types.InputError(
      f'--favor_peer={file}: {error}: install what it imports (gin is '
      'gin-config).'
    ) from error
  return module.make_fast_softmax_attention(
    _DIM, nb_features=_FEATURES, unidirectional=causal, redraw_features=False
  )


def _against_length(forms, rounds, *, backward):
  lengths = [2**i for i in range(8, _LONGEST.value.bit_length())]
  seconds = {name: {} for name in forms}
  memory = {}
  for length in lengths:
    compiled = {}
    for name, form in forms.items():
      if name == 'exact' and length > _LONGEST_EXACT:
        continue
      compiled[name], temporary = compile_attention(form, length, backward)
      if name == 'performer':
        memory[length] = temporary
    for name, call in compiled.items():
      call()
      seconds[name][length] = float('inf')
    # In turn, and the best of all rounds: what disturbs only adds. Short calls
    # suffer most from it and cost least.
    slowest = max(call() for call in compiled.values())
    for _ in range(rounds * int(np.clip(0.5 / slowest, 1, 20))):
      for name, call in compiled.items():
        seconds[name][length] = min(seconds[name][length], call())
    logging.info(
      '  %6d: %s',
      length,
      ', '.join(
        f'{n} {s[length] * 1e3:.1f} ms'
        for n, s in seconds.items()
        if length in s
      ),
    )
  linear = seconds['performer']
  ratios = {n: seconds['exact'][n] / linear[n] for n in seconds['exact']}
  numbers = {
    'exponent': slope({n: t for n, t in linear.items() if n >= 1024}),
    'exponent of temporary memory': slope(
      {n: m for n, m in memory.items() if n >= 1024}
    ),
    'temporary bytes a position': memory[lengths[-1]] / lengths[-1],
    'bytes a position of [L, heads, features, size]': 4
    * _HEADS
    * _FEATURES
    * _DIM,
    'exact over performer': ratios,
    'crossover': crossover(ratios),
  }
  if 'public FAVOR+' in seconds:
    numbers['public FAVOR+ over performer'] = {
      n: seconds['public FAVOR+'][n] / linear[n] for n in linear
    }
  return numbers


def crossover(ratios: Mapping[int, float]) -> int | str:
  """The shortest length from which on a form is faster than another.

  Args:
    ratios: Length -> the other's time over its own; lengths double.
  """
  slower = [n for n, ratio in ratios.items() if ratio < 1]
  if not slower:
    return f'below {min(ratios)}'
  if max(slower) == max(ratios):
    return f'beyond {max(ratios)}'
  return 2 * max(slower)


def compile_attention(
  form,
  length: int,
  backward: bool,
  *,
  heads: int = _HEADS,
  dim: int = _DIM,
  dtype: Any = np.float32,
) -> tuple[Callable[..., float], int]:
  """(seconds of a call, temporary bytes) of attention on random inputs.

  The first takes how many calls follow each other, 1 unless told.
  """
  import jax

  rng = np.random.default_rng(0)
  inputs = [
    (0.5 * rng.normal(size=(1, length, heads, dim))).astype(dtype)
    for _ in range(3)
  ]
  inputs = jax.device_put(inputs)
  run = form
  if backward:
    run = jax.grad(lambda *x: (form(*x) ** 2).sum(), argnums=(0, 1, 2))
  return _compiled(run, *inputs)


def slope(values) -> float:
  """Of the logarithm of values, length -> number, against that of length."""
  x, y = np.log(list(values)), np.log(list(values.values()))
  return float(np.polyfit(x, y, 1)[0])


def decoding(rounds: int) -> dict[str, Any]:
  """Generating 2,048 tokens: exact attention with its cache against RFA.

  'attention' is one layer's, 8 heads of 64 and 64 random features; 'model' a
  language model of 4 such layers over bytes, of which 128 steps are timed: all
  cost the same, since the cache has its whole length from the first.
  """
  import jax

  from repjax.layers import rfa
  from repjax.layers.attention import softmax

  length = 2048
  forms = {
    'exact': softmax.Softmax(causal=True),
    'rfa': rfa.Rfa(causal=True, redraw_every=0),
    'gated rfa': rfa.Rfa(causal=True, gate='learned', redraw_every=0),
  }
  result = {}
  for batch_size in (32, 1):
    for name, make in (('attention', _decode_layer), ('model', _decode_model)):
      runs = {}
      for form, attention_fn in forms.items():
        runs[form], state_bytes = make(attention_fn, batch_size, length)
        result[f'{form}, state bytes a row and layer'] = (
          state_bytes / batch_size / (4 if name == 'model' else 1)
        )
      steps = _MODEL_STEPS if name == 'model' else length
      best = {form: float('inf') for form in runs}
      for _ in range(max(1, rounds // 3)):
        for form, call in runs.items():
          best[form] = min(best[form], call())
      logging.info('batch %d, %s: %s', batch_size, name, best)
      for form, seconds in best.items():
        key = f'batch {batch_size}, {name}, {form}'
        result[f'{key}, tokens a second'] = batch_size * steps / seconds
        if form != 'exact':
          result[f'{key}, speed over exact'] = best['exact'] / seconds
  for form in ('rfa', 'gated rfa'):
    name = 'state bytes a row and layer'
    result[f'{form}, {name}, over exact'] = (
      result[f'{form}, {name}'] / result[f'exact, {name}']
    )
  jax.clear_caches()
  return result


def _decode_layer(attention_fn, batch_size, length):
  """(seconds of `length` tokens through one attention, state bytes)."""
  import flax.linen as nn
  import jax

  heads, dim = 8, 64

  class Layer(nn.Module):
    @nn.compact
    def __call__(self, state, token):
      return attention_fn.step(state, token, token, token)

  layer = Layer()
  state = attention_fn.init_state(
    batch_size=batch_size,
    max_length=length,
    num_heads=heads,
    head_dim=dim,
    value_dim=dim,
    dtype=np.float32,
  )
  tokens = jax.random.normal(
    jax.random.key(0), (length, batch_size, 1, heads, dim)
  )
  variables = layer.init(jax.random.key(0), state, tokens[0])

  def decode(state, tokens):
    def one(state, token):
      output, state = layer.apply(variables, state, token)
      return state, output.mean()

    return jax.lax.scan(one, state, tokens)[1]

  return _compiled(decode, state, tokens)[0], _bytes(state)


def _decode_model(attention_fn, batch_size, length):
  """(seconds, state bytes) of a language model that reads its own tokens."""
  import jax
  import jax.numpy as jnp

  from repjax.models import transformer

  model = transformer.DecoderLM(
    259,
    hidden_dim=512,
    mlp_dim=2048,
    num_heads=8,
    num_layers=4,
    position='rotary',
    attention_fn=attention_fn,
  )
  start = jnp.ones((batch_size, 1), jnp.int32)
  variables = model.init(jax.random.key(0), start, train=False)
  _, state = model.apply(
    variables, start, max_length=length + 1, method='prefill'
  )

  def decode(state, token):
    def one(carry, _):
      state, token = carry
      logits, state = model.apply(variables, state, token, method='step')
      return (state, logits.argmax(-1)), ()

    return jax.lax.scan(one, (state, token), length=_MODEL_STEPS)[0][1]

  return _compiled(decode, state, start[:, 0])[0], _bytes(state)


def _compiled(fn, *args) -> tuple[Callable[..., float], int]:
  """(seconds of a call, its temporary bytes)."""
  import jax

  compiled = jax.jit(fn).lower(*args).compile()
  memory: Any = compiled.memory_analysis()

  def call(repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
      output = compiled(*args)
    jax.block_until_ready(output)
    return (time.perf_counter() - start) / repeats

  return call, memory.temp_size_in_bytes


def _bytes(state) -> int:
  import jax

  return sum(x.nbytes for x in jax.tree.leaves(state))
