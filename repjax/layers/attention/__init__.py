"""Device code: attention.

Exact attention is here, `Flash` with a fused kernel where a GPU has one;
`linear` has what is linear in the length, and `multi_head` the layer around
either.
"""

from repjax.layers.attention.flash import Flash as Flash
from repjax.layers.attention.softmax import Cache as Cache
from repjax.layers.attention.softmax import Softmax as Softmax
from repjax.layers.attention.softmax import (
  softmax_attention as softmax_attention,
)
