// Prefix reuse and room in the KV cache; see slots.hpp.
#include "slots.hpp"

#include <algorithm>

#include "common.h"

namespace mullama {

Slots::Slots(llama_context * ctx, int64_t n_ctx, bool shared, bool reuse_prefix)
    : memory_(llama_get_memory(ctx)),
      shared_(shared),
      reuse_(reuse_prefix),
      n_cells_(llama_n_ctx(ctx)),
      n_ctx_(std::min<int64_t>(n_ctx, llama_n_ctx_seq(ctx))),
      n_swa_(llama_model_n_swa(llama_get_model(ctx))),
      can_roll_back_(common_context_can_seq_rm(ctx) == COMMON_CONTEXT_SEQ_RM_TYPE_PART),
      slots_(llama_n_seq_max(ctx)) {
    for (size_t i = 0; i < slots_.size(); ++i) slots_[i].seq = llama_seq_id(i);
}

// How many tokens of the prompt a slot has computed. One is always left to compute: its logits are the first choice's.
size_t Slots::reusable(const Slot & slot, const std::vector<llama_token> & prompt) const {
    if (!reuse_) return 0;
    const size_t most = std::min(slot.n_past, prompt.size() - 1);
    const auto differ = std::mismatch(prompt.begin(), prompt.begin() + most, slot.tokens.begin()).first;
    const size_t n = size_t(differ - prompt.begin());
    return can_roll_back_ || n == slot.n_past ? n : 0;
}

Slot * Slots::admit(const std::vector<llama_token> & prompt, int64_t max_tokens) {
    const int64_t wanted = max_tokens < 0 ? n_ctx_ : std::min(n_ctx_, int64_t(prompt.size()) + max_tokens);
    if (shared_) {
        int64_t promised = wanted;
        for (const auto & slot : slots_) promised += slot.n_reserved;
        if (promised > n_cells_) return nullptr;
    }

    Slot * best = nullptr;    // the free slot with the longest prefix of this prompt
    Slot * oldest = nullptr;  // the free slot whose cache is missed least: an empty one, else released longest ago
    Slot * source = nullptr;  // of all slots, the one with the longest prefix
    size_t n_best = 0, n_source = 0;
    const auto age = [](const Slot & slot) { return slot.n_past == 0 ? 0 : slot.released; };
    for (auto & slot : slots_) {
        const size_t n = reusable(slot, prompt);
        if (n > n_source) {
            source = &slot;
            n_source = n;
        }
        if (!slot.free()) continue;
        if (n > n_best) {
            best = &slot;
            n_best = n;
        }
        if (oldest == nullptr || age(slot) < age(*oldest)) oldest = &slot;
    }
    if (oldest == nullptr) return nullptr;

    // A few tokens in common (a BOS, a system line) are no reason to give up another prompt's long cache.
    Slot * slot = best != nullptr && 2 * n_best >= best->n_past ? best : oldest;
    size_t n = reusable(*slot, prompt);
    if (source != nullptr && source != slot && n_source > n + 8) {
        trim(*slot, 0);
        llama_memory_seq_cp(memory_, source->seq, slot->seq, -1, -1);
        slot->tokens.assign(source->tokens.begin(), source->tokens.begin() + source->n_past);
        slot->n_past = source->n_past;
        n = n_source;
    }
    trim(*slot, n);
    slot->tokens = prompt;
    slot->n_reserved = wanted;
    slot->admitted = ++clock_;
    return slot;
}

void Slots::trim(Slot & slot, size_t n) {
    if (n < slot.n_past && n > 0 && !llama_memory_seq_rm(memory_, slot.seq, llama_pos(n), -1)) n = 0;
    // A sliding window forgets: the positions that the next token looks back to must still be there.
    if (n > 0 && n_swa_ > 0) {
        const llama_pos first = llama_memory_seq_pos_min(memory_, slot.seq);
        if (first < 0 || first > std::max<llama_pos>(0, llama_pos(n) - n_swa_)) n = 0;
    }
    if (n == 0) llama_memory_seq_rm(memory_, slot.seq, -1, -1);
    slot.n_past = std::min(slot.n_past, n);
}

void Slots::release(Slot & slot) {
    slot.tokens.resize(slot.n_past);
    slot.stream.reset();
    slot.sampler.reset();
    slot.text.reset();
    slot.n_generated = slot.not_before_us = slot.n_reserved = 0;
    slot.n_batched = 0;
    slot.i_output = -1;
    slot.released = ++clock_;
    if (slot.forget || !reuse_) trim(slot, 0);
    slot.forget = false;
}

bool Slots::drop_oldest() {
    Slot * oldest = nullptr;
    for (auto & slot : slots_) {
        if (slot.free() && slot.n_past > 0 && (oldest == nullptr || slot.released < oldest->released)) oldest = &slot;
    }
    if (oldest == nullptr) return false;
    trim(*oldest, 0);
    return true;
}

void Slots::clear_cache() {
    while (drop_oldest()) {}
    for (auto & slot : slots_) slot.forget = !slot.free();
}

int64_t Slots::n_cached() const {
    int64_t n = 0;
    for (const auto & slot : slots_) n += slot.free() ? int64_t(slot.n_past) : 0;
    return n;
}

}  // namespace mullama
