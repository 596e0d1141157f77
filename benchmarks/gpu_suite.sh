#!/usr/bin/env bash
# Every GPU test and GPU benchmark, in under nine minutes a call.
#
#   benchmarks/gpu_suite.sh                  parts in order until the time is over; then says what is left
#   benchmarks/gpu_suite.sh stacked compile  these parts
#   benchmarks/gpu_suite.sh --dry            tiny sizes on a CPU: does every part run?
#
# JSON lines are appended to $OUT/benchmarks.jsonl, or runs/benchmarks.jsonl; what is printed goes to
# gpu_suite.log beside it too. PYTHON names the interpreter (python3), SECONDS_A_CALL the time (520).
# It takes the versions that are there: jax for GPUs, flax, optax, orbax, ml-collections, tokenizers,
# rich, scipy and pytest are needed, torch and transformers for their rows alone.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
budget=${SECONDS_A_CALL:-520}
folder=${OUT:-runs}
all=(tests train llama stacked generate attention checkpoint compile data)

dry=
if [ "${1:-}" = --dry ]; then
  dry=1
  shift
fi
parts=("${@:-${all[@]}}")
for part in "${parts[@]}"; do
  case " ${all[*]} " in
    *" $part "*) ;;
    *) echo "part=$part: no such part; choose from ${all[*]}" >&2; exit 2 ;;
  esac
done
for module in jax flax optax orbax.checkpoint ml_collections tokenizers rich scipy pytest; do
  "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$module') is None)" 2>/dev/null || {
    echo "gpu_suite: $python has no $module; install it, or put a folder that holds it on PYTHONPATH" >&2
    exit 2
  }
done

export TF_CPP_MIN_LOG_LEVEL=2 PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore WANDB_MODE=disabled
if [ "$dry" ]; then
  export JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES=
else
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
  export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
fi
mkdir -p "$folder"
out=$folder/benchmarks.jsonl
bench() {  # FILE OPTIONS...
  echo "\$ benchmarks/$1 ${*:2}"
  "$python" "benchmarks/$1" --out "$out" "${@:2}"
}
big_card() {  # from 100 GB
  local mebibytes
  mebibytes=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits 2>/dev/null | head -1)
  [ "${mebibytes:-0}" -gt 100000 ]
}

# The kernels against their references; with ready-made matrix products, as tests need no fast ones.
part_tests() {
  local code files
  mapfile -t files < <(grep -l "mark\.gpu" tests/test_*.py)  # others may need what is not there
  XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=--xla_gpu_autotune_level=0 \
    "$python" -m pytest -m gpu -W default -p no:cacheprovider --durations 5 -rfE "${files[@]}" 2>&1 |
    tee "$folder/gpu_tests.log"
  code=${PIPESTATUS[0]}
  "$python" - "$out" "$code" "$(tail -1 "$folder/gpu_tests.log")" <<'PY'
import sys
sys.path.insert(0, ".")
from benchmarks import bench
bench.append(sys.argv[1], "gpu_tests", {"exit_code": int(sys.argv[2]), "summary": sys.argv[3], **bench.about()})
PY
  return "$code"
}
# 124M, sequences of 1,024, bfloat16; target: 1.10x torch.compile. Layers are unrolled there, so here too.
part_train() {
  local chunk=256 shape=(--shape 124m --dtype bfloat16 --steps 40)
  [ "$dry" ] && chunk=32 shape=(--shape tiny --dtype bfloat16 --steps 2)
  bench train_step.py "${shape[@]}" --set model.scan_layers=False --peer torch
  bench train_step.py "${shape[@]}"
  bench train_step.py "${shape[@]}" --set model.scan_layers=False --set objective.chunk=$chunk
}
# 1.3B of Llama's kind, sequences of 2,048, bfloat16; target: 55 % of 989 TFLOP/s. What the card holds
# without recomputing, and twice as much with it.
part_llama() {
  local shape=(--shape 1.3b --dtype bfloat16 --steps 10)
  [ "$dry" ] && shape=(--shape tiny-llama --dtype bfloat16 --steps 2)
  bench train_step.py "${shape[@]}" --batch 8 --remat none
  if big_card; then
    bench train_step.py "${shape[@]}" --batch 16 --remat none
  else
    bench train_step.py "${shape[@]}" --batch 16 --remat dots
  fi
}
# 64 runs of 1m together against one by one; target: 8x the runs an hour.
part_stacked() {
  if [ "$dry" ]; then
    bench stacked.py --size 0.1m --steps 4 --stacks 2
  else
    bench stacked.py --size 1m --steps 400 --stacks 64
  fi
}
part_generate() {
  if [ "$dry" ]; then
    bench generate.py --shape tiny --batch 2 --prompt 16 --tokens 8 --peer transformers
  else
    bench generate.py --shape 124m --dtype bfloat16 --batch 1,32 --prompt 512 --tokens 128 --peer transformers
  fi
}
# The forms of attention on the same step; "auto" is the first.
part_attention() {
  local forms=(cudnn xla einsum chunked) shape=(--shape 124m --dtype bfloat16 --batch 16 --steps 20)
  [ "$dry" ] && forms=(xla einsum chunked) shape=(--shape tiny --dtype bfloat16 --steps 2)
  for form in "${forms[@]}"; do
    bench train_step.py "${shape[@]}" --set "model.attention=$form"
  done
}
part_checkpoint() {
  if [ "$dry" ]; then
    bench checkpoint.py --size 0.1m --saves 2 --peer torch
  else
    bench checkpoint.py --size 10m,100m,300m --peer torch
  fi
}
part_compile() {
  if [ "$dry" ]; then bench compile.py --depth 2,3 --width 32; else bench compile.py --depth 6,12,24 --width 768; fi
}
part_data() {
  if [ "$dry" ]; then
    bench data.py --tokenizer byte --shape default --size 0.1m --seconds .1
  else
    bench data.py --tokenizer byte --shape default --size 10m,100m --steps 10
  fi
}

# Each part in a group of its own, which is ended with it when the time is over.
export -f bench big_card "${all[@]/#/part_}"
export python out dry folder
echo "gpu_suite: ${parts[*]} at $(git rev-parse --short HEAD 2>/dev/null || echo '?'), lines to $out" | tee -a "$folder/gpu_suite.log"
"$python" - <<'PY' 2>&1 | tee -a "$folder/gpu_suite.log"
import importlib.metadata as m
names = "jax jaxlib flax optax orbax-checkpoint numpy torch transformers".split()
have = {d.metadata["Name"].lower(): d.version for d in m.distributions() if d.metadata["Name"]}
print(", ".join(f"{n} {have[n]}" for n in names if n in have))
PY
status=0
left=()
rows_before=$(cat "$out" 2>/dev/null | wc -l)
for index in "${!parts[@]}"; do
  part=${parts[$index]}
  remaining=$((budget - SECONDS))
  if [ "$remaining" -lt 30 ]; then
    left=("${parts[@]:$index}")
    break
  fi
  begun=$SECONDS
  echo "== $part ==" | tee -a "$folder/gpu_suite.log"
  timeout -k 5 "$remaining" bash -c "set -o pipefail; part_$part" 2>&1 | tee -a "$folder/gpu_suite.log"
  code=${PIPESTATUS[0]}
  echo "== $part: $((SECONDS - begun)) s, exit code $code ==" | tee -a "$folder/gpu_suite.log"
  if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
    left=("${parts[@]:$index}")
    break
  fi
  [ "$code" -eq 0 ] || status=1
done
failed=$(tail -n "+$((rows_before + 1))" "$out" 2>/dev/null | grep -c '"error":')
if [ "$failed" -gt 0 ]; then
  echo "$failed rows failed: see $folder/gpu_suite.log" | tee -a "$folder/gpu_suite.log"
  status=1
fi
if [ ${#left[@]} -gt 0 ]; then
  echo "time is over; go on with: benchmarks/gpu_suite.sh ${left[*]}" | tee -a "$folder/gpu_suite.log"
  exit 3
fi
exit $status
