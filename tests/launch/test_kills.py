"""Killed launchers of all kinds end as uninterrupted ones; see `kills`."""

import random

import kills
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('kind', kills.KINDS)
def test_after_kills_all_is_the_same(kind, tmp_path):
  kills.campaign(kind, tmp_path, kills=2, rng=random.Random(0))
