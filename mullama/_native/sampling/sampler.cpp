// llama.cpp's sampler chain for one sequence, and the grammar beside it; see sampler.hpp.
#include "sampling/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "checks/abort_guard.hpp"
#include "checks/gbnf_check.hpp"
#include "common.h"
#include "json-schema-to-grammar.h"
#include "llama.h"
#include "sampling.h"
#include "sampling/logits.hpp"

namespace mullama {

const char * const too_ambiguous =
    "the grammar can be read in too many ways at once, and following it takes too long: have it read each text in one way";

namespace {

constexpr const char * too_much_in_all =
    "the grammar can be read in too many ways at once, or is too large: following it took more processor time than a stream may "
    "use, which is 10 s and 25 ms for each token";

// An end token is never chosen where it is to be ignored.
common_params_sampling & with_end_tokens(const llama_vocab * vocab, common_params_sampling & params) {
    for (int32_t token = 0; params.ignore_eos && token < llama_vocab_n_tokens(vocab); ++token) {
        if (llama_vocab_is_eog(vocab, token)) params.logit_bias.push_back({token, -INFINITY});
    }
    return params;
}

// The chain alone: what the constraint sees to is not in it.
common_sampler * make_chain(const llama_model * model, common_params_sampling params) {
    params.grammar = {};
    params.grammar_lazy = false;
    params.grammar_triggers.clear();
    params.generation_prompt.clear();
    params.reasoning_budget_start.clear();
    return common_sampler_init(model, params);
}

// While one lives, tokens cannot be chosen.
class Ban {
  public:
    Ban(float * logits, const std::vector<int32_t> & tokens) : logits_(logits), tokens_(tokens) {
        for (const int32_t token : tokens) saved_.push_back(std::exchange(logits[token], -INFINITY));
    }
    ~Ban() {
        for (size_t k = 0; k < tokens_.size(); ++k) logits_[tokens_[k]] = saved_[k];
    }
    Ban(const Ban &) = delete;

  private:
    float * const logits_;
    const std::vector<int32_t> & tokens_;
    std::vector<float> saved_;
};

}  // namespace

void FreeSampler::operator()(common_sampler * sampler) const { common_sampler_free(sampler); }

Sampler::Sampler(const llama_model * model, common_params_sampling & params, const std::vector<int32_t> & prompt,
                 const StopSignal & stop)
    : n_vocab_(llama_vocab_n_tokens(llama_model_get_vocab(model))),
      shortlist_(llama_model_get_vocab(model), with_end_tokens(llama_model_get_vocab(model), params)) {
    const llama_vocab * const vocab = llama_model_get_vocab(model);
    const std::string & grammar = common_grammar_value(params.grammar);
    AbortGuard guard;
    try {
        if (!grammar.empty()) check_gbnf(grammar, vocab);
        constraint_ = limited(to_compile, stop, too_ambiguous, [&] { return std::make_unique<Constraint>(vocab, params); });
    } catch (const Stopped &) {
        throw;
    } catch (const std::exception & e) {
        throw GrammarError(e.what());
    }
    chain_.reset(make_chain(model, params));
    if (!chain_) throw std::runtime_error("llama.cpp made no sampler of these parameters");
    for (int32_t token : prompt) accept(token);
}

void Sampler::accept(int32_t token) {
    common_sampler_accept(chain_.get(), token, true);
    shortlist_.accept(token);
}

void Sampler::fill(const float * logits, bool all) {
    if (!all) return shortlist_.fill(candidates_, logits);
    candidates_.clear();
    candidates_.reserve(size_t(n_vocab_));
    for (int32_t token = 0; token < n_vocab_; ++token) candidates_.push_back({token, logits[token], 0.0f});
}

int32_t Sampler::apply_chain(const float * logits) {
    if (candidates_.empty()) return -1;
    llama_token_data_array from{candidates_.data(), candidates_.size(), -1, false};
    llama_sampler_apply(common_sampler_get(chain_.get()), &from);
    if (from.selected < 0 || size_t(from.selected) >= from.size) return -1;
    const llama_token_data & data = from.data[from.selected];
    const bool possible = data.id >= 0 && data.id < n_vocab_ && data.logit > -INFINITY && logits[data.id] > -INFINITY;
    return possible ? data.id : -1;
}

// The work of this phase, if there is the time for it. What took longer the last time is not begun.
template <typename Work>
bool Sampler::followed(double & seconds, const StopSignal & stop, Work && work) {
    double & cost = costs_[phase_];
    if (cost > seconds) return false;
    WorkLimit limit(seconds, stop);
    bool done = true;
    try {
        work();
    } catch (const std::exception &) {
        limit.end();
        if (limit.stopped()) throw Stopped();
        if (!limit.reached()) throw;
        done = false;
    }
    limit.end();
    const double used = limit.used();
    cost = done ? used : std::max(used, cost);
    heavy_ = heavy_ || used >= to_choose_in_step;
    seconds -= used;
    spent_ += used;
    if (spent_ > to_follow + to_follow_each * double(n_chosen_)) throw TooLong(too_much_in_all);
    return done;
}

// First as if there were no grammar, which nearly always allows what the model wants; only where it does not, it is asked about
// all tokens.
bool Sampler::choose(float * logits, uint32_t n_top, const std::vector<int32_t> & banned, double seconds, const StopSignal & stop,
                     Choice & choice) {
    AbortGuard guard;
    if (phase_ == fresh) {
        const float top = greatest(logits, n_vocab_);
        choice.top = likeliest(logits, n_vocab_, n_top);
        total_ = log_sum_exp(logits, n_vocab_, top);
        for (auto & candidate : choice.top) candidate.logprob = float(candidate.logprob - total_);
    }
    const Ban ban(logits, banned);
    const auto within_budget = [this] {
        llama_token_data_array tokens{candidates_.data(), candidates_.size(), -1, false};
        constraint_->apply_budget(tokens);
        return tokens;
    };
    if (phase_ == fresh) {
        fill(logits, constraint_->forces());
        within_budget();
        pick_ = apply_chain(logits);
        phase_ = !constraint_->applies() ? read : pick_ < 0 ? mask : check;
    }
    if (phase_ == check) {
        bool allowed = false;
        if (!followed(seconds, stop, [&] { allowed = constraint_->allows(pick_); })) return false;
        phase_ = allowed ? read : mask;
    }
    if (phase_ == mask) {
        const auto ask = [&] {
            fill(logits, true);
            auto tokens = within_budget();
            constraint_->apply_grammar(tokens);
        };
        if (!followed(seconds, stop, ask)) return false;
        pick_ = apply_chain(logits);
        phase_ = read;
    }
    if (choice.token < 0) {
        if (pick_ < 0) {
            throw std::runtime_error("no token is left to choose from: the sampling forbids all that the model finds possible");
        }
        choice.token = pick_;
        choice.logprob = float(logits[pick_] - total_);
        accept(pick_);
        constraint_->accept(pick_);
    }
    if (constrained() && !followed(seconds, stop, [&] { constraint_->read(); })) return false;
    phase_ = fresh;
    ++n_chosen_;
    return true;
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
