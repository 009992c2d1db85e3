// Prefix reuse and room in the KV cache; see slots.hpp.
#include "engine/slots.hpp"

#include <algorithm>

#include "common.h"
#include "engine/choosers.hpp"

namespace mullama {

namespace {
constexpr size_t worth = 16;  // tokens whose computing is worth a wait

// How much a free slot's cache would be missed: not at all where it is empty.
uint64_t age(const Slot & slot) { return slot.n_past == 0 ? 0 : slot.released; }
}  // namespace

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

size_t Slot::n_shared(const Request & request, size_t most) const {
    if (loras != request.loras) return 0;
    const auto & prompt = request.prompt;
    most = std::min(most, request.first_output());
    return size_t(std::mismatch(prompt.begin(), prompt.begin() + most, tokens.begin()).first - prompt.begin());
}

// How many tokens of the prompt a slot has computed.
size_t Slots::reusable(const Slot & slot, const Request & request) const {
    if (!reuse_) return 0;
    const size_t n = slot.n_shared(request, slot.n_past);
    return can_roll_back_ || n == slot.n_past ? n : 0;
}

bool Slots::worth_waiting(const Request & request) const {
    size_t soon = 0, now = 0;
    for (const auto & slot : slots_) {
        now = std::max(now, reusable(slot, request));
        if (!slot.free() && slot.n_generated == 0) soon = std::max(soon, slot.n_shared(request, slot.tokens.size()));
    }
    return reuse_ && can_roll_back_ && soon >= now + worth;
}

int32_t Slots::n_free() const {
    return int32_t(std::count_if(slots_.begin(), slots_.end(), [](const Slot & slot) { return slot.free(); }));
}

Slot * Slots::admit(const Request & request) {
    const auto & prompt = request.prompt;
    const int64_t most = int64_t(prompt.size()) + request.max_tokens;
    const int64_t wanted = request.max_tokens < 0 ? n_ctx_ : std::min(n_ctx_, most);
    if (shared_) {
        int64_t promised = wanted;
        for (const auto & slot : slots_) promised += slot.n_reserved;
        if (promised > n_cells_) return nullptr;
    }

    Slot * best = nullptr;    // the free slot with the longest prefix of this prompt
    Slot * oldest = nullptr;  // the free slot whose cache is missed least: an empty one, else released longest ago
    Slot * source = nullptr;  // of all slots, the one with the longest prefix
    size_t n_best = 0, n_source = 0;
    for (auto & slot : slots_) {
        const size_t n = reusable(slot, request);
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
    size_t n = reusable(*slot, request);
    if (source != nullptr && source != slot && n_source > n + 8) {
        trim(*slot, 0);
        llama_memory_seq_cp(memory_, source->seq, slot->seq, -1, -1);
        slot->tokens.assign(source->tokens.begin(), source->tokens.begin() + source->n_past);
        slot->n_past = source->n_past;
        n = n_source;
    }
    trim(*slot, n);
    slot->tokens = prompt;
    slot->loras = request.loras;
    slot->n_reserved = wanted;
    slot->admitted = ++clock_;
    return slot;
}

Slot * Slots::spare() {
    Slot * oldest = nullptr;
    for (auto & slot : slots_) {
        if (slot.free() && (oldest == nullptr || age(slot) < age(*oldest))) oldest = &slot;
    }
    if (oldest == nullptr) return nullptr;
    trim(*oldest, 0);
    oldest->loras.clear();
    return oldest;
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
    if (slot.choosing) slot.choosing->stop.store(true);
    slot.choosing.reset();
    slot.n_generated = slot.not_before_us = slot.n_reserved = 0;
    slot.n_batched = 0;
    slot.i_output = -1;
    slot.ended_early = false;
    slot.released = ++clock_;
    if (slot.forget || !reuse_) trim(slot, 0);
    if (slot.n_past == 0) slot.loras.clear();  // an adapter is not kept for nothing
    slot.forget = false;
}

bool Slots::drop_oldest() {
    Slot * oldest = nullptr;
    for (auto & slot : slots_) {
        if (slot.free() && slot.n_past > 0 && (oldest == nullptr || slot.released < oldest->released)) oldest = &slot;
    }
    if (oldest == nullptr) return false;
    trim(*oldest, 0);
    oldest->loras.clear();
    return true;
}

void Slots::clear_cache() {
    while (drop_oldest()) {}
    for (auto & slot : slots_) slot.forget = !slot.free();
}

int64_t Slots::n_unused() const {
    if (!shared_) return n_ctx_;
    int64_t n = n_cells_;
    for (const auto & slot : slots_) n -= std::max(slot.n_reserved, int64_t(slot.n_past));
    return n;
}

int64_t Slots::n_cached() const {
    int64_t n = 0;
    for (const auto & slot : slots_) n += slot.free() || slot.ended_early ? int64_t(slot.n_past) : 0;
    return n;
}

}  // namespace mullama
