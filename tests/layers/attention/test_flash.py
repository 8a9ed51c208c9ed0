"""The fused form computes what the plain one does, and says which one runs."""

import functools

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repjax import types
from repjax.layers import attention
from repjax.layers.attention import flash

H100 = flash.Device('gpu', (9, 0))


def shape(*sizes, dtype=jnp.bfloat16):
  return jax.ShapeDtypeStruct(sizes, dtype)


def chosen(device, length=196, dim=64, values=None, dtype=jnp.bfloat16, **how):
  one = shape(2, length, 3, dim, dtype=dtype)
  value = shape(2, length, 3, values or dim, dtype=dtype)
  return flash.plan(device, one, one, value, **how)


@pytest.mark.parametrize(
  ('device', 'case', 'form', 'why'),
  [
    (H100, {}, 'cudnn', '196 positions padded to 256'),
    (H100, dict(length=1024), 'cudnn', '1024 positions'),
    (H100, dict(dim=256, dtype=jnp.float16), 'cudnn', 'padded'),
    (H100, dict(dtype=jnp.float32), 'softmax', 'float32'),
    (H100, dict(dim=4), 'softmax', 'heads of 4'),
    (H100, dict(dim=264), 'softmax', 'up to 256'),
    (H100, dict(values=32), 'softmax', 'values of 32'),
    (H100, dict(drops=True), 'softmax', 'dropped'),
    (H100, dict(shows=True), 'softmax', 'shown'),
    (H100, dict(precision='default'), 'cudnn', 'padded'),
    (H100, dict(precision='highest'), 'softmax', "precision='highest'"),
    (flash.Device('gpu', (8, 0)), {}, 'cudnn', 'padded'),
    (flash.Device('gpu', (8, 0)), dict(dim=256), 'softmax', 'up to 128'),
    (flash.Device('gpu', (7, 5)), {}, 'softmax', 'no NVIDIA GPU'),
    (flash.Device('gpu'), {}, 'softmax', 'no NVIDIA GPU'),
    (flash.Device('cpu'), {}, 'softmax', 'no NVIDIA GPU'),
    (flash.Device('tpu'), {}, 'softmax', 'no NVIDIA GPU'),
  ],
)
def test_the_fused_form_is_chosen_where_it_computes_the_same(
  device, case, form, why
):
  found = chosen(device, **case)
  assert found.form == form
  assert why in found.why
  assert str(found).startswith('exact attention by ')


def test_both_lengths_are_said():
  one, other = shape(2, 64, 3, 8), shape(2, 65, 3, 8)
  found = flash.plan(H100, one, other, other)
  assert found.why == '64 positions and 65 positions padded to 128'


def inputs(batch, queries, keys, dtype=np.float32):
  rng = np.random.default_rng(0)
  sizes = (*batch, queries, 2, 8), (*batch, keys, 2, 8), (*batch, keys, 2, 8)
  return [jnp.asarray(rng.normal(size=x).astype(dtype)) for x in sizes]


def sees_something(mask):
  mask[..., 0] = True
  return mask


CASES = {
  'plain': ((2,), 70, 130, {}),
  'full': ((2,), 64, 128, {}),
  'flat': ((), 5, 9, {'mask': (1, 1, 9)}),
  'deep': ((2, 3), 5, 9, {'bias': (2, 5, 9), 'mask': (2, 3, 1, 1, 9)}),
  'keys': ((2,), 70, 70, {'mask': (2, 1, 1, 70)}),
  'pairs': ((2,), 70, 70, {'mask': (2, 2, 70, 70), 'bias': (1, 2, 70, 70)}),
  'bias': ((3,), 70, 70, {'bias': (2, 70, 70)}),
  'causal': ((2,), 70, 70, {}),
  'causal, keys': ((2,), 70, 70, {'mask': (2, 1, 1, 70)}),
}


def settings(case):
  rng = np.random.default_rng(1)
  made = {
    'bias': lambda x: rng.normal(size=x).astype(np.float32),
    'mask': lambda x: sees_something(rng.random(x) < 0.6),
  }
  return {name: made[name](x) for name, x in CASES[case][3].items()}


@pytest.mark.parametrize('case', CASES)
def test_padded_positions_change_neither_outputs_nor_gradients(case):
  batch, queries, keys, _ = CASES[case]
  arrays, how = inputs(batch, queries, keys), settings(case)
  causal = case.startswith('causal')
  exact = attention.Softmax(causal=causal)
  mask, bias = how.get('mask'), how.pop('bias', None)

  def fused(query, key, value, bias):
    axes = len(batch) + 3 - (0 if bias is None else bias.ndim)
    return flash.fused(
      query,
      key,
      value,
      bias=None if bias is None else jnp.expand_dims(bias, range(axes)),
      mask=mask,
      causal=causal,
      implementation='xla',
    )

  def plain(query, key, value, bias):
    return exact(query, key, value, bias, deterministic=True, **how)

  wanted = (0, 1, 2) if bias is None else (0, 1, 2, 3)

  @functools.partial(jax.jit, static_argnums=0)
  def both(fn, *arguments):
    loss = lambda *x: jnp.sin(fn(*x)).sum()  # noqa: E731
    return fn(*arguments), jax.grad(loss, wanted)(*arguments)

  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    both(fused, *arrays, bias),
    both(plain, *arrays, bias),
  )


@pytest.mark.parametrize('drops', [False, True])
def test_without_the_kernel_it_is_softmax_bit_for_bit(drops):
  arrays = inputs((2,), 7, 7)
  how = dict(deterministic=True)
  if drops:
    how = dict(dropout_rng=jax.random.key(0), dropout_rate=0.5)
  made = [
    jax.jit(functools.partial(fn(causal=True), **how))(*arrays)
    for fn in (attention.Flash, attention.Softmax)
  ]
  np.testing.assert_array_equal(*made)


# On a GPU this is cuDNN's kernel.
@pytest.mark.parametrize('causal', [False, True])
def test_in_bfloat16_it_agrees_to_the_rounding_of_the_type(causal):
  arrays = inputs((2,), 70, 70, jnp.bfloat16)
  mask = sees_something(np.random.default_rng(2).random((2, 1, 1, 70)) < 0.6)

  def run(kind, *arrays):
    made = kind(causal=causal)(*arrays, mask=mask, deterministic=True)
    return jnp.sin(made.astype(jnp.float32)).sum(), made

  def both(kind):
    return jax.jit(jax.grad(functools.partial(run, kind), 0, has_aux=True))(
      *arrays
    )

  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      np.float32(x), np.float32(y), atol=2e-2, rtol=2e-2
    ),
    both(attention.Flash),
    both(attention.Softmax),
  )


@pytest.fixture
def on_gpu(monkeypatch):
  """The fused form by XLA, as if there were a kernel."""
  monkeypatch.setattr(flash.Device, 'first', lambda: H100)
  called = []

  def fused(*arrays, **how):
    called.append(how)
    return real(*arrays, **how, implementation='xla')

  real = flash.fused
  monkeypatch.setattr(flash, 'fused', fused)
  flash._say.cache_clear()
  return called


def test_a_precision_that_is_asked_for_is_not_dropped(on_gpu):
  arrays = inputs((2,), 5, 9, jnp.bfloat16)
  found, expected = (
    fn()(*arrays, precision='highest')
    for fn in (attention.Flash, attention.Softmax)
  )
  np.testing.assert_array_equal(found, expected)
  assert not on_gpu


def test_the_kernel_gets_bias_and_mask(on_gpu):
  arrays = inputs((2,), 70, 70, jnp.bfloat16)
  how = settings('pairs')
  found, expected = (
    jax.jit(functools.partial(fn(), **how, deterministic=True))(*arrays)
    for fn in (attention.Flash, attention.Softmax)
  )
  assert [sorted(x) for x in on_gpu] == [['bias', 'causal', 'mask']]
  np.testing.assert_allclose(
    np.float32(found), np.float32(expected), atol=5e-2, rtol=5e-2
  )


def strict(*arrays):
  """As JAX's kernel: mapped only if all are, by one axis of rows for both."""

  def plain(query, key, value, bias, lengths):
    rows = len(query)
    assert len(bias) == len(lengths) == rows, 'cannot reshape'
    real = jnp.arange(key.shape[1])[None] < lengths[:, None]
    return attention.softmax_attention(
      query, key, value, bias, real[:, None, None], deterministic=True
    )

  def mapped(fn):
    fn = jax.custom_batching.custom_vmap(fn)

    @fn.def_vmap
    def rule(size, is_mapped, *arrays):
      assert all(jax.tree.leaves(is_mapped)), 'all are mapped, or none is'
      made = fn(*jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arrays))
      made = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), made)
      return made, jax.tree.map(lambda _: True, made)

    return fn

  forward = mapped(plain)

  @mapped
  def backward(arrays, cotangent):
    *arrays, lengths = arrays
    return jax.vjp(lambda *x: plain(*x, lengths), *arrays)[1](cotangent)

  kernel = jax.custom_vjp(forward)
  kernel.defvjp(
    lambda *x: (forward(*x), x), lambda x, g: (*backward(x, g), None)
  )
  return kernel(*arrays)


@pytest.fixture
def strict_kernel(monkeypatch):
  """A kernel that takes for granted what JAX's rule does."""

  def kernel(query, key, value, *, bias, key_value_seq_lengths, **_):
    if bias is None:
      *_, heads, _ = query.shape
      shape = 1, heads, query.shape[1], key.shape[1]
      bias = jnp.zeros(shape) + 0 * query[:, :1, :1, :1]  # Mapped as it is.
    return strict(query, key, value, bias, key_value_seq_lengths)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', kernel)


@pytest.mark.parametrize(
  ('query', 'rest'), [(0, 0), (1, 1), (0, None), (None, 0)]
)
def test_the_fused_form_can_be_mapped(strict_kernel, query, rest):
  axes = query, rest, rest
  arrays = [
    x if axis is not None else x.take(0, 0)
    for x, axis in zip(inputs((3, 3), 5, 9), axes, strict=True)
  ]

  def gradients(fn):
    total = lambda *x: jnp.sum(fn(*x))  # noqa: E731  (An unmapped cotangent.)
    return jax.jit(jax.vmap(jax.grad(total, (0, 1, 2)), axes))(*arrays)

  plain = functools.partial(attention.Softmax(), deterministic=True)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    gradients(flash.fused),
    gradients(plain),
  )


def test_a_mapped_bias_is_right_or_refused(strict_kernel):
  arrays = inputs((3, 2), 5, 9)
  bias = np.random.default_rng(3).normal(size=(3, 2, 2, 5, 9))

  def gradient(fn, bias, axis):
    loss = lambda b, *x: jnp.sin(fn(*x, bias=b)).sum()  # noqa: E731
    return jax.jit(jax.vmap(jax.grad(loss), (axis, 0, 0, 0)))(bias, *arrays)

  plain = functools.partial(attention.Softmax(), deterministic=True)
  np.testing.assert_allclose(
    gradient(flash.fused, bias, 0), gradient(plain, bias, 0), atol=1e-5
  )
  # One for all is what JAX's rule sums the gradients of in silence.
  with pytest.raises(AssertionError, match='cannot reshape'):
    gradient(flash.fused, bias[0, :1], None)


def test_without_a_map_the_compiler_leaves_nothing_of_the_ties():
  arrays = inputs((2,), 64, 64)

  def compiled(fn):
    loss = lambda *x: jnp.sin(fn(*x)).sum()  # noqa: E731
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile()
    return text.cost_analysis()['flops'], text.as_text().count('compare(')

  fused = functools.partial(flash.fused, implementation='xla')
  bare = functools.partial(jax.nn.dot_product_attention, implementation='xla')
  assert compiled(fused) == compiled(bare)


def test_the_device_is_the_one_that_programs_are_made_for(monkeypatch):
  class Gpu:
    platform, compute_capability = 'gpu', '9.0'

  there = {None: [Gpu()], 'cpu': jax.devices('cpu')}
  monkeypatch.setattr(jax, 'devices', lambda name=None: there[name])
  assert flash.Device.first() == H100
  for cpu in ('cpu', there['cpu'][0]):
    with jax.default_device(cpu):
      assert flash.Device.first() == flash.Device('cpu')
  assert flash.Device.first() == H100


def test_what_the_kernel_cannot_do_is_done_by_products(on_gpu):
  arrays = inputs((2,), 7, 7, jnp.bfloat16)
  how = dict(dropout_rng=jax.random.key(0), dropout_rate=0.5)
  found, expected = (
    fn()(*arrays, **how) for fn in (attention.Flash, attention.Softmax)
  )
  np.testing.assert_array_equal(np.float32(found), np.float32(expected))
  attention.Flash()(*(x.astype(jnp.float32) for x in arrays))
  assert not on_gpu
  with pytest.raises(types.InputError, match='one key a query'):
    attention.Flash(causal=True)(*inputs((2,), 5, 7, jnp.bfloat16))
  with pytest.raises(types.InputError, match='does not fit scores'):
    attention.Flash()(*arrays, mask=np.ones((3, 1, 1, 7)))


def test_the_form_is_said_once(on_gpu, monkeypatch):
  said = []
  monkeypatch.setattr(logging, 'info', lambda form, *x: said.append(form % x))
  for _ in range(2):
    attention.Flash()(*inputs((2,), 197, 197, jnp.bfloat16))
    attention.Flash()(*inputs((2,), 7, 7))
  assert said == [
    "exact attention by cuDNN's fused kernel (197 positions padded to 256)",
    'exact attention by plain products (float32: cuDNN needs bfloat16 or '
    'float16)',
  ]


def test_it_decodes_as_softmax_does():
  arrays = inputs((2,), 5, 5)
  made = []
  for fn in (attention.Flash(causal=True), attention.Softmax(causal=True)):
    state = fn.init_state(
      batch_size=2, max_length=6, num_heads=2, head_dim=8, value_dim=8
    )
    _, state = jax.jit(fn.prefill)(state, *arrays)
    first = [x[:, :1] for x in arrays]
    made.append(jax.jit(fn.step)(state, *first)[0])
  np.testing.assert_array_equal(*made)
