// Loading and asking a model; see model.hpp.
#include "model/model.hpp"

#include <algorithm>
#include <climits>
#include <stdexcept>

#include "checks/abort_guard.hpp"
#include "common.h"
#include "model/log.hpp"
#include "model/lora.hpp"
#include "text/text.hpp"

namespace mullama {

namespace {

// What frees a model, and goes with each pointer to it.
struct Release {
    std::shared_ptr<std::shared_mutex> adapters = std::make_shared<std::shared_mutex>();
    void operator()(llama_model * model) const { llama_model_free(model); }
};

bool has_vocabulary(const llama_vocab * vocab) { return llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_NONE; }

}  // namespace

void fail(const std::string & message) {
    std::string text;
    Text valid({});
    valid.feed(message.data(), message.size(), text);
    valid.finish(text);
    throw std::runtime_error(text);
}

std::shared_ptr<llama_model> load_model(const std::string & path, const LoadParams & params, ModelFacts & facts) {
    try {
        facts = check_gguf(path, params.vocab_only);
    } catch (const std::exception & e) {
        fail(e.what());
    }
    llama_model_params p = llama_model_default_params();
    p.n_gpu_layers = params.n_gpu_layers;
    p.load_mode = params.use_mmap ? (params.use_mlock ? LLAMA_LOAD_MODE_MMAP_MLOCK : LLAMA_LOAD_MODE_MMAP)
                                  : (params.use_mlock ? LLAMA_LOAD_MODE_MLOCK : LLAMA_LOAD_MODE_NONE);
    p.vocab_only = params.vocab_only;
    p.progress_callback = params.on_progress;
    p.progress_callback_user_data = params.on_progress_data;
    take_errors();
    AbortGuard guard;
    llama_model * model = llama_model_load_from_file(path.c_str(), p);
    if (model == nullptr) fail(take_errors());
    return std::shared_ptr<llama_model>(model, Release());
}

std::shared_mutex & lora_mutex(const std::shared_ptr<llama_model> & model) { return *std::get_deleter<Release>(model)->adapters; }

std::vector<int32_t> tokenize(const llama_model * model, const std::string & text, bool add_special, bool parse_special,
                              const StopSignal & stop) {
    const llama_vocab * vocab = llama_model_get_vocab(model);
    if (!has_vocabulary(vocab)) throw std::runtime_error("the model has no vocabulary");
    if (text.size() > size_t(INT32_MAX) / 2) throw std::runtime_error("the text is longer than 1 GiB");
    const auto length = int32_t(text.size());
    std::vector<int32_t> tokens(text.size() + 8);
    const auto encode = [&] {
        return llama_tokenize(vocab, text.data(), length, tokens.data(), int32_t(tokens.size()), add_special, parse_special);
    };
    AbortGuard guard;
    try {
        limited(forever, stop, "", [&] {
            int32_t n = encode();
            if (n < 0 && n != INT32_MIN) {
                tokens.resize(size_t(-n));
                n = encode();
            }
            if (n < 0) throw std::runtime_error("llama.cpp could not tokenise the text");
            tokens.resize(size_t(n));
        });
    } catch (const std::out_of_range &) {  // of llama.cpp's table of tokens
        throw std::runtime_error("the model's vocabulary has no tokens for some bytes of the text");
    }
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);
    const auto is_none = [n_vocab](int32_t token) { return token < 0 || token >= n_vocab; };
    if (std::any_of(tokens.begin(), tokens.end(), is_none)) {
        throw std::runtime_error("the model's vocabulary lacks a token for a part of the text, and one for what is unknown");
    }
    return tokens;
}

std::string detokenize(const llama_model * model, const std::vector<int32_t> & tokens, bool special) {
    const llama_vocab * vocab = llama_model_get_vocab(model);
    if (!has_vocabulary(vocab)) throw std::runtime_error("the model has no vocabulary");
    std::string bytes;
    AbortGuard guard;
    for (int32_t token : tokens) bytes += common_token_to_piece(vocab, token, special);
    return bytes;
}

size_t longest_piece(const llama_model * model) {
    const llama_vocab * vocab = llama_model_get_vocab(model);
    size_t longest = 1;
    if (!has_vocabulary(vocab)) return longest;
    for (int32_t token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
        char nothing;
        const int32_t n = llama_token_to_piece(vocab, token, &nothing, 0, 0, true);
        longest = std::max(longest, size_t(n < 0 ? -n : n));
    }
    return longest;
}

std::vector<std::pair<std::string, std::string>> metadata(const llama_model * model) {
    std::vector<std::pair<std::string, std::string>> all;
    const auto read = [model](auto get, int32_t i) {
        char nothing[1];
        const int32_t n = get(model, i, nothing, sizeof nothing);
        std::string value(size_t(std::max(n, 0)) + 1, '\0');
        get(model, i, value.data(), value.size());
        value.pop_back();
        return value;
    };
    for (int32_t i = 0; i < llama_model_meta_count(model); ++i) {
        all.emplace_back(read(llama_model_meta_key_by_index, i), read(llama_model_meta_val_str_by_index, i));
    }
    return all;
}

std::string description(const llama_model * model) {
    char text[256];
    llama_model_desc(model, text, sizeof text);
    return text;
}

}  // namespace mullama
