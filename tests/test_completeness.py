"""Every paper has its part, config, test, README row and RESULTS row."""

import ast
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
_PAPERS = sorted(path.stem for path in (ROOT / 'configs').glob('[a-z]*.py'))


@pytest.fixture(params=_PAPERS)
def paper(request):
  return request.param


def test_there_are_papers():
  assert {'vit', 'sam', 'mixup'} <= set(_PAPERS)


# Papers that people call by another name than their part, or whose name more
# than one part has.
_PARTS = {
  'beit': 'methods/beit',
  'gpm': 'gradient_projection',
  'dp_finetuning': 'clipping',
  'dp_tuning': 'tuning',
  'mam_adapter': 'adapters',
}


def test_has_a_part_and_a_test(paper):
  paper = _PARTS.get(paper, paper)
  pattern = paper if '/' in paper else f'*/{paper}'
  parts = list((ROOT / 'repjax').glob(f'{pattern}.py'))
  assert len(parts) == 1, f'repjax/<folder>/{paper}.py: {parts}'
  folder = parts[0].parent.name
  assert (ROOT / 'tests' / folder / f'test_{parts[0].name}').exists()


def test_config_has_three_presets_and_its_claims(paper):
  module = importlib.import_module(f'configs.{paper}')
  for preset in ('paper', 'small', 'smoke'):
    config = module.get_config(preset)
    assert {'seed', 'data', 'run', 'claims'} <= set(config)
    for name, claim in config.claims.items():
      assert claim.says, name
      assert claim.paper, name
      assert set(claim) <= {'says', 'paper', 'at_least', 'at_most'}, name
  assert any('at_least' in c or 'at_most' in c for c in config.claims.values())
  assert len(module.get_config('small').seeds) >= 3
  with pytest.raises(ValueError, match='paper, small and smoke'):
    module.get_config('huge')
  assert callable(module.build)
  assert callable(module.run)
  for heading in ('\npaper: ', '\nsmall: '):
    assert heading in module.__doc__
  assert module.__doc__.splitlines()[0].endswith('.')


def test_has_a_readme_row_and_a_results_row(paper):
  readme = (ROOT / 'README.md').read_text('utf-8')
  assert f'configs/{paper}.py' in readme
  results = (ROOT / 'RESULTS.md').read_text('utf-8')
  config = importlib.import_module(f'configs.{paper}').get_config('small')
  for claim in config.claims.values():
    assert f'| {paper} | {claim.says} |' in results


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
