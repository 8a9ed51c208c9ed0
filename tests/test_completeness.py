"""Every paper has its part, recipe, study, test, README and RESULTS rows."""

import ast
import importlib
import pathlib

from ml_collections import config_dict
import pytest

from configs import presets

ROOT = pathlib.Path(__file__).resolve().parent.parent
_PAPERS = sorted(
  path.stem
  for path in (ROOT / 'configs').glob('[a-z]*.py')
  if path.stem != 'presets'
)


@pytest.fixture(params=_PAPERS)
def paper(request):
  return request.param


def test_there_are_papers():
  assert {'vit', 'sam', 'mixup'} <= set(_PAPERS)
  studies = (ROOT / 'configs' / 'studies').glob('[a-z]*.py')
  assert sorted(path.stem for path in studies) == _PAPERS


# Papers that people call by another name than their part, or whose name more
# than one part has.
_PARTS = {
  'beit': 'methods/beit',
  'gpm': 'optim/gradient_projection',
  'dp_finetuning': 'privacy/clipping',
  'dp_tuning': 'privacy/tuning',
  'mam_adapter': 'layers/adapters/adapting',
}


def test_has_a_part_and_a_test(paper):
  paper = _PARTS.get(paper, paper)
  pattern = paper if '/' in paper else f'*/{paper}'
  parts = list((ROOT / 'repjax').glob(f'{pattern}.py'))
  assert len(parts) == 1, f'repjax/<folder>/{paper}.py: {parts}'
  folder = parts[0].relative_to(ROOT / 'repjax').parent
  tests = ROOT / 'tests' / folder
  names = (parts[0].stem, folder.name)
  assert any((tests / f'test_{name}.py').exists() for name in names)


def test_a_recipe_has_presets_and_a_docstring_that_says_how_to_run_it(paper):
  recipe = importlib.import_module(f'configs.{paper}')
  for preset in ('paper', 'small', 'smoke', *recipe.PRESETS):
    config = recipe.get_config(preset)
    assert {'seed', 'data', 'run'} <= set(config)
    assert not {'claims', 'seeds', 'study'} & set(config)
  with pytest.raises(ValueError, match='paper, small, smoke'):
    recipe.get_config('huge')
  assert callable(recipe.build)
  assert not hasattr(recipe, 'run')
  assert recipe.__doc__.splitlines()[0].endswith('.')
  assert 'python -m launch.' in recipe.__doc__
  assert 'https://' in recipe.__doc__
  for heading in ('\npaper: ', '\nsmall: '):
    assert heading in recipe.__doc__


def test_a_study_has_claims_that_no_flag_can_change(paper):
  study = importlib.import_module(f'configs.studies.{paper}')
  assert len(study.SEEDS) >= 3
  for name, claim in study.CLAIMS.items():
    assert claim['says'], name
    assert claim['paper'], name
    assert set(claim) <= {'says', 'paper', 'at_least', 'at_most'}, name
  assert any(set(c) & {'at_least', 'at_most'} for c in study.CLAIMS.values())
  config = study.get_config('small')
  assert isinstance(config, config_dict.ConfigDict)
  assert not {'claims', 'seeds'} & set(config)
  assert callable(study.run)


def test_has_a_readme_row_and_results(paper):
  readme = (ROOT / 'README.md').read_text('utf-8')
  assert f'configs/{paper}.py' in readme
  results = (ROOT / 'RESULTS.md').read_text('utf-8')
  study = importlib.import_module(f'configs.studies.{paper}')
  says = next(iter(study.CLAIMS.values()))['says']
  assert f'| [{paper}](#{paper.replace("_", "-")}) | {says} |' in results


def test_a_recipe_imports_no_other_recipe(paper):
  path = ROOT / 'configs' / f'{paper}.py'
  for name in _imports(path):
    assert not name.startswith('configs.') or name.startswith(
      ('configs.presets', 'configs.parts')
    ), f'{path} imports {name}'


def test_presets_say_what_they_lie_on():
  layer = dict(
    paper=dict(a=1, b=dict(c=1, d=1)),
    small=dict(a=2),
    smoke=dict(b=dict(c=3)),
    digits=dict(on='small', b=dict(d=4)),
    both=dict(on=('digits', 'smoke'), a=5),
  )

  def numbers(preset):
    return presets.get_config(preset, layer).to_dict()

  assert numbers('smoke') == dict(a=2, b=dict(c=3, d=1))
  assert numbers('digits') == dict(a=2, b=dict(c=1, d=4))
  assert numbers('both') == dict(a=5, b=dict(c=3, d=4))
  with pytest.raises(ValueError, match='says no on'):
    presets.get_config('alone', dict(alone=dict(a=1)))
  with pytest.raises(ValueError, match='configs/studies'):
    presets.get_config('paper', dict(paper=dict(claims=dict())))


# A module imports from its own rank only within its folder, and from lower
# ranks freely.
_RANKS = (
  ('types',),
  ('trees', 'parallel', 'metrics'),
  ('data', 'layers', 'privacy'),
  ('models', 'optim', 'gradients'),
  ('weights', 'methods', 'adapt'),
  ('loop', 'checkpoint', 'report', 'plots'),
  ('start', 'run', 'experiments'),
  ('protocols',),
  ('attacks', 'analysis', 'benchmarks'),
)
_RANK = {name: i for i, names in enumerate(_RANKS) for name in names}


def _imports(path):
  """Names of modules that a file imports, at the top or inside functions."""
  for node in ast.walk(ast.parse(path.read_text('utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize(
  'path',
  [p for p in (ROOT / 'repjax').rglob('*.py') if p.name != '__init__.py'],
  ids=lambda p: str(p.relative_to(ROOT)),
)
def test_imports_go_one_way(path):
  room = path.relative_to(ROOT / 'repjax').parts[0].removesuffix('.py')
  assert room in _RANK, f'{path}: a new room needs a rank'
  for name in _imports(path):
    parts = name.split('.')
    assert parts[0] not in ('configs', 'launch'), f'{path} imports {name}'
    if parts[0] == 'repjax':
      other = parts[1]
      assert other == room or _RANK[other] <= _RANK[room], (
        f'{path} imports {name}'
      )
    if room != 'parallel':
      assert name not in ('jax.pmap', 'jax.shard_map')


@pytest.mark.parametrize(
  'path',
  [p for p in (ROOT / 'repjax').rglob('*.py')],
  ids=lambda p: str(p.relative_to(ROOT)),
)
def test_devices_are_the_business_of_parallel_alone(path):
  text = path.read_text('utf-8')
  if path.name != 'parallel.py':
    assert 'jax.pmap' not in text
    assert 'shard_map' not in text


@pytest.mark.parametrize(
  'path',
  [
    path
    for folder in ('repjax', 'configs', 'launch')
    for path in (ROOT / folder).rglob('*.py')
  ],
  ids=lambda p: str(p.relative_to(ROOT)),
)
def test_a_missing_field_of_a_config_is_never_guessed(path):
  assert not _guesses(path.read_text('utf-8'))


@pytest.mark.parametrize(
  'code',
  [
    "config.get('rate', 1)",
    "config.tx.get('rate')",
    "getattr(config.tx, 'rate', 1)",
    "config['tx'].get('rate', 1)",
  ],
)
def test_a_guess_is_found(code):
  assert _guesses(code)
  assert not _guesses("config.tx.rate + other.get('rate')")


def _guesses(code):
  """Lines that read a field of `config` with a default where it is missing."""

  def is_config(node):
    while isinstance(node, (ast.Attribute, ast.Subscript)):
      node = node.value
    return isinstance(node, ast.Name) and node.id == 'config'

  lines = []
  for call in ast.walk(ast.parse(code)):
    if not isinstance(call, ast.Call):
      continue
    fn = call.func
    by_get = (
      isinstance(fn, ast.Attribute) and fn.attr == 'get' and is_config(fn.value)
    )
    by_name = (
      isinstance(fn, ast.Name)
      and fn.id == 'getattr'
      and len(call.args) == 3
      and is_config(call.args[0])
    )
    if by_get or by_name:
      lines.append(call.lineno)
  return lines
