"""What is measured in a process of its own, and why it was not."""

import os

import pytest

from launch.benchmarks import first_step
from launch.lib import peers

VIT = dict(
  image=8,
  patch=4,
  width=8,
  mlp=16,
  heads=2,
  layers=1,
  classes=3,
  batch_size=2,
  steps=1,
)
DECODER = dict(
  batch_size=2, length=4, width=64, layers=1, vocabulary=11, steps=1
)


def test_what_is_not_installed_starts_no_process():
  found = peers.run('no_such_peer', {}, needs=('jax', 'no_such_package'))
  assert found == 'not measured: no_such_package is not installed'


def test_jax_leaves_memory_to_others_unless_told(monkeypatch):
  name = 'XLA_PYTHON_CLIENT_PREALLOCATE'
  monkeypatch.setenv(name, 'true')
  peers.share_memory()
  assert os.environ[name] == 'true'
  monkeypatch.delenv(name)
  peers.share_memory()
  assert os.environ[name] == 'false'


@pytest.mark.slow
def test_a_peer_that_fails_gives_its_last_words():
  found = peers.run('bare_vit', {}, needs=())
  assert found.startswith('not measured: TypeError: ')
  assert len(found.splitlines()) == 1


@pytest.mark.parity
@pytest.mark.parametrize('library', ['timm', 'transformers'])
def test_a_vit_in_pytorch_has_as_many_parameters_as_ours(library):
  import jax

  from launch.benchmarks import vit_throughput

  pytest.importorskip(library)
  found = peers.run(
    'torch_vit',
    dict(library=library, forms=['eager'], sizes=VIT, rounds=1),
    needs=('torch', library),
  )
  assert found['eager, images/s'] > 0
  ours = vit_throughput.model(vit_throughput.Sizes(**VIT))
  variables = jax.eval_shape(
    lambda rng: ours.init(rng, jax.numpy.zeros((1, 8, 8, 3)), train=False),
    jax.random.key(0),
  )
  sizes = [x.size for x in jax.tree.leaves(variables)]
  assert found['parameters'] == sum(sizes)


@pytest.mark.parity
def test_opacus_has_our_parameters_and_a_matrix_of_its_own():
  from launch.benchmarks import privacy_costs

  pytest.importorskip('opacus')
  found = peers.run(
    'opacus_lm',
    dict(
      sizes=DECODER,
      clip_norm=0.1,
      noise_multiplier=1.0,
      learning_rate=1e-3,
      rounds=1,
    ),
    needs=('torch', 'opacus'),
  )
  assert found['ghost, seconds'] > 0
  assert found['none, seconds'] > 0
  shape = privacy_costs.Shape('lm', 2, 4, 64, 1, vocabulary=11)
  ours = privacy_costs.Step(shape, 'none').num_parameters
  assert found['parameters'] == ours + 11 * 64


@pytest.mark.slow
def test_a_process_that_never_says_so_has_no_time():
  broken = ['-c', "print(f'made the first step in {1 / 0} s')"]
  with pytest.raises(RuntimeError, match='ended before its first step'):
    first_step._until(r'made the first step in \d', broken)


@pytest.mark.slow
def test_a_launch_is_timed_to_its_first_step():
  result = first_step.first_step(1, preset='smoke')
  assert result['seconds, bare'] > 0
  assert result['without SAM over bare'] == pytest.approx(
    result['seconds, without SAM'] / result['seconds, bare']
  )
  assert result['as it is over bare'] > 0
