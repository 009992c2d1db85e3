// A model's weights and vocabulary: loading, and what can be asked of them from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "checks/gguf_check.hpp"
#include "checks/work_limit.hpp"
#include "llama.h"

namespace mullama {

struct LoadParams {
    int32_t n_gpu_layers = -1;  // -1: all
    bool use_mmap = true, use_mlock = false, vocab_only = false;
    llama_progress_callback on_progress = nullptr;  // false stops the load
    void * on_progress_data = nullptr;
};

// Checks the file, loads it, and says in `facts` what llama.h will not. Throws std::runtime_error that says why it cannot.
std::shared_ptr<llama_model> load_model(const std::string & path, const LoadParams & params, ModelFacts & facts);

// Throws std::runtime_error with this message, in which what a broken file brought may be no UTF-8.
[[noreturn]] void fail(const std::string & message);

// Throws std::runtime_error where the text is too long for llama.cpp, or the vocabulary lacks what it takes; and Stopped.
std::vector<int32_t> tokenize(const llama_model * model, const std::string & text, bool add_special, bool parse_special,
                              const StopSignal & stop = {});

// The bytes of the tokens, one after the other, as a stream of them shows them. Ids must be in range.
std::string detokenize(const llama_model * model, const std::vector<int32_t> & tokens, bool special);

// The most bytes that one token of the vocabulary stands for.
size_t longest_piece(const llama_model * model);

std::vector<std::pair<std::string, std::string>> metadata(const llama_model * model);
std::string description(const llama_model * model);

}  // namespace mullama
