// The choice of the next token: llama.cpp's own sampler chain for one sequence, and the log-probability of what it chose.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks/work_limit.hpp"
#include "engine/ring.hpp"
#include "sampling/shortlist.hpp"

struct common_params_sampling;
struct common_sampler;
struct llama_context;
struct llama_model;

namespace mullama {

// A grammar that llama.cpp cannot follow; the message says why.
struct GrammarError : std::runtime_error {
    using std::runtime_error::runtime_error;
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
    // Compiles the grammar. Throws GrammarError, Stopped, and std::exception where llama.cpp refuses the other parameters.
    Sampler(const llama_model * model, common_params_sampling & params, const std::vector<int32_t> & prompt,
            const StopSignal & stop);

    // Choose from `logits`, those of batch index `i`, and remember the choice. `banned` tokens cannot be it.
    Choice sample(llama_context * ctx, int32_t i, float * logits, uint32_t n_top, const std::vector<int32_t> & banned);
    bool uses_context() const { return constrained_; }  // false: samplers of one context may choose at the same time

  private:
    void accept(int32_t token, bool generated);
    int32_t choose(llama_context * ctx, int32_t i, const float * logits);  // -1: none is left

    std::unique_ptr<common_sampler, FreeSampler> chain_;
    const int32_t n_vocab_;
    const bool constrained_;  // by a grammar, or a limit on reasoning
    Shortlist shortlist_;
    std::vector<llama_token_data> candidates_;
};

// Throws GrammarError where a JSON schema cannot be turned into a grammar.
std::string grammar_of_schema(const std::string & schema, const StopSignal & stop = {});

}  // namespace mullama
