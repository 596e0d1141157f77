"""Porter's stemmer: takes the suffixes off English words, so that forms of a word become one.

Porter 1980, "An algorithm for suffix stripping", steps 1a to 5b as printed there.
"""

import functools
import itertools

VOWELS = "aeiou"
# (suffix, what replaces it) by step; the longest suffix that a word has decides.
STEP_2 = (
  ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"),
  ("abli", "able"), ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"),
  ("ization", "ize"), ("ation", "ate"), ("ator", "ate"), ("alism", "al"), ("iveness", "ive"),
  ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"), ("iviti", "ive"), ("biliti", "ble"),
)  # fmt: skip
STEP_3 = (
  ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""),
  ("ness", ""),
)  # fmt: skip
STEP_4 = (
  "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou",
  "ism", "ate", "iti", "ous", "ive", "ize",
)  # fmt: skip


@functools.lru_cache(maxsize=1 << 17)
def stem(word: str) -> str:
  """The stem of a word of letters a to z, in lower case.

  Example: stem("generalizations") is "gener", stem("hopping") is "hop".
  """
  word = _plural(word)
  word = _past(word)
  if word.endswith("y") and _has_vowel(word[:-1]):  # step 1c
    word = word[:-1] + "i"
  word = _replaced(word, STEP_2)
  word = _replaced(word, STEP_3)
  word = _step_4(word)
  if word.endswith("e"):  # step 5a
    body = word[:-1]
    if _measure(body) > 1 or (_measure(body) == 1 and not _ends_cvc(body)):
      word = body
  if word.endswith("ll") and _measure(word[:-1]) > 1:  # step 5b
    word = word[:-1]
  return word


def _plural(word: str) -> str:
  """Step 1a."""
  if word.endswith(("sses", "ies")):
    return word[:-2]
  return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past(word: str) -> str:
  """Step 1b."""
  if word.endswith("eed"):
    return word[:-1] if _measure(word[:-3]) > 0 else word
  for suffix in ("ed", "ing"):
    body = word.removesuffix(suffix)
    if body == word:
      continue
    if not _has_vowel(body):
      return word
    if body.endswith(("at", "bl", "iz")):
      return body + "e"
    if len(body) > 1 and body[-1] == body[-2] and body[-1] not in "lsz" and _consonants(body)[-1]:
      return body[:-1]
    return body + "e" if _measure(body) == 1 and _ends_cvc(body) else body
  return word


def _replaced(word: str, table: tuple[tuple[str, str], ...]) -> str:
  """Steps 2 and 3: the longest suffix is replaced if something of a word is left before it."""
  fitting = [pair for pair in table if word.endswith(pair[0])]
  if fitting:
    suffix, new = max(fitting, key=lambda pair: len(pair[0]))
    body = word[: -len(suffix)]
    if _measure(body) > 0:
      return body + new
  return word


def _step_4(word: str) -> str:
  fitting = [suffix for suffix in STEP_4 if word.endswith(suffix)]
  if fitting:
    suffix = max(fitting, key=len)
    body = word[: -len(suffix)]
    if _measure(body) > 1 and (suffix != "ion" or body.endswith(("s", "t"))):
      return body
  return word


def _consonants(word: str) -> list[bool]:
  """Of each letter whether it is a consonant; y is one at the start and after a vowel."""
  kinds: list[bool] = []
  for i, letter in enumerate(word):
    kinds.append(not kinds[-1] if letter == "y" and i else letter not in VOWELS)
  return kinds


def _measure(word: str) -> int:
  """m, where a word is [C](VC){m}[V] in runs of consonants and vowels."""
  kinds = _consonants(word)
  return sum(not a and b for a, b in itertools.pairwise(kinds))


def _has_vowel(word: str) -> bool:
  return not all(_consonants(word))


def _ends_cvc(word: str) -> bool:
  """Whether it ends consonant, vowel, consonant, the last not w, x or y."""
  return _consonants(word)[-3:] == [True, False, True] and word[-1] not in "wxy"
