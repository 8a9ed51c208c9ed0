"""Killed launchers of all kinds end as uninterrupted ones; see `kills`."""

import random

import kills
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('kind', kills.KINDS)
def test_after_kills_all_is_the_same(kind, tmp_path):
  # Two processes, of which each start is dear: see also `test_resume.py`. A
  # private sweep with one kill did not notice a resumption that is wrong.
  hits = 1 if kind == 'two processes' else 2
  kills.campaign(kind, tmp_path, kills=hits, rng=random.Random(0))
