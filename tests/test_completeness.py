"""Every paper has its part, recipe, study, test, README and RESULTS rows."""

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
  'anomaly_transformer': 'methods/anomaly_transformer',
  'beit': 'methods/beit',
  'flan': 'methods/instruction_tuning',
  'gpm': 'optim/gradient_projection',
  'imprint': 'attacks/imprint',
  'dp_finetuning': 'privacy/clipping',
  'dp_tuning': 'privacy/tuning',
  'mam_adapter': 'layers/adapters/adapting',
  'mind_the_pad': 'layers/padding',
  'wilds': 'benchmarks/wilds/protocol',
  'wilds_text': 'benchmarks/wilds/shops',
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
    known = {'says', 'paper', 'at_least', 'at_most', 'kind', 'needs'}
    assert set(claim) <= known | {'by_chance'}, name
    assert not claim.get('by_chance') or claim['kind'] == 'theory', name
    assert claim.get('kind') in (None, 'first', 'theory')
    for needed in claim.get('needs', ()):
      assert study.CLAIMS[needed]['kind'] == 'first'
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
  says = next(
    x['says'] for x in study.CLAIMS.values() if x.get('kind') != 'first'
  )
  assert f'| [{paper}](#{paper.replace("_", "-")}) | {says} |' in results


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
