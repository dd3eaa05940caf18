// Attention forward against a double-precision reference, and its speed. Built by linking forward*.cu:
//   attention_test check    all kernels over odd lengths, head ratios, windows, strides, dtypes
//   attention_test time     TFLOP/s at training shapes
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/attention/attention.h"
#include "cuda/attention/forward.h"
#include "cuda/tests/attention_common.cuh"

using namespace llm;
using namespace llm::cuda;

namespace {

// One block a (row, head); plain two-pass softmax in double.
template <class T>
__global__ void reference(const T* q, const T* k, const T* v, int64_t qs, int64_t ks, int64_t vs, const int* cu_q, const int* cu_k, int sequences,
                          int tokens, int heads, int group, int width, double scale, int causal, int window, double* o, double* lse) {
  extern __shared__ double scores[];
  __shared__ double row_top, row_sum;
  const int t = blockIdx.x, h = blockIdx.y;
  int b = 0;
  while (b < sequences && !(t >= cu_q[b] && t < cu_q[b + 1])) b++;
  int first = 0, last = 0, base = 0;
  if (b < sequences) {
    const int keys = cu_k[b + 1] - cu_k[b], position = t - cu_q[b] + keys - (cu_q[b + 1] - cu_q[b]);
    last = causal ? min(keys, position + 1) : keys;
    first = window > 0 ? max(0, position - window + 1) : 0;
    base = cu_k[b];
  }
  for (int j = first + threadIdx.x; j < last; j += blockDim.x) {
    double s = 0;
    for (int d = 0; d < width; d++)
      s += static_cast<double>(to_float(q[t * qs + h * width + d])) * to_float(k[(base + j) * ks + h / group * width + d]);
    scores[j - first] = s * scale;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double top = -INFINITY, sum = 0;
    for (int j = 0; j < last - first; j++) top = max(top, scores[j]);
    for (int j = 0; j < last - first; j++) sum += exp(scores[j] - top);
    row_top = top;
    row_sum = sum;
    lse[static_cast<int64_t>(h) * tokens + t] = last > first ? top + log(sum) : -INFINITY;
  }
  __syncthreads();
  for (int d = threadIdx.x; d < width; d += blockDim.x) {
    double x = 0;
    for (int j = first; j < last; j++) x += exp(scores[j - first] - row_top) * to_float(v[(base + j) * vs + h / group * width + d]);
    o[(static_cast<int64_t>(t) * heads + h) * width + d] = last > first ? x / row_sum : 0.0;
  }
}

const char* run(Way way, Context& ctx, const KernelArgs& args) {
  if (way == Way::chosen) return attention_forward(ctx, args);
  const Forward f = forward_of(ctx, args);
  if (way == Way::generic) return forward_generic(ctx, f);
  if (way == Way::mma) return forward_mma_fits(f) ? forward_mma(ctx, f) : "does not fit";
  return forward_hopper_fits(ctx, f) ? forward_hopper(ctx, f) : "does not fit";
}

// Largest |got - want| / (|want| + rms); infinities must agree. rms: of everything, or of the element's own row of `width` where that is
// larger (a row that sees few keys has larger outputs, and errors, than one that averages many).
double worst(const std::vector<double>& want, const std::vector<double>& got, int width, size_t* where) {
  const auto rms_of = [&](size_t begin, size_t end) {
    double squares = 0, finite = 0;
    for (size_t i = begin; i < end; i++)
      if (std::isfinite(want[i])) squares += want[i] * want[i], finite++;
    return finite > 0 ? std::sqrt(squares / finite) : 0;
  };
  const double rms = rms_of(0, want.size());
  double most = 0;
  for (size_t row = 0; row < want.size(); row += width) {
    const double scale = std::max(rms, rms_of(row, row + width)) + 1e-30;
    for (size_t i = row; i < row + width; i++) {
      double e = std::isfinite(want[i]) ? std::fabs(got[i] - want[i]) / (std::fabs(want[i]) + scale) : got[i] == want[i] ? 0 : INFINITY;
      if (!(e == e)) e = INFINITY;
      if (e > most) most = e, *where = i;
    }
  }
  return most;
}

struct Failures {
  int cases = 0, failed = 0;
  double error = 0, error_lse = 0;  // largest, in units of the tolerance
};

template <class T>
void check(Context& ctx, const AttentionCase& c, Way way, Failures& total) {
  Problem<T> p(c);
  const int64_t n = p.tokens * c.heads * c.width;
  KernelArgs args = p.forward_args();
  cudaMemset(p.o, 0xff, n * sizeof(T));
  cudaMemset(p.lse, 0xff, p.tokens * c.heads * sizeof(float));
  cudaMemset(ctx.fault_word, 0, 4);
  const char* text = run(way, ctx, args);
  cudaError_t e = cudaDeviceSynchronize();
  total.cases++;
  if (text || e != cudaSuccess) {
    std::printf("FAIL %s %s: %s\n", way_name(way), c.text().c_str(), text ? text : cudaGetErrorString(e));
    total.failed++;
    if (e != cudaSuccess) std::exit(1);
    return;
  }
  double *o, *lse;
  cudaMalloc(&o, n * 8 + 8);
  cudaMalloc(&lse, p.tokens * c.heads * 8 + 8);
  const size_t shared = 8 * (p.most_keys + 1);
  cudaFuncSetAttribute(reference<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, 200000);
  reference<T><<<dim3(p.tokens, c.heads), 128, shared>>>(p.q, p.k, p.v, p.q_stride, p.k_stride, p.v_stride, p.cu_q, p.cu_k, c.sequences(), p.tokens,
                                                         c.heads, c.heads / c.key_heads, c.width, c.scale, c.causal, c.window, o, lse);
  e = cudaDeviceSynchronize();
  if (e != cudaSuccess) std::printf("reference: %s\n", cudaGetErrorString(e)), std::exit(1);
  const std::vector<double> want = download(o, n), want_lse = download(lse, p.tokens * c.heads);
  const std::vector<double> got = to_double(download(p.o, n)), got_lse = to_double(download(p.lse, p.tokens * c.heads));
  cudaFree(o);
  cudaFree(lse);
  size_t at = 0, at_lse = 0;
  const double error = worst(want, got, c.width, &at), error_lse = worst(want_lse, got_lse, 1, &at_lse);
  int fault = 0;
  cudaMemcpy(&fault, ctx.fault_word, 4, cudaMemcpyDeviceToHost);
  // Twice the same bits.
  bool same = true;
  {
    const std::vector<T> before = download(p.o, n);
    run(way, ctx, args);
    cudaDeviceSynchronize();
    const std::vector<T> after = download(p.o, n);
    same = std::memcmp(before.data(), after.data(), n * sizeof(T)) == 0;
  }
  const double tolerance = std::is_same_v<T, float> ? 0x1p-17 : std::is_same_v<T, bf16> ? 0x1p-7 : 0x1p-10;
  const bool ok = error <= tolerance && error_lse <= 0x1p-17 && fault == 0 && same;
  total.error = std::max(total.error, error / tolerance);
  total.error_lse = std::max(total.error_lse, error_lse / 0x1p-17);
  if (!ok) {
    total.failed++;
    std::printf("FAIL %s %s: o %.2e at t %ld h %ld d %ld (want %g got %g), lse %.2e at h %ld t %ld (want %g got %g) of %.1e%s fault %d\n", way_name(way),
                c.text().c_str(), error, long(at / (c.heads * c.width)), long(at / c.width % c.heads), long(at % c.width), n ? want[at] : 0,
                n ? got[at] : 0, error_lse, long(at_lse / p.tokens), long(at_lse % p.tokens), want_lse[at_lse], got_lse[at_lse], tolerance,
                same ? "" : " NOT REPEATABLE", fault);
  }
}

template <class T>
void check_all(Context& ctx, Way way, const std::vector<int>& widths, Failures& total) {
  for (int width : widths)
    for (const AttentionCase& c : attention_cases(width)) check<T>(ctx, c, way, total);
}

template <class T>
void time_one(Context& ctx, const AttentionCase& c, Way way, const char* note) {
  Problem<T> p(c);
  KernelArgs args = p.forward_args();
  const char* text = run(way, ctx, args);
  if (text) {
    std::printf("%-8s %-24s %s\n", way_name(way), note, text);
    return;
  }
  double flops = 0;
  for (size_t i = 0; i < c.queries.size(); i++)
    flops += 4.0 * c.queries[i] * c.keys[i] * c.width * c.heads * (c.causal ? 0.5 : 1.0);
  const float us = median_us([&] { run(way, ctx, args); });
  std::printf("%-8s %-24s %8.1f us %7.1f TFLOP/s %s\n", way_name(way), note, us, flops / us * 1e-6, cudaGetErrorString(cudaDeviceSynchronize()));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "check";
  Context ctx = test_context();
  if (argc > 2) ctx.arch = std::atoi(argv[2]);
  if (mode == "check") {
    Failures total;
    const auto say = [&](const char* what) {
      std::printf("%s: %d cases, %d failed, largest error %.2f of the tolerance, of lse %.3f\n", what, total.cases, total.failed, total.error, total.error_lse);
    };
    if (ctx.arch == 90) check_all<bf16>(ctx, Way::hopper, {128, 64}, total), check_all<f16>(ctx, Way::hopper, {128, 64}, total);
    say("hopper");
    check_all<bf16>(ctx, Way::mma, {128, 64, 96, 40, 256}, total);
    check_all<f16>(ctx, Way::mma, {128, 8, 112, 152}, total);
    say("mma too");
    check_all<float>(ctx, Way::generic, {64, 33, 300}, total);
    check_all<bf16>(ctx, Way::chosen, {13, 80}, total);
    say("all");
    return total.failed != 0;
  }
  for (Way way : {Way::hopper, Way::mma})
    for (int width : {128, 64}) {
      const auto at = [&](int length, int count, bool causal, int window = 0) {
        AttentionCase c(28, 4, width);
        for (int i = 0; i < count; i++) c.add(length, length);
        c.causal = causal;
        c.window = window;
        const std::string note = "D" + std::to_string(width) + " " + std::to_string(length) + "x" + std::to_string(count) + (causal ? " causal" : " full") +
                                 (window ? " window " + std::to_string(window) : "");
        time_one<bf16>(ctx, c, way, note.c_str());
      };
      at(2048, 4, true);
      at(8192, 1, true);
      at(16384, 1, true);
      at(8192, 1, false);
      at(512, 16, true);
      at(64, 128, true);
    }
  AttentionCase c(28, 4, 128);
  c.add(2048, 2048);
  c.causal = true;
  time_one<float>(ctx, c, Way::generic, "f32 D128 2048x1 causal");
}
