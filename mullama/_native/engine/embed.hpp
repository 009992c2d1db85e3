// Texts as vectors: a llama_context of its own that only computes embeddings, on the thread that calls it.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "checks/gguf_check.hpp"
#include "llama.h"
#include "threads/workers.hpp"

namespace mullama {

class Embedder {
  public:
    // n_ctx: tokens that one text may have. pooling: of llama_pooling_type; -1 is the model's own, or the mean where it has
    // none. n_threads: 0 is the physical cores. Throws std::runtime_error.
    Embedder(std::shared_ptr<llama_model> model, const ModelFacts & facts, uint32_t n_ctx, int32_t pooling, int32_t n_threads);

    uint32_t n_ctx() const { return n_ctx_; }
    int32_t n_embd() const { return n_embd_; }

    // One row of n_embd for each text, one after the other. None may be empty or longer than n_ctx. One call at a time;
    // others wait. Throws std::runtime_error where llama.cpp fails and where another thread sets `stop`, Closed after close().
    std::vector<float> embed(const std::vector<std::vector<int32_t>> & texts, const std::atomic<bool> & stop);
    // Stops what runs and what comes; returns when nothing runs.
    void close();

  private:
    void make_room(uint32_t n_tokens);
    llama_context * make(uint32_t n_tokens, int32_t pooling);
    bool stopped() const { return closed_.load() || stop_->load(); }
    void check() const;  // throws if it is
    void compute(const std::vector<std::vector<int32_t>> & texts, size_t first, size_t last, std::vector<float> & rows);

    const std::shared_ptr<llama_model> model_;
    const uint32_t n_ctx_;
    const int32_t n_threads_, n_embd_;
    int32_t pooling_;
    Workers workers_;
    uint32_t n_room_ = 0;  // tokens that the context takes at once
    std::unique_ptr<llama_context, decltype(&llama_free)> ctx_;
    std::mutex mutex_;
    std::atomic<bool> closed_{false};
    const std::atomic<bool> * stop_ = nullptr;  // of the call that runs
};

}  // namespace mullama
