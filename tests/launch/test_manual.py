"""What launchers say of themselves and of recipes, and what a run would be."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import jax
import launching
import numpy as np
import pytest

from configs import presets
from launch.lib import field_meanings
from launch.lib import field_notes
from launch.lib import recipes
from repjax import loop

_LAUNCHERS = sorted(
  path.stem for path in (launching.ROOT / 'launch').glob('[a-z]*.py')
)


@pytest.mark.parametrize('module', _LAUNCHERS)
def test_help_exits_0_with_every_flag_of_the_launcher(module):
  code, output = launching.call(module, '--help')
  assert code == 0, output
  told = set(re.findall(r'^  --(\w+)', output, re.M))
  text = (launching.ROOT / 'launch' / f'{module}.py').read_text()
  own = set(re.findall(r"flags\.DEFINE_\w+\(\s*'(\w+)'", text))
  assert own <= told
  if 'define_devices' in text or 'define_flags' in text:
    assert {'platform', 'num_processes'} <= told
  # Examples can be copied: no line is broken, none is joined with the next.
  doc = ast.get_docstring(ast.parse(text))
  assert doc in output
  assert max(map(len, doc.splitlines())) <= 80
  if module in ('grid', 'sweep'):
    assert ' \\\n      --space=' in output
  # Where no recipe is taken none is listed.
  assert ('gradient_vaccine, ' in output) == ('config' in told)


def test_all_flags_of_libraries_are_told_on_request():
  code, output = launching.call('train', '--helpfull')
  assert code == 0
  assert '--pdb_post_mortem' in output.replace('[no]', '')


def test_commands_in_docstrings_of_recipes_can_be_copied():
  for path in recipes.config_files():
    doc = ast.get_docstring(ast.parse(path.read_text('utf-8')))
    assert max(map(len, doc.splitlines())) <= 80, path.name


def test_help_of_a_recipe_has_its_docstring_presets_and_fields():
  code, output = launching.call('train', '--config=configs/sam.py', '--help')
  assert code == 0
  assert 'https://arxiv.org/abs/2010.01412' in output
  assert 'Presets: paper, small, smoke.' in output
  assert re.search(r"data.name = 'cifar10' .*# Set", output)
  code, output = launching.call('sweep', '--config=configs/sma.py', '--help')
  assert code == 1
  assert "mean 'configs/sam.py'" in output
  code, output = launching.call('train', '--config=configs/sam.py:x', '-h')
  assert code == 1
  assert 'paper, small, smoke' in output


def test_the_config_is_printed_with_what_is_overridden(tmp_path):
  code, output = launching.call(
    'train',
    '--config=configs/sam.py:small',
    '--config.sam.rho=0.25',
    f'--workdir={tmp_path}/run',
    '--print_config',
  )
  assert code == 0, output
  assert '# configs/sam.py:small, 1 overridden' in output
  assert output.count('OVERRIDDEN') == 1
  assert re.search(r'sam.rho = 0.25 .*OVERRIDDEN: the preset has 0.5', output)
  names = presets.fields(
    recipes.load_config_module(str(recipes.path_of('sam'))).get_config('small')
  )
  assert names.keys() == set(re.findall(r'^([\w.]+) = ', output, re.M))
  assert not list(tmp_path.iterdir())


def _fields_of(path):
  """Fields of all presets of a recipe."""
  module = recipes.load_config_module(str(path))
  return {
    field
    for preset in presets.names(module.PRESETS)
    for field in presets.fields(module.get_config(preset))
  }


# The meaning of a new field belongs into the docstring of what takes it. Where
# none does, or it is not found, `launch/lib/field_meanings.py` has it.
@pytest.mark.parametrize(
  'path', recipes.config_files(), ids=lambda path: path.stem
)
def test_each_field_of_each_preset_has_a_meaning_of_its_own(path):
  names = _fields_of(path)
  found = field_notes.notes(path, sorted(names))
  assert found.keys() == names
  assert not [name for name, text in found.items() if not text]
  assert not [x for x in found.values() if '\n' in x]


def test_no_meaning_is_left_over():
  """Fields of the tables are fields of recipes, and what they name is there."""
  names = set().union(*map(_fields_of, recipes.config_files()))
  for end in (*field_meanings.COMMON, *field_meanings.OF_RECIPES):
    assert any(f'.{x}'.endswith(f'.{end}') for x in names), end
  for group, places in field_meanings.DOCUMENTED.items():
    arguments = {
      x.rpartition('.')[2]
      for x in names
      if x.rpartition('.')[0].rpartition('.')[2] == group
    }
    for place in places:
      file, _, definition = place.partition(' ')
      told = field_notes._arguments(launching.ROOT / file, definition)
      assert arguments & told.keys(), place


def test_a_meaning_is_that_of_what_takes_the_field(tmp_path):
  recipe = tmp_path / 'own.py'
  recipe.write_text(
    '"""Own."""\n\n'
    'from repjax import optim\n'
    'from repjax.methods import mixup\n\n'
    'PRESETS = dict(\n'
    '  paper=dict(\n'
    '    # How loud it is. Not a number of the paper.\n'
    '    loud=3,\n'
    '    near=dict(rho=1.0),  # Rather large.\n'
    '    # first: of two; second, third: of the others.\n'
    '    **dict(first=1, second=2, third=dict(fourth=4)),\n'
    '    # One of both.\n'
    '    **dict(fifth=1, sixth=2),\n'
    '    blend=dict(alpha=1.0, other=2),\n'
    '  ),\n'
    ')\n\n\n'
    'def build(config):\n'
    '  near = config.near\n'
    '  optim.sam(rho=near.rho)\n'
    '  mixup.make(**config.blend)\n'
  )
  names = ['first', 'second', 'third.fourth', 'fifth', 'batch_size']
  names += ['loud', 'near.rho', 'blend.alpha', 'blend.other']
  found = field_notes.notes(recipe, names)
  assert found['first'] == 'Of two'
  assert found['second'] == 'Of the others.'
  # Of a comment that names none of several fields nobody knows whose it is.
  assert found['third.fourth'] == found['fifth'] == ''
  assert found['loud'] == 'How loud it is.'
  assert found['near.rho'].startswith('Radius of the neighbourhood')
  assert found['blend.alpha'].startswith('lambda ~ Beta(alpha, alpha)')
  assert found['blend.other'] == ''
  assert found['batch_size'] == field_meanings.COMMON['batch_size']


def test_recipes_are_listed_with_needs_and_what_was_measured():
  code, output = launching.call('configs', '--names=sam,gpm')
  assert code == 0, output
  sam, gpm = output.split('configs/gpm.py')
  assert re.search(r'^  paper +needs cifar10', sam, re.M)
  assert re.search(r'^  small +digits', sam, re.M)
  assert re.search(r'study: \d+ s, .*SAM minus the same without', sam)
  assert re.search(r'^  paper_5datasets +needs cifar10, mnist', gpm, re.M)
  code, output = launching.call('configs', '--names=smo')
  assert code == 1
  assert '--names=smo' in output


@pytest.mark.slow
def test_a_reader_may_close_the_pipe():
  listed = subprocess.run(
    f'{sys.executable} -m launch.configs --names=sam,gpm | head -1',
    shell=True,
    cwd=launching.ROOT,
    env={**os.environ, 'PYTHONPATH': str(launching.ROOT)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert listed.stdout.startswith('configs/sam.py')
  assert listed.stderr == ''


def test_a_dry_run_says_what_the_run_would_be(tmp_path):
  code, output = launching.call(
    'train',
    f'--config={launching.SMOKE}',
    f'--workdir={tmp_path}/run',
    '--dry_run',
  )
  assert code == 0, output
  recipe = recipes.load_config_module(str(recipes.path_of('vit')))
  config = recipe.get_config('smoke')
  experiment = recipe.build(config)
  state = loop.init(experiment.method, experiment.train.batch(0), 0)
  sizes = {
    name: sum(np.size(x) for x in jax.tree.leaves(part))
    for name, part in state.params.items()
  }
  assert f'parameters: {sum(sizes.values()):,}\n' in output
  for name, size in sizes.items():
    assert re.search(rf'^  {name} +{size:,}$', output, re.M)
  assert re.search(r'^8 steps of 16 rows at [\d.]+ ms: ', output, re.M)
  assert re.search(r'needs [\d.]+ MiB of .* a device: .* temporary', output)
  assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_a_tracker_that_is_not_there():
  code, output = launching.call(
    'train', f'--config={launching.SMOKE}', '--dry_run', '--track=wandbb'
  )
  assert code == 1
  assert '--track must be one of' in output
  assert 'parameters:' not in output


def test_a_dry_run_of_a_private_run_leaves_no_key(tmp_path, monkeypatch):
  monkeypatch.chdir(launching.ROOT)
  before = set(pathlib.Path('.').iterdir())
  code, output = launching.call(
    'train', '--config=configs/dp_finetuning.py:smoke', '--dry_run'
  )
  assert code == 0, output
  assert 'GFLOP' in output
  assert set(pathlib.Path('.').iterdir()) == before


def test_what_a_preset_needs_is_what_it_reads():
  names = 'flan,performer,shapley,startup'
  code, output = launching.call('configs', f'--names={names}')
  assert code == 0, output
  flan, rest = output.split('configs/performer.py')
  performer, rest = rest.split('configs/shapley.py')
  shapley, startup = rest.split('configs/startup.py')
  for text, needs in (
    (flan, r'paper +needs --config.data.file'),
    (flan, r'text +needs glue/sst2, clinc_oos, e2e_nlg'),
    (flan, r'small +data made on the spot'),
    (performer, r'paper +needs --config.data.path'),
    (performer, r'small +python_topics'),
    (shapley, r'planted +planted$'),
    (shapley, r'compas +needs compas'),
    (startup, r'paper +needs imagenet2012, eurosat/rgb'),
  ):
    assert re.search(f'^  {needs}', text, re.M), needs


@pytest.mark.parametrize(
  ('text', 'code', 'says'),
  [
    ('from configs.vit import build, get_config\n', 0, 'data.name = '),
    ('def build(\n', 1, 'ERROR: --config='),
  ],
)
def test_help_of_a_recipe_of_ones_own(tmp_path, text, code, says):
  path = tmp_path / 'own.py'
  path.write_text(text)
  found, output = launching.call('train', f'--config={path}', '--help')
  assert found == code, output
  assert says in output
  assert 'Traceback' not in output


def test_help_names_no_presets_that_are_not_there(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text(
    'import ml_collections\n\n\ndef get_config():\n'
    '  return ml_collections.ConfigDict({"a": 1})\n'
  )
  code, output = launching.call('train', f'--config={path}', '--help')
  assert code == 0, output
  assert 'Presets' not in output


@pytest.mark.parametrize(
  ('paper', 'field', 'never'),
  [
    ('performer', 'data.path', 'Folder'),
    ('flan', 'data.file', 'data.name'),
    ('sam', 'data.label_noise', 'another class'),
    ('fine_grained_shift', 'shift.label_noise', 'are wrong'),
    ('wilds', 'data.fraction', 'each split'),
    ('wilds', 'groups_per_batch', '0 draws'),
    ('pico', 'data.noise', 'its actions'),
  ],
)
def test_nothing_is_said_of_a_field_that_is_not_so(paper, field, never):
  found = field_notes.notes(recipes.path_of(paper), [field])[field]
  assert found
  assert never not in found
