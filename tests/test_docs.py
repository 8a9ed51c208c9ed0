"""The site's pages: nothing is missing, and every link leads somewhere."""

import pathlib
import re

import pytest

from docs import pages

_LINK = re.compile(r'!?\[[^\]]*\]\(([^)\s]+)\)')
_CODE = re.compile(r'```.*?```|`[^`]*`', re.DOTALL)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  folder = tmp_path_factory.mktemp('site')
  pages.write(folder)
  return folder


def test_every_link_leads_to_a_page_or_a_plot(site):
  for path in site.rglob('*.md'):
    if path.is_relative_to(site / 'reference'):
      continue
    for link in _LINK.findall(_CODE.sub('', path.read_text())):
      if '://' not in link:
        target = path.parent / link.partition('#')[0]
        assert target.is_file(), f'{path.relative_to(site)}: {link}'


def test_every_recipe_has_a_page_with_its_recipe_and_its_claims(site):
  recipes = {path.stem for path in (pages.ROOT / 'configs').glob('[a-z]*.py')}
  for name in recipes - {'presets'}:
    text = (site / 'systems' / f'{name}.md').read_text()
    titles = [line for line in text.splitlines() if line.startswith('## ')]
    assert titles == [
      '## In your own program',
      '## Limits',
      '## Recipe',
      '## Claims',
    ], name
    assert '$$' in text
    assert f'--papers={name}' in text


def test_every_system_is_in_the_list(site):
  listed = (site / 'systems' / 'index.md').read_text()
  for path in (site / 'systems').glob('*.md'):
    assert path.stem == 'index' or f']({path.name})' in listed, path.name


def test_every_module_and_notebook_has_a_page(site):
  modules = list((pages.ROOT / 'repjax').rglob('*.py'))
  reference = list((site / 'reference').rglob('*.md'))
  assert len(reference) == len(modules)
  text = (site / 'reference' / 'optim' / 'sam.md').read_text()
  assert text == '# optim.sam\n\n::: repjax.optim.sam\n'
  for path in (pages.ROOT / 'colabs').glob('*.ipynb'):
    assert '```python' in (site / 'notebooks' / f'{path.stem}.md').read_text()


def test_pages_of_the_last_time_are_gone(tmp_path):
  old = tmp_path / 'pages' / 'systems' / 'gone.md'
  old.parent.mkdir(parents=True)
  old.write_text('# Gone\n')
  pages.write(tmp_path / 'pages')
  assert not old.exists()


def test_sections_end_where_the_next_begins_and_fences_are_no_sections():
  text = '# top\nabove\n## a\nx\n```\n## not\n```\n## b\ny\n'
  assert pages.sections(text) == {
    '': '# top\nabove',
    'a': 'x\n```\n## not\n```',
    'b': 'y',
  }


@pytest.mark.parametrize('link', ['elsewhere.md', '/absolute.md'])
def test_a_link_to_what_is_no_page_is_refused(link):
  with pytest.raises(pages.MissingError, match=re.escape(link)):
    pages.linked(f'[words]({link})')


def test_a_recipe_without_results_is_refused():
  page = pathlib.Path(pages.ROOT / 'docs' / 'systems' / 'sam.md')
  with pytest.raises(pages.MissingError, match='sam'):
    pages.system(page, {})


def test_a_module_without_a_docstring_is_refused(monkeypatch, tmp_path):
  monkeypatch.setattr(pages, 'ROOT', tmp_path)
  path = tmp_path / 'repjax' / 'quiet.py'
  path.parent.mkdir()
  path.write_text('x = 1\n')
  with pytest.raises(pages.MissingError, match='quiet'):
    pages.module(path)
