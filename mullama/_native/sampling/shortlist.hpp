// The tokens that a sampler chain has to see. Copying and sorting a whole vocabulary for it is most of what choosing costs, and a
// chain that begins with top-k drops all but a few of them at once.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "llama.h"

struct common_params_sampling;

namespace mullama {

class Shortlist {
  public:
    Shortlist(const llama_vocab * vocab, const common_params_sampling & params);

    void accept(int32_t token);
    // In place of all tokens: what the chain would come to with all, it comes to with these, but for the order of tokens whose
    // logits are equal to the last digit. None where all are forbidden.
    void fill(std::vector<llama_token_data> & list, const float * logits) const;

  private:
    const int32_t n_vocab_;
    size_t n_kept_ = 0;            // by top-k; 0: the chain looks at all tokens
    size_t n_recent_ = 0;          // tokens that the penalties change
    std::vector<int32_t> biased_, never_;  // by a bias that counts, and by one of minus infinity
    std::deque<int32_t> recent_;
};

}  // namespace mullama
