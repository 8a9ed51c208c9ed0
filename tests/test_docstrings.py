"""Docstrings link to the papers that they cite, and say what they mean."""

import ast
import pathlib
import re

import pytest

import repjax

ROOT = pathlib.Path(repjax.__file__).parent.parent

# Authors, or a title or a venue (two capitals or more) with a year.
CITATION = re.compile(
  r"""\bet\ al\.
  | (\b[A-Z][\w-]+|'),\ (19|20)\d\d\b
  | \b[A-Z]\w*[A-Z]\w*\ (19|20)\d\d\b""",
  re.VERBOSE,
)
LINK = re.compile(
  r'https://(arxiv\.org/abs/\d{4}\.\d{4,5}\b|doi\.org/10\.\d{4,}/\w'
  r'|aclanthology\.org/\w|proceedings\.\w|openreview\.net/forum\?id=\w'
  r'|papers\.nips\.cc/paper/\d)|http://ilpubs\.stanford\.edu:8090/\d'
)
# The first of the authors of 'Li et al.' and of 'Page, Brin and Motwani, 1999'.
AUTHOR = re.compile(
  r"""\b([A-Z][\w-]+)(?:\ et\ al\.|(?:,\ [A-Z][\w-]+)*\ and\ [A-Z][\w-]+,)""",
  re.VERBOSE,
)
# Words that send the reader of one line to another one.
FRAGMENT = re.compile(
  r"""\b(see\ there|likewise|attributes\ as\ in)\b
  | \bof\ the\ same:
  | (^|\.\ )the\ same\.
  | ^[ ]*\*{0,2}\w+:\ ((of\ )?the\ same|see|as\ (for|in|of))\b
  | ^[ ]*\*{0,2}\w+:\ of\ `[^`]*`\.$""",
  re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)


def docstrings(path):
  """(line, text) of all docstrings of a file, from the top down."""
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  return sorted(
    (node.body[0].lineno, ast.get_docstring(node))
    for node in ast.walk(ast.parse(path.read_text('utf-8')))
    if isinstance(node, kinds) and ast.get_docstring(node)
  )


def cites(text):
  return CITATION.search(' '.join(text.split())) is not None


def lacks_link(texts):
  """Whether the first of the texts that cites a paper has no link to one."""
  first = next(filter(cites, texts), None)
  return first is not None and LINK.search(first) is None


def unlinked(texts):
  """Whom texts without a link cite, and no text that has one names."""
  linked = re.findall(r'[\w-]+', ' '.join(filter(LINK.search, texts)))
  return [
    name
    for text in texts
    if cites(text) and not LINK.search(text)
    for name in AUTHOR.findall(' '.join(text.split())) or [text]
    if name not in linked
  ]


@pytest.fixture(scope='module')
def modules():
  return {
    str(path.relative_to(ROOT)): docstrings(path)
    for room in ('repjax', 'configs', 'launch')
    for path in (ROOT / room).glob('**/*.py')
  }


def test_modules_at_every_depth_are_read(modules):
  assert 'repjax/layers/attention/linear/rules.py' in modules
  assert {'repjax/run.py', 'configs/sam.py', 'launch/lib/recipes.py'} <= (
    modules.keys()
  )


def test_papers_have_links(modules):
  lacking = [
    name
    for name, found in modules.items()
    if lacks_link([text for _, text in found])
  ]
  assert not lacking
  cited = {
    name: unlinked([text for _, text in found])
    for name, found in modules.items()
  }
  assert not {name: whom for name, whom in cited.items() if whom}


def test_lines_speak_for_themselves(modules):
  fragments = [
    f'{name}:{line}: {match.group()}'
    for name, found in modules.items()
    if name.startswith('repjax/')
    for line, text in found
    for match in FRAGMENT.finditer(text)
  ]
  assert not fragments


@pytest.mark.parametrize(
  'citation',
  [
    'Sines of places (Vaswani et al., 2017, sec. 3.5).',
    "Papernot and Steinke, 'Hyperparameter Tuning', ICLR\n2022.",
    "Goodfellow, 'Efficient Per-Example Gradient Computations', 2015.",
    'ROUGE-1 (Lin, 2004), with stems.',
    'Li et al., sec. 4.',
  ],
)
def test_a_citation_needs_a_link_where_it_comes_first(citation):
  linked = f'{citation}\n\nhttps://arxiv.org/abs/1706.03762'
  assert lacks_link(['Mean of rows.', citation])
  assert lacks_link([citation, linked])
  assert lacks_link([f'{citation}\n\nhttps://example.org/1706.03762'])
  assert not lacks_link(['Mean of rows.', linked, citation])


def test_a_paper_that_is_cited_later_needs_a_link_of_its_own():
  linked = 'Li, Xu and Yun, ICML 2018. https://arxiv.org/abs/1706.03762'
  assert not unlinked([linked, 'As in Li et al., section 3.'])
  assert unlinked([linked, 'As in Yu et al., section 3.']) == ['Yu']
  assert unlinked([linked, "Page, Brin and\nWinograd, 'Ranks', 1999."]) == [
    'Page'
  ]
  assert unlinked([linked, 'ROUGE-1 (Lin, 2004).'])


def test_no_citation_needs_no_link():
  assert not lacks_link(['Keeps 2048 rows; see version 2021 of JAX, 1 of 3.'])


@pytest.mark.parametrize(
  'line',
  [
    'See there.',
    '  old_grid: See there.',
    '  test: Likewise.',
    '  cutout: Half the side at magnitude 10, likewise.',
    '  evaluate: The same.',
    '  evaluate: The same for evaluation; draws nothing.',
    '  sizes: Of the same, with that of the input.',
    'Units of the same: rows, users.',
    'Drawn once. The same.',
    '  norm: See `WideResNet`.',
    '  **sizes: See `problem`.',
    '  image: As for `fgsm`.',
    '  MissedError: As of `tapped`.',
    '  steps: Of `problem`.',
    'Attributes as in `Stage`.',
  ],
)
def test_a_line_that_only_points_elsewhere_is_found(line):
  assert FRAGMENT.search(f'Does it.\n\nArgs:\n{line}\n')


@pytest.mark.parametrize(
  'line',
  [
    '  resize: How tables become those of another size; see `resize`.',
    '  test: Rows of the same classes for evaluation.',
    'The same seed gives the same rows, of the same shape, as in the paper.',
    '  seed: Seed of the rows, as of `load`.',
  ],
)
def test_a_line_that_speaks_for_itself_passes(line):
  assert not FRAGMENT.search(f'Does it.\n\nArgs:\n{line}\n')
