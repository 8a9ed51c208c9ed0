"""What fills a GPU, at sizes of a toy: its sums, and what it says is absent."""

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from configs import vit as vit_config
from configs.parts import attention as attention_parts
from launch.benchmarks import first_step
from launch.benchmarks import long_attention
from launch.benchmarks import private_language
from launch.benchmarks import vit_throughput
from launch.lib import cards
from launch.lib import peers
from launch.lib import timing

VIT = vit_throughput.Sizes(
  image=8,
  patch=4,
  width=8,
  mlp=12,
  heads=2,
  layers=2,
  classes=3,
  batch_size=2,
  steps=2,
  product=32,
)


def products(jaxpr):
  """Flops of all products of a program, by their shapes."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      shape = equation.invars[0].aval.shape
      total += (
        2
        * np.prod(equation.outvars[0].aval.shape)
        * np.prod([shape[i] for i in contracted])
      )
    assert equation.primitive.name != 'conv_general_dilated'
    for value in equation.params.values():
      if isinstance(value, core.ClosedJaxpr):
        total += products(value.jaxpr)
  return int(total)


def test_flops_are_those_of_the_networks_products():
  model = vit_throughput.model(VIT)
  image = jnp.zeros((1, VIT.image, VIT.image, 3))
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )
  forward = jax.make_jaxpr(lambda v: model.apply(v, image, train=False))
  assert 3 * products(
    forward(variables).jaxpr
  ) == vit_throughput.training_flops(VIT)


def test_what_is_measured_is_the_form_of_the_preset_paper():
  made = vit_throughput.model(VIT)
  config = vit_config.get_config('paper')
  assert made.attention_fn == attention_parts.attention_fn(
    config.attention, causal=False
  )
  assert made.scan_layers == config.model.scan_layers
  assert made.remat == config.model.remat
  assert jnp.dtype(made.dtype) == config.step.compute_dtype


@pytest.mark.usefixtures('kept_programs')
def test_both_forms_of_deep_networks_are_compiled(monkeypatch):
  forms = []
  monkeypatch.setattr(
    timing, 'Bare', lambda method, batch: forms.append(method)
  )
  made = []
  monkeypatch.setattr(
    vit_throughput,
    'training',
    lambda *a, **fields: made.append(fields) or a * 2,
  )
  result = first_step.compile_large(1, {'tiny': VIT})
  assert list(result) == ['tiny, seconds', 'tiny, blocks as one loop, seconds']
  assert [x['scan_layers'] for x in made] == [False, True]


def test_the_default_is_vit_b_16():
  # 17.5 G multiplications of an image's forward pass.
  flops = vit_throughput.training_flops(vit_throughput.Sizes())
  assert flops / 6 == pytest.approx(17.5e9, rel=5e-3)


def of_torch(numbers):
  """In the place of `peers.run`: what a peer gave, or its reason."""

  def run(name, settings, *, needs):
    del name
    run.called.append((dict(settings), needs))
    return numbers

  run.called, run.numbers = [], numbers
  return run


@pytest.fixture
def kept_programs(monkeypatch):
  """Lets benchmarks take programs that earlier runs of the test compiled."""
  monkeypatch.setattr(timing, 'compiling', lambda make: (make(), 1.0))


@pytest.mark.usefixtures('kept_programs')
def test_a_vit_stands_beside_its_peer_and_the_cards_peak(monkeypatch):
  run = of_torch({'version': 'timm 1', 'eager, images/s': 10.0})
  monkeypatch.setattr(peers, 'run', run)
  monkeypatch.setattr(
    cards, 'this', lambda size: cards.Card('a card', 1e-3, f'measured: {size}')
  )
  result = vit_throughput.vit_throughput(1, VIT)
  rate = result['images/s']
  assert result['speed over timm, eager'] == rate / 10
  assert 'speed over timm, torch.compile' not in result  # It gave no figure.
  tflops = rate * vit_throughput.training_flops(VIT) / 1e12
  assert result['TFLOP/s'] == tflops
  for form in ('attention by plain products', 'blocks as one loop'):
    assert result[f'speed over {form}'] > 0
  assert result["share of the card's bf16 peak"] == tflops / 1e-3
  assert result['timm']['measured in'] == peers.HOW
  # `transformers` stands in where timm is not installed alone.
  ((settings, needs),) = run.called
  assert needs == ('torch', 'timm')
  assert settings['sizes'] == VIT._asdict()
  assert result['seconds to build and compile'] == 1


def test_what_is_not_installed_is_said_to_be_not_measured(monkeypatch):
  run = of_torch('not measured: timm is not installed')
  monkeypatch.setattr(peers, 'run', run)
  result = vit_throughput._peers(1, VIT)
  assert result == dict.fromkeys(('timm', 'transformers'), run.numbers)
  assert [needs[1] for _, needs in run.called] == ['timm', 'transformers']


def test_a_card_that_no_table_knows_is_measured_and_said_to_be(monkeypatch):
  known = cards.named('NVIDIA H200', 32)
  assert known.peak == 989
  assert known.origin.startswith('documented: https://www.nvidia.com/')
  monkeypatch.setattr(cards, 'product', lambda size: size / 2)
  # A slice of a card has not its peak.
  part = cards.named('NVIDIA H200 MIG 1g.18gb', 32)
  assert part == (
    'NVIDIA H200 MIG 1g.18gb',
    16,
    'measured: a product of 32 x 32',
  )
  assert part.share(4.0) == 0.25


def test_a_product_is_measured():
  assert 0 < cards.product(64, 1) < 1000


def test_attention_is_timed_where_it_fits_and_exists():
  sizes = long_attention.Sizes(
    lengths=(16, 32), heads=2, dim=8, features=16, score_bytes=4 * 2 * 16**2
  )
  result = long_attention.long_attention(1, sizes._replace(calls=1))
  assert len(result) == 4
  for name, of_one in result.items():
    exact = of_one['exact, XLA, ms']
    assert exact[16] > 0
    assert exact[32].startswith('not measured: scores of')
    assert all(x > 0 for x in of_one['performer, ms'].values())
    assert all(x > 0 for x in of_one['rfa, ms'].values())
    assert ('gated rfa, ms' in of_one) == name.startswith('causal')
    if jax.default_backend() == 'cpu':
      cudnn = of_one['exact, cuDNN, ms'].values()
      assert all(x.startswith('not measured: ') for x in cudnn)
      assert not [x for x in of_one if 'over cuDNN' in x]


def test_speed_over_cudnn_is_of_lengths_that_both_have(monkeypatch):
  times = {
    'exact, cuDNN': {1: 4.0, 2: 'not measured: no', 3: 9.0},
    'performer': {1: 2.0, 2: 1.0, 3: 3.0},
  }
  monkeypatch.setattr(
    long_attention,
    '_time',
    lambda name, form, length, *_, backward: times[name][length],
  )
  found = long_attention._against_length(
    dict.fromkeys(times), 1, long_attention.Sizes((1, 2, 3)), backward=False
  )
  assert found['performer, speed over cuDNN'] == {1: 2.0, 3: 3.0}


@pytest.mark.usefixtures('kept_programs')
def test_private_steps_stand_beside_opacus(monkeypatch):
  run = of_torch(
    {
      'ghost, seconds': 3.0,
      'none, seconds': 2.0,
      'ghost, peak GiB': None,
      'none, peak GiB': None,
    }
  )
  monkeypatch.setattr(peers, 'run', run)
  sizes = private_language.Sizes(
    batch_size=2, length=4, width=64, layers=1, vocabulary=11, steps=1
  )
  result = private_language.private_language(1, sizes)
  assert result['Opacus, ghost over none, time'] == 1.5
  for dtype in ('float32', 'bfloat16'):
    ours = result[dtype]
    assert ours['ghost over none, time'] == (
      ours['ghost, seconds'] / ours['none, seconds']
    )
    # Parameters, two moments and their gradient at least.
    least = 4 * 3 * ours['parameters'] / 2**30
    assert ours['none, peak GiB'] > least
  assert result['speed over Opacus'] == (
    3.0 / result['float32']['ghost, seconds']
  )
  assert 'memory over Opacus' not in result


def test_what_is_timed_as_compiling_is_compiled():
  directory = jax.config.jax_compilation_cache_dir

  def make():
    return jax.jit(lambda x: jnp.cos(x) * 3.25).lower(1.0).compile()

  made, seconds = timing.compiling(make)
  assert made(0.0) == 3.25
  assert seconds > 0
  assert jax.config.jax_enable_compilation_cache
  assert jax.config.jax_compilation_cache_dir == directory
