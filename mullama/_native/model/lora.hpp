// LoRA adapters: loaded for a model, worn by the streams that ask for them.
#pragma once

#include <memory>
#include <shared_mutex>
#include <string>
#include <utility>
#include <vector>

#include "llama.h"

namespace mullama {

struct Lora {
    std::shared_ptr<llama_model> model;  // an adapter must not outlive it
    llama_adapter_lora * adapter;

    // Throws std::runtime_error where the file is no adapter, or of another model.
    Lora(std::shared_ptr<llama_model> model, const std::string & path);
    ~Lora();
    Lora(const Lora &) = delete;
    Lora & operator=(const Lora &) = delete;
};

// Each with its scale, in order of address, so that equal sets are equal. Cells are worth nothing under another set.
using Loras = std::vector<std::pair<std::shared_ptr<Lora>, float>>;

// llama.cpp keeps a list of a model's adapters, without a lock: whoever makes it read the list (a new context does, and the
// first batch after a change of adapters) holds this shared, and whoever loads or frees an adapter alone. It lives as long as
// the model, which load_model() has made.
std::shared_mutex & lora_mutex(const std::shared_ptr<llama_model> & model);

}  // namespace mullama
