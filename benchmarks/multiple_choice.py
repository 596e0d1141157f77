"""Zero- and few-shot questions with four choices, of MMLU, answered by likelihood; beside transformers.

Questions are taken evenly from those of the file that are short enough, so that topics have their shares
(Hendrycks et al. 2021, arXiv:2009.03300). Each is "Question: ...\\nAnswer:", and its choices are scored as
text that follows ("cloze"), as small models cannot answer by letters. Examples are some of the chosen
questions, of topics far apart, and are never scored, whatever --shots. With --exported, transformers scores
the first questions from the exported folder too, by its own tokenizer; it fails where log-likelihoods differ.

examples:
  python benchmarks/multiple_choice.py --workdir runs/smollm2 --mmlu mmlu.jsonl
  python benchmarks/multiple_choice.py --workdir runs/smollm2 --mmlu mmlu.jsonl --shots 5 --exported exported
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import bench

LETTERS = "ABCD"
MOST = {"question": 200, "answer": 100}  # characters
KINDS = ("raw", "per_token", "per_byte")
TOLERANCE = 1e-2  # nats of a choice


def main() -> int:
  parser = bench.make_parser(__doc__)
  parser.add_argument("--workdir", required=True, help="run directory of a language model")
  parser.add_argument(
    "--mmlu", required=True, help="JSON lines: question, answer_a to answer_d, correct_answer"
  )
  parser.add_argument("--questions", type=int, default=300, help="scored ones")
  parser.add_argument("--shots", default="0,5", help="examples before each, several with commas")
  parser.add_argument("--exported", help="folder of the same model for transformers")
  parser.add_argument("--peer_questions", type=int, default=40, help="scored there, too")
  options = parser.parse_args()
  shots = [int(text) for text in options.shots.split(",")]
  chosen = choose(options.mmlu, options.questions + max(shots))
  at = [i * len(chosen) // max(shots) for i in range(max(shots))]
  examples = [chosen[i] for i in at]
  asked = [each for i, each in enumerate(chosen) if i not in at]
  print(
    f"{'shots':>5} {'who':<13} {'questions':>9} {'chance':>7}" + "".join(f"{k:>13}" for k in KINDS)
  )
  return max([answer(options, examples[:n], asked) for n in shots])


def choose(path: str, n: int) -> list[dict]:
  """`n` of the short questions with four different choices, evenly spaced, as the task reads them."""
  short = []
  for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    choices = [str(row[f"answer_{letter.lower()}"]).strip() for letter in LETTERS]
    text = row["question"].strip()
    fits = len(text) <= MOST["question"] and max(map(len, choices)) <= MOST["answer"]
    answer = str(row["correct_answer"])
    if fits and all(choices) and len(set(choices)) == len(LETTERS) and answer in LETTERS:
      question = f"Question: {text}\nAnswer:"
      short.append({"question": question, "choices": choices, "answer": LETTERS.index(answer)})
  return [short[i * len(short) // n] for i in range(n)]


def answer(options: argparse.Namespace, examples: list[dict], asked: list[dict]) -> int:
  """Prints the rows of one number of examples; 1 where transformers' log-likelihoods are others."""
  from lm.tasks import multiple_choice

  workdir, begun = pathlib.Path(options.workdir), time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (*examples, *asked)))
    found = multiple_choice.evaluate(workdir, f"{file}:{len(examples)}", "best")
  row = {"shots": len(examples), "seconds": time.perf_counter() - begun, **found}
  bench.append(options.out, "multiple_choice", row | bench.about())
  accuracies = [found[f"accuracy_{kind}"] for kind in KINDS]
  show(len(examples), "ours", len(asked), found["chance"], accuracies)
  return compare(options, examples, asked[: options.peer_questions]) if options.exported else 0


def compare(options: argparse.Namespace, examples: list[dict], asked: list[dict]) -> int:
  """The same few questions here and in transformers: two rows, and how far log-likelihoods are apart."""
  import numpy as np

  from lm.runs.load import load
  from lm.tasks import multiple_choice

  before = "".join(f"{q['question']} {q['choices'][q['answer']]}\n\n" for q in examples)
  pairs = [(before + q["question"], f" {c}") for q in asked for c in q["choices"]]
  run = load(pathlib.Path(options.workdir), "best")
  ours = multiple_choice.score(run, pairs)
  begins = run.tokenizer.start_id
  del run
  peer = Peer(options.exported, begins)
  theirs = [peer.score(*pair) for pair in pairs]
  sizes = np.array([one.bytes for one in ours])
  answers = np.array([q["answer"] for q in asked])
  for who, scored in (("ours", ours), ("transformers", theirs)):
    sums, tokens = (np.array([one[i] for one in scored]) for i in (0, 1))
    best = [(sums / by).reshape(-1, len(LETTERS)).argmax(axis=1) for by in (1, tokens, sizes)]
    show(
      len(examples), who, len(asked), 1 / len(LETTERS), [(each == answers).mean() for each in best]
    )
  apart = max(abs(mine[0] - other[0]) for mine, other in zip(ours, theirs, strict=True))
  print(f"{'':5} log-likelihoods differ by {apart:.1e} nats at most")
  return 0 if apart < TOLERANCE else 1


class Peer:
  """The same model and tokenizer in transformers, a text at a time."""

  def __init__(self, folder: str, begins: int):
    import transformers

    self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    self.begins = begins  # the token that texts begin with

  def score(self, context: str, text: str) -> tuple[float, int]:
    """(nats, tokens) of a text after its context."""
    import torch

    encode = lambda text: self.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids, first = [self.begins, *encode(context + text)], len(encode(context))
    with torch.no_grad():
      log_p = self.model(torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)
    total = sum(float(log_p[at, ids[at + 1]]) for at in range(first, len(ids) - 1))
    return total, len(ids) - 1 - first


def show(shots: int, who: str, n: int, chance: float, accuracies) -> None:
  """One row of the table."""
  print(
    f"{shots:5} {who:<13} {n:9} {chance:7.3f}" + "".join(f"{each:13.3f}" for each in accuracies),
    flush=True,
  )


if __name__ == "__main__":
  sys.exit(main())
