// Grammar and reasoning budget of one sequence; see constraint.hpp. What they come to is what common_sampler_sample comes to, and
// tests/native/same_choice.cpp holds it against that.
#include "sampling/constraint.hpp"

#include <cctype>
#include <climits>
#include <cmath>
#include <stdexcept>
#include <string>

#include "common.h"
#include "model/log.hpp"
#include "reasoning-budget.h"

namespace mullama {

namespace {

// The pattern that wakes a lazy grammar.
std::string pattern_of(const common_grammar_trigger & trigger) {
    if (trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD) return regex_escape(trigger.value);
    if (trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN) return trigger.value;
    if (trigger.value.empty()) return "^$";  // a pattern of all that was generated
    const std::string begin = trigger.value.front() == '^' ? "" : "^", end = trigger.value.back() == '$' ? "" : "$";
    return begin + trigger.value + end;
}

llama_sampler * compile(const llama_vocab * vocab, const common_params_sampling & params) {
    const char * const grammar = common_grammar_value(params.grammar).c_str();
    if (!params.grammar_lazy) return llama_sampler_init_grammar(vocab, grammar, "root");
    std::vector<std::string> patterns;
    std::vector<llama_token> tokens;
    for (const auto & trigger : params.grammar_triggers) {
        if (trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN) {
            tokens.push_back(trigger.token);
        } else {
            patterns.push_back(pattern_of(trigger));
        }
    }
    std::vector<const char *> texts;
    for (const auto & pattern : patterns) texts.push_back(pattern.c_str());
    return llama_sampler_init_grammar_lazy_patterns(vocab, grammar, "root", texts.data(), texts.size(), tokens.data(), tokens.size());
}

// What the template has begun of the answer. Some tokenizers put a space before it that is not there.
std::vector<llama_token> begun(const llama_vocab * vocab, const std::string & text) {
    if (text.empty()) return {};
    auto tokens = common_tokenize(vocab, text, false, true);
    if (tokens.empty()) return tokens;
    const std::string first = common_token_to_piece(vocab, tokens.front(), true);
    const bool spaced = std::isspace((unsigned char) first[0]) && !std::isspace((unsigned char) text[0]);
    if (spaced) tokens.erase(tokens.begin());
    return tokens;
}

}  // namespace

void Constraint::Free::operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }

Constraint::Constraint(const llama_vocab * vocab, const common_params_sampling & params) : lazy_(params.grammar_lazy) {
    const bool limited = params.grammar_lazy || params.reasoning_budget_tokens >= 0 || params.reasoning_control;
    const bool thinks = !params.reasoning_budget_start.empty() && !params.reasoning_budget_end.empty() && limited;
    const bool constrained = !common_grammar_value(params.grammar).empty();
    if (!constrained && !thinks) return;
    const auto prefill = begun(vocab, params.generation_prompt);
    if (constrained) {
        take_errors();
        grammar_.reset(compile(vocab, params));
        if (!grammar_) {
            const std::string why = take_errors();
            throw std::invalid_argument(why.empty() ? "llama.cpp cannot parse it" : why);
        }
        if (!lazy_ && common_grammar_needs_prefill(params.grammar)) tokens_.assign(prefill.begin(), prefill.end());
        read();
    }
    if (!thinks) return;
    const int32_t n = params.reasoning_budget_tokens < 0 ? INT_MAX : params.reasoning_budget_tokens;
    budget_.reset(common_reasoning_budget_init(vocab, {params.reasoning_budget_start}, params.reasoning_budget_end,
                                               params.reasoning_budget_forced, n));
    for (const llama_token token : prefill) llama_sampler_accept(budget_.get(), token);
}

bool Constraint::forces() const {
    return budget_ && common_reasoning_budget_get_state(budget_.get()) == REASONING_BUDGET_FORCING;
}

// While a model thinks, a lazy grammar sleeps.
bool Constraint::applies() const {
    if (!grammar_ || !budget_ || !lazy_) return bool(grammar_);
    const auto state = common_reasoning_budget_get_state(budget_.get());
    return state == REASONING_BUDGET_IDLE || state == REASONING_BUDGET_DONE;
}

void Constraint::apply_budget(llama_token_data_array & tokens) const {
    if (budget_) llama_sampler_apply(budget_.get(), &tokens);
}

void Constraint::apply_grammar(llama_token_data_array & tokens) const { llama_sampler_apply(grammar_.get(), &tokens); }

bool Constraint::allows(int32_t token) const {
    llama_token_data one{token, 1.0f, 0.0f};
    llama_token_data_array tokens{&one, 1, -1, false};
    apply_grammar(tokens);
    return one.logit != -INFINITY;
}

void Constraint::accept(int32_t token) {
    const bool reads = applies();
    if (budget_) {
        llama_sampler_accept(budget_.get(), token);
        // What ended the thinking may be what wakes the grammar.
        const bool done = common_reasoning_budget_get_state(budget_.get()) == REASONING_BUDGET_DONE;
        const llama_tokens * const end = done ? common_reasoning_budget_get_end_match(budget_.get()) : nullptr;
        if (grammar_ && !reads && end != nullptr) tokens_.insert(tokens_.end(), end->begin(), end->end());
    }
    if (reads) tokens_.push_back(token);
}

void Constraint::read() {
    if (broken_) {
        llama_sampler_reset(grammar_.get());
        broken_ = false;
        n_read_ = 0;
    }
    for (; n_read_ < tokens_.size(); ++n_read_) {
        broken_ = true;
        llama_sampler_accept(grammar_.get(), tokens_[n_read_]);
        broken_ = false;
    }
}

}  // namespace mullama
