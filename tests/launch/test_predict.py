"""One's own files: trained on, evaluated, predicted, or refused in one line."""

import csv
import json
import shutil

import launching
import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from launch.lib import trained
from repjax import files
from repjax import types


@pytest.fixture(scope='module', autouse=True)
def cache_folder(tmp_path_factory):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('REPJAX_CACHE', str(tmp_path_factory.mktemp('cache')))
    yield


def _write(root, rows, size=(8, 8)):
  """Digits of scikit-learn as files, class by class."""
  found = datasets.load_digits()
  for i in rows:
    path = root / str(found.target[i]) / f'{i:04}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.rint(found.images[i] * (255 / 16)).astype(np.uint8)
    Image.fromarray(grey).resize(size, Image.Resampling.NEAREST).save(path)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  root = tmp_path_factory.mktemp('digits')
  _write(root / 'mine', range(400))
  _write(root / 'new', range(400, 460))
  _write(root / 'large', range(400, 404), (9, 9))
  return root


def _call(*arguments):
  code, output = launching.call(*arguments)
  assert code == 0, output
  return output


@pytest.fixture(scope='module', params=['sam', 'mixup'])
def run(request, digits):
  workdir = digits / request.param
  _call(
    'train',
    f'--config=configs/{request.param}.py:smoke',
    f'--workdir={workdir}',
    '--config.data.name=folder',
    f'--data_dir={digits / "mine"}',
    '--config.epochs=0',
    '--config.min_steps=80',
    *launching.AT_THE_END,
    *(['--config.data.label_noise=0'] if request.param == 'sam' else []),
  )
  return workdir


def test_a_folder_of_images_is_learned_and_new_ones_are_predicted(run, digits):
  folder = digits / 'new'
  output = digits / 'out' / 'found.csv'
  _call(
    'predict', f'--workdir={run}', f'--inputs={folder}', f'--outputs={output}'
  )
  with output.open(newline='') as file:
    lines = list(csv.DictReader(file))
  files = sorted(x.relative_to(folder).as_posix() for x in folder.rglob('*.*'))
  assert [x['input'] for x in lines] == files and len(files) == 60
  right = [x['predicted'] == x['input'].partition('/')[0] for x in lines]
  assert np.mean(right) > 0.7
  for line in lines:
    shares = np.array([float(line[f'p({i})']) for i in range(10)])
    assert shares.sum() == pytest.approx(1)
    assert str(shares.argmax()) == line['predicted']
    assert float(line['probability']) == shares.max()
  # What evaluation measures on the same files is what the predictions say.
  printed = _call('evaluate', f'--workdir={run}', f'--inputs={folder}')
  measured = json.loads(printed.splitlines()[-1])
  assert measured['accuracy'] == pytest.approx(np.mean(right))


def test_a_run_is_loaded_in_one_line(run, digits):
  loaded = trained.load(run)
  found = loaded.predict(digits / 'new')
  batch = loaded.experiment.evals('test').batch(0)
  logits = loaded.model.apply(loaded.variables, batch['image'], train=False)
  wanted = loaded.experiment.method.predict(loaded.state, batch)
  np.testing.assert_allclose(logits, wanted['logits'], rtol=1e-5, atol=1e-5)
  assert found.class_names == tuple('0123456789')
  assert found.outputs['logits'].shape == (60, 10)


def test_one_file_is_printed_as_json(run, digits):
  file = next((digits / 'new' / '3').iterdir())
  output = _call('predict', f'--workdir={run}', f'--inputs={file}')
  line = json.loads(output.splitlines()[-1])
  assert line['input'] == file.name
  assert line['probability'] == line[f'p({line["predicted"]})']


def test_classes_that_are_no_longer_those_of_the_run_are_refused(run, digits):
  # Another data directory is another set: evaluation by --data_dir, and going
  # on, need the same classes.
  folder = digits / f'{run.name}-renamed'
  shutil.copytree(digits / 'mine', folder)
  (folder / '3').rename(folder / 'three')
  match = f'The classes of --data_dir are not those that {run} was trained on'
  data = f'--data_dir={folder}'
  for flags in (
    ('evaluate', f'--workdir={run}', data),
    ('predict', f'--workdir={run}', data, f'--inputs={digits / "new"}'),
  ):
    _refused(match, *flags)


def test_a_launch_beside_a_run_leaves_its_names(digits, tmp_path):
  kept = tmp_path / 'classes.json'
  kept.write_text('{"classes": ["a", "b"]}')
  flags = (
    'train',
    '--config=configs/mixup.py:smoke',
    f'--workdir={tmp_path}',
    '--config.data.name=folder',
    f'--data_dir={digits / "mine"}',
  )
  with files.locked(tmp_path, '--workdir'):
    _refused('in use', *flags)
  assert json.loads(kept.read_text())['classes'] == ['a', 'b']


def test_names_of_a_run_that_never_began_are_forgotten(digits, tmp_path):
  kept = tmp_path / 'classes.json'
  kept.write_text('{"classes": ["a", "b"]}')
  _call(
    'train',
    '--config=configs/mixup.py:smoke',
    f'--workdir={tmp_path}',
    '--config.data.name=folder',
    f'--data_dir={digits / "mine"}',
    '--config.epochs=0',
    '--config.min_steps=1',
  )
  assert json.loads(kept.read_text())['classes'] == [str(i) for i in range(10)]


def _refused(match, *arguments):
  code, output = launching.call(*arguments)
  assert code == 1
  line = output.strip().splitlines()[-1]
  assert line.startswith('ERROR: ') and match in line, output


def test_inputs_that_do_not_fit_are_refused(run, digits, tmp_path):
  predict = ('predict', f'--workdir={run}')
  _refused(
    "'image' is (9, 9, 1), and the run was trained on (8, 8, 1)",
    *(*predict, f'--inputs={digits / "large"}'),
  )
  _refused('There is no file', *(*predict, f'--inputs={tmp_path / "none"}'))
  _refused('no image', *(*predict, f'--inputs={tmp_path}'))
  _refused(
    'ends in .csv or .jsonl',
    *(*predict, f'--inputs={digits / "new"}', '--outputs=a.txt'),
  )
  _refused('--inputs is empty', *(*predict, '--inputs='))
  same = shutil.copyfile(next((digits / 'new').rglob('*.png')), tmp_path / 'a')
  for inputs, outputs, match in (
    ('new', tmp_path / 'a' / 'b.csv', f'{same} is a file: give another'),
    ('b.csv', digits / 'b.csv', 'is what is predicted'),
    ('new', digits / 'c.csv', 'is a folder: give a file'),
    ('new', digits / 'new' / 'd.csv', 'is inside of --inputs'),
  ):
    (digits / 'c.csv').mkdir(exist_ok=True)
    given = (f'--inputs={digits / inputs}', f'--outputs={outputs}')
    _refused(match, *(*predict, *given))
  _refused(
    f'{same} is a file: give another place',
    *('export', f'--workdir={run}', f'--to={same / "b"}'),
  )
  _refused(
    f'--outputs={same} cannot be written',
    *('evaluate', f'--workdir={run}', f'--outputs={same}'),
  )
  _refused(
    'has no folders of classes',
    *('evaluate', f'--workdir={run}', f'--inputs={digits / "new" / "3"}'),
  )
  for size in (7, 8):
    grey = np.zeros((size, size), np.uint8)
    Image.fromarray(grey).save(tmp_path / f'{size}.png')
  _refused(
    'differ in size, and this run takes them as they are: bring them to 8 x 8',
    *(*predict, f'--inputs={tmp_path}'),
  )


def test_images_of_many_sizes_are_resized_everywhere(tmp_path):
  rng = np.random.default_rng(0)
  for i, name in enumerate(('blue', 'red') * 12):
    size = (*rng.integers(9, 20, 2), 3)
    pixels = rng.integers(0, 60, size, dtype=np.uint8)
    pixels[..., 2 if name == 'blue' else 0] += 150
    part = 'test' if i >= 16 else 'train'
    path = tmp_path / 'mine' / part / name / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
  _call(
    'train',
    '--config=configs/mixup.py:smoke',
    f'--workdir={tmp_path / "run"}',
    '--config.data.name=folder',
    f'--data_dir={tmp_path / "mine"}',
    '--config.augment.size=8',
    '--config.min_steps=60',
    *launching.AT_THE_END,
  )
  assert (tmp_path / 'run' / 'plots' / 'test_predictions.png').exists()
  output = _call(
    'predict',
    f'--workdir={tmp_path / "run"}',
    f'--inputs={tmp_path / "mine" / "test"}',
  )
  lines = [json.loads(x) for x in output.splitlines() if x.startswith('{')]
  assert len(lines) == 8
  assert all(x['input'].startswith(x['predicted']) for x in lines)


TEXTS = [
  (f'{x} {y} {i}', label)
  for i in range(6)
  for label, words in (
    ('good', ('clever', 'warm', 'funny')),
    ('bad', ('dull', 'cold', 'empty')),
  )
  for x in words
  for y in words
]


@pytest.fixture(scope='module')
def reviews(tmp_path_factory):
  root = tmp_path_factory.mktemp('texts')
  with (root / 'reviews.csv').open('w', newline='') as file:
    csv.writer(file).writerows([('review', 'stars'), *TEXTS])
  return root


def test_a_table_of_texts_is_learned_by_lora_and_new_ones_predicted(reviews):
  workdir = reviews / 'run'
  _call(
    'train',
    '--config=configs/mam_adapter.py:smoke',
    f'--workdir={workdir}',
    '--config.data.name=csv:label=stars',
    f'--data_dir={reviews / "reviews.csv"}',
    '--config.data.column=review',
    '--config.data.vocab_size=300',
    '--config.adapter.kind=lora',
    '--config.tx.learning_rate=0.02',
    '--config.min_steps=60',
    *launching.AT_THE_END,
  )
  (reviews / 'new.txt').write_text('funny warm\ncold dull\nclever funny\n')
  output = _call(
    'predict', f'--workdir={workdir}', f'--inputs={reviews / "new.txt"}'
  )
  lines = [json.loads(x) for x in output.splitlines() if x.startswith('{')]
  assert [x['predicted'] for x in lines] == ['good', 'bad', 'good']
  assert [x['input'] for x in lines] == [f'new.txt:{i}' for i in (1, 2, 3)]
  (reviews / 'other.csv').write_text('text\nfunny\n')
  _refused(
    'and none of those of csv:label=stars, review',
    *('predict', f'--workdir={workdir}'),
    f'--inputs={reviews / "other.csv"}',
  )
  # LoRA's module is the root: its parameters are the trained ones.
  loaded = trained.load(workdir)
  assert set(loaded.variables) >= {'params', types.FROZEN}


def test_pairs_of_texts_are_learned_and_new_ones_predicted(tmp_path):
  sides = {'cat': ('a cat', 'one cat'), 'dog': ('a dog', 'one dog')}
  ends = {'ran': ('it ran', 'that ran'), 'sat': ('it sat', 'that sat')}
  lines = [
    {'premise': x, 'hypothesis': y, 'label': f'{animal} {deed}'}
    for animal, firsts in sides.items()
    for deed, seconds in ends.items()
    for x in firsts
    for y in seconds
    for _ in range(4)
  ]
  table = tmp_path / 'pairs.jsonl'
  table.write_text(''.join(f'{json.dumps(x)}\n' for x in lines))
  workdir = tmp_path / 'run'
  flags = (
    '--config=configs/mam_adapter.py:smoke',
    '--config.data.name=jsonl',
    f'--data_dir={table}',
    '--config.data.column=premise+hypothesis',
    '--config.data.vocab_size=280',
    '--config.adapter.kind=full',
    '--config.tx.learning_rate=0.02',
    '--config.min_steps=60',
    *launching.AT_THE_END,
  )
  _call('train', f'--workdir={workdir}', *flags)
  new = tmp_path / 'new.csv'
  new.write_text('hypothesis,premise\nit sat,one dog\nthat ran,a cat\n')
  output = _call('predict', f'--workdir={workdir}', f'--inputs={new}')
  found = [json.loads(x) for x in output.splitlines() if x.startswith('{')]
  assert [x['predicted'] for x in found] == ['dog sat', 'cat ran']
  predict = ('predict', f'--workdir={workdir}')
  (tmp_path / 'new.txt').write_text('one dog\n')
  _refused(
    'has one text a line, and the run reads two, premise+hypothesis: give',
    *(*predict, f'--inputs={tmp_path / "new.txt"}'),
  )
  (tmp_path / 'half.csv').write_text('premise\none dog\n')
  _refused(
    "no column 'hypothesis', which the run reads",
    *(*predict, f'--inputs={tmp_path / "half.csv"}'),
  )
  _refused(
    "no column 'answer'",
    *('train', *flags, '--config.data.column=premise+answer'),
  )


def test_what_a_file_lacks_is_named(reviews):
  _refused(
    '--config.data.name takes for label; it has review, stars',
    *('train', '--config=configs/mam_adapter.py:smoke'),
    '--config.data.name=csv:label=grade',
    f'--data_dir={reviews / "reviews.csv"}',
    '--config.data.column=review',
  )
  _refused(
    "no column 'text'",
    *('train', '--config=configs/mam_adapter.py:smoke'),
    '--config.data.name=csv:label=stars',
    f'--data_dir={reviews / "reviews.csv"}',
    '--config.data.column=text',
  )


def test_a_private_run_says_which_size_its_images_have(digits, tmp_path):
  workdir = tmp_path / 'run'
  _call(
    'train',
    '--config=configs/dp_finetuning.py:smoke',
    f'--workdir={workdir}',
    '--config.data.name=folder',
    f'--data_dir={digits / "mine"}',
  )
  predict = ('predict', f'--workdir={workdir}')
  _refused(
    "'image' is (9, 9, 1), and the run was trained on (8, 8, 1)",
    *(*predict, f'--inputs={digits / "large"}'),
  )
  mixed = tmp_path / 'mixed'
  mixed.mkdir()
  for size in (7, 8):
    grey = np.zeros((size, size), np.uint8)
    Image.fromarray(grey).save(mixed / f'{size}.png')
  _refused('bring them to 8 x 8', *(*predict, f'--inputs={mixed}'))
