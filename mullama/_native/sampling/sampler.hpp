// The choice of the next token: llama.cpp's own sampler chain for one sequence, and the log-probability of what it chose.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks/work_limit.hpp"
#include "engine/ring.hpp"
#include "sampling/constraint.hpp"
#include "sampling/shortlist.hpp"

struct common_params_sampling;
struct common_sampler;
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

    // Choose from the logits (those of `banned` tokens are changed meanwhile), and remember the choice. False: following the
    // grammar takes longer than `seconds`; call again with the same arguments and more time, to go on. Without a grammar, or a
    // limit on reasoning, it does not matter. Throws Stopped; TooLong, where the whole stream takes too long; and std::exception
    // where no token is left. Samplers of one context may choose at the same time.
    bool choose(float * logits, uint32_t n_top, const std::vector<int32_t> & banned, double seconds, const StopSignal & stop,
                Choice & choice);
    bool constrained() const { return constraint_->exists(); }
    bool heavy() const { return heavy_; }  // it took longer than a step may wait, and throwing it away may, too

  private:
    enum Phase { fresh, check, mask, read };

    void accept(int32_t token);
    void fill(const float * logits, bool all);
    int32_t apply_chain(const float * logits);  // -1: none is left
    template <typename Work> bool followed(double & seconds, const StopSignal & stop, Work && work);

    std::unique_ptr<common_sampler, FreeSampler> chain_;
    std::unique_ptr<Constraint> constraint_;
    const int32_t n_vocab_;
    Shortlist shortlist_;
    std::vector<llama_token_data> candidates_;
    // of the choice that is not done
    Phase phase_ = fresh;
    int32_t pick_ = -1;
    double total_ = 0;           // logarithm of the sum over the logits
    // of the grammar's work, in seconds
    double costs_[4] = {};       // of each phase, when it was last done
    double spent_ = 0;
    bool heavy_ = false;
    int64_t n_chosen_ = 0;
};

extern const char * const too_ambiguous;  // what is said of a grammar whose work does not end

// Throws GrammarError where a JSON schema cannot be turned into a grammar.
std::string grammar_of_schema(const std::string & schema, const StopSignal & stop = {});

}  // namespace mullama
