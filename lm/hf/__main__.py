"""Models in and out: Hugging Face folders, GGUF files and llama2.c files.

examples:
  python -m lm.hf import --from gpt2/ --workdir runs/gpt2
  python -m lm.hf import --from SmolLM2-135M-Instruct.Q4_1.gguf --workdir runs/smollm2
  python -m lm.hf import --from stories260K.bin --tokenizer tok512.model --workdir runs/stories
  python -m lm.hf export --workdir runs/default --to exported/

A folder holds config.json, model.safetensors (or shards with their index) and tokenizer files. The
library `transformers` is not needed. Conversion only renames, transposes, splits and permutes: going
out and in again gives the same bits. Architectures (model_type): gpt2, llama, mistral, qwen2, qwen3,
mixtral, starcoder2, gpt_neox, gptj, mpt, phi3, olmo2, gemma2, gemma3_text; the encoder bert and the
encoder-decoder t5.
"""

from lm.config import interrupts

if __name__ == "__main__":
  interrupts.listen()

import pathlib
import shlex
from collections.abc import Sequence

from lm import hub
from lm.config.command_line import Parser, run_main
from lm.config.errors import ConfigError, number_of
from lm.data.templates import has_template
from lm.hf.runs import export_run, import_run
from lm.models.registry import family_of, make_model
from lm.runs import bucket

HUB = "hub:"
FROM_HUB = ("*.json", "*.safetensors", "*.model", "*.jinja", "vocab.txt", "merges.txt")
DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str]) -> int:
  parser = Parser(prog="python -m lm.hf", description=__doc__)
  verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
  take = verbs.add_parser(
    "import", help="a Hugging Face folder, a .gguf or a .bin of llama2.c becomes a run",
    epilog="examples:\n  python -m lm.hf import --from gpt2/ --workdir runs/gpt2\n"
    "  python -m lm.hf import --from hub:HuggingFaceTB/SmolLM2-135M --workdir runs/smollm2",
  )  # fmt: skip
  take.add_argument(
    "--from", dest="source", required=True, help="folder with safetensors, file, or hub:OWNER/NAME"
  )
  take.add_argument("--workdir", required=True, help="new run directory")
  take.add_argument("--tokenizer", help="folder or .model file, where --from has no tokenizer")
  take.add_argument("--config", help="what the source does not say; one that fits if absent")
  give = verbs.add_parser(
    "export", help="a run becomes a Hugging Face folder",
    epilog="example:\n  python -m lm.hf export --workdir runs/default --to exported/",
  )  # fmt: skip
  give.add_argument("--workdir", required=True, help="run directory")
  give.add_argument("--to", dest="folder", required=True, help="folder to write")
  give.add_argument("--checkpoint", default="best", help="best, latest or a step")
  give.add_argument("--type", help="model_type; default: that of its import, else what fits")
  give.add_argument("--dtype", default="float32", choices=DTYPES, help="of the weights")
  options = parser.parse_args(argv)
  workdir = bucket.checked_path("workdir", options.workdir)
  if options.verb == "import":
    tokenizer = None if options.tokenizer is None else pathlib.Path(options.tokenizer)
    cfg = import_run(_source(options.source), workdir, options.config, tokenizer)
    print(f"imported: {workdir} ({number_of(cfg.model.depth, 'layer')}, width {cfg.model.width})")
    place = shlex.quote(str(workdir))
    if family_of(cfg.model).init_cache:
      asked = (
        '--chat --prompt "Who are you?"'
        if has_template(workdir / "tokenizer")
        else '--prompt "The "'
      )
      print(f"try: python -m lm.generate --workdir {place} {asked}")
    elif hasattr(make_model(cfg.model), "bidirectional"):
      print(f'try: python -m lm.embed --workdir {place} --text "A sentence" --text "Another one"')
  else:
    folder = bucket.checked_path("to", options.folder)
    names = export_run(
      bucket.local(options.workdir), folder, options.checkpoint, options.type, options.dtype
    )
    print(f"exported: {folder} ({', '.join(names)})")
  return 0


def _source(name: str) -> pathlib.Path:
  """The folder or file to import: on disk, or OWNER/NAME[@REVISION][/FILE.gguf] of the hub, fetched."""
  if not name.startswith(HUB):
    return pathlib.Path(name)
  address = hub.parse(name.removeprefix(HUB), f"from={name}")
  if address.pattern:
    return pathlib.Path(hub.files(name.removeprefix(HUB), "model", f"from={name}")[0])
  folder, names = hub.fetch(address, "model", [*FROM_HUB], f"from={name}")
  if not any(each.endswith(".safetensors") for each in names):
    raise ConfigError(
      f"from={name}: has no *.safetensors; name a .gguf file of it, or take another"
    )
  return folder


if __name__ == "__main__":
  run_main(main)
