# . bench/gpu/build.sh folder: builds the addon and the CUDA plugin where there are g++, cmake, nvcc and a GPU but no npm, beside each other;
# `folder` holds what pack.mjs wrote, and a Node 20 as `node` (or as node.xz). Sets LLM_NATIVE, LLM_CUDA_PLUGIN and NODE; a failure ends the shell.
GPU_FOLDER=$(cd "$1" && pwd)
[ -x "$GPU_FOLDER/node" ] || [ ! -f "$GPU_FOLDER/node.xz" ] || { xz -dc "$GPU_FOLDER/node.xz" > "$GPU_FOLDER/node" && chmod +x "$GPU_FOLDER/node"; }
export NODE=$GPU_FOLDER/node
LLM_BUILD=${LLM_BUILD:-/tmp/llm-build}
mkdir -p "$LLM_BUILD"
(cmake -S native -B "$LLM_BUILD" -DNODE_API_HEADERS="$GPU_FOLDER/napi/include" && cmake --build "$LLM_BUILD" --target llm -j"$(nproc)") > "$LLM_BUILD/addon.log" 2>&1 &
LLM_CUDA_ARCH=${LLM_CUDA_ARCH:-90a} "$NODE" native/scripts/build-cuda.mjs > "$LLM_BUILD/cuda.log" 2>&1 || { tail -20 "$LLM_BUILD/cuda.log"; exit 1; }
wait $! || { tail -20 "$LLM_BUILD/addon.log"; exit 1; }
export LLM_NATIVE=$LLM_BUILD/llm.node LLM_CUDA_PLUGIN=$PWD/native/npm/linux-x64-cuda/libllm_cuda.so
