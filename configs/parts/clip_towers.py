"""CLIP's towers of a config, for images and captions of any set."""

from configs import presets
from repjax.data.text import tokens
from repjax.models import clip
from repjax.models import mlp
from repjax.models import resnet


def network(config, tokenizer: tokens.Tokenizer) -> clip.Clip:
  """Both towers.

  Args:
    config: With network, the group that it names, clip (features, loss), text
      (of `clip.TowerConfig`) and data.length.
    tokenizer: Of the captions.
  """
  kinds = dict(
    mlp=mlp.Mlp, resnet=resnet.ResNet, preact_resnet=resnet.PreActResNet
  )
  kind = presets.choose('network', config.network, kinds)
  return clip.Clip(
    config.clip.features,
    kind(config.clip.features, **config[config.network]),
    clip.TextTower(
      clip.TowerConfig(**config.text),
      vocab_size=tokenizer.vocab_size,
      num_positions=config.data.length,
      end_token=tokens.END,
    ),
    initial_bias=-10.0 if config.clip.loss == 'sigmoid' else None,
    initial_scale=10.0 if config.clip.loss == 'sigmoid' else 1 / 0.07,
  )
