"""How pytest-xdist spreads tests: a file to a worker, of the contract a recipe.

What a file compiles for its tests is compiled once, and no worker is left with
all recipes.
"""

import re

from xdist import scheduler


class PerFileOrRecipe(scheduler.LoadFileScheduling):
  """Is `--dist loadfile` but for tests/test_contract.py."""

  def _split_scope(self, nodeid):
    file, _, test = nodeid.partition('::')
    recipe = re.search(r'\[([a-z]\w*)', test)
    if file.endswith('test_contract.py') and recipe:
      return f'{file}::{recipe[1]}'
    return file
