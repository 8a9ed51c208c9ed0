"""Gradient Vaccine (Wang et al., ICLR 2021): align the gradients of tasks.

    python -m launch.reproduce --papers=gradient_vaccine

measures the claims (`configs/studies/gradient_vaccine.py`): cosines of
gradients follow what languages have in common (rank correlation about 0.8);
these languages do not conflict, and surgery changes nothing.
https://arxiv.org/abs/2010.05874

paper: English to 24 languages of `ted_multi_translate`, one transformer,
  temperature 5, decay 0.01, a target for every layer: the paper's recipe on a
  set that TFDS has. By data.name also sets with a column for each language,
  such as opus, with data.languages=('de',).
small: 6 synthetic languages of one family tree, of 100 to 3,000 rows.
"""

from ml_collections import config_dict
import optax

from configs import presets
from configs.parts import translation
from repjax import optim
from repjax import parallel
from repjax import types
from repjax.experiments import kept_tokens
from repjax.experiments import of_tokens

PRESETS = dict(
  paper=dict(
    batch_size=1024,
    eval_batch_size=256,
    steps=100_000,
    # kind: 'tfds' (sentences of a TFDS set) or 'family' (synthetic languages).
    data=dict(
      kind='tfds',
      name='ted_multi_translate',
      eval_splits=('validation', 'test'),
      temperature=5.0,
      pivot='en',
      languages=(
        *('es', 'pt-br', 'fr', 'ru', 'he', 'ar', 'ko', 'zh-cn', 'it', 'ja'),
        *('nl', 'ro', 'tr', 'de', 'vi', 'pl', 'bg', 'el', 'fa', 'sr', 'hu'),
        *('hr', 'uk', 'cs'),
      ),
      # Subwords: a file that tokens.Subwords wrote, or learnt from so many
      # rows.
      tokenizer='',
      tokenizer_rows=20_000,
      vocab_size=32_000,
      length=128,
    ),
    family=dict(
      tree='(((a:0.1,b:0.1):0.2,c:0.3):0.3,((d:0.2,e:0.2):0.2,f:0.4):0.3)',
      # Of each language, or of all alike.
      num_rows=(600,),
      num_test_rows=100,
      words=dict(
        num_nouns=12,
        num_verbs=6,
        num_adjectives=6,
        max_adjectives=1,
        clause_rate=0.3,
      ),
    ),
    model=dict(
      hidden_dim=512,
      mlp_dim=2048,
      num_heads=8,
      num_layers=6,
      position='sinusoidal',
      dropout_rate=0.1,
      scale_embedding=True,
      remat=False,
      scan_layers=False,
    ),
    # kind: 'gradvac', 'pcgrad' or 'uniform'. With Adam, which divides a
    # gradient by its size, the mean over tasks does what the published sum
    # does.
    surgery=dict(kind='gradvac', decay=0.01, groups='all_layer'),
    tx=dict(learning_rate=5e-4, weight_decay=0.0, warmup=0.04, clip=1.0),
    step=dict(label_smoothing=0.1, compute_dtype='bfloat16'),
    run=dict(
      eval_every=5000, best='validation/mean_task_accuracy', tokenizer=''
    ),
  ),
  small=dict(
    batch_size=60,
    eval_batch_size=600,
    steps=1000,
    data=dict(kind='family', name='languages', eval_splits=('test',)),
    # In each of two families one language has few rows, and one very few.
    family=dict(num_rows=(3000, 300, 100, 3000, 300, 100)),
    model=dict(
      hidden_dim=32,
      mlp_dim=64,
      num_heads=2,
      num_layers=1,
      position='learned',
      dropout_rate=0.0,
      scale_embedding=False,
    ),
    tx=dict(learning_rate=5e-3, warmup=0.1),
    step=dict(label_smoothing=0.0, compute_dtype='float32'),
    run=dict(eval_every=250, save_every=250, best='test/mean_task_accuracy'),
  ),
  smoke=dict(
    batch_size=16,
    eval_batch_size=16,
    steps=8,
    family=dict(
      tree='((a:0.2,b:0.2):0.3,c:0.5)', num_rows=(64,), num_test_rows=16
    ),
    model=dict(hidden_dim=16, mlp_dim=16),
  ),
)


def get_config(preset: str = 'paper') -> config_dict.ConfigDict:
  """Numbers of a preset: paper, small or smoke."""
  return presets.get_config(preset, presets.RUN, PRESETS)


def build(
  config: config_dict.ConfigDict, optimizer: types.Optimizer = optax.adamw
) -> types.Experiment:
  """One training run."""
  parallel.check_batch_size(
    config.batch_size, microbatches=config.step.microbatches
  )
  data = translation.read(config)
  link = surgery(config, len(data.names), config.surgery.kind)
  made = of_tokens.predictor(
    config,
    translation.method(config, data, link, optimizer=optimizer),
    batches=translation.batches(config, data),
    sources=data.sources,
    steps=config.steps,
    show=lambda ids: data.show(ids) + ' ',
  )
  made = made._replace(companion=kept_tokens.companion(data.tokenizer))
  return translation.with_accuracies(made, data.names)


def surgery(config, num_tasks: int, kind: str) -> optax.GradientTransformation:
  """The link that combines the gradients of tasks."""
  kinds = dict(
    gradvac=lambda: optim.gradient_vaccine(
      num_tasks,
      decay=config.surgery.decay,
      groups=config.surgery.groups,
      reduce='mean',
    ),
    pcgrad=lambda: optim.pcgrad(num_tasks, reduce='mean'),
    uniform=optax.identity,
  )
  return presets.choose('surgery.kind', kind, kinds)()
