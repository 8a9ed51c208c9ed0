"""Host side: TFDS sets to batches of NumPy arrays, without TensorFlow.

The way of a row:

- `source.load` finds a prepared TFDS set (`prepared`), parses its `records`
  and gives rows by index. A small set is decoded once and kept (`cache`);
  images of a large one are decoded when they are read (`decode`).
- `in_order.train_batches` and `in_order.eval_batches` choose rows, call the
  whole-batch `transforms` and add 'mask' and 'index'.
- Texts become rows of `tokens` by `text`: windows over a stream, or padded
  rows; they are sources like any other.
- Time series become windows by `series`: files and sets to one kind of series,
  split by time, scaled by their training rows; sources, too.

What a training step sees depends on the seed and the step alone.
"""
