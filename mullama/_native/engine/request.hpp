// What a stream asks of the engine, finished: nothing in it has to be checked, compiled or tokenised any more.
//
// It is made anywhere, by any thread; the engine moves the sampler and the text into the slot.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "checks/work_limit.hpp"
#include "model/lora.hpp"
#include "sampling/sampler.hpp"
#include "text/text.hpp"

namespace mullama {

class Sampling;

struct Request {
    std::vector<int32_t> prompt;   // never empty, shorter than what one sequence may hold
    int64_t max_tokens = -1;       // -1: until an end token, or until the sequence is full
    int64_t delay_us = 0;          // between two tokens
    uint32_t buffer_size = 32;     // records in the ring
    uint32_t n_top = 0;            // candidates that each token is to come with
    int64_t min_tokens = 0;        // no end token before
    std::vector<std::string> stops;
    std::vector<int32_t> preserved;    // special tokens whose names are text here, as those of a tool call
    Loras loras;                   // the adapters that are active for this stream
    uint32_t n_logits = 0;         // above 0: no tokens, only the logits after so many of the prompt's last tokens
    size_t longest_piece = 0;      // bytes, of the vocabulary: what a record must hold

    std::unique_ptr<Sampler> sampler;  // none where only logits are wanted
    std::unique_ptr<Text> text;

    // Make the two of what else is there. Throws GrammarError, Stopped, and std::exception where llama.cpp refuses the sampling.
    void finish(const llama_model * model, Sampling & sampling, const StopSignal & stop);
    size_t first_output() const { return prompt.size() - std::max(n_logits, 1u); }  // of the prompt, whose logits are read
};

}  // namespace mullama
