// Builds the CUDA plugin with nvcc and puts it into the platform package native/npm/linux-x64-cuda.
// usage: node native/scripts/build-cuda.mjs [--ptx80]
//   LLM_CUDA_ARCH=80,90a…  real architectures (default: those of the cards here, else 90a)      LLM_CUDA_ALL=1  every published one
//   LLM_CUDA_LINEINFO=1    source lines for profilers (a larger library)
//   --ptx80                only compiles everything to sm_80 PTX, to show that older cards are served
// What ptxas says of each kernel is kept beside the objects (native/build-cuda/*/*.ptxas) for the test of spills.
import { execFileSync, spawn } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { findNvcc } from "./nvcc.mjs";

const native = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const ptx80 = process.argv.includes("--ptx80");

/** The compute capabilities of the cards here: "90a" and the like. */
function presentArchitectures() {
  try {
    const out = execFileSync("nvidia-smi", ["--query-gpu=compute_cap", "--format=csv,noheader"], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    });
    const found = out
      .split("\n")
      .map((line) => line.trim().replace(".", ""))
      .filter(Boolean);
    return [...new Set(found)].map((arch) => (Number(arch) === 90 ? "90a" : arch));
  } catch {
    return [];
  }
}

const nvcc = findNvcc();
if (!nvcc) {
  console.error(
    "[build-cuda] nvcc 12.4 or later was not found (CUDACXX, CUDA_HOME, PATH, /usr/local/cuda); install the CUDA toolkit",
  );
  process.exit(1);
}

/** Every published architecture that this nvcc knows: Blackwell came with 12.8, its families ("f") with 12.9. */
function published() {
  const blackwell = ["100", "120"].map((arch) => (nvcc.version >= 1209 ? `${arch}f` : arch));
  if (nvcc.version >= 1208) return ["80", "86", "89", "90a", ...blackwell];
  console.log("[build-cuda] this nvcc is older than 12.8: no code for Blackwell, which will compile the PTX of sm_90");
  return ["80", "86", "89", "90a"];
}

function architectures() {
  if (process.env.LLM_CUDA_ALL === "1") return published();
  if (process.env.LLM_CUDA_ARCH) return process.env.LLM_CUDA_ARCH.split(",");
  const present = presentArchitectures();
  return present.length > 0 ? present : ["90a"];
}

const archs = ptx80 ? ["80"] : architectures();
const build = `${native}/build-cuda/${ptx80 ? "ptx80" : archs.join("-")}`;
mkdirSync(build, { recursive: true });
writeFileSync(join(build, "nvcc-version"), String(nvcc.version));

const targets = ptx80
  ? ["-gencode=arch=compute_80,code=compute_80"]
  : archs.map((arch) => `-gencode=arch=compute_${arch},code=sm_${arch}`);
if (process.env.LLM_CUDA_ALL === "1") targets.push("-gencode=arch=compute_90,code=compute_90");
const flags = ["-std=c++20", "-O3", `-I${native}`, "--expt-relaxed-constexpr", "--extended-lambda", "-Xptxas=-v", "-cudart=static",
  ...(process.env.LLM_CUDA_LINEINFO === "1" ? ["-lineinfo"] : []),
  "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall", ...targets]; // prettier-ignore

/** What an object is made with, kept beside it. */
const recipe = `nvcc ${nvcc.version} ${flags.join(" ")}`;

const sources = ["cuda", "cuda/attention", "cuda/fp8", "cuda/gemm", "cuda/lib"]
  .flatMap((folder) => readdirSync(`${native}/${folder}`).map((name) => `${native}/${folder}/${name}`))
  .filter((path) => /\.(cu|cpp)$/.test(path))
  .sort((a, b) => statSync(b).size - statSync(a).size);

const objectOf = (source) => join(build, relative(`${native}/cuda`, source).replaceAll("/", "_") + ".o");

/** Whether the object is older than its source, a header it read or the flags. */
function stale(source, object) {
  const depends = `${object}.d`;
  if (!existsSync(object) || !existsSync(depends)) return true;
  if (!existsSync(`${object}.flags`) || readFileSync(`${object}.flags`, "utf8") !== recipe) return true;
  const made = statSync(object).mtimeMs;
  const files = readFileSync(depends, "utf8")
    .replace(/^[^:]*:/, "")
    .replaceAll("\\\n", " ")
    .split(/\s+/)
    .filter(Boolean);
  return files.some((file) => !existsSync(file) || statSync(file).mtimeMs > made);
}

function compile(source) {
  const object = objectOf(source);
  return new Promise((done, failed) => {
    const child = spawn(
      nvcc.path,
      [...flags, "-MD", "-MF", `${object}.d`, ptx80 && source.endsWith(".cu") ? "-ptx" : "-c", source, "-o", object],
      { stdio: ["ignore", "pipe", "pipe"] },
    );
    let text = "";
    child.stdout.on("data", (data) => (text += data));
    child.stderr.on("data", (data) => (text += data));
    child.on("close", (code) => {
      const problems = text
        .split("\n")
        .filter(
          (line) => line.trim() && !/^(ptxas )?info|bytes stack frame|^\s*Function properties|^\s+\d+ bytes/.test(line),
        );
      if (code !== 0) return failed(new Error(`nvcc failed on ${relative(native, source)}\n${problems.join("\n")}`));
      if (problems.length > 0) console.log(`${relative(native, source)}:\n${problems.join("\n")}`);
      writeFileSync(object.replace(/\.o$/, ".ptxas"), text);
      writeFileSync(`${object}.flags`, recipe);
      done();
    });
  });
}

const queue = sources.filter((source) => stale(source, objectOf(source)));
const total = queue.length;
console.log(
  `[build-cuda] ${archs.map((a) => `sm_${a}`).join(", ")}${ptx80 ? " (PTX only)" : ""}: ${total} of ${sources.length} files to compile`,
);
const worker = async () => {
  for (let source = queue.shift(); source; source = queue.shift()) {
    const start = performance.now();
    await compile(source);
    console.log(`  ${relative(native, source)} ${((performance.now() - start) / 1000).toFixed(1)} s`);
  }
};
try {
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
  if (!ptx80) {
    const library = `${build}/libllm_cuda.so`;
    execFileSync(
      nvcc.path,
      [
        ...targets,
        "-shared",
        "-cudart=static",
        "-o",
        library,
        ...sources.map(objectOf),
        "-Xlinker=--gc-sections",
        "-ldl",
      ],
      { stdio: "inherit" },
    );
    const target = `${native}/npm/linux-x64-cuda/libllm_cuda.so`;
    mkdirSync(dirname(target), { recursive: true });
    copyFileSync(library, `${target}.new`);
    renameSync(`${target}.new`, target);
    console.log(`[build-cuda] ${relative(native, target)} ${(statSync(target).size / 2 ** 20).toFixed(1)} MB`);
  }
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
