// llama.cpp's sampler chain for one sequence; see sampler.hpp.
#include "sampling/sampler.hpp"

#include <cmath>
#include <stdexcept>

#include "checks/abort_guard.hpp"
#include "common.h"
#include "checks/gbnf_check.hpp"
#include "json-schema-to-grammar.h"
#include "llama.h"
#include "model/log.hpp"
#include "sampling/logits.hpp"
#include "sampling.h"
#include "checks/work_limit.hpp"

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

// Whether llama.cpp has more to ask than the chain. For this it takes the logits from the context itself.
bool is_constrained(const common_params_sampling & p) {
    const bool budget = p.grammar_lazy || p.reasoning_budget_tokens >= 0 || p.reasoning_control;
    return !common_grammar_value(p.grammar).empty() || (!p.reasoning_budget_start.empty() && budget);
}

// Of this thread's processor time, that a grammar may take for one token: others wait for it. In an ambiguous grammar the
// readings multiply with every character.
constexpr double max_seconds = 3;
constexpr const char * too_ambiguous =
    "the grammar can be read in too many ways at once, and following it takes too long: have it read each text in one way";

// What llama.cpp does with a grammar, as far as it comes to an end.
template <typename Work>
void limited(bool constrained, Work && work) {
    if (!constrained) return work();
    const WorkLimit limit(max_seconds);
    try {
        work();
    } catch (const std::exception &) {
        if (WorkLimit::reached()) throw std::runtime_error(too_ambiguous);
        throw;
    }
}

}  // namespace

void FreeSampler::operator()(common_sampler * sampler) const { common_sampler_free(sampler); }

Sampler::Sampler(const llama_model * model, const Sampling & sampling, const std::vector<int32_t> & prompt)
    : Sampler(model, to_common(llama_model_get_vocab(model), sampling), prompt) {}

Sampler::Sampler(const llama_model * model, common_params_sampling params, const std::vector<int32_t> & prompt)
    : n_vocab_(llama_vocab_n_tokens(llama_model_get_vocab(model))),
      constrained_(is_constrained(params)),
      shortlist_(llama_model_get_vocab(model), params) {
    AbortGuard guard;
    limited(constrained_, [&] { chain_.reset(common_sampler_init(model, params)); });
    if (!chain_) throw std::runtime_error("llama.cpp made no sampler of these parameters");
    for (int32_t token : prompt) accept(token, false);
}

void Sampler::accept(int32_t token, bool generated) {
    common_sampler_accept(chain_.get(), token, generated);
    shortlist_.accept(token);
}

int32_t Sampler::choose(llama_context * ctx, int32_t i, const float * logits) {
    const auto chosen = [this, logits](const llama_token_data_array & from) {
        if (from.selected < 0 || size_t(from.selected) >= from.size) return -1;
        const llama_token_data & data = from.data[from.selected];
        const bool possible = data.id >= 0 && data.id < n_vocab_ && data.logit > -INFINITY && logits[data.id] > -INFINITY;
        return possible ? data.id : -1;
    };
    if (constrained_) {
        const int32_t token = common_sampler_sample(chain_.get(), ctx, i);
        return chosen(*common_sampler_get_candidates(chain_.get(), false)) < 0 ? -1 : token;
    }
    shortlist_.fill(candidates_, logits);
    if (candidates_.empty()) return -1;
    llama_token_data_array array{candidates_.data(), candidates_.size(), -1, false};
    llama_sampler_apply(common_sampler_get(chain_.get()), &array);
    return chosen(array);
}

Choice Sampler::sample(llama_context * ctx, int32_t i, float * logits, uint32_t n_top, const std::vector<int32_t> & banned) {
    const float top = greatest(logits, n_vocab_);
    Choice choice;
    choice.top = likeliest(logits, n_vocab_, n_top);
    const double total = log_sum_exp(logits, n_vocab_, top);
    std::vector<float> saved;
    for (int32_t token : banned) {
        saved.push_back(logits[token]);
        logits[token] = -INFINITY;
    }
    AbortGuard guard;
    limited(constrained_, [&] { choice.token = choose(ctx, i, logits); });
    if (choice.token < 0) {
        throw std::runtime_error("no token is left to choose from: the sampling forbids all that the model finds possible");
    }
    for (size_t k = 0; k < banned.size(); ++k) logits[banned[k]] = saved[k];
    limited(constrained_, [&] { accept(choice.token, true); });
    choice.logprob = float(logits[choice.token] - total);
    for (auto & candidate : choice.top) candidate.logprob = float(candidate.logprob - total);
    return choice;
}

void check_grammar(const llama_model * model, const std::string & grammar) {
    const llama_vocab * const vocab = llama_model_get_vocab(model);
    AbortGuard guard;
    check_gbnf(grammar, vocab);
    take_errors();
    limited(true, [&] {
        llama_sampler * made = llama_sampler_init_grammar(vocab, grammar.c_str(), "root");
        if (made == nullptr) {
            const std::string why = take_errors();
            throw std::invalid_argument(why.empty() ? "llama.cpp cannot parse it" : why);
        }
        llama_sampler_free(made);
    });
}

void try_sampler(const llama_model * model, common_params_sampling & params) {
    const std::string & grammar = common_grammar_value(params.grammar);
    if (grammar.empty()) return;
    AbortGuard guard;
    check_gbnf(grammar, llama_model_get_vocab(model));
    limited(true, [&] { const std::unique_ptr<common_sampler, FreeSampler> made(common_sampler_init(model, params)); });
}

std::string grammar_of_schema(const std::string & schema) {
    AbortGuard guard;
    return json_schema_to_grammar(common_json::parse(schema), true);
}

}  // namespace mullama
