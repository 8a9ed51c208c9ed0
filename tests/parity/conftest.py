"""Other people's code warns of itself, which is no failure of ours."""

import pytest


def pytest_collection_modifyitems(items):
  for item in items:
    if item.get_closest_marker('parity'):
      item.add_marker(pytest.mark.filterwarnings('default'))
