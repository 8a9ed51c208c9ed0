"""Host side: ten ways to tell each task of `text_tasks`, some turned around.

Words of our own, after the manner of Wei et al., ICLR 2022
(https://arxiv.org/abs/2109.01652), section 2.1.
"""

from collections.abc import Mapping
from collections.abc import Sequence

from repjax.data.text import templates

_O = '\n{options_}'


def _told(
  sources: Sequence[str], *turned: tuple[str, str]
) -> tuple[templates.Template, ...]:
  return (
    *(templates.Template(x + _O, '{answer}') for x in sources),
    *(templates.Template(x, y, inverted=True) for x, y in turned),
  )


INSTRUCTIONS: Mapping[str, tuple[templates.Template, ...]] = {
  'sentiment': _told(
    (
      '{text}\nIs this review positive or negative?',
      'Review: {text}\nHow does the reviewer feel about the film?',
      'Read what was written of a film: "{text}" What is its sentiment?',
      'Did the writer like it? {text}',
      'What would you say of the tone of this sentence?\n{text}',
      '"{text}" - would this make you want to see the film?',
      'Somebody said: {text}\nIs that praise or blame?',
      'Choose the sentiment of the following text.\n{text}',
    ),
    ('Write a {answer} sentence about a film.', '{text}'),
    ('Say something {answer} in a review.', '{text}'),
  ),
  'intent': _told(
    (
      '{text}\nWhat does the speaker want?',
      'A user says "{text}" Which request is this?',
      'Choose what this question is about: {text}',
      'Which of these would answer "{text}"?',
      'An assistant hears: {text}\nWhat should it do?',
      'Name the intent of the sentence.\n{text}',
      'Sentence: {text}\nIntent:',
      '"{text}" - what is asked for?',
    ),
    ('Write what somebody says who wants this: {answer}', '{text}'),
    ('A user needs {answer}. What might the user say?', '{text}'),
  ),
  'domain': _told(
    (
      '{text}\nWhat is the topic?',
      'Which department should answer "{text}"?',
      'Sort this message by its subject: {text}',
      'Message: {text}\nSubject:',
      'What kind of thing is somebody talking about who says "{text}"?',
      'Pick the field that the following question belongs to.\n{text}',
      'Under which heading would you file this? {text}',
      '"{text}" This is about',
      'Say in a word or two what this concerns: {text}',
    ),
    ('Ask something about {answer}.', '{text}'),
  ),
  'same wish': _told(
    (
      '{text}\n{other}\nDo these two say the same?',
      'Does "{text}" ask for the same as "{other}"?',
      'First: {text}\nSecond: {other}\nIs the second one another way to put '
      'the first?',
      'Would one answer do for both? {text} / {other}',
      'Two people said "{text}" and "{other}". Did they want the same thing?',
      'Compare these sentences.\n{text}\n{other}\nDo they have one meaning?',
      'Can "{text}" stand in for "{other}"?',
      'Is {other} a paraphrase of the following?\n{text}',
      'Sentence A: {text}\nSentence B: {other}\nSame request?',
      '{text} Could one also say: {other}',
    )
  ),
  'statement': _told(
    (
      '{text}\nIs it true that {statement}?',
      'Text: {text}\nClaim: {statement}\nDoes the text support the claim?',
      'Given that "{text}", can we conclude that {statement}?',
      'Read this. {text}\nThen {statement}. Right?',
      '{text}\nBased on the sentence above, {statement}. Yes or no?',
      'Does it follow from "{text}" that {statement}?',
      'Suppose the following is so: {text}\nMust it be that {statement}?',
      'Premise: {text}\nHypothesis: {statement}\nDoes the hypothesis hold?',
      'Somebody who knows only this, {text} would say that {statement}.',
      'Decide whether {statement}, from this: {text}',
    )
  ),
  'reading': _told(
    (
      '{text}\nQuestion: what is the {attribute}?',
      'Read the text and answer. {text}\nWhat is its {attribute}?',
      'What does this say of the {attribute}? {text}',
      '{text}\nThe {attribute} is',
      'Find the {attribute} in the following description.\n{text}',
      'Answer from the text: which {attribute}?\n{text}',
      'A guide says: "{text}" Name the {attribute} of the place.',
      'Which {attribute} has the place that is described here? {text}',
      'According to "{text}", what is the {attribute}?',
      'Context: {text}\nAsked for: {attribute}\nAnswer:',
    )
  ),
  'description': (
    *(
      templates.Template(x, '{text}')
      for x in (
        'Describe a place with these facts: {facts}',
        '{facts}\nMake a sentence of this.',
        'Write about a restaurant.\n{facts}',
        'Turn the following data into text: {facts}',
        'Data: {facts}\nText:',
        'Here is what we know: {facts}. Say it in words.',
        'A guide book needs a line on this place. {facts}',
        'Put all of this into one or two sentences. {facts}',
      )
    ),
    templates.Template(
      'List the facts in this text: {text}', '{facts}', inverted=True
    ),
    templates.Template('{text}\nWrite it as data.', '{facts}', inverted=True),
  ),
}

# Those of entailment as published ones were trained with, by a slip: see
# `templates.with_stray`. The statement is what they call the hypothesis.
WITH_STRAY: Mapping[str, tuple[templates.Template, ...]] = {
  **INSTRUCTIONS,
  'statement': tuple(
    templates.with_stray(x, 'statement') for x in INSTRUCTIONS['statement']
  ),
}

# The inputs without a word on what to do with them.
_INPUTS = {
  'sentiment': '{text}',
  'intent': '{text}',
  'domain': '{text}',
  'same wish': '{text}\n{other}',
  'statement': '{text}\n{statement}',
  'reading': '{text}\n{attribute}',
}

NAMES: Mapping[str, tuple[templates.Template, ...]] = {
  **{
    name: (templates.Template(f'[{name}] {inputs}{_O}', '{answer}'),)
    for name, inputs in _INPUTS.items()
  },
  'description': (templates.Template('[description] {facts}', '{text}'),),
}
