// The slots of a context: which sequence holds which tokens in the KV cache, and what a new prompt can reuse of them.
//
// Invariant: llama.cpp's memory holds tokens[0 … n_past-1] of a slot at those positions; every change of the one goes with
// the other. A free slot has nothing beyond that: it is a cached prefix. Touched by the engine thread alone.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "llama.h"
#include "sampling/sampler.hpp"
#include "engine/stream.hpp"
#include "text/text.hpp"

namespace mullama {

struct Choosing;

struct Slot {
    llama_seq_id seq = 0;
    std::vector<llama_token> tokens;    // the prompt, then what was generated
    size_t n_past = 0;                  // how many of them are computed
    std::shared_ptr<Stream> stream;     // null: the slot is free
    std::unique_ptr<Sampler> sampler;
    std::unique_ptr<Text> text;
    std::shared_ptr<Choosing> choosing; // its next token, with its sampler; null: the engine has that
    Loras loras;                        // under which the cells were computed
    uint64_t served = 0;                // the last step that it was part of
    int64_t n_generated = 0;
    int64_t not_before_us = 0;          // stream_delay_ms
    int64_t n_reserved = 0;             // cells it may come to use
    uint64_t admitted = 0;              // order of arrival among the running
    uint64_t released = 0;              // order of release among the free
    bool forget = false;                // clear_cache() came while it ran
    // in the batch of this step
    int32_t n_batched = 0;              // its tokens
    int32_t i_output = -1;              // batch index whose logits it waits for
    bool ended_early = false;                  // its stream has ended meanwhile, and was told

    bool free() const { return stream == nullptr; }
    size_t n_left() const { return tokens.size() - n_past; }
    bool decoding() const { return n_generated > 0 && n_left() == 1; }
    size_t n_shared(const Request & request, size_t most) const;  // tokens that both begin with, and that need no logits
};

class Slots {
  public:
    // n_ctx: what one sequence may use. shared: all sequences draw from one pool of cells.
    Slots(llama_context * ctx, int64_t n_ctx, bool shared, bool reuse_prefix);

    std::vector<Slot> & all() { return slots_; }
    int64_t n_cells() const { return n_cells_; }  // of the pool
    int64_t n_ctx() const { return n_ctx_; }
    bool can_roll_back() const { return can_roll_back_; }
    bool reuses() const { return reuse_; }

    // A free slot that has taken over the prompt, and of it what the memory already holds; at least one token is left to
    // compute. Null: no slot is free, or the pool cannot promise the cells.
    Slot * admit(const Request & request);
    // Whether a running slot is about to compute much that this request begins with: worth waiting for.
    bool worth_waiting(const Request & request) const;
    int32_t n_free() const;
    void release(Slot & slot);
    Slot * spare();  // a free slot, emptied, without adapters: an empty one, else the one released longest ago; or null

    // Keep the first n computed tokens only; none where the memory cannot be cut there.
    void trim(Slot & slot, size_t n);
    // Drop the cached prefix that was released longest ago. False: there is none.
    bool drop_oldest();
    void clear_cache();
    int64_t n_cached() const;
    int64_t n_unused() const;  // cells that hold nothing and are promised to no one, for one sequence

  private:
    size_t reusable(const Slot & slot, const Request & request) const;

    const llama_memory_t memory_;
    const bool shared_, reuse_;
    const int64_t n_cells_, n_ctx_;
    const int32_t n_swa_;
    const bool can_roll_back_;
    uint64_t clock_ = 0;
    std::vector<Slot> slots_;
};

}  // namespace mullama
