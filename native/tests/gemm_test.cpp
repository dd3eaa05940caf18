// Compares every CPU matrix kernel (all instruction sets this machine runs, all paths) with a double-precision reference written
// here, over odd shapes, strides, transposes, element types, alpha and beta, empty sizes; then what the headers promise:
// independence of threads and of m, NaN rules, the thread pool. Prints one line a failure and "N passed, M failed".
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../core/threadpool.h"
#include "../cpu/gemm.h"
#include "../cpu/gemm_scalar.h"
#include "../cpu/isa.h"
#include "../cpu/qgemm.h"

using namespace llm::cpu;

namespace {

int passed = 0, failed = 0;

void check(bool ok, const std::string& what) {
  if (ok) {
    ++passed;
    return;
  }
  ++failed;
  if (failed <= 40) std::printf("FAILED %s\n", what.c_str());
}

struct Random {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state >> 33);
  }
  int64_t range(int64_t lo, int64_t hi) { return lo + static_cast<int64_t>(next() % static_cast<uint32_t>(hi - lo + 1)); }
  float value() { return static_cast<float>(static_cast<int32_t>(next() & 0xffff) - 32768) / 32768.0f; }
};

const char* name(Dt t) { return t == Dt::f32 ? "f32" : t == Dt::f16 ? "f16" : "bf16"; }

// Exactly as many bytes as the matrix spans: the address sanitizer sees one element too many.
struct Matrix {
  int64_t rows, cols, ld;
  Dt type;
  char* data;
  Matrix(int64_t r, int64_t c, int64_t pad, Dt t, Random& rng, float size = 1) : rows(r), cols(c), ld(c + pad), type(t) {
    data = static_cast<char*>(std::malloc(bytes() + (bytes() == 0)));
    for (int64_t i = 0; i < span(); ++i) store_element(type, data, i, rng.value() * size);
  }
  Matrix(const Matrix& o) : rows(o.rows), cols(o.cols), ld(o.ld), type(o.type) {
    data = static_cast<char*>(std::malloc(bytes() + (bytes() == 0)));
    std::memcpy(data, o.data, bytes());
  }
  Matrix& operator=(const Matrix&) = delete;
  ~Matrix() { std::free(data); }
  int64_t span() const { return rows > 0 && cols > 0 ? (rows - 1) * ld + cols : 0; }
  size_t bytes() const { return static_cast<size_t>(span() * element_bytes(type)); }
  double at(int64_t r, int64_t c) const { return load_element(type, data, r * ld + c); }
};

double unit(Dt t) { return t == Dt::f32 ? 0x1p-24 : t == Dt::f16 ? 0x1p-11 : 0x1p-8; }

struct Case {
  int64_t m, n, k;
  bool ta, tb;
  Dt at, bt, ct, biast;
  float alpha, beta;
  bool bias;
  int pad;
};

std::string describe(const char* isa, const Case& c) {
  char text[200];
  std::snprintf(text, sizeof text, "%s gemm m=%ld n=%ld k=%ld %c%c %s*%s->%s alpha=%g beta=%g bias=%d pad=%d", isa, static_cast<long>(c.m),
                static_cast<long>(c.n), static_cast<long>(c.k), c.ta ? 'T' : 'N', c.tb ? 'T' : 'N', name(c.at), name(c.bt), name(c.ct),
                static_cast<double>(c.alpha), static_cast<double>(c.beta), c.bias, c.pad);
  return text;
}

GemmArgs arguments(const Case& c, const Matrix& a, const Matrix& b, Matrix& out, const Matrix& bias) {
  GemmArgs g;
  g.m = c.m, g.n = c.n, g.k = c.k;
  g.a = a.data, g.lda = a.ld, g.trans_a = c.ta, g.a_type = c.at;
  g.b = b.data, g.ldb = b.ld, g.trans_b = c.tb, g.b_type = c.bt;
  g.c = out.data, g.ldc = out.ld, g.c_type = c.ct;
  g.alpha = c.alpha, g.beta = c.beta;
  g.bias = c.bias ? bias.data : nullptr, g.bias_type = c.biast;
  return g;
}

struct Variant {
  std::string label;
  Isa isa;
  bool pairs;
};

std::vector<Variant> variants() {
  std::vector<Variant> out;
  for (int i = 0; i <= static_cast<int>(detected_isa()); ++i) {
    const Isa isa = static_cast<Isa>(i);
    out.push_back({isa_name(isa), isa, false});
    if (isa == Isa::avx512bf16) out.push_back({"avx512bf16+dot", isa, true});
  }
  return out;
}

void use(const Variant& v) {
  set_active_isa(v.isa);
  set_bf16_dot(v.pairs);
}

void run_case(const Case& c, uint64_t seed, const std::vector<Variant>& all) {
  Random rng{seed};
  const Matrix a(c.ta ? c.k : c.m, c.ta ? c.m : c.k, c.pad, c.at, rng), b(c.tb ? c.n : c.k, c.tb ? c.k : c.n, c.pad * 2, c.bt, rng);
  const Matrix start(c.m, c.n, c.pad, c.ct, rng), bias(1, c.n, 0, c.biast, rng);
  std::vector<double> want(static_cast<size_t>(c.m * c.n)), size(want.size());
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) {
      double s = 0, t = 0;
      for (int64_t k = 0; k < c.k; ++k) {
        const double p = (c.ta ? a.at(k, i) : a.at(i, k)) * (c.tb ? b.at(j, k) : b.at(k, j));
        s += p, t += std::fabs(p);
      }
      s *= c.alpha, t *= std::fabs(c.alpha);
      if (c.bias) s += bias.at(0, j), t += std::fabs(bias.at(0, j));
      if (c.beta != 0) s += static_cast<double>(c.beta) * start.at(i, j), t += std::fabs(c.beta * start.at(i, j));
      want[static_cast<size_t>(i * c.n + j)] = s, size[static_cast<size_t>(i * c.n + j)] = t;
    }
  }
  for (const Variant& v : all) {
    use(v);
    Matrix out(start);
    if (c.beta == 0) {  // must not be read
      for (int64_t i = 0; i < c.m; ++i) {
        for (int64_t j = 0; j < c.n; ++j) store_element(c.ct, out.data, i * out.ld + j, NAN);
      }
    }
    gemm(arguments(c, a, b, out, bias));
    bool ok = true;
    // Forward error of a sum of k products: about sqrt(k) units of the sum of magnitudes, here with a wide margin; k units bound it.
    const double sums = 0x1p-24 * (4 + 2 * std::sqrt(static_cast<double>(c.k)));
    for (int64_t i = 0; i < c.m && ok; ++i) {
      for (int64_t j = 0; j < c.n && ok; ++j) {
        const size_t at = static_cast<size_t>(i * c.n + j);
        const double error = std::fabs(out.at(i, j) - want[at]);
        const double tolerance = (v.isa == Isa::scalar ? 0x1p-40 : sums) * size[at] + 1.01 * unit(c.ct) * std::fabs(want[at]) + 1e-7 * (c.ct == Dt::f16);
        ok = error <= tolerance;
      }
    }
    for (int64_t i = 0; i + 1 < c.m && c.n > 0 && ok; ++i) {  // between the rows nothing changed
      ok = std::memcmp(out.data + (i * out.ld + c.n) * element_bytes(c.ct), start.data + (i * out.ld + c.n) * element_bytes(c.ct),
                       static_cast<size_t>(c.pad * element_bytes(c.ct))) == 0;
    }
    check(ok, describe(v.label.c_str(), c));
  }
}

void test_gemm(const std::vector<Variant>& all) {
  const Dt types[] = {Dt::f32, Dt::f16, Dt::bf16};
  uint64_t seed = 1;
  // Every transpose and type over shapes around the block sizes.
  const int64_t shapes[][3] = {{1, 1, 1}, {1, 17, 33}, {2, 300, 40}, {3, 5, 7}, {5, 31, 530}, {8, 129, 1030}, {8, 70, 15}, {9, 33, 65}, {13, 16, 256},
                               {14, 32, 257}, {15, 48, 511}, {16, 100, 31}, {17, 9, 513}, {29, 64, 100}, {57, 8, 77}, {64, 3, 300}, {33, 65, 17}, {100, 11, 5}};
  for (const auto& s : shapes) {
    for (int t = 0; t < 4; ++t) {
      for (const Dt at : types) {
        const Dt bt = t % 2 ? at : types[seed % 3];
        const Dt ct = types[seed / 3 % 3];
        run_case({s[0], s[1], s[2], (t & 1) != 0, (t & 2) != 0, at, bt, ct, types[seed % 3], seed % 2 ? 1.0f : -0.75f,
                  seed % 4 == 0 ? 0.0f : seed % 4 == 1 ? 1.0f : 0.5f, seed % 5 < 2, seed % 3 == 0 ? 0 : static_cast<int>(seed % 7)},
                 seed, all);
        ++seed;
      }
    }
  }
  // bf16 by bf16, all transposes, odd k: the pair kernels.
  for (int t = 0; t < 4; ++t) {
    for (const int64_t k : {1, 2, 31, 32, 33, 511, 513, 1025}) {
      run_case({21, 45, k, (t & 1) != 0, (t & 2) != 0, Dt::bf16, Dt::bf16, Dt::f32, Dt::f32, 1, t % 2 ? 1.0f : 0.0f, false, t}, seed++, all);
    }
  }
  // Random shapes.
  Random rng{99};
  for (int i = 0; i < 150; ++i) {
    Case c;
    c.m = rng.range(1, i % 3 ? 40 : 150), c.n = rng.range(1, i % 4 ? 80 : 300), c.k = rng.range(1, i % 5 ? 100 : 700);
    c.ta = rng.next() % 2, c.tb = rng.next() % 2;
    c.at = types[rng.next() % 3], c.bt = types[rng.next() % 3], c.ct = types[rng.next() % 3], c.biast = types[rng.next() % 3];
    c.alpha = rng.next() % 2 ? 1.0f : rng.value(), c.beta = rng.next() % 2 ? 0.0f : rng.value();
    c.bias = rng.next() % 2, c.pad = static_cast<int>(rng.range(0, 9));
    run_case(c, seed++, all);
  }
  // Several blocks of rows, columns and k at once; a LoRA product each way; dW with beta = 1.
  run_case({530, 270, 300, false, true, Dt::f32, Dt::f32, Dt::f32, Dt::f32, 1, 0, true, 0}, seed++, all);
  run_case({700, 16, 260, false, true, Dt::bf16, Dt::bf16, Dt::bf16, Dt::f32, 1, 0, false, 0}, seed++, all);
  run_case({300, 520, 8, false, true, Dt::bf16, Dt::bf16, Dt::bf16, Dt::f32, 2, 1, false, 1}, seed++, all);
  run_case({300, 130, 600, true, false, Dt::bf16, Dt::bf16, Dt::f32, Dt::f32, 1, 1, false, 0}, seed++, all);
  // Sums so long that they are taken in slices; wider than a block of them, and with a short last slice.
  for (int t = 0; t < 4; ++t) {
    const Dt type = t % 2 ? Dt::f32 : Dt::bf16;
    run_case({21, 45, 32768, (t & 1) != 0, (t & 2) != 0, type, type, Dt::f32, Dt::f32, 1, t % 2 ? 1.0f : 0.0f, true, 0}, seed++, all);
  }
  run_case({17, 1030, 33001, false, false, Dt::bf16, Dt::bf16, Dt::bf16, Dt::f32, 0.5f, 0, false, 1}, seed++, all);
  run_case({270, 9, 41000, false, true, Dt::bf16, Dt::bf16, Dt::f32, Dt::f32, 1, 0, false, 0}, seed++, all);
  // Empty sizes.
  for (const int64_t m : {0, 1, 20, 40}) {
    for (const int64_t n : {0, 1, 33}) {
      for (const int64_t k : {0, 5}) {
        if (m > 0 && n > 0 && k > 0) continue;
        run_case({m, n, k, false, true, Dt::f32, Dt::bf16, Dt::f32, Dt::f16, 1, 0.5f, true, 2}, seed++, all);
        run_case({m, n, k, true, false, Dt::f32, Dt::f32, Dt::bf16, Dt::f32, 1, 0, false, 0}, seed++, all);
      }
    }
  }
}

// The same bits with 1, 2 and 5 threads; rows that do not depend on m where gemm.h says so.
void test_gemm_invariance(const std::vector<Variant>& all) {
  for (const Variant& v : all) {
    use(v);
    for (const bool tb : {true, false}) {
      for (const Dt t : {Dt::f32, Dt::bf16}) {
        for (const int64_t m : {1, 7, 16, 20, 90, 600}) {
          Random rng{7};
          const Case c{m, 150, m == 20 ? 33000 : 600, false, tb, t, t, Dt::f32, Dt::f32, 1, 0, false, 0};
          const Matrix a(m, c.k, 0, t, rng), b(tb ? c.n : c.k, tb ? c.k : c.n, 0, t, rng), bias(1, c.n, 0, Dt::f32, rng);
          Matrix first(m, c.n, 0, Dt::f32, rng);
          set_thread_count(1);
          gemm(arguments(c, a, b, first, bias));
          for (const int threads : {2, 5}) {
            Matrix out(m, c.n, 0, Dt::f32, rng);
            set_thread_count(threads);
            gemm(arguments(c, a, b, out, bias));
            check(std::memcmp(out.data, first.data, out.bytes()) == 0, v.label + " gemm threads m=" + std::to_string(m));
          }
          const int64_t least = m <= (tb ? 16 : 8) ? 1 : (tb ? 17 : 9);
          Case part = c;
          part.m = least;
          Matrix out(part.m, c.n, 0, Dt::f32, rng);
          gemm(arguments(part, a, b, out, bias));
          check(std::memcmp(out.data, first.data, out.bytes()) == 0, v.label + " gemm rows independent of m=" + std::to_string(m));
        }
      }
    }
  }
  set_thread_count(3);
}

// Conversions: every f16 and bf16 value survives C = 1 * A, the vector rounding equals the scalar one, NaN stays NaN.
void test_rounding(const std::vector<Variant>& all) {
  std::vector<float> x(4096);
  Random rng{5};
  for (size_t i = 0; i < x.size(); ++i) {
    uint32_t u = rng.next() << 1 ^ rng.next();
    if (i % 7 == 0) u = 0x38000000u + (rng.next() & 0x7fffffu);             // about f16's least
    if (i % 7 == 1) u = 0x477fe000u + (rng.next() & 0x3fffu);               // about f16's most
    if (i % 7 == 2) u = (rng.next() & 0x80000000u) | (0x33000000u + (rng.next() & 0x1ffffffu));
    if (i % 7 == 3) u = (u & 0xffff0000u) | 0x8000u;                        // ties of bf16
    std::memcpy(&x[i], &u, 4);
  }
  x[0] = INFINITY, x[1] = -INFINITY, x[2] = NAN, x[3] = std::numeric_limits<float>::max();
  const float one = 1;
  for (const Variant& v : all) {
    if (v.isa == Isa::scalar) continue;
    use(v);
    for (const Dt t : {Dt::f16, Dt::bf16}) {
      std::vector<uint16_t> out(x.size());
      GemmArgs g;
      g.m = 1, g.n = static_cast<int64_t>(x.size()), g.k = 0, g.a = &one, g.b = &one, g.lda = g.ldb = g.n;
      g.bias = x.data(), g.c = out.data(), g.ldc = g.n, g.c_type = t;
      gemm(g);  // 0 + bias
      bool ok = true;
      for (size_t i = 0; i < x.size() && ok; ++i) {
        const float y = load_element(t, out.data(), static_cast<int64_t>(i));
        const float want = t == Dt::bf16 ? bf16_to_f32(f32_to_bf16(x[i])) : f16_to_f32(f32_to_f16(x[i]));
        ok = std::isnan(x[i]) ? std::isnan(y) : y == want;
      }
      check(ok, v.label + " rounds to " + name(t));
      std::vector<uint16_t> all16(65536);
      for (size_t i = 0; i < all16.size(); ++i) all16[i] = static_cast<uint16_t>(i);
      std::vector<float> wide(65536);
      g.n = g.ldc = 65536, g.bias = all16.data(), g.bias_type = t, g.c = wide.data(), g.c_type = Dt::f32;
      gemm(g);
      ok = true;
      for (size_t i = 0; i < all16.size() && ok; ++i) {
        const float want = load_element(t, all16.data(), static_cast<int64_t>(i));
        ok = std::isnan(want) ? std::isnan(wide[i]) : wide[i] == want;
      }
      check(ok, v.label + " widens every " + name(t));
    }
  }
}

// ---- quantized -------------------------------------------------------------------------------------------------------------

struct Quantized {
  QWeight w;
  std::vector<uint8_t> q4, zeros;
  std::vector<int8_t> q8;
  std::vector<uint8_t> scales;
  uint8_t* packed = nullptr;
  int64_t groups;
  Quantized(const QWeight& desc, Random& rng) : w(desc) {
    groups = w.k == 0 ? 0 : (w.k + w.group - 1) / w.group;
    if (w.bits == 4) {
      q4.resize(static_cast<size_t>(w.n * w.k / 2));
      for (auto& v : q4) v = static_cast<uint8_t>(rng.next());
    } else {
      q8.resize(static_cast<size_t>(w.n * w.k));
      for (auto& v : q8) v = static_cast<int8_t>(rng.next());
    }
    if (w.has_zeros) {
      zeros.resize(static_cast<size_t>(w.n * groups));
      for (auto& v : zeros) v = static_cast<uint8_t>(rng.next() % 16);
    }
    scales.resize(static_cast<size_t>(w.n * groups * element_bytes(w.scale_type)));
    for (int64_t i = 0; i < w.n * groups; ++i) store_element(w.scale_type, scales.data(), i, 0.01f + 0.02f * std::fabs(rng.value()));
    packed = static_cast<uint8_t*>(std::aligned_alloc(64, packed_bytes(w) + (packed_bytes(w) == 0 ? 64 : 0)));
    if (w.bits == 4) repack_w4(w, q4.data(), scales.data(), w.has_zeros ? zeros.data() : nullptr, packed);
    else repack_q8(w, q8.data(), scales.data(), packed);
  }
  Quantized(const Quantized&) = delete;
  Quantized& operator=(const Quantized&) = delete;
  ~Quantized() { std::free(packed); }
  double at(int64_t n, int64_t k) const {
    const int64_t g = n * groups + k / w.group;
    const double s = load_element(w.scale_type, scales.data(), g);
    if (w.bits == 8) return q8[static_cast<size_t>(n * w.k + k)] * s;
    const uint8_t byte = q4[static_cast<size_t>((n * w.k + k) / 2)];
    return ((k % 2 ? byte >> 4 : byte & 15) - (w.has_zeros ? zeros[static_cast<size_t>(g)] : 8)) * s;
  }
};

void run_quantized(const QWeight& w, int64_t m, Dt xt, Dt yt, bool with_bias, int pad, uint64_t seed, const std::vector<Variant>& all) {
  Random rng{seed};
  const Quantized q(w, rng);
  const Matrix x(m, w.k, pad, xt, rng, 3), bias(1, w.n, 0, yt, rng);
  std::vector<double> w64(static_cast<size_t>(w.n * w.k));
  for (int64_t n = 0; n < w.n; ++n) {
    for (int64_t k = 0; k < w.k; ++k) w64[static_cast<size_t>(n * w.k + k)] = q.at(n, k);
  }
  for (const Variant& v : all) {
    if (v.pairs) continue;
    use(v);
    for (const QMode mode : {QMode::exact, QMode::int8}) {
      Matrix y(m, w.n, pad, yt, rng);
      QGemmArgs a;
      a.m = m, a.x = x.data, a.ldx = x.ld, a.x_type = xt, a.packed = q.packed, a.y = y.data, a.ldy = y.ld, a.y_type = yt;
      a.bias = with_bias ? bias.data : nullptr, a.bias_type = yt, a.mode = mode;
      (w.bits == 4 ? gemm_w4 : gemm_q8)(w, a);
      bool ok = true;
      for (int64_t i = 0; i < m && ok; ++i) {
        std::vector<double> row(static_cast<size_t>(w.k));
        for (int64_t k0 = 0; k0 < w.k; k0 += 32) {
          const int64_t k1 = std::min(w.k, k0 + 32);
          double most = 0;
          for (int64_t k = k0; k < k1; ++k) most = std::max(most, std::fabs(x.at(i, k)));
          for (int64_t k = k0; k < k1; ++k) {
            row[static_cast<size_t>(k)] = x.at(i, k);
            if (mode == QMode::int8 && most > 0) {  // what the mode is defined to compute: x rounded to 127 steps of the block's absmax
              const float inverse = 127.0f / static_cast<float>(most), scale = static_cast<float>(most) / 127.0f;
              row[static_cast<size_t>(k)] = static_cast<double>(std::nearbyintf(static_cast<float>(x.at(i, k)) * inverse)) * scale;
            }
          }
        }
        for (int64_t n = 0; n < w.n && ok; ++n) {
          double want = 0, size = 0;
          for (int64_t k = 0; k < w.k; ++k) {
            const double p = row[static_cast<size_t>(k)] * w64[static_cast<size_t>(n * w.k + k)];
            want += p, size += std::fabs(p);
          }
          if (with_bias) want += bias.at(0, n), size += std::fabs(bias.at(0, n));
          // int8 with zeros takes them off group sums: magnitudes up to 16/|q - zero| larger.
          const double slack = w.has_zeros && mode == QMode::int8 ? 16 : 4;
          ok = std::fabs(y.at(i, n) - want) <= 0x1p-24 * (4 + slack * std::sqrt(static_cast<double>(w.k))) * size + 1.01 * unit(yt) * std::fabs(want) + 1e-6;
        }
      }
      char text[200];
      std::snprintf(text, sizeof text, "%s %s w%d m=%ld n=%ld k=%ld group=%ld zeros=%d scale=%s x=%s y=%s", v.label.c_str(),
                    mode == QMode::exact ? "exact" : "int8", w.bits, static_cast<long>(m), static_cast<long>(w.n), static_cast<long>(w.k),
                    static_cast<long>(w.group), w.has_zeros, name(w.scale_type), name(xt), name(yt));
      check(ok, text);
    }
  }
  std::vector<float> out(static_cast<size_t>(w.n * w.k) + 1);
  dequantize_rows(w, q.packed, 0, w.n, out.data(), w.k, Dt::f32);
  bool ok = true;
  for (size_t i = 0; i < w64.size() && ok; ++i) ok = out[i] == static_cast<float>(w64[i]);
  check(ok, "dequantize_rows");
}

void test_quantized(const std::vector<Variant>& all) {
  const Dt types[] = {Dt::f32, Dt::f16, Dt::bf16};
  const int64_t shapes[][2] = {{1, 2}, {16, 32}, {17, 64}, {33, 130}, {50, 258}, {64, 512}, {100, 96}, {15, 1000}, {20, 4096}};
  uint64_t seed = 1000;
  for (const auto& s : shapes) {
    for (const int64_t group : {32, 64, 128}) {
      for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 25}) {
        if (m > 8 && s[1] > 1000) continue;
        const QWeight w{s[0], s[1], group, seed % 3 == 0 ? 8 : 4, seed % 2 ? Dt::f16 : Dt::f32, seed % 3 == 1};
        run_quantized(w, m, types[seed % 3], types[seed / 3 % 3], seed % 2 == 0, seed % 4 == 0 ? 3 : 0, seed, all);
        ++seed;
      }
    }
  }
  run_quantized({40, 31, 64, 8, Dt::f32, false}, 3, Dt::f32, Dt::f32, true, 0, seed++, all);    // odd k in 8 bits
  run_quantized({40, 90, 1024, 4, Dt::f32, true}, 3, Dt::f32, Dt::f32, true, 0, seed++, all);   // one group a row
  run_quantized({30, 64, 32, 4, Dt::f32, true}, 0, Dt::f32, Dt::f32, true, 0, seed++, all);
  run_quantized({0, 64, 32, 4, Dt::f32, true}, 2, Dt::f32, Dt::f32, true, 0, seed++, all);
  run_quantized({30, 0, 32, 4, Dt::f32, true}, 2, Dt::f32, Dt::f32, true, 0, seed++, all);
  run_quantized({40, 96, 32, 4, Dt::f16, true}, 530, Dt::f32, Dt::f32, false, 0, seed++, all);  // more than one pass of rows
  check(qweight_error({16, 64, 32, 4, Dt::f16, true}) == nullptr, "a good weight is accepted");
  check(qweight_error({16, 63, 32, 4, Dt::f16, true}) != nullptr, "odd k in 4 bits is refused");
  check(qweight_error({16, 64, 48, 4, Dt::f16, true}) != nullptr, "a group of 48 is refused");
  check(qweight_error({16, 64, 32, 3, Dt::f16, false}) != nullptr, "3 bits are refused");
  check(qweight_error({16, 64, 32, 8, Dt::f16, true}) != nullptr, "zeros with 8 bits are refused");
  check(qweight_error({16, 64, 32, 4, Dt::bf16, false}) != nullptr, "bf16 scales are refused");
}

// A row gives the same bits alone, in any batch, at any place, with any number of threads.
void test_batch_invariance(const std::vector<Variant>& all) {
  for (const Variant& v : all) {
    if (v.pairs) continue;
    use(v);
    for (const int bits : {4, 8}) {
      for (const QMode mode : {QMode::exact, QMode::int8}) {
        Random rng{static_cast<uint64_t>(bits)};
        const QWeight w{100, 224, 64, bits, Dt::f16, bits == 4};
        const Quantized q(w, rng);
        const Matrix x(37, w.k, 0, Dt::f32, rng);
        Matrix full(37, w.n, 0, Dt::f32, rng);
        auto run = [&](int64_t row, int64_t m, Matrix& y) {
          QGemmArgs a;
          a.m = m, a.x = x.data + row * x.ld * 4, a.ldx = x.ld, a.packed = q.packed, a.y = y.data, a.ldy = y.ld, a.mode = mode;
          (bits == 4 ? gemm_w4 : gemm_q8)(w, a);
        };
        set_thread_count(1);
        run(0, 37, full);
        set_thread_count(3);
        for (const int64_t m : {1, 2, 5, 8, 13, 37}) {
          bool ok = true;
          for (int64_t row = 0; row + m <= 37 && ok; row += m) {
            Matrix y(m, w.n, 0, Dt::f32, rng);
            run(row, m, y);
            ok = std::memcmp(y.data, full.data + row * full.ld * 4, y.bytes()) == 0;
          }
          check(ok, v.label + " quantized batch invariance, " + std::to_string(bits) + " bits, m=" + std::to_string(m));
        }
      }
    }
  }
}

void test_not_finite(const std::vector<Variant>& all) {
  for (const Variant& v : all) {
    if (v.pairs) continue;
    use(v);
    for (const QMode mode : {QMode::exact, QMode::int8}) {
      for (const float bad : {static_cast<float>(NAN), static_cast<float>(INFINITY)}) {
        Random rng{3};
        QWeight w{32, 128, 32, 4, Dt::f32, false};
        Quantized q(w, rng);
        for (auto& b : q.q4) b = 0x11;  // no weight is zero
        repack_w4(w, q.q4.data(), q.scales.data(), nullptr, q.packed);
        const Matrix x(3, w.k, 0, Dt::f32, rng);
        reinterpret_cast<float*>(x.data)[128 + 37] = bad;
        Matrix y(3, w.n, 0, Dt::f32, rng);
        QGemmArgs a;
        a.m = 3, a.x = x.data, a.ldx = x.ld, a.packed = q.packed, a.y = y.data, a.ldy = y.ld, a.mode = mode;
        gemm_w4(w, a);
        bool ok = true;
        for (int64_t n = 0; n < w.n; ++n) ok = ok && std::isfinite(y.at(0, n)) && !std::isfinite(y.at(1, n)) && std::isfinite(y.at(2, n));
        check(ok, v.label + " a NaN or infinity in x shows in its row only");
      }
    }
  }
}

// ---- thread pool -----------------------------------------------------------------------------------------------------------

void test_pool() {
  for (const int threads : {1, 2, 4, 9}) {
    set_thread_count(threads);
    for (const int64_t n : {0, 1, 2, 3, 100, 1001}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(n) + 1);
      parallel_for(n, 3, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
      });
      bool ok = true;
      for (int64_t i = 0; i < n; ++i) ok = ok && hits[static_cast<size_t>(i)] == 1;
      check(ok, "every index runs once, n=" + std::to_string(n));
    }
  }
  set_thread_count(4);
  std::atomic<int64_t> sum{0};
  parallel_for(20, 1, [&](int64_t, int64_t) { parallel_for(50, 7, [&](int64_t b, int64_t e) { sum += e - b; }); });
  check(sum == 1000, "nested calls run");
  std::vector<std::thread> callers;
  sum = 0;
  for (int t = 0; t < 4; ++t) {
    callers.emplace_back([&] {
      for (int i = 0; i < 500; ++i) parallel_for(64, 1, [&](int64_t b, int64_t e) { sum += e - b; });
    });
  }
  for (auto& c : callers) c.join();
  check(sum == 4 * 500 * 64, "concurrent callers are safe");
  for (int i = 0; i < 20; ++i) {
    bool caught = false;
    try {
      parallel_for(200, 1, [&](int64_t b, int64_t) {
        if (b == 150) throw std::runtime_error("chunk");
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    check(caught, "an exception of a chunk reaches the caller");
  }
  sum = 0;
  std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the workers are parked now
  parallel_for(1000, 1, [&](int64_t b, int64_t e) { sum += e - b; });
  check(sum == 1000, "parked workers wake");
}

}  // namespace

int main() {
  std::printf("cpu: %s, isa %s\n", cpu_model_name(), isa_name(detected_isa()));
  if (isa_error() != nullptr || thread_count_error() != nullptr) {
    std::printf("%s\n", isa_error() != nullptr ? isa_error() : thread_count_error());
    return 2;
  }
  test_pool();
  set_thread_count(3);
  const auto all = variants();
  test_gemm(all);
  test_gemm_invariance(all);
  test_rounding(all);
  test_quantized(all);
  test_batch_invariance(all);
  test_not_finite(all);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
