"""Cleaning of texts: nothing unless asked, and each step as its source says."""

import re
from collections import Counter

import pytest

from lm.data import cache, cleaning
from lm.data.sources import docstrings
from lm.data.stemmer import stem
from tests.corpora import data_config


def test_cleaning_does_nothing_unless_asked(tmp_path):
  text = "  Ｆｕｌｌ\t \n\n\n Width  é "
  assert cleaning.clean(text, data_config(tmp_path)) == text


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({"unicode": "NFKC"}, " Full \n\n\n\tA  B"),
    ({"lower_case": True}, " ｆull \n\n\n\ta  b"),
    ({"squeeze_spaces": True}, "Ｆull\n\nA B"),
  ],
)
def test_cleaning_options(tmp_path, changes, expected):
  assert cleaning.clean(" Ｆull \n\n\n\tA  B", data_config(tmp_path, **changes)) == expected


def test_length_limits_count_what_they_drop(tmp_path):
  counts = Counter()
  cfg = data_config(tmp_path, min_chars=2, max_chars=3)
  kept = list(cleaning.cleaned(["a", "ab", " \n ", "abc", "abcd", ""], cfg, counts))
  assert kept == ["ab", "abc"]
  assert counts == {"read": 6, "short": 1, "long": 1, "blank": 2}


HTML = """<!DOCTYPE html><html><head><title>T</title><style>p > a {}</style></head><!-- a <b> -->
<body><h1 title="a > b">Head</h1><p class='x'>One &amp; two&nbsp;&lt;three&gt; <b>bo</b>ld<br/>next
<script type="x">if (a < b) { "</p>" }</script> 1 < 2 and 3 > 2, a<b</p></body></html>"""


@pytest.mark.parametrize(
  ("changes", "text", "expected"),
  [
    (
      {"strip_html": True, "squeeze_spaces": True},
      HTML,
      "T\n\nHead\n\nOne & two <three> bold\nnext\n1 < 2 and 3 > 2, a<b",
    ),
    ({"strip_html": True}, "a < b <!-- c", "a < b <!-- c"),
    ({"strip_html": True}, "İ<!-- x -->y", "İy"),
    (
      {"mask_urls": True},
      "see https://a.b/c?d=e#f, (www.x.org/y). not www or http:",
      "see <url>, (<url>). not www or http:",
    ),
    ({"mask_emails": True}, "a.b+c@d-e.co.uk, x@y and @me", "<email>, x@y and @me"),
    (
      {"remove_stop_words": True},
      "The cat, and THE dog don't\nsit on that mat; isn’t it? theory",
      "cat, dog sit mat; ? theory",
    ),
    (
      {"stem": True},
      "Generalizations of x9 running ponies' éclairs",
      "gener of x9 run poni' éclairs",
    ),
    (
      {"remove_stop_words": True, "stem": True, "lower_case": True, "unicode": "NFKC"},
      "Ｔhe Cats were Hopping",
      "cat hop",
    ),
  ],
)
def test_cleaning_steps(tmp_path, changes, text, expected):
  assert cleaning.clean(text, data_config(tmp_path)) == text
  found = cleaning.clean(text, data_config(tmp_path, **changes))
  if changes == {"remove_stop_words": True}:
    found = found.replace("\n", "")
  assert found == expected


def test_steps_take_time_in_proportion_to_the_text(tmp_path):
  steps = dict.fromkeys(cleaning.STEPS, True)
  cfg = data_config(tmp_path, unicode="NFKC", **steps)
  for unit in (
    "<!--",
    "<script ",
    "a",
    "<",
    "&",
    "a@",
    "@a.",
    "www.",
    '<a "',
    "it's ",
    "\n ",
    "<a x='",
  ):
    cleaning.clean(unit * 50_000, cfg)  # quadratic time would be minutes


def test_every_step_is_off_by_default_and_has_a_key(tmp_path):
  cfg = data_config(tmp_path)
  assert [key for key in cleaning.KEYS if getattr(cfg, key)] == []
  assert set(cleaning.KEYS) < set(cache.CLEANING)


def test_stems_are_those_of_porter():
  """The published algorithm as NLTK has it, on every word of the docstrings; and the paper's examples."""
  porter = pytest.importorskip("nltk.stem.porter")
  theirs = porter.PorterStemmer(mode=porter.PorterStemmer.ORIGINAL_ALGORITHM)
  words = {
    word
    for doc in docstrings.read("data.sources=docstrings")
    for word in re.findall(r"[a-z]+", doc.lower())
  }
  assert len(words) > 8000
  assert {w: stem(w) for w in words} == {w: theirs.stem(w) for w in words}
  paper = """caresses caress ponies poni ties ti cats cat feed feed agreed agre plastered plaster bled bled
    motoring motor sing sing conflated conflat troubled troubl sized size hopping hop tanned tan falling
    fall hissing hiss fizzed fizz failing fail filing file happy happi sky sky relational relat
    conditional condit rational ration valenci valenc digitizer digit operator oper triplicate triplic
    formative form formalize formal electrical electr hopeful hope goodness good revival reviv allowance
    allow inference infer airliner airlin adjustable adjust defensible defens irritant irrit replacement
    replac adoption adopt communism commun activate activ effective effect bowdlerize bowdler probate
    probat rate rate cease ceas controll control roll roll generalizations gener oscillators
    oscil""".split()  # noqa: SIM905
  assert [stem(word) for word in paper[::2]] == paper[1::2]


def test_stop_words_are_those_of_nltk():
  assert len(cleaning.STOP_WORDS) == 179
  assert {"the", "don't", "ours", "wouldn't"} < cleaning.STOP_WORDS
