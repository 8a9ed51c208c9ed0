"""Host side: files of one's own as sources, without TFDS and TensorFlow.

- `names` says what `config.data.name=folder`, `csv`, `jsonl` and `npz` may be.
- `folders` reads images by class, `tables` rows of texts and numbers, `arrays`
  NumPy's files; each gives `rows.Rows`.
- `sets` makes `reading.source.Source`s of them, split by split, and `inputs`
  of files to predict or evaluate on with a set that was trained on.
"""
