"""What is measured in a process of its own, and why it was not."""

import json
import os
import subprocess

import jax
from jax.extend import backend
import pytest

from launch.benchmarks import first_step
from launch.benchmarks import training
from launch.benchmarks.peers import torch_vit
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
@pytest.mark.parametrize('library', ['timm', 'transformers'])
def test_a_vit_in_pytorch_has_our_activation(library):
  torch = pytest.importorskip('torch')
  pytest.importorskip(library)
  made = dict(timm=torch_vit._timm, transformers=torch_vit._transformers)
  model, _ = made[library](VIT)
  x = torch.linspace(-3, 3, 50)
  expected = torch.nn.functional.gelu(x, approximate='tanh')
  found = [y for y in model.modules() if 'GELU' in type(y).__name__]
  assert found
  for y in found:
    torch.testing.assert_close(y(x), expected)


@pytest.mark.parity
def test_a_gpu_is_not_compared_with_a_cpu(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  found = training.against_torch(1)
  assert list(found) == ['skipped']
  assert '--only=vit' in found['skipped']


def test_jax_gives_back_a_card_before_a_peer_begins(monkeypatch):
  done = []
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(backend, 'clear_backends', lambda: done.append('freed'))

  def run(command, **kwargs):
    done.append(json.loads(command[-1])['device'])
    return subprocess.CompletedProcess(command, 0, '{"a": 1}\n', '')

  monkeypatch.setattr(subprocess, 'run', run)
  assert peers.run('torch_vit', {}, needs=()) == {'a': 1}
  assert done == ['freed', 'cuda']


@pytest.mark.slow
def test_a_bare_step_is_said_when_it_is_made():
  model = dict(hidden_dim=8, mlp_dim=8, num_heads=2, num_layers=1)
  settings = json.dumps(
    dict(image=[2, 8, 8, 1], classes=3, patch=[4, 4], model=model)
  )
  program = (
    'import atexit, runpy, sys, time; atexit.register(time.sleep, 60); '
    f'sys.argv = ["x", {settings!r}]; '
    'runpy.run_module("launch.benchmarks.peers.bare_vit", '
    'run_name="__main__")'
  )
  assert first_step._until(r'its loss is \d', ['-c', program]) < 60


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
