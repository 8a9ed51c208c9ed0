"""The three runs of an H-divergence learn equally long."""

from configs import h_divergence
from configs.studies import h_divergence as study


def test_all_terms_have_the_steps_of_one_sample():
  steps = {}
  for term in ('real', 'fake', 'mixture'):
    config = h_divergence.get_config('smoke')
    config.term = term
    steps[term] = h_divergence.build(config).steps
  assert len(set(steps.values())) == 1
  assert steps['mixture'] == round(
    config.epochs * config.data.num_rows / config.batch_size
  )


def test_power_is_asked_of_tests_that_keep_their_level():
  claims = study.CLAIMS
  for name, level in (
    ('gain_over_untuned', 'type_one'),
    ('gain_over_tuned', 'type_one'),
  ):
    assert level in claims[name].get('needs', ()), name
    assert claims[level]['kind'] == 'first'
