"""What may be done to a document before it is tokenised; every option is off by default.

A step is a function of a text, and a row of STEPS: the key of data.* that turns it on. They are done in
the order of the table.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig
from lm.data.quality import QUALITY
from lm.data.stemmer import stem

URL, EMAIL = "<url>", "<email>"  # what is written for addresses

# English words that carry little, with their contractions: the list of NLTK 3 (Porter and others).
STOP_WORDS = frozenset(
  """i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he
  him his himself she she's her hers herself it it's its itself they them their theirs themselves what
  which who whom this that that'll these those am is are was were be been being have has had having do
  does did doing a an the and but if or because as until while of at by for with about against between
  into through during before after above below to from up down in out on off over under again further
  then once here there when where why how all any both each few more most other some such no nor not only
  own same so than too very s t can will just don don't should should've now d ll m o re ve y ain aren
  aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven haven't isn isn't ma
  mightn mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won
  won't wouldn wouldn't""".split()  # noqa: SIM905
)

_TAG = re.compile(r"""</?([a-zA-Z][\w:-]*)(?:[^<>"']|"[^<"]*"|'[^<']*')*>""")
_UNSEEN = {"<!--": "-->", "<script": "</script", "<style": "</style", "<!": ">", "<?": ">"}
_UNSEEN_START = re.compile(r"<!--|<(?:script|style)\b|<![a-zA-Z]|<\?[a-zA-Z]", re.IGNORECASE)
_BLOCKS = frozenset(
  """address article aside blockquote body br dd div dl dt figcaption figure footer form h1 h2 h3 h4 h5 h6
  head header hr html li main nav ol option p pre section table tbody td tfoot th thead title tr
  ul""".split()  # noqa: SIM905
)
_URL = re.compile(r"\b(?:(?:https?|ftp)://|www\.)[^\s<>\"']+", re.IGNORECASE)
# At most 64 characters before the @ (RFC 5321), from where they begin: else long words take for ever.
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[a-zA-Z0-9-]{1,63}(?:\.[a-zA-Z0-9-]{1,63})+")
_WORD_AND_BLANKS = re.compile(r"([^\W\d_]+(?:['’][^\W\d_]+)*)([^\S\n]*)")
_LETTERS = re.compile(r"(?<![^\W_])[A-Za-z]+(?![^\W_])")


def strip_html(text: str) -> str:
  """Without tags, comments, scripts and styles; blocks end lines, entities become characters.

  Example: strip_html("<p>a &lt; b</p><b>c</b>") is "\\na < b\\nc". A lone "<" stays what it is.
  """
  return html.unescape(_TAG.sub(_blank_of_tag, _without_unseen(text)))


def _blank_of_tag(match: re.Match) -> str:
  return "\n" if match[1].lower() in _BLOCKS else ""


def _without_unseen(text: str) -> str:
  """Without what a browser does not show; what has no end is left as it is."""
  kept, at, lowered = [], 0, text.lower()
  if len(lowered) != len(text):  # a few letters grow in lower case
    lowered = text
  endless: set[str] = set()
  for match in _UNSEEN_START.finditer(text):
    if match.start() < at:
      continue
    opened = match[0].lower()
    end = _UNSEEN.get(opened, ">")
    stop = -1 if end in endless else lowered.find(end, match.end())
    if stop < 0:
      endless.add(end)
      continue
    if end.startswith("</"):
      end_tag = text.find(">", stop)
      stop, end = (end_tag, ">") if end_tag >= 0 else (stop, end)
    kept.append(text[at : match.start()])
    at = stop + len(end)
  return "".join([*kept, text[at:]])


def mask_urls(text: str) -> str:
  """Web addresses become <url>; a full stop, comma or bracket after one stays."""
  return _URL.sub(lambda match: URL + _tail(match[0]), text)


def _tail(address: str) -> str:
  return address[len(address.rstrip(".,;:!?)]}")) :]


def mask_emails(text: str) -> str:
  """E-mail addresses become <email>."""
  return _EMAIL.sub(EMAIL, text)


def squeeze_spaces(text: str) -> str:
  """Runs of blanks become one, blank lines at most one."""
  text = re.sub(r"[^\S\n]+", " ", text)
  text = re.sub(r" ?\n ?", "\n", text)
  return re.sub(r"\n{3,}", "\n\n", text).strip()


def remove_stop_words(text: str) -> str:
  """Without STOP_WORDS, in any case, and the blanks after each."""
  return _WORD_AND_BLANKS.sub(
    lambda match: "" if match[1].lower().replace("’", "'") in STOP_WORDS else match[0], text
  )


def stem_words(text: str) -> str:
  """Words of the letters a to z become their stems, in lower case (lm/data/stemmer.py)."""
  return _LETTERS.sub(lambda match: stem(match[0].lower()), text)


_LETTERS_ALONE = re.compile(r"[^\W\d_]+")


def words_only(text: str) -> str:
  """Runs of letters with one blank between them; digits, punctuation and line ends are left out.

  >>> words_only("It's 3 o'clock,\nshe said.")
  'It s o clock she said'
  """
  return " ".join(_LETTERS_ALONE.findall(text))


STEPS: dict[str, Callable[[str], str]] = {  # key of data.*, a boolean: the step it turns on
  "strip_html": strip_html,
  "mask_urls": mask_urls,
  "mask_emails": mask_emails,
  "lower_case": str.lower,
  "remove_stop_words": remove_stop_words,
  "stem": stem_words,
  "words_only": words_only,
  "squeeze_spaces": squeeze_spaces,
}
KEYS = ("unicode", *STEPS)  # what `clean` reads
DOCUMENTS = ("quality", "near_duplicates")  # of corpora of whole documents


def clean(text: str, cfg: DataConfig) -> str:
  """Unicode normalisation, then the steps that `cfg` asks for."""
  if cfg.unicode is not None:
    text = unicodedata.normalize(cfg.unicode, text)
  for key, step in STEPS.items():
    if getattr(cfg, key):
      text = step(text)
  return text


def cleaned(
  documents: Iterable[str | None], cfg: DataConfig, counts: Counter[str]
) -> Iterator[str]:
  """Cleaned documents, less the blank ones, those outside [min_chars, max_chars] and what data.quality drops.

  `counts` is told how many were read, and how many dropped for which reason; None is a record without
  text. Duplicates are dropped later (lm/data/spool.py), where all documents of a corpus are known.
  """
  for text in documents:
    counts["read"] += 1
    if text is None:
      counts["no_text"] += 1
      continue
    text = clean(text, cfg)
    if not text or text.isspace():
      counts["blank"] += 1
    elif len(text) < cfg.min_chars:
      counts["short"] += 1
    elif cfg.max_chars is not None and len(text) > cfg.max_chars:
      counts["long"] += 1
    elif cfg.quality is None:
      yield text
    elif (kept := QUALITY[cfg.quality](text)) is None:
      counts["quality"] += 1
    elif len(kept) < cfg.min_chars:
      counts["short"] += 1
    else:
      yield kept


def check_no_documents(cfg: DataConfig, what: str) -> None:
  """ConfigError for what is done to corpora of documents and not to these records."""
  for key in DOCUMENTS:
    if getattr(cfg, key) is not None:
      raise ConfigError(
        f"data.{key}={getattr(cfg, key)}: {what} are no documents of running text; use None"
      )
