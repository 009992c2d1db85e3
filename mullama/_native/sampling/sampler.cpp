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

// An end token is never chosen where it is to be ignored.
common_params_sampling & with_end_tokens(const llama_vocab * vocab, common_params_sampling & params) {
    for (int32_t token = 0; params.ignore_eos && token < llama_vocab_n_tokens(vocab); ++token) {
        if (llama_vocab_is_eog(vocab, token)) params.logit_bias.push_back({token, -INFINITY});
    }
    return params;
}

}  // namespace

void FreeSampler::operator()(common_sampler * sampler) const { common_sampler_free(sampler); }

Sampler::Sampler(const llama_model * model, common_params_sampling & params, const std::vector<int32_t> & prompt,
                 const StopSignal & stop)
    : n_vocab_(llama_vocab_n_tokens(llama_model_get_vocab(model))),
      constrained_(is_constrained(params)),
      shortlist_(llama_model_get_vocab(model), with_end_tokens(llama_model_get_vocab(model), params)) {
    const std::string & grammar = common_grammar_value(params.grammar);
    AbortGuard guard;
    take_errors();
    try {
        if (!grammar.empty()) check_gbnf(grammar, llama_model_get_vocab(model));
        const double seconds = constrained_ ? to_compile : forever;
        limited(seconds, stop, too_ambiguous, [&] { chain_.reset(common_sampler_init(model, params)); });
    } catch (const Stopped &) {
        throw;
    } catch (const std::exception & e) {
        const std::string why = take_errors();
        if (grammar.empty()) throw;
        throw GrammarError(why.empty() ? e.what() : why);
    }
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
    limited(constrained_ ? max_seconds : forever, {}, too_ambiguous, [&] { choice.token = choose(ctx, i, logits); });
    if (choice.token < 0) {
        throw std::runtime_error("no token is left to choose from: the sampling forbids all that the model finds possible");
    }
    for (size_t k = 0; k < banned.size(); ++k) logits[banned[k]] = saved[k];
    limited(constrained_ ? max_seconds : forever, {}, too_ambiguous, [&] { accept(choice.token, true); });
    choice.logprob = float(logits[choice.token] - total);
    for (auto & candidate : choice.top) candidate.logprob = float(candidate.logprob - total);
    return choice;
}

std::string grammar_of_schema(const std::string & schema, const StopSignal & stop) {
    AbortGuard guard;
    try {
        return limited(to_compile, stop, "turning the schema into a grammar takes too long",
                       [&] { return json_schema_to_grammar(common_json::parse(schema), true); });
    } catch (const Stopped &) {
        throw;
    } catch (const std::exception & e) {
        throw GrammarError(e.what());
    }
}

}  // namespace mullama
