// Standalone check of sample and apply_penalties against the CPU's definition (a full sort, sums in double) on vocabularies of odd sizes and
// rows made to be awkward: ties, one value only, -inf, extreme temperatures; the same bits twice; then timings. Link it with
// native/cuda/sample*.cu. Arguments: "check", "time", "once" or "all".
#include <algorithm>
#include <map>
#include <numeric>
#include <thread>

#include "core/half.h"
#include "core/philox.h"
#include "serving_common.cuh"

namespace {

int failures = 0;
CudaKernel sampler, penalizer;

struct Outcome {
  int id;
  double logprob, slack;  // how near, in parts of the mass, the draw or a filter came to deciding otherwise
};

Outcome reference(const float* row, int n, const float* p, uint64_t seed, uint32_t step) {
  const int best = static_cast<int>(std::max_element(row, row + n) - row);
  const double largest = row[best];
  double all = 0;
  for (int i = 0; i < n; i++) all += std::exp(row[i] - largest);
  const auto done = [&](int id, double slack) { return Outcome{id, row[id] - largest - std::log(all), slack}; };
  if (p[0] <= 0) return done(best, 1);
  std::vector<int> ids;
  for (int i = 0; i < n; i++)
    if (row[i] != -INFINITY) ids.push_back(i);
  std::sort(ids.begin(), ids.end(), [&](int a, int b) { return row[a] != row[b] ? row[a] > row[b] : a < b; });
  const auto weight = [&](size_t i) { return std::exp((static_cast<double>(row[ids[i]]) - largest) / p[0]); };
  size_t kept = ids.size();
  double total = 0, slack = 1;
  if (p[1] >= 1 && p[1] < static_cast<float>(n)) kept = std::min(kept, static_cast<size_t>(p[1]));
  for (size_t i = 0; i < kept; i++) total += weight(i);
  if (p[2] < 1) {
    const double wanted = p[2] * total;
    size_t i = 0;
    double sum = 0;
    for (; i < kept && (i == 0 || sum < wanted); i++) {
      sum += weight(i);
      slack = std::min(slack, std::fabs(sum - wanted) / total);
    }
    kept = i;
    total = sum;
  }
  if (p[3] > 0) {
    size_t i = 0;
    double sum = 0;
    for (; i < kept && (i == 0 || weight(i) >= p[3]); i++) sum += weight(i);
    kept = i;
    total = sum;
  }
  const double target = static_cast<double>(philox_uniform(philox(seed, step, 0).word[0])) * total;
  double sum = 0;
  size_t i = 0;
  int id = best;
  for (; i < kept; i++) {
    sum += weight(i);
    id = ids[i];
    slack = std::min(slack, std::fabs(sum - target) / total);
    if (sum > target) break;
  }
  return done(id, slack);
}

struct Kind {
  const char* name;
  std::function<float(int row, int i)> logit;
};

void check_sampler(Context& ctx) {
  const std::vector<Kind> kinds = {
      {"normal 2", [](int r, int i) { return 2 * noise(i, 100 + r); }},
      {"normal 3, a few far above", [](int r, int i) { return 3 * noise(i, 200 + r) + (i % 9973 == 17 ? 12.f : 0.f); }},
      {"all equal", [](int, int) { return 1.5f; }},
      {"four values", [](int r, int i) { return static_cast<float>(mix(i, 300 + r) % 4) - 7; }},
      {"whole numbers", [](int r, int i) { return std::rint(4 * noise(i, 400 + r)); }},
      {"half -inf", [](int r, int i) { return i % 2 ? -INFINITY : noise(i, 500 + r); }},
      {"one finite", [](int r, int i) { return i == 77 + r ? -3.f : -INFINITY; }},
      {"zeros of both signs", [](int r, int i) { return mix(i, 600 + r) % 2 ? 0.f : -0.f; }},
      {"huge", [](int r, int i) { return 1e30f * noise(i, 700 + r); }},
      {"narrow", [](int r, int i) { return 20 + 1e-3f * noise(i, 800 + r); }},
  };
  const std::vector<std::vector<float>> settings = {
      {0, 0, 1, 0},     {1, 0, 1, 0},      {0.7f, 20, 0.8f, 0}, {1.3f, 0, 0.8f, 0}, {1, 0, 1, 0.2f},     {0.9f, 40, 0.95f, 0.02f}, {1, 1, 1, 0},
      {5, 0, 0.01f, 0}, {100, 0, 1, 0},    {0.01f, 0, 1, 0},    {1, 5000, 1, 0},    {5, 60000, 0.9f, 0}, {1, 0, 0.999f, 0.001f},   {1, 0, 0, 0},
      {1, 0, 0.5f, 2},  {3, 100, 1, 0.5f}, {1, 1e9f, 1, 0},     {2, 0, 1, 1e-30f},  {20, 0, 0.5f, 0.5f}, {100, 0, 0.7f, 0.9f},
  };
  const int rows = static_cast<int>(settings.size());
  long draws = 0, different = 0, excused = 0;
  double worst = 0;
  for (const DType t : {DType::f32, DType::bf16, DType::f16})
    for (const int n : {3, 101, 4001, 32003, 152064})
      for (const Kind& kind : kinds) {
        if (kind.name[0] == 'h' && kind.name[1] == 'u' && t == DType::f16) continue;  // no such f16 numbers
        if (n < 200 && std::string(kind.name) == "one finite") continue;
        std::vector<float> x(static_cast<size_t>(rows) * n);
        std::vector<uint16_t> narrow(t == DType::f32 ? 0 : x.size());
        std::vector<float> params(rows * 8, 0.f);
        std::vector<int> seeds(rows * 2), steps(rows);
        std::vector<Outcome> want(rows);
        const auto work = [&](int first) {
          for (int r = first; r < rows; r += 16) {
            for (int i = 0; i < n; i++) {
              const size_t at = static_cast<size_t>(r) * n + i;
              x[at] = kind.logit(r, i);
              if (t == DType::bf16) x[at] = bf16_to_f32(narrow[at] = f32_to_bf16(x[at]));
              if (t == DType::f16) x[at] = f16_to_f32(narrow[at] = f32_to_f16(x[at]));
            }
            std::copy(settings[r].begin(), settings[r].end(), params.begin() + r * 8);
            seeds[2 * r] = static_cast<int>(mix(r, n));
            seeds[2 * r + 1] = static_cast<int>(mix(r, n + 1));
            steps[r] = r * 31 + n;
            want[r] = reference(&x[static_cast<size_t>(r) * n], n, &params[r * 8],
                                static_cast<uint32_t>(seeds[2 * r]) | static_cast<uint64_t>(static_cast<uint32_t>(seeds[2 * r + 1])) << 32, steps[r]);
          }
        };
        std::vector<std::thread> threads;
        for (int i = 0; i < 16; i++) threads.emplace_back(work, i);
        for (auto& th : threads) th.join();
        Buffer logits = t == DType::f32 ? Buffer(x) : Buffer(narrow), p(params), sd(seeds), st(steps), ids(rows * 4), lp(rows * 4);
        std::vector<int> first_ids;
        std::vector<float> first_lp;
        for (int again = 0; again < 2; again++) {
          CHECK(cudaMemset(ids.p, 0xff, ids.bytes));
          CHECK(cudaMemset(lp.p, 0xff, lp.bytes));
          run_op(ctx, sampler, op_sample, {view(logits, t, {rows, n}), view(p, DType::f32, {rows, 8}), view(sd, DType::i32, {rows, 2}), view(st, DType::i32, {rows})},
                 {view(ids, DType::i32, {rows}), view(lp, DType::f32, {rows})});
          CHECK(cudaStreamSynchronize(ctx.stream));
          const auto i = ids.read<int>();
          const auto l = lp.read<float>();
          if (again == 0) first_ids = i, first_lp = l;
          else if (i != first_ids || std::memcmp(l.data(), first_lp.data(), lp.bytes)) failures++, std::printf("FAIL sample %s %d: other bits in a second run\n", kind.name, n);
        }
        if (take_fault(ctx)) failures++, std::printf("FAIL sample %s %d: a fault\n", kind.name, n);
        for (int r = 0; r < rows; r++) {
          draws++;
          const std::string name = std::string(dtype_name(t)) + " " + std::to_string(n) + " " + kind.name + " setting " + std::to_string(r);
          if (first_ids[r] != want[r].id) {
            if (want[r].slack < 1e-5) excused++;
            else different++, failures++, std::printf("FAIL sample %s: %d, expected %d (slack %.1e)\n", name.c_str(), first_ids[r], want[r].id, want[r].slack);
            continue;
          }
          const double e = std::fabs(first_lp[r] - want[r].logprob) / (std::fabs(want[r].logprob) + 1);
          worst = std::max(worst, e);
          if (!(e <= 0x1p-20)) failures++, std::printf("FAIL logprob %s: %.9g, expected %.9g\n", name.c_str(), first_lp[r], want[r].logprob);
        }
      }
  std::printf("%ld draws, %ld wrong, %ld by rounding; logprob off by %.1e\n", draws, different, excused, worst);

  std::vector<float> bad(3 * 5, 0.f), params(3 * 8, 0.f);
  bad[2] = NAN;
  bad[7] = INFINITY;
  for (int i = 10; i < 15; i++) bad[i] = -INFINITY;
  for (int r = 0; r < 3; r++) params[r * 8] = static_cast<float>(r % 2);
  Buffer l(bad), p(params), s(std::vector<int>(6, 1)), st(std::vector<int>(3, 1)), ids(12), lp(12);
  run_op(ctx, sampler, op_sample, {view(l, DType::f32, {3, 5}), view(p, DType::f32, {3, 8}), view(s, DType::i32, {3, 2}), view(st, DType::i32, {3})},
         {view(ids, DType::i32, {3}), view(lp, DType::f32, {3})});
  const int f = take_fault(ctx);
  const bool ok = (f == static_cast<int>(Fault::logit) || f == static_cast<int>(Fault::no_logit)) && ids.read<int>() == std::vector<int>(3, 0);
  failures += !ok;
  std::printf("%s bad logits\n", ok ? "ok  " : "FAIL");
}

void check_penalties(Context& ctx) {
  for (const auto& [rows, n, width] : std::vector<std::tuple<int, int, int>>{{3, 7, 6}, {5, 1000, 1}, {7, 152064, 5000}, {4, 50, 3000}, {2, 9, 0}}) {
    std::vector<float> x(static_cast<size_t>(rows) * n), params(rows * 8, 0.f);
    std::vector<int> history(static_cast<size_t>(rows) * width), lengths(rows), prompts(rows);
    for (size_t i = 0; i < x.size(); i++) x[i] = i % 13 == 0 ? -INFINITY : 3 * noise(i, 1);
    for (size_t i = 0; i < history.size(); i++) history[i] = static_cast<int>(mix(i, 2) % (i % 3 ? n : std::min(n, 40)));
    for (int r = 0; r < rows; r++) {
      lengths[r] = r == 1 ? 0 : std::max(0, width - r);
      prompts[r] = r == 2 ? -4 : width / 3;
      params[r * 8 + 4] = r == 3 ? 1.f : 1.3f;
      params[r * 8 + 5] = r == 3 ? 0.f : 0.5f;
      params[r * 8 + 6] = r == 3 ? 0.f : 0.25f;
    }
    auto want = x;
    for (int r = 0; r < rows; r++) {
      std::map<int, int> seen;
      for (int i = 0; i < lengths[r]; i++) seen[history[static_cast<size_t>(r) * width + i]] += i >= prompts[r];
      const float* p = &params[r * 8];
      for (const auto& [id, count] : seen) {
        float& v = want[static_cast<size_t>(r) * n + id];
        v = v > 0 ? v / p[4] : v * p[4];
        if (count > 0) {
          volatile float product = p[6] * static_cast<float>(count);
          v -= product + p[5];
        }
      }
    }
    Buffer l(x), h(history), len(lengths), pr(prompts), p(params);
    run_op(ctx, penalizer, op_apply_penalties,
           {view(l, DType::f32, {rows, n}), view(h, DType::i32, {rows, width}), view(len, DType::i32, {rows}), view(pr, DType::i32, {rows}), view(p, DType::f32, {rows, 8})}, {});
    const int f = take_fault(ctx);
    const auto got = l.read<float>();
    const bool ok = f == 0 && std::memcmp(got.data(), want.data(), l.bytes) == 0;
    failures += !ok;
    std::printf("%s penalties %d x %d, history %d\n", ok ? "ok  " : "FAIL", rows, n, width);
  }
  std::vector<float> params = {1, 0, 1, 0, 2, 0, 0, 0, 1, 0, 1, 0, 2, 0, 0, 0};
  for (const bool token : {false, true}) {
    Buffer l(std::vector<float>(20, 1.f)), h(std::vector<int>{0, 1, token ? 10 : 2, 3, 4, 5}), len(std::vector<int>{3, token ? 0 : 4}), pr(std::vector<int>{0, 0}), p(params);
    run_op(ctx, penalizer, op_apply_penalties,
           {view(l, DType::f32, {2, 10}), view(h, DType::i32, {2, 3}), view(len, DType::i32, {2}), view(pr, DType::i32, {2}), view(p, DType::f32, {2, 8})}, {});
    const int f = take_fault(ctx), want = static_cast<int>(token ? Fault::history_token : Fault::history_length);
    failures += f != want;
    std::printf("%s fault of a bad history\n", f == want ? "ok  " : "FAIL");
  }
}

template <class T>
__global__ void fill(T* x, size_t n, float scale, float far, float lift) {
  for (size_t i = blockIdx.x * size_t{256} + threadIdx.x; i < n; i += size_t{256} * gridDim.x)
    x[i] = from_float<T>(noise(i, 1) * scale + (mix(i, 5) % 10007 == 3 ? far : 0.f) + lift);
}

void time_all(Context& ctx) {
  const int n = 152064;
  const std::vector<std::pair<const char*, std::vector<float>>> settings = {
      {"greedy", {0, 0, 1, 0}}, {"temperature 1", {1, 0, 1, 0}}, {"k 20, p 0.8", {0.7f, 20, 0.8f, 0}}, {"p 0.95", {1, 0, 0.95f, 0}}, {"min-p 0.05", {1, 0, 1, 0.05f}}};
  for (const DType t : {DType::bf16, DType::f32})
    for (const float far : {0.f, 14.f})  // flat, or peaked as a language model's
      for (const int rows : {1, 64, 256}) {
        if (rows == 256 && far == 0.f) continue;
        const int copies = rows == 1 ? 20 : 3;
        const size_t total = static_cast<size_t>(copies) * rows * n;
        Buffer logits(total * dtype_bytes(t)), seeds(std::vector<int>(rows * 2, 5)), ids(rows * 4), lp(rows * 4);
        std::vector<int> step(rows);
        std::iota(step.begin(), step.end(), 0);
        Buffer steps(step);
        if (t == DType::f32) fill<<<1024, 256>>>(static_cast<float*>(logits.p), total, 2.f, far, 3.f);
        else fill<<<1024, 256>>>(static_cast<bf16*>(logits.p), total, 2.f, far, 3.f);
        CHECK(cudaDeviceSynchronize());
        std::printf("sample %s B %d, %s:", dtype_name(t), rows, far > 0 ? "peaked" : "flat");
        for (const auto& [name, s] : settings) {
          std::vector<float> params(rows * 8, 0.f);
          for (int r = 0; r < rows; r++) std::copy(s.begin(), s.end(), params.begin() + r * 8);
          Buffer p(params);
          const float us = time_graph(ctx, copies, [&](int i) {
            View l = view(logits, t, {rows, n});
            l.data += static_cast<size_t>(i) * rows * n * dtype_bytes(t);
            run_op(ctx, sampler, op_sample, {l, view(p, DType::f32, {rows, 8}), view(seeds, DType::i32, {rows, 2}), view(steps, DType::i32, {rows})},
                   {view(ids, DType::i32, {rows}), view(lp, DType::f32, {rows})});
          });
          std::printf("  %s %.1f us", name, us);
        }
        std::printf("\n");
      }
  const int rows = 64, width = 4096;
  std::vector<int> history(rows * width);
  for (size_t i = 0; i < history.size(); i++) history[i] = static_cast<int>(mix(i, 2) % n);
  for (const float repetition : {1.f, 1.1f}) {
    std::vector<float> params(rows * 8, 0.f);
    for (int r = 0; r < rows; r++) params[r * 8 + 4] = repetition;
    Buffer l(static_cast<size_t>(rows) * n * 4), h(history), len(std::vector<int>(rows, width)), pr(std::vector<int>(rows, 100)), p(params);
    CHECK(cudaMemset(l.p, 0, l.bytes));
    const float us = time_graph(ctx, 10, [&](int) {
      run_op(ctx, penalizer, op_apply_penalties,
             {view(l, DType::f32, {rows, n}), view(h, DType::i32, {rows, width}), view(len, DType::i32, {rows}), view(pr, DType::i32, {rows}), view(p, DType::f32, {rows, 8})}, {});
    });
    std::printf("apply_penalties B 64, history 4096, repetition %.1f: %.1f us\n", repetition, us);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "all";
  once = what == "once";
  Context ctx = make_context();
  sampler = kernel_of(cuda_sample, cuda_sample_count, op_sample);
  penalizer = kernel_of(cuda_sample, cuda_sample_count, op_apply_penalties);
  if (what == "check" || what == "all") {
    check_penalties(ctx);
    check_sampler(ctx);
  }
  if (what != "check") time_all(ctx);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
