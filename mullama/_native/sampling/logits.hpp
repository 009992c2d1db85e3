// What is computed over the logits of a whole vocabulary for each token that is sampled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/ring.hpp"

namespace mullama {

// The greatest of logits[0 … n-1]. Throws std::runtime_error where llama.cpp's samplers, which sort and divide, would get lost:
// at NaN, at infinity, and where all are minus infinity.
float greatest(const float * logits, int32_t n);

// The natural logarithm of the sum of exp(logits[0 … n-1]), of which `top` is the greatest.
double log_sum_exp(const float * logits, int32_t n, float top);

// The `count` greatest of logits[0 … n-1], or all, in falling order; of equal ones the first come first.
std::vector<Candidate> likeliest(const float * logits, int32_t n, size_t count);

}  // namespace mullama
