// The tokens that a sampler chain has to see; see shortlist.hpp.
#include "sampling/shortlist.hpp"

#include <algorithm>
#include <cmath>

#include "common.h"
#include "sampling/logits.hpp"

namespace mullama {

namespace {

// Whether nothing comes before top-k but what shifts the logits of tokens that are known.
bool begins_with_top_k(const common_params_sampling & p) {
    if (p.mirostat != 0) return false;
    for (const auto sampler : p.samplers) {
        if (sampler == COMMON_SAMPLER_TYPE_TOP_K) return p.top_k > 0;
        const bool idle = (sampler == COMMON_SAMPLER_TYPE_DRY && p.dry_multiplier == 0.0f) ||
                          (sampler == COMMON_SAMPLER_TYPE_TOP_N_SIGMA && p.top_n_sigma <= 0.0f);
        if (!idle && sampler != COMMON_SAMPLER_TYPE_PENALTIES) return false;
    }
    return false;
}

}  // namespace

Shortlist::Shortlist(const llama_vocab * vocab, const common_params_sampling & params)
    : n_vocab_(llama_vocab_n_tokens(vocab)) {
    if (!begins_with_top_k(params)) return;
    for (const auto & bias : params.logit_bias) (bias.bias == -INFINITY ? never_ : biased_).push_back(bias.token);
    int32_t n_suppressed = 0;
    const llama_token * suppressed = llama_vocab_get_suppress_tokens(vocab, &n_suppressed);
    never_.insert(never_.end(), suppressed, suppressed + n_suppressed);
    std::sort(never_.begin(), never_.end());
    const bool penalties = params.penalty_repeat != 1.0f || params.penalty_freq != 0.0f || params.penalty_present != 0.0f;
    if (penalties) n_recent_ = size_t(params.penalty_last_n);
    const size_t n_kept = size_t(params.top_k);
    if (n_kept + n_recent_ + biased_.size() + never_.size() <= size_t(n_vocab_) / 4) n_kept_ = n_kept;  // else it would save nothing
}

void Shortlist::accept(int32_t token) {
    if (n_recent_ == 0) return;
    recent_.push_back(token);
    if (recent_.size() > n_recent_) recent_.pop_front();
}

void Shortlist::fill(std::vector<llama_token_data> & list, const float * logits) const {
    list.clear();
    if (n_kept_ == 0) {
        list.reserve(size_t(n_vocab_));
        for (int32_t token = 0; token < n_vocab_; ++token) list.push_back({token, logits[token], 0.0f});
        return;
    }
    std::vector<int32_t> changed(biased_);
    changed.insert(changed.end(), recent_.begin(), recent_.end());
    std::sort(changed.begin(), changed.end());
    changed.erase(std::unique(changed.begin(), changed.end()), changed.end());

    // Where all that are changed fall behind, as many others come forward; and these may come forward from anywhere.
    const auto first = likeliest(logits, n_vocab_, n_kept_ + changed.size() + never_.size());
    const auto add = [this, logits, &list](int32_t token) {
        const bool never = std::binary_search(never_.begin(), never_.end(), token);
        if (!never) list.push_back({token, logits[token], 0.0f});
    };
    for (const auto & candidate : first) add(candidate.token);
    for (const int32_t token : changed) {
        const auto same = [token](const Candidate & other) { return other.token == token; };
        if (std::none_of(first.begin(), first.end(), same)) add(token);
    }
}

}  // namespace mullama
