"""Private training of text models, as a config says."""

from configs.parts import private
from configs.parts import text_models
from repjax import types
from repjax.data.reading import source
from repjax.experiments import of_tokens
from repjax.experiments import wiring
from repjax.methods import finetuning
from repjax.methods import language_modeling
from repjax.methods import model_inputs
from repjax.methods import supervised
from repjax.models import text_heads
from repjax.models import transformer


def sentences(config, optimizer: types.Optimizer) -> types.Experiment:
  """Learns the classes of texts."""
  tokenizer = text_models.tokenizer(config)
  load = text_models.sentences(config, tokenizer)
  train, plan, reading = _train(config, load)
  model = text_models.model(
    config,
    text_heads.Classifier,
    tokenizer.vocab_size,
    num_classes=train.num_classes,
  )
  adapted = finetuning.adapt(model, **config.adapter)
  method = supervised.make(
    adapted,
    private.chain(config, plan, optimizer),
    inputs=model_inputs.text,
    **config.step,
  )
  experiment = of_tokens.classifier(config, method, sources=load, **reading)
  return plan.guarded(experiment)._replace(
    warm_start=text_models.warm_start(config, model, adapted)
  )


def completions(config, optimizer: types.Optimizer) -> types.Experiment:
  """Learns to write what follows prompts."""
  tokenizer = text_models.tokenizer(config)
  load = text_models.completions(config, tokenizer)
  _, plan, reading = _train(config, load)
  model = text_models.model(config, transformer.DecoderLM, tokenizer.vocab_size)
  adapted = finetuning.adapt(model, **config.adapter)
  method = language_modeling.make(
    adapted, private.chain(config, plan, optimizer), **config.step
  )
  experiment = of_tokens.predictor(
    config, method, sources=load, show=tokenizer.decode, **reading
  )
  return plan.guarded(experiment)._replace(
    warm_start=text_models.warm_start(config, model, adapted)
  )


def _train(config, load: text_models.Load):
  """(training rows, plan, the batches and steps of an experiment)."""
  data, user_column = config.data, config.dp.user_column
  train = load(data.train_split)
  if user_column:  # Rows of tokens have no column that says whose they are.
    whole = source.load(data.name, data.train_split, data_dir=data.dir)
    train = train.with_columns(**{user_column: whole.column(user_column)})
  plan = private.plan_on(config, train)
  batches = plan.batches(train, **wiring.reading(config))
  return train, plan, dict(batches=batches, steps=plan.steps)
