# bash bench/gpu/sanitize.sh folder memcheck|racecheck|initcheck [log]: after build.sh, the small cases of every op under compute-sanitizer, each op
# in a process of its own, 12 at a time. Prints how many ops are clean and the verdict of the others.
folder=$1 tool=$2 log=${3:-/dev/null}
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
# Our kernels only, one after the other: racecheck can follow neither kernels that overlap nor some of cuBLASLt's.
export folder tool sanitizer out=$(mktemp -d) LLM_CUDA_CUBLASLT=0 LLM_CUDA_SERIAL=1
one() {
  timeout 100 "$sanitizer" --tool "$tool" --print-limit 5 "$NODE" "$folder/ops.mjs" --device cuda --exact "$1" --limit 3000 > "$out/$1" 2>&1 ||
    echo "exit $?" >> "$out/$1"
}
export -f one
ops=$(grep -oE 'opNames = \[[^]]*' "$folder/ops.mjs" | grep -oE '"[a-z_0-9]+"' | tr -d '"')
echo "$ops" | xargs -P 12 -I{} bash -c 'one {}'
clean=0
for o in $ops; do
  if grep -qE '(ERROR|RACECHECK) SUMMARY: 0 ' "$out/$o" && grep -qE '^[0-9]+ passed, 0 failed' "$out/$o"; then clean=$((clean + 1)); continue; fi
  echo "$o: $(grep -E 'passed,|SUMMARY' "$out/$o" | tr '\n' ' ') $(tail -1 "$out/$o")"
  { echo "== $o"; cat "$out/$o"; } >> "$log"
done
echo "$tool: $clean of $(echo "$ops" | wc -l) ops clean"
