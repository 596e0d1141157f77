"""Conversations: what is in the loss, templates, packing, batches, a run, and what is refused."""

import argparse
import dataclasses
import json
import shutil

import numpy as np
import pytest

from lm import generate
from lm.config.errors import ConfigError
from lm.data import chat, templates
from lm.data.kinds import KINDS
from lm.data.tokenizers import ByteTokenizer, HuggingfaceTokenizer
from lm.evaluate import evaluate_run
from lm.hf.runs import export_run
from lm.objectives import instruction
from lm.runs import summary
from lm.runs.load import load
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from lm.tasks.texts import Writing, answers
from tests import trained

USER, BOT = ({"role": r, "content": c} for r, c in (("user", "Why?"), ("assistant", "So é.")))
TINY = {
  "objective.name": "instruction",
  "objective.template": "chatml",
  "objective.too_long": "refuse",
}


def write(path, conversations):
  rows = [json.dumps({"messages": messages}) for messages in conversations]
  path.write_text("\n".join(rows) + "\n", encoding="utf-8")
  return path


def conversations(n, words=5):
  said = lambda i: " ".join(str((i * 7 + j) % 10) for j in range(words + i % 3))
  turn = lambda i: [
    {"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": said(i)}
  ]  # fmt: skip
  return [[*turn(i), *(turn(i + 1) if i % 2 else [])] for i in range(n)]


def config(file, **changes):
  given = {**trained.TINY, **TINY, "data.sources": f"text:{file}", "model.seq_len": 160}
  given |= {k.replace("__", "."): v for k, v in changes.items()}
  return resolve(load_config("configs/smoke.py", given), 257, 1)


CHATML_JINJA = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml(messages):
  return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)


# --- templates and what counts --------------------------------------------------------------------


def test_answers_and_what_ends_them_count_and_nothing_else(tmp_path):
  template = templates.find_template("chatml", tmp_path)
  messages = [{"role": "system", "content": "Be brief."}, USER, BOT, USER, BOT]
  tokenizer = ByteTokenizer()
  ids, counted, size = templates.tokenise(messages, template, tokenizer)
  assert tokenizer.decode(ids) == chatml(messages)
  assert tokenizer.decode(ids[counted > 0]) == 2 * "So é.<|im_end|>"
  assert tokenizer.decode(ids[counted == templates.TEXT]) == 2 * "So é." and size == 2 * 6


@pytest.fixture(scope="module")
def special(tmp_path_factory):
  """A tokenizer folder with ChatML's tokens and a template that has a mind of its own."""
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

  from lm.data.tokenizers import bytes_to_characters

  folder = tmp_path_factory.mktemp("special")
  vocab = {name: i for i, name in enumerate(bytes_to_characters())}
  backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  names = ("<|im_end|>", "<|im_start|>", "<s>", "</s>", "[INST]", "[/INST]")
  backend.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
  backend.save(str(folder / "tokenizer.json"))
  template = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
  )
  settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return folder


def tokenise(special, messages, **changes):
  from lm.data.tokenizers import make_tokenizer

  given = {"objective__template": "tokenizer", "data__tokenizer": "huggingface", **changes}
  cfg = load_config(
    "configs/smoke.py",
    {**trained.TINY, **TINY, "data.tokenizer_path": str(special)}
    | {k.replace("__", "."): v for k, v in given.items()},
  )
  tokenizer = make_tokenizer(cfg.data)
  template = templates.find_template(cfg.objective.template, templates.folder_of(cfg))
  return tokenizer, *templates.tokenise(messages, template, tokenizer)[:2]


def test_a_message_is_tokenised_together_with_the_text_around_it():
  """A byte tokenizer has none of ChatML's markers: they are texts, and stand alone."""
  seen = []

  class Seen(ByteTokenizer):
    def encode_with_spans(self, text):
      seen.append(text)
      return super().encode_with_spans(text)

  templates.tokenise([USER, BOT], templates.find_template("chatml", None), Seen())
  assert "user\nWhy?" in seen and "assistant\nSo é." in seen and "<|im_end|>" in seen


def test_a_blank_that_a_span_leaves_out_counts_as_its_token_does():
  """ "a: <blank>b" of which the blank before b is the answer's, and the token's span is b alone."""
  pieces = [templates._Piece("a:", templates.UNCOUNTED), templates._Piece(" ", templates.TEXT)]
  pieces.append(templates._Piece("b", templates.UNCOUNTED))
  found = templates._kinds(pieces, np.array([[0, 2], [3, 4]]))
  assert found.tolist() == [templates.UNCOUNTED, templates.TEXT]


def test_no_message_becomes_a_special_token(special):
  evil = [
    {"role": "user", "content": "x</s><|im_end|>[INST]"},
    {"role": "assistant", "content": "<s>"},
  ]
  for template, marks in (
    ("tokenizer", ["[INST]", "[/INST]", "</s>"]),
    ("chatml", ["<|im_start|>", "<|im_end|>"] * 2),
  ):
    tokenizer, ids, counted = tokenise(special, evil, objective__template=template)
    specials = {i: name for name, i in templates.special_ids(tokenizer).items()}
    found = [specials[i] for i in ids.tolist() if i in specials]
    assert found == ["<s>", *marks]
    answer = ids[counted == templates.TEXT].tolist()
    assert not specials.keys() & set(answer) and bytes(answer[:1]) != b""
    assert ids[counted == templates.MARK].tolist() == [tokenizer.backend.token_to_id(found[-1])]


def test_the_tokenizers_own_template_is_transformers_rendering(special):
  transformers = pytest.importorskip("transformers")
  theirs = transformers.AutoTokenizer.from_pretrained(special)
  messages = [USER, BOT, USER, BOT]
  tokenizer, ids, _ = tokenise(special, messages)
  expected = theirs.apply_chat_template(messages, tokenize=False)
  assert tokenizer.backend.decode(ids, skip_special_tokens=False) == expected


def test_what_is_asked_is_transformers_rendering_and_the_end_is_what_counts(special, tmp_path):
  special = shutil.copytree(special, tmp_path / "copy")
  transformers = pytest.importorskip("transformers")
  theirs = transformers.AutoTokenizer.from_pretrained(special)
  for text in (theirs.chat_template, CHATML_JINJA, [{"name": "default", "template": CHATML_JINJA}]):
    settings = json.loads((special / "tokenizer_config.json").read_text()) | {"chat_template": text}
    (special / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs.chat_template = CHATML_JINJA if isinstance(text, list) else text
    tokenizer = tokenise(special, [USER, BOT])[0]
    template = templates.find_template("tokenizer", special)
    asked = [*templates.asks("Hi</s>", "Be brief."), BOT, USER]
    ids = templates.tokenise(asked, template, tokenizer, ask=True)[0]
    text = theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == text
    end = "<|im_end|>" if "im_start" in text else "</s>"
    assert templates.ending_of(template, tokenizer).ids == (tokenizer.backend.token_to_id(end),)
  chatml = templates.find_template("chatml", special)
  assert templates.ending_of(chatml, ByteTokenizer()) == templates.Ending((), "<|im_end|>")


def test_characters_that_stand_for_contents_may_stand_in_them(special):
  text = f"{templates.OPEN}0{templates.CLOSE}{templates.EDGE}"
  for template in ("chatml", "tokenizer"):
    tokenizer, ids, counted = tokenise(
      special, [{**USER, "content": text}, {**BOT, "content": text}], objective__template=template
    )
    assert tokenizer.decode(ids[counted == templates.TEXT].tolist()) == text
    assert tokenizer.decode(ids.tolist()).count(text) == 2


TURNS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"


@pytest.mark.parametrize("template", [
  TURNS.replace("m['content']", "m['content'] | trim"),
  TURNS.replace("m['content']", "m['content'].rstrip()"),
  "{% if tools is not none or documents is not none %}[INST]{% endif %}" + TURNS,
  TURNS.replace("{{", "{% if loop.index > 9 %}{% break %}{% endif %}{{", 1),
])  # fmt: skip
def test_blanks_and_what_a_template_may_ask_are_as_in_transformers(special, tmp_path, template):
  """Llama's, Gemma's and Mistral's templates trim: a mark has no blanks, and its message kept them."""
  special = shutil.copytree(special, tmp_path / "copy")
  transformers = pytest.importorskip("transformers")
  theirs = transformers.AutoTokenizer.from_pretrained(special)
  (special / "chat_template.jinja").write_text(template)
  turns = [{"role": "user", "content": " a b\n"}, {"role": "assistant", "content": "\n c d "}]
  tokenizer, ids, counted = tokenise(special, turns)
  text = theirs.apply_chat_template(turns, chat_template=template, tokenize=False)
  assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"]
  answer = text.rpartition("assistant: ")[2].removesuffix("</s>")
  assert tokenizer.decode(ids[counted == templates.TEXT].tolist()) == answer


@pytest.fixture(scope="module")
def joining(special, tmp_path_factory):
  """That folder with tokens of a blank and a letter, of two line breaks, and such as take blanks along."""
  folder = shutil.copytree(special, tmp_path_factory.mktemp("joining") / "copy")
  made = json.loads((folder / "tokenizer.json").read_text())
  merges = [["Ġ", "W"], ["Ġ", "S"], ["Ċ", "Ċ"], [":", "Ġ"], [".", "Ċ"]]
  for pair in merges:
    made["model"]["vocab"]["".join(pair)] = 300 + len(made["model"]["vocab"])
  made["model"]["merges"] = merges
  for token in made["added_tokens"]:
    token["rstrip"] = token["content"] in ("[INST]", "<|im_start|>")
  (folder / "tokenizer.json").write_text(json.dumps(made))
  return folder


LABELLED = TURNS.replace("m['role'] + ': '", "m['role'].upper() + ': '")
MARKED = (
  "{% for m in messages %}<|im_start|> {{ m['role'] }}\n\n{% if m['role'] == 'assistant' %}"
  "{% generation %}{% set end = '<|im_end|>' %}{{ m['content'] + end }}{% endgeneration %}{{ end }}"
  "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|> assistant\n\n{% endif %}"
)
THOUGHTS = (
  "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1].lstrip('\n') }}{{ eos_token }}"
  "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("template", [None, LABELLED, MARKED, CHATML_JINJA, THOUGHTS])
@pytest.mark.parametrize("ask", [False, True])
def test_a_conversation_has_the_tokens_and_the_answers_that_transformers_finds(
  joining, tmp_path, template, ask
):
  """Contents were tokenised apart from the text around them, and {% generation %} was refused."""
  transformers = pytest.importorskip("transformers")
  folder = shutil.copytree(joining, tmp_path / "copy")
  if template:
    (folder / "chat_template.jinja").write_text(template)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  tokenizer = HuggingfaceTokenizer((folder / "tokenizer.json").read_text(), "</s>", "<s>")
  turns = [
    USER,
    BOT,
    {"role": "user", "content": "\n\n Why? "},
    {"role": "assistant", "content": ""},
  ]
  thought = {"role": "assistant", "content": "<think>\nSo.\n</think>\n\nSo."}
  for messages in (turns, turns[:3], [USER, thought, USER]):
    if not ask and template == THOUGHTS:
      continue  # in training it is refused
    found = templates.tokenise(
      messages, templates.find_template("tokenizer", folder), tokenizer, ask
    )
    expected = theirs.apply_chat_template(
      messages, add_generation_prompt=ask, return_dict=True, return_assistant_tokens_mask=True
    )
    assert found[0].tolist() == expected["input_ids"]
    if template == MARKED:
      assert (found[1] > 0).astype(int).tolist() == expected["assistant_masks"]
      assert ask or found[2] == sum(
        len(m["content"].encode()) for m in messages if m["role"] == "assistant"
      )


@pytest.mark.parametrize(("template", "messages", "message"), [
  (TURNS.replace("{{", "{% if m['role'] != 'system' %}{{", 1) .replace("}}", "}}{% endif %}"),
   templates.asks("Hi", "Be brief."), "leaves out what the system says; ask without it"),
  (TURNS.replace("in messages", "in messages[1:]"), [USER, BOT, USER], "leaves messages out"),
  (THOUGHTS, [USER, {**BOT, "content": "x</think></s>y"}, USER], "by what is in it"),
])  # fmt: skip
def test_what_a_template_leaves_out_is_not_asked(special, tmp_path, template, messages, message):
  special = shutil.copytree(special, tmp_path / "copy")
  (special / "chat_template.jinja").write_text(template)
  tokenizer = HuggingfaceTokenizer((special / "tokenizer.json").read_text(), "</s>", "<s>")
  found = templates.find_template("tokenizer", special)
  with pytest.raises(ConfigError, match=message):
    templates.tokenise(messages, found, tokenizer, ask=True)


@pytest.mark.parametrize(("template", "message"), [
  (TURNS.replace("m['content']", "m['content'].split('</think>')[-1]"), "by what is in it"),
  ("{% if messages[0]['content'] | length > 60 %}LONG{% endif %}" + TURNS, "by what is in it"),
])  # fmt: skip
def test_a_template_that_goes_by_what_messages_say_is_refused_where_that_matters(
  special, tmp_path, template, message
):
  special = shutil.copytree(special, tmp_path / "copy")
  (special / "chat_template.jinja").write_text(template)
  tokenise(special, [USER, BOT])
  long = [{**USER, "content": "word " * 20}, {**BOT, "content": "<think>x</think>y"}]
  with pytest.raises(ConfigError, match=message):
    tokenise(special, long)


@pytest.mark.parametrize(("template", "message"), [
  ("{% for i in range(10 ** 9) %}{% endfor %}", "refuses a conversation"),
  ("{{ ''.__class__.__mro__ }}", "refuses a conversation"),
  ("{% for", "cannot be read"),
  ("{{ raise_exception('no') }}", r"refuses a conversation \(no\)"),
  ("{{ messages[0]['content'] }}", "leaves messages out or says them twice"),
])  # fmt: skip
def test_a_template_is_rendered_in_a_sandbox(special, tmp_path, template, message):
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (tmp_path / name).write_bytes((special / name).read_bytes())
  (tmp_path / "chat_template.jinja").write_text(template)
  with pytest.raises(ConfigError, match=message):
    tokenise(tmp_path, [USER, BOT])


def test_a_template_writes_json_as_it_is(special, tmp_path):
  """As transformers' tojson does: letters stay letters, and "<" is itself."""
  special = shutil.copytree(special, tmp_path / "copy")
  said = "{{ ['é', '<'] | tojson }}"
  (special / "chat_template.jinja").write_text(
    said + "{% for m in messages %}{{ m['content'] }}{% endfor %}"
  )
  tokenizer, ids, _ = tokenise(special, [USER, BOT])
  assert tokenizer.decode(ids.tolist()).startswith('["é", "<"]')


# --- packing and batches --------------------------------------------------------------------------


def test_the_record_names_a_further_set_by_what_it_holds(tmp_path):
  write(tmp_path / "x.jsonl", conversations(20))
  write(tmp_path / "more.jsonl", conversations(4))
  cfg = config(tmp_path / "x.jsonl", eval__sets=(f"more=text:{tmp_path}/more.jsonl",))
  chats = chat.open_chats(cfg)
  more = KINDS["chat"].sets(chats, cfg)["more"]
  assert chat.describe(chats)["sets"] == {"more": more.fingerprint}


def test_rows_are_packed_tightly_and_hold_each_conversation_once():
  lengths = np.random.default_rng(0).integers(1, 60, 300).tolist()
  rows = chat.pack(lengths, 64)
  assert sorted(i for row in rows for i in row) == list(range(300))
  filled = [sum(lengths[i] for i in row) for row in rows]
  assert max(filled) <= 64 and len(rows) <= sum(lengths) / 64 * 1.05 + 1


def test_batches_are_functions_of_the_step_with_documents_apart(tmp_path):
  cfg = config(write(tmp_path / "c.jsonl", conversations(40)))
  kind = kind_of(cfg)
  opened = kind.open(cfg)
  batches = kind.train(opened, cfg)
  seen = []
  for step in range(len(batches.rows) // cfg.train.batch_size):
    batch, again = batches.at(step), kind.train(kind.open(cfg), cfg).at(step, slice(2, 5))
    arrays = kind.arrays(cfg, True)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
      k: (a.shape, np.dtype(a.dtype)) for k, a in arrays.items()
    }
    for name, array in again.items():
      np.testing.assert_array_equal(array, batch[name][2:5])
    for row in range(cfg.train.batch_size):
      segments = batch["segments"][row]
      for number in range(1, segments.max() + 1):
        here = segments == number
        targets = batch["targets"][row][here]
        np.testing.assert_array_equal(batch["tokens"][row][here], [256, *targets[:-1]])
        np.testing.assert_array_equal(batch["positions"][row][here], np.arange(here.sum()))
        seen.append(bytes(targets.tolist()).decode())
    assert not batch["weights"][batch["segments"] == 0].any()
  assert len(seen) == len(set(seen)) and all(s.startswith("<|im_start|>user\nsay ") for s in seen)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
  """A run on conversations, told to say numbers."""
  folder = tmp_path_factory.mktemp("tuned")
  changes = {k.replace(".", "__"): v for k, v in TINY.items()}
  changes |= {"data__sources": f"text:{write(folder / 'c.jsonl', conversations(60))}"}
  trained.run(folder / "run", **changes, model__seq_len=160, train__steps=6)
  return folder / "run"


@pytest.mark.slow  # a run
def test_a_run_answers_a_conversation_by_its_template(tuned, capsys, monkeypatch):
  run = load(tuned)
  first = [{"role": "user", "content": "say 3"}]
  written = chatml(first) + "<|im_start|>assistant\n"
  expected = run.generate([written], 8, 0.0, stop="<|im_end|>")
  assert run.generate([first], 8, 0.0) == expected
  words = ["--workdir", str(tuned), "--chat", "--tokens", "8", "--temperature", "0"]
  assert generate.main([*words, "--prompt", "say 3"]) == 0
  assert capsys.readouterr().out == expected[0] + "\n"
  assert generate.main([*words, "--prompt", "say 3", "--system", "Be brief.", "--json"]) == 0
  told = json.loads(capsys.readouterr().out)
  assert told["messages"] == templates.asks("say 3", "Be brief.")
  assert told["text"] == run.generate([told["messages"]], 8, 0.0)[0]
  lines = iter(["say 3", "say 4"])

  def ask(_):
    if (line := next(lines, None)) is None:
      raise EOFError
    return line

  monkeypatch.setattr("builtins.input", ask)
  assert generate.main([*words, "--interactive"]) == 0
  then = [
    *first,
    {"role": "assistant", "content": expected[0]},
    {"role": "user", "content": "say 4"},
  ]
  assert capsys.readouterr().out == f"{expected[0]}\n{run.generate([then], 8, 0.0)[0]}\n"


def test_a_line_that_cannot_be_answered_is_forgotten_and_the_conversation_goes_on(
  monkeypatch, capsys
):
  """It ended the program, and with it the conversation."""
  lines = iter(["a", "x" * 100, "b\udcff", "c"])
  monkeypatch.setattr(
    "builtins.input", lambda prompt: next(lines, None) or (_ for _ in ()).throw(EOFError)
  )

  def answer(prompts, seed):
    if "xxx" in prompts[0][-1]["content"]:
      raise ConfigError("tokens=8: too long; use a shorter prompt")
    asked.append(([m["content"] for m in prompts[0]], seed))
    return "yes"

  asked = []
  options = argparse.Namespace(chat=True, system="S", seed=3)
  assert generate._talk(answer, options) == 2
  assert asked == [(["S", "a"], 3), (["S", "a", "yes", "c"], 4)]
  assert capsys.readouterr().err.splitlines() == [
    "tokens=8: too long; use a shorter prompt",
    "prompt=b\\udcff: is no text in UTF-8; convert it",
  ]


@pytest.mark.slow
def test_a_task_asks_by_the_template_and_the_samples_answer(tuned):
  run = load(tuned)
  asked = [templates.asks(f"{text}?", "S") for text in ("say 1", "say 2")]
  wanted = Writing(cue="?", chat=True, system="S", stop="7")
  answered = answers(run, ["say 1", "say 2"], wanted)
  longest = max(len(run.reads(each)) for each in asked)
  assert answered == run.generate(asked, 160 - longest, 0.0, stop="7")
  drawn = dataclasses.replace(run.cfg.sample, tokens=8, prompt="say 1", temperature=0.0)
  sample = instruction.make_sampler(dataclasses.replace(run.cfg, sample=drawn), run.tokenizer)
  assert sample(run.params, 0) == run.generate([templates.asks("say 1")], 8, 0.0)[0]
  assert f"lm.generate --workdir {tuned} --chat --prompt" in summary.show([tuned])


@pytest.mark.slow  # a run
def test_an_exported_run_is_asked_alike_by_transformers(tuned, special, tmp_path):
  transformers = pytest.importorskip("transformers")
  changes = {k.replace(".", "__"): v for k, v in TINY.items()} | {
    "objective__template": "tokenizer"
  }
  changes |= {"data__tokenizer": "huggingface", "data__tokenizer_path": str(special)}
  changes |= {"data__sources": f"text:{tuned.parent / 'c.jsonl'}", "model__seq_len": 160}
  trained.run(tmp_path / "run", **changes, train__steps=1)
  messages = [*templates.asks("say 3", "Be brief."), BOT, USER]
  for workdir in (tuned, tmp_path / "run"):
    folder = tmp_path / f"exported-{workdir.parent.name}"
    export_run(workdir, folder, "latest")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    found = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert found == load(workdir).reads(messages), workdir


def test_a_chat_needs_a_template(tmp_path):
  with pytest.raises(ConfigError, match=r"^system=S: is of a conversation; add --chat"):
    generate.main(["--workdir", str(tmp_path), "--prompt", "a", "--system", "S"])
  cfg = load_config("configs/smoke.py", trained.TINY)
  with pytest.raises(ConfigError, match=rf"^workdir={tmp_path}: has no chat template"):
    templates.template_of_run(tmp_path, cfg)


@pytest.mark.slow  # a run
def test_a_run_learns_answers_alone(tmp_path):
  file = write(tmp_path / "c.jsonl", conversations(60))
  changes = {k.replace(".", "__"): v for k, v in TINY.items()}
  changes |= {"data__sources": f"text:{file}", "model__seq_len": 160, "train__steps": 30}
  trained.run(tmp_path / "run", **changes)
  lines = trained.records(tmp_path / "run")
  assert lines[-1]["train/loss"] < lines[0]["train/loss"]
  found = evaluate_run(tmp_path / "run")
  assert found["loss"] == pytest.approx(lines[-1]["eval/val/loss"], rel=0.05)
  assert 0 < found["bytes"] < found["tokens"]  # what ends an answer has no bytes of it


@pytest.mark.parametrize(("text", "changes", "message"), [
  ("{", {}, r"bad.jsonl:1 must be {\"messages\""),
  ('{"messages": [{"role": "king", "content": "x"}]}', {}, "has the role 'king'; use one of system"),
  ('{"messages": [{"role": "user", "content": 3}]}', {}, "must be"),
  ('{"messages": [{"role": "user", "content": "\\udfff"}]}', {}, "bad.jsonl:1 has a lone surrogate"),
  (json.dumps({"messages": [USER]}), {}, "holds no conversation with an answer"),
  (json.dumps({"messages": [USER, BOT]}), {"model__seq_len": 16}, "tokens and model.seq_len=16; raise it"),
  (json.dumps({"messages": [USER, BOT]}), {}, "data.val_fraction=0.05: leaves no conversation of 1"),
  ("x", {"data__lower_case": True}, "data.lower_case=True: conversations are not cleaned"),
  ("x", {"data__text_unit": "line"}, "data.text_unit=line: conversations are lines of JSON .*; use file"),
  ("x", {"data__text_field": "body"}, "data.text_field=body: conversations .*; use text"),
  ("x", {"data__text_format": "csv"}, "data.text_format=csv: conversations .*; use auto"),
  ("x", {"data__weights": "1"}, "data.weights=1.0: conversations are drawn alike"),
  ("x", {"data__val_split": "tail"}, "data.val_split=tail: conversations are held out by their hash"),
  ("x", {"data__tokenizer": "char"}, "data.tokenizer=char: chats are read with a tokenizer that there is"),
])  # fmt: skip
def test_what_is_no_conversation_is_refused_in_one_line(tmp_path, text, changes, message):
  (tmp_path / "bad.jsonl").write_text(text)
  with pytest.raises(ConfigError, match=message):
    cfg = config(tmp_path / "bad.jsonl", **changes)
    kind_of(cfg).open(cfg)


def test_long_conversations_are_cut_or_dropped_when_told_to(tmp_path):
  file = write(tmp_path / "c.jsonl", [*conversations(30), *conversations(30, words=90)])
  with pytest.raises(ConfigError, match=r"c.jsonl:31 has \d+ tokens and model.seq_len=160"):
    kind_of(config(file)).open(config(file))
  sizes = {}
  for how in ("cut", "drop"):
    cfg = config(file, objective__too_long=how)
    opened = kind_of(cfg).open(cfg)
    sizes[how] = len(opened.train.ids) + len(opened.val.ids)
    assert max(map(len, opened.train.ids)) <= 161
  assert sizes == {"cut": 60, "drop": 30}
  long = json.dumps({"messages": [USER, {"role": "assistant", "content": "é" * 90}]})
  (tmp_path / "long.jsonl").write_text(long)
  cfg = config(tmp_path / "long.jsonl", objective__too_long="cut", model__seq_len=100)
  side = chat.read_side(cfg, ByteTokenizer(), cfg.data.sources, "train", "data.sources")
  text = bytes(side.ids[0][side.counted[0] == templates.TEXT].tolist()).decode(errors="ignore")
  assert side.bytes == [len(text.encode())] and 0 < len(text) < 90
  # Where none is left the rows are too short, not the files wrong.
  for how in ("cut", "drop"):
    cfg = config(tmp_path / "long.jsonl", objective__too_long=how, model__seq_len=16)
    with pytest.raises(ConfigError, match=r"^model.seq_len=16: no conversation of data.sources="):
      kind_of(cfg).open(cfg)
