# bash bench/gpu/ops.sh folder [log]: after build.sh, every op's cases on the GPU, each op in a process of its own, 12 at a time.
# Prints how many ops are clean and the last line of the others; their output goes to `log`.
folder=$1 log=${2:-/dev/null}
export folder out=$(mktemp -d)
one() { timeout 60 "$NODE" "$folder/ops.mjs" --device cuda --exact "$1" > "$out/$1" 2>&1 || echo "exit $?" >> "$out/$1"; }
export -f one
ops=$(grep -oE 'opNames = \[[^]]*' "$folder/ops.mjs" | grep -oE '"[a-z_0-9]+"' | tr -d '"')
echo "$ops" | xargs -P 12 -I{} bash -c 'one {}'
for o in $ops; do
  grep -qE '^[0-9]+ passed, 0 failed' "$out/$o" || { echo "$o: $(tail -1 "$out/$o")"; { echo "== $o"; cat "$out/$o"; } >> "$log"; }
done
echo "$(grep -lE '^[0-9]+ passed, 0 failed' "$out"/* | wc -l) of $(echo "$ops" | wc -l) ops clean"
