// What a GGUF file must be like before llama.cpp may see it: all that it would end the process for, and no more.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mullama {

// What the file says and llama.h does not.
struct ModelFacts {
    uint64_t bytes_per_cell = 0;  // of the KV cache in f16, over all layers
    uint64_t n_positions = 0;     // rows of a table of positions; 0: the model has none
    std::vector<int32_t> control_tokens;  // llama.cpp makes others of some, so that it shows them
};

// Reads the metadata of the file, and of its other parts if it is split, not the weights: some 20 ms for 128,000 tokens.
// Throws std::runtime_error that names the key and its value.
ModelFacts check_gguf(const std::string & path, bool vocab_only);

// Throws std::runtime_error if a context of so many cells cannot be. As to memory: llama.cpp writes to all of it at once, so
// that the system would rather end the process than refuse.
void check_room(const ModelFacts & facts, uint64_t n_ctx, uint64_t n_cells, uint64_t n_seq_max);

}  // namespace mullama
