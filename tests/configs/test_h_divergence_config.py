"""The three runs of an H-divergence learn equally long."""

from configs import h_divergence


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
