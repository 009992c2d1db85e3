// llama.cpp's sampler chain for one sequence; see sampler.hpp.
#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <stdexcept>

#include "abort_guard.hpp"
#include "common.h"
#include "gbnf_check.hpp"
#include "json-schema-to-grammar.h"
#include "llama.h"
#include "log.hpp"
#include "sampling.h"

namespace mullama {

namespace {

common_params_sampling to_common(const llama_vocab * vocab, const Sampling & s) {
    common_params_sampling p;
    p.seed = s.seed;
    p.temp = s.temperature;
    p.dynatemp_range = s.dynatemp_range;
    p.dynatemp_exponent = s.dynatemp_exponent;
    p.top_k = s.top_k;
    p.min_keep = s.min_keep;
    p.top_p = s.top_p;
    p.min_p = s.min_p;
    p.typ_p = s.typical_p;
    p.top_n_sigma = s.top_n_sigma;
    p.xtc_probability = s.xtc_probability;
    p.xtc_threshold = s.xtc_threshold;
    p.penalty_last_n = s.penalty_last_n;
    p.penalty_repeat = s.repeat_penalty;
    p.penalty_freq = s.frequency_penalty;
    p.penalty_present = s.presence_penalty;
    p.dry_multiplier = s.dry_multiplier;
    p.dry_base = s.dry_base;
    p.dry_allowed_length = s.dry_allowed_length;
    p.dry_penalty_last_n = s.dry_penalty_last_n;
    p.dry_sequence_breakers = s.dry_sequence_breakers;
    p.mirostat = s.mirostat;
    p.mirostat_tau = s.mirostat_tau;
    p.mirostat_eta = s.mirostat_eta;
    p.ignore_eos = s.ignore_eos;
    p.no_perf = true;
    for (const auto & [token, bias] : s.logit_bias) p.logit_bias.push_back({token, bias});
    if (s.ignore_eos) {
        for (int32_t token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
            if (llama_vocab_is_eog(vocab, token)) p.logit_bias.push_back({token, -INFINITY});
        }
    }
    p.adaptive_target = s.adaptive_target;
    p.adaptive_decay = s.adaptive_decay;
    if (!s.samplers.empty()) p.samplers = common_sampler_types_from_names(s.samplers);
    if (!s.grammar.empty()) p.grammar = {COMMON_GRAMMAR_TYPE_USER, s.grammar};
    if (s.amend) s.amend(p);
    return p;
}

// exp(x) for -87 <= x <= 0, in a form that compilers turn into vector code: 2^n * 2^f with the Taylor polynomial of
// 2^f at f in [-1/2, 1/2]; its relative error is below 2e-7.
inline float exp_vectorisable(float x) {
    const float t = x * 1.44269504f;
    const float shifted = t + 12582912.0f;  // 1.5 * 2^23: rounds t to the nearest integer
    const float n = shifted - 12582912.0f;
    const float f = t - n;
    float y = 1.54035304e-4f;
    y = y * f + 1.33335581e-3f;
    y = y * f + 9.61812911e-3f;
    y = y * f + 5.55041087e-2f;
    y = y * f + 2.40226507e-1f;
    y = y * f + 6.93147181e-1f;
    y = y * f + 1.0f;
    const int32_t bits = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return y * scale;
}

// The n greatest logits, in falling order, by way of a small heap.
std::vector<Candidate> likeliest(const float * logits, int32_t n_vocab, uint32_t n) {
    const auto greater = [](const Candidate & a, const Candidate & b) { return a.logprob > b.logprob; };
    std::vector<Candidate> heap;
    heap.reserve(n + 1);
    for (int32_t token = 0; token < n_vocab; ++token) {
        if (heap.size() == n && !(logits[token] > heap.front().logprob)) continue;
        heap.push_back({token, logits[token]});
        std::push_heap(heap.begin(), heap.end(), greater);
        if (heap.size() > n) {
            std::pop_heap(heap.begin(), heap.end(), greater);
            heap.pop_back();
        }
    }
    std::sort_heap(heap.begin(), heap.end(), greater);
    return heap;
}

// Of this thread's processor time, that a grammar may take for one token: others wait for it. In an ambiguous grammar the
// readings multiply with every token.
constexpr double most_seconds = 1.0;

double thread_seconds() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

}  // namespace

void FreeSampler::operator()(common_sampler * sampler) const { common_sampler_free(sampler); }

Sampler::Sampler(const llama_model * model, const Sampling & sampling, const std::vector<int32_t> & prompt)
    : n_vocab_(llama_vocab_n_tokens(llama_model_get_vocab(model))) {
    auto params = to_common(llama_model_get_vocab(model), sampling);
    constrained_ = !common_grammar_value(params.grammar).empty();
    AbortGuard guard;
    chain_.reset(common_sampler_init(model, params));
    if (!chain_) throw std::runtime_error("llama.cpp made no sampler of these parameters");
    for (int32_t token : prompt) common_sampler_accept(chain_.get(), token, false);
}

Choice Sampler::sample(llama_context * ctx, int32_t i, uint32_t n_top, const std::vector<int32_t> & banned) {
    float * logits = llama_get_logits_ith(ctx, i);
    if (logits == nullptr) throw std::runtime_error("llama.cpp has no logits for this token");
    const float top = greatest(logits, n_vocab_);
    Choice choice;
    if (n_top > 0) choice.top = likeliest(logits, n_vocab_, n_top);
    const double total = log_sum_exp(logits, n_vocab_, top);
    std::vector<float> saved;
    for (int32_t token : banned) {
        saved.push_back(logits[token]);
        logits[token] = -INFINITY;
    }
    AbortGuard guard;
    const double began = constrained_ ? thread_seconds() : 0;
    choice.token = common_sampler_sample(chain_.get(), ctx, i);
    const llama_token_data_array * rest = common_sampler_get_candidates(chain_.get(), false);
    if (choice.token < 0 || choice.token >= n_vocab_ || rest->selected < 0 ||
        !(rest->data[rest->selected].logit > -INFINITY) || !(logits[choice.token] > -INFINITY)) {
        throw std::runtime_error("no token is left to choose from: the sampling forbids all that the model finds possible");
    }
    for (size_t k = 0; k < banned.size(); ++k) logits[banned[k]] = saved[k];
    common_sampler_accept(chain_.get(), choice.token, true);
    if (constrained_ && thread_seconds() - began > most_seconds) {
        throw std::runtime_error("the grammar can be read in too many ways at once: following it takes seconds for a token");
    }
    choice.logprob = float(logits[choice.token] - total);
    for (auto & candidate : choice.top) candidate.logprob = float(candidate.logprob - total);
    return choice;
}

void check_grammar(const llama_model * model, const std::string & grammar) {
    check_gbnf(grammar);
    take_errors();
    AbortGuard guard;
    llama_sampler * made = llama_sampler_init_grammar(llama_model_get_vocab(model), grammar.c_str(), "root");
    if (made == nullptr) {
        const std::string why = take_errors();
        throw std::invalid_argument(why.empty() ? "llama.cpp cannot parse it" : why);
    }
    llama_sampler_free(made);
}

std::string grammar_of_schema(const std::string & schema) {
    AbortGuard guard;
    return json_schema_to_grammar(common_json::parse(schema), true);
}

float greatest(const float * logits, int32_t n) {
    constexpr int32_t lanes = 16;
    constexpr float most = 1e28f;  // divided by the least temperature and penalty it is still a float
    float tops[lanes];
    int32_t odd[lanes] = {};
    for (int32_t k = 0; k < lanes; ++k) tops[k] = -INFINITY;
    int32_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int32_t k = 0; k < lanes; ++k) {
            tops[k] = tops[k] < logits[i + k] ? logits[i + k] : tops[k];
            odd[k] |= !(logits[i + k] <= most);  // NaN is odd too
        }
    }
    for (; i < n; ++i) {
        tops[0] = std::max(tops[0], logits[i]);
        odd[0] |= !(logits[i] <= most);
    }
    const float top = *std::max_element(tops, tops + lanes);
    if (top == -INFINITY || std::any_of(odd, odd + lanes, [](int32_t any) { return any != 0; })) {
        throw std::runtime_error("the model computed no number for a token (NaN or infinity): its weights may be damaged");
    }
    return top;
}

double log_sum_exp(const float * logits, int32_t n, float top) {
    constexpr int32_t lanes = 16;
    float sums[lanes] = {};
    int32_t i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int32_t k = 0; k < lanes; ++k) {
            const float x = logits[i + k] - top;
            sums[k] += exp_vectorisable(x < -87.0f ? -87.0f : x);
        }
    }
    double sum = 0.0;
    for (; i < n; ++i) sum += std::exp(double(logits[i]) - top);
    for (float part : sums) sum += part;
    return top + std::log(sum);
}

}  // namespace mullama
