"""The study of sample efficiency: what its claims rest on."""

from configs.studies import sample_efficiency as study


def test_nothing_holds_by_a_network_that_learns_nothing():
  for name in (
    *('collapse_low', 'collapse_middle', 'collapse_high'),
    *('full_regression', 'full_texture', 'image_gap'),
  ):
    assert study.CLAIMS[name].get('needs'), name
