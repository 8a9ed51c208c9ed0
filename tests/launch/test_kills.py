"""Killed launchers of all kinds end as uninterrupted ones; see `kills`."""

import random

import kills
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('kind', kills.KINDS)
def test_after_kills_all_is_the_same(kind, tmp_path):
  # Where each start is dear; of two processes see also `test_resume.py`.
  hits = 1 if kind in ('two processes', 'private sweep') else 2
  kills.campaign(kind, tmp_path, kills=hits, rng=random.Random(0))
