// The choice of the next token: llama.cpp's own sampler chain for one sequence, and the log-probability of what it chose.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/ring.hpp"
#include "sampling/shortlist.hpp"

struct common_params_sampling;
struct common_sampler;
struct llama_context;
struct llama_model;

namespace mullama {

// The fields of SamplerParams (mullama/config.py, where ranges and defaults are documented and checked).
struct Sampling {
    uint32_t seed = 0xFFFFFFFF;
    float temperature = 0.8f, dynatemp_range = 0.0f, dynatemp_exponent = 1.0f;
    int32_t top_k = 40, min_keep = 0;
    float top_p = 0.95f, min_p = 0.0f, typical_p = 1.0f, top_n_sigma = -1.0f;
    float xtc_probability = 0.0f, xtc_threshold = 0.1f;
    int32_t penalty_last_n = 64;
    float repeat_penalty = 1.0f, frequency_penalty = 0.0f, presence_penalty = 0.0f;
    float dry_multiplier = 0.0f, dry_base = 1.75f;
    int32_t dry_allowed_length = 2, dry_penalty_last_n = 64;
    std::vector<std::string> dry_sequence_breakers;
    int32_t mirostat = 0;
    float mirostat_tau = 5.0f, mirostat_eta = 0.1f;
    bool ignore_eos = false;
    std::vector<std::pair<int32_t, float>> logit_bias;
    std::vector<std::string> samplers;     // the chain, by llama.cpp's names; none: llama.cpp's own order
    float adaptive_target = -1.0f, adaptive_decay = 0.9f;
    std::string grammar;                   // GBNF; none where it is empty
    std::function<void(common_params_sampling &)> amend;  // what a chat's template asks for besides (chat.hpp)
};

// What was chosen, and what it was chosen from.
struct Choice {
    int32_t token = -1;
    float logprob = 0.0f;         // natural logarithm, of the model's own distribution
    std::vector<Candidate> top;   // the likeliest of that, in falling order
};

struct FreeSampler {
    void operator()(common_sampler * sampler) const;
};

class Sampler {
  public:
    // Throws std::exception where llama.cpp refuses the parameters.
    Sampler(const llama_model * model, const Sampling & sampling, const std::vector<int32_t> & prompt);

    // Choose from `logits`, those of batch index `i`, and remember the choice. `banned` tokens cannot be it.
    Choice sample(llama_context * ctx, int32_t i, float * logits, uint32_t n_top, const std::vector<int32_t> & banned);
    bool uses_context() const { return constrained_; }  // false: samplers of one context may choose at the same time

  private:
    Sampler(const llama_model * model, common_params_sampling params, const std::vector<int32_t> & prompt);
    void accept(int32_t token, bool generated);
    int32_t choose(llama_context * ctx, int32_t i, const float * logits);  // -1: none is left

    std::unique_ptr<common_sampler, FreeSampler> chain_;
    const int32_t n_vocab_;
    const bool constrained_;  // by a grammar, or a limit on reasoning
    Shortlist shortlist_;
    std::vector<llama_token_data> candidates_;
};

// Throws std::exception where llama.cpp cannot follow a GBNF grammar; see gbnf_check.hpp.
void check_grammar(const llama_model * model, const std::string & grammar);

// Throws std::exception where llama.cpp cannot make a sampler of these parameters, because of their grammar; all of it is tried.
void try_sampler(const llama_model * model, common_params_sampling & params);

// Throws std::exception where a JSON schema cannot be turned into a grammar.
std::string grammar_of_schema(const std::string & schema);

}  // namespace mullama
