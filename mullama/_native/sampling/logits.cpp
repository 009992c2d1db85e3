// Sums, maxima and the likeliest of logits; see logits.hpp. A large vocabulary makes them a good part of a small model's token, so they are
// written with vectors of the size that the processor has: compiled for 4 numbers at a time, and for 8 where it may have AVX2.
#include "sampling/logits.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#define INLINE inline __attribute__((always_inline))

namespace mullama {

namespace {

template <int lanes>
struct Vector {
    typedef float Floats __attribute__((vector_size(lanes * sizeof(float))));
    typedef int32_t Ints __attribute__((vector_size(lanes * sizeof(int32_t))));

    static INLINE void load(Floats & to, const float * from) { std::memcpy(&to, from, sizeof to); }

    // exp(x) for -87 <= x <= 0, as 2^n * 2^f with the Taylor polynomial of 2^f at f in [-1/2, 1/2]; relative error below 2e-7.
    static INLINE void exp_in_place(Floats & x) {
        const Floats t = x * 1.44269504f;
        const Floats shifted = t + 12582912.0f;  // 1.5 * 2^23: rounds t to the nearest integer, n, which is in its low bits
        const Floats f = t - (shifted - 12582912.0f);
        Floats y = f * 1.54035304e-4f + 1.33335581e-3f;
        y = y * f + 9.61812911e-3f;
        y = y * f + 5.55041087e-2f;
        y = y * f + 2.40226507e-1f;
        y = y * f + 6.93147181e-1f;
        y = y * f + 1.0f;
        Ints bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        bits = (bits + 127) << 23;  // 2^n: what else the bits of 1.5 * 2^23 are is shifted out
        Floats scale;
        std::memcpy(&scale, &bits, sizeof scale);
        x = y * scale;
    }
};

struct Greatest {
    float top;
    bool odd;  // there is NaN, or more than samplers can bear
};

template <int lanes>
INLINE Greatest greatest_of(const float * logits, int32_t n) {
    using V = Vector<lanes>;
    constexpr float most = 1e28f;  // divided by the least temperature and penalty it is still a float
    typename V::Floats tops = typename V::Floats{} - INFINITY, more = tops, x, y;
    typename V::Ints fine = ~typename V::Ints{};
    int32_t i = 0;
    for (; i + 2 * lanes <= n; i += 2 * lanes) {
        V::load(x, logits + i);
        V::load(y, logits + i + lanes);
        fine &= (x <= most) & (y <= most);  // NaN is not
        tops = x > tops ? x : tops;
        more = y > more ? y : more;
    }
    Greatest all{-INFINITY, false};
    for (int32_t k = 0; k < lanes; ++k) {
        all.odd |= fine[k] == 0;
        all.top = std::max({all.top, tops[k], more[k]});
    }
    for (; i < n; ++i) {
        all.odd |= !(logits[i] <= most);
        all.top = std::max(all.top, logits[i]);
    }
    return all;
}

template <int lanes>
INLINE double sum_exp(const float * logits, int32_t n, float top) {
    using V = Vector<lanes>;
    typename V::Floats sums{}, x;
    const typename V::Floats least = typename V::Floats{} - 87.0f;
    int32_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        V::load(x, logits + i);
        x -= top;
        x = x < least ? least : x;
        V::exp_in_place(x);
        sums += x;
    }
    double sum = 0.0;
    for (int32_t k = 0; k < lanes; ++k) sum += sums[k];
    for (; i < n; ++i) sum += std::exp(double(logits[i]) - top);
    return sum;
}

// The first index from i on whose logit is above `least`; n if there is none.
template <int lanes>
INLINE int32_t next_above_of(const float * logits, int32_t i, int32_t n, float least) {
    using V = Vector<lanes>;
    typename V::Floats a, b, c, d;
    for (; i + 4 * lanes <= n; i += 4 * lanes) {
        V::load(a, logits + i);
        V::load(b, logits + i + lanes);
        V::load(c, logits + i + 2 * lanes);
        V::load(d, logits + i + 3 * lanes);
        const typename V::Ints above = (a > least) | (b > least) | (c > least) | (d > least);
        int64_t parts[lanes / 2], any = 0;
        std::memcpy(parts, &above, sizeof parts);
        for (const int64_t part : parts) any |= part;
        if (any != 0) break;
    }
    while (i < n && !(logits[i] > least)) ++i;
    return i;
}

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma")))
AVX2 Greatest greatest_avx2(const float * logits, int32_t n) { return greatest_of<8>(logits, n); }
AVX2 double sum_exp_avx2(const float * logits, int32_t n, float top) { return sum_exp<8>(logits, n, top); }
AVX2 int32_t next_above_avx2(const float * logits, int32_t i, int32_t n, float least) {
    return next_above_of<8>(logits, i, n, least);
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
Greatest greatest_avx2(const float * logits, int32_t n) { return greatest_of<4>(logits, n); }
double sum_exp_avx2(const float * logits, int32_t n, float top) { return sum_exp<4>(logits, n, top); }
int32_t next_above_avx2(const float * logits, int32_t i, int32_t n, float least) {
    return next_above_of<4>(logits, i, n, least);
}
bool has_avx2() { return false; }
#endif

}  // namespace

float greatest(const float * logits, int32_t n) {
    const Greatest all = has_avx2() ? greatest_avx2(logits, n) : greatest_of<4>(logits, n);
    if (all.odd || all.top == -INFINITY) {
        throw std::runtime_error("the model computed no number for a token (NaN or infinity): its weights may be damaged");
    }
    return all.top;
}

double log_sum_exp(const float * logits, int32_t n, float top) {
    return top + std::log(has_avx2() ? sum_exp_avx2(logits, n, top) : sum_exp<4>(logits, n, top));
}

// By way of a heap whose front is the least of them; most logits are not even looked at one by one.
std::vector<Candidate> likeliest(const float * logits, int32_t n, size_t count) {
    const auto greater = [](const Candidate & a, const Candidate & b) {
        return a.logprob > b.logprob || (a.logprob == b.logprob && a.token < b.token);
    };
    std::vector<Candidate> heap;
    int32_t i = std::min(n, int32_t(std::min(count, size_t(INT32_MAX))));
    if (i == 0) return heap;
    heap.reserve(size_t(i));
    for (int32_t token = 0; token < i; ++token) heap.push_back({token, logits[token]});
    std::make_heap(heap.begin(), heap.end(), greater);
    for (;; ++i) {
        const float least = heap.front().logprob;
        i = has_avx2() ? next_above_avx2(logits, i, n, least) : next_above_of<4>(logits, i, n, least);
        if (i == n) break;
        std::pop_heap(heap.begin(), heap.end(), greater);
        heap.back() = {i, logits[i]};
        std::push_heap(heap.begin(), heap.end(), greater);
    }
    std::sort_heap(heap.begin(), heap.end(), greater);
    return heap;
}

}  // namespace mullama
