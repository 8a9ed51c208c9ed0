"""`launch.export`: a trained run as files, whole or not at all."""

import functools
import json

import jax
import launching
import numpy as np
import pytest
import small_networks

from configs import vitgan as vitgan_recipe
from configs.parts import gans
from launch.lib import exporting
from repjax import loop
from repjax import start
from repjax import types
from repjax.data.text import instruction_rows
from repjax.data.text import tokens
from repjax.export import program
from repjax.methods import vitgan
from repjax.models import vit
from repjax.weights import vit_weights

RUN = ('--config.min_steps=2', '--config.run.save_every=2')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A finished run of a ViT."""
  folder = tmp_path_factory.mktemp('run')
  code, output = launching.call(
    'train', f'--config={launching.SMOKE}', f'--workdir={folder}', *RUN
  )
  assert code == 0, output
  return folder


def export(workdir, folder, *more):
  return launching.call(
    'export', f'--workdir={workdir}', f'--to={folder}', *more
  )


def logits_of_run():
  """(images, what the run's last checkpoint says of them)."""
  from configs import vit as recipe

  config = recipe.get_config('smoke')
  experiment = recipe.build(config)
  batch = next(iter(experiment.evals('test')))
  return experiment, batch


def test_a_run_becomes_a_folder_of_hugging_face(workdir, tmp_path):
  folder, mine = tmp_path / 'hub', tmp_path / 'hub.partial' / 'mine'
  mine.parent.mkdir()
  mine.write_text('')
  code, output = export(workdir, folder)
  assert code == 0, output
  assert mine.exists()
  assert {x.name for x in tmp_path.iterdir()} == {'hub', 'hub.partial'}
  assert {x.name for x in folder.iterdir()} == {
    'README.md',
    'config.json',
    'model.safetensors',
    'preprocessor_config.json',
  }
  experiment, batch = logits_of_run()
  fresh = loop.init(experiment.method, experiment.train.batch(0), 0)
  params = vit_weights.load_vit(folder, fresh.params)
  arrays = launching.arrays(workdir)
  (head,) = [
    x
    for name, x in arrays.items()
    if name.endswith('params/head/kernel') and 'opt_state' not in name
  ]
  np.testing.assert_array_equal(params['head']['kernel'], head)
  model = vit.ViT(**vit_weights.hf_config(folder))
  logits = model.apply({'params': params}, batch['image'], train=False)
  found = experiment.method.predict(fresh.replace(params=params), batch)
  np.testing.assert_allclose(logits, found['logits'], atol=1e-5)
  card = (folder / 'README.md').read_text()
  wanted = launching.report(workdir)['result']['test/accuracy']
  assert f'| test/accuracy | {wanted:.6g} |' in card
  assert str(workdir) not in card
  pixels = json.loads((folder / 'preprocessor_config.json').read_text())
  assert pixels['image_mean'] == [0.5]
  named = json.loads((folder / 'config.json').read_text())['id2label']
  assert named == {str(i): str(i) for i in range(10)}


def test_the_authors_names_and_a_program(workdir, tmp_path):
  code, output = export(workdir, tmp_path / 'npz', '--format=npz')
  assert code == 0, output
  assert 'load_pretrained' in (tmp_path / 'npz' / 'README.md').read_text()
  pytest.importorskip('flatbuffers')
  code, output = export(workdir, tmp_path / 'jax', '--format=jax')
  assert code == 0, output
  assert 'predict.call' in (tmp_path / 'jax' / 'README.md').read_text()


def test_a_generator_makes_images_of_latents(tmp_path):
  pytest.importorskip('flatbuffers')
  workdir, folder = tmp_path / 'gan', tmp_path / 'program'
  code, output = launching.call(
    'train',
    '--config=configs/vitgan.py:smoke',
    f'--workdir={workdir}',
    '--config.min_steps=2',
    *launching.AT_THE_END,
  )
  assert code == 0, output
  wanted = '--format=jax', '--network=VitGenerator'
  code, output = export(workdir, folder, *wanted)
  assert code == 0, output
  make = program.load(folder)
  generator, _ = gans.networks(vitgan_recipe.get_config('smoke'), (8, 8, 1))
  variables = start.from_run(workdir, which='averaged')
  rng = jax.random.key(5)
  sample = functools.partial(vitgan.sample, generator, num=3)
  expected = jax.jit(sample)(variables['params'], rng)
  latent = jax.random.normal(rng, (3, 4))
  found = make({'latent': latent})['image']
  np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
  assert np.abs(found[0] - found[1]).max() > 1e-3
  with pytest.raises(types.InputError, match=r'takes latent of float32'):
    make({'latent': latent[:, :2]})
  card = (folder / 'README.md').read_text()
  assert '[-1.0] is black and [1.0] is white' in card
  assert '`latent`: float32[rows, 4]' in card
  code, output = export(
    workdir, tmp_path / 'no', '--format=jax', '--network=VitDiscriminator'
  )
  assert code == 1 and 'is no generator' in output.strip().splitlines()[-1]
  code, output = export(workdir, tmp_path / 'no', *wanted[:1], '--network=Gan')
  assert code == 1
  assert 'VitDiscriminator, VitGenerator' in output.strip().splitlines()[-1]
  assert not (tmp_path / 'no').exists()


def test_what_cannot_be_written_leaves_nothing(workdir, tmp_path):
  full = tmp_path / 'full'
  full.mkdir()
  (full / 'mine').write_text('')
  code, output = export(workdir, full)
  assert code == 1 and 'is there already' in output.strip().splitlines()[-1]
  code, output = export(workdir, tmp_path / 'new', '--network=Swin')
  assert code == 1
  assert 'ViT: name one of them by --network' in output.splitlines()[-1]
  code, output = export(workdir, tmp_path / 'new', '--rows=8')
  assert code == 1 and '--rows=8 is of --format=jax alone' in output
  code, output = export(workdir, tmp_path / 'new', '--merge', '--format=jax')
  assert code == 1 and '--merge makes LoRA a part of the weights' in output
  assert [x.name for x in tmp_path.iterdir()] == ['full']


def test_a_private_run_states_what_it_may_claim(tmp_path):
  pytest.importorskip('flatbuffers')
  workdir = tmp_path / 'private'
  code, output = launching.call(
    'train', '--config=configs/dp_finetuning.py:smoke', f'--workdir={workdir}'
  )
  assert code == 0, output
  said = launching.report(workdir)['privacy']
  for name, *step in (('last',), ('before', '--step=4')):
    code, output = export(workdir, tmp_path / name, '--format=jax', *step)
    assert code == 0, output
    card = (tmp_path / name / 'README.md').read_text()
    claimed = f'({said["epsilon"]:.4g}, {said["delta"]:.3g})-differential'
    # Fewer steps give away less.
    assert (claimed in card) == (name == 'last')
    assert '-differential privacy of one row' in card
    # Nor may what was not trained be claimed.
    other = tmp_path / f'{name}_other'
    changes = (
      '--config=configs/dp_finetuning.py:smoke',
      '--config.dp.epsilon=.5',
    )
    code, output = export(workdir, other, '--format=jax', '--step=4', *changes)
    assert code == 0 and 'no privacy is claimed' in output
    assert '-differential privacy' not in (other / 'README.md').read_text()
    assert {x.name for x in (tmp_path / name).iterdir()} == {
      'README.md',
      'predict.jax',
      'signature.json',
      'weights.safetensors',
    }


@pytest.mark.parametrize('name', ['t5', 'bart', 'bert'])
def test_ids_are_those_that_a_model_was_trained_with(name):
  found = exporting.own_ids(small_networks.named(name).base)
  example = instruction_rows.target_ids('hi', tokens.Bytes())
  wanted = example[0] if name == 't5' else tokens.START
  assert found['decoder_start_token_id'] == wanted
  assert found['eos_token_id'] == example[-1] == tokens.END


def test_a_link_to_an_empty_folder_is_written_through(workdir, tmp_path):
  (tmp_path / 'real').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'real')
  code, output = export(workdir, tmp_path / 'link')
  assert code == 0, output
  assert (tmp_path / 'real' / 'config.json').is_file()
  assert (tmp_path / 'link').is_symlink()
