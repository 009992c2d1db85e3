// What a grammar and a limit on reasoning allow of the next token: llama.cpp's own samplers for both, apart from the chain.
//
// A grammar's work may be interrupted by a WorkLimit, since nobody can tell how long it takes. Looking changes nothing, and what
// it was to read it reads again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "llama.h"

struct common_params_sampling;

namespace mullama {

class Constraint {
  public:
    // Compiles the grammar. Throws std::exception where llama.cpp cannot follow it.
    Constraint(const llama_vocab * vocab, const common_params_sampling & params);

    bool exists() const { return grammar_ || budget_; }
    bool forces() const;   // one token, whatever the logits say
    bool applies() const;  // the grammar has a say in the next token
    void apply_budget(llama_token_data_array & tokens) const;
    void apply_grammar(llama_token_data_array & tokens) const;  // may be interrupted
    bool allows(int32_t token) const;                           // by the grammar; may be interrupted
    void accept(int32_t token);                                 // then read()
    void read();                                                // may be interrupted, and is called again then

  private:
    struct Free { void operator()(llama_sampler * sampler) const; };
    using Sampler = std::unique_ptr<llama_sampler, Free>;

    Sampler grammar_, budget_;
    bool lazy_ = false;
    std::vector<int32_t> tokens_;  // all that the grammar is to read, from the beginning
    size_t n_read_ = 0;
    bool broken_ = false;          // it was interrupted in the middle of one
};

}  // namespace mullama
