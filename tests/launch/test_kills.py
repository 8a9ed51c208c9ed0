"""Killed launchers of all kinds end as uninterrupted ones; see `kills`."""

import random

import kills
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('kind', kills.KINDS)
def test_after_kills_all_is_the_same(kind, tmp_path):
  # Each start is dear; see also `test_resume.py`, and `kills` for many. A
  # private sweep with one kill did not notice a resumption that is wrong.
  hits = 2 if kind in ('one process', 'private sweep') else 1
  kills.campaign(kind, tmp_path, kills=hits, rng=random.Random(0))
