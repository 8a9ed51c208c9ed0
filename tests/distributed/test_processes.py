"""Real processes: one device, four devices and two processes agree."""

import launching
import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Work directories of the same 20 steps on three kinds of machine."""
  folder = tmp_path_factory.mktemp('runs')
  flags = ('--config=tests/vit_sgd.py:smoke', '--config.min_steps=20')
  for name, devices in (('one', 1), ('four', 4)):
    code, output = launching.run(
      'train', *flags, f'--workdir={folder / name}', devices=devices
    )
    assert code == 0, output
  codes, outputs = launching.finish(
    launching.start_two(
      'train', *flags, f'--workdir={folder / "two"}', devices=2
    )
  )
  assert codes == [0, 0], outputs
  return folder


@pytest.mark.parametrize('other', ['four', 'two'])
def test_twenty_steps_of_sgd_agree(runs, other):
  expected, actual = (launching.arrays(runs / n) for n in ('one', other))
  assert expected.keys() == actual.keys()
  assert expected['step'] == 20
  for name, value in expected.items():
    np.testing.assert_allclose(
      actual[name], value, rtol=0, atol=1e-6, err_msg=name
    )
