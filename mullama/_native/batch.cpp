// One batch of the engine: what goes in, computing it, and what the memory holds afterwards; see engine.hpp.
#include <algorithm>

#include "engine.hpp"

namespace mullama {

void Engine::put(Slot & slot, llama_token token, bool output) {
    const int32_t i = batch_.n_tokens++;
    batch_.token[i] = token;
    batch_.pos[i] = llama_pos(slot.n_past) + slot.n_batched++;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = slot.seq;
    batch_.logits[i] = output;
    if (output) slot.i_output = i;
}

// One token for each sequence that decodes and has room in its ring; what is left of the batch for prompts, the oldest
// first. In order of the sequences, because llama.cpp puts only neighbouring ones into a ubatch (split_equal).
void Engine::fill() {
    batch_.n_tokens = n_prompt_ = counts_.paused = 0;
    batch_deadline_us_ = 0;
    const int64_t now = now_us();
    int32_t n_decoding = 0;
    std::vector<Slot *> prompts;
    std::vector<int32_t> share(slots_->all().size(), 0);
    for (auto & slot : slots_->all()) {
        slot.n_batched = 0;
        slot.i_output = -1;
        if (slot.free() || now < slot.not_before_us) continue;
        if (slot.n_generated > 0 && slot.stream->full()) {
            ++counts_.paused;
        } else if (slot.decoding()) {
            share[size_t(slot.seq)] = 1;
            ++n_decoding;
        } else {
            prompts.push_back(&slot);
        }
    }
    std::sort(prompts.begin(), prompts.end(), [](Slot * a, Slot * b) { return a->admitted < b->admitted; });
    const int32_t budget = std::min(n_batch_ - n_decoding, prompt_budget(n_decoding > 0));
    for (Slot * slot : prompts) {
        const auto n = int32_t(std::min<size_t>(slot->n_left(), size_t(budget - n_prompt_)));
        share[size_t(slot->seq)] = n;
        n_prompt_ += n;
    }
    for (auto & slot : slots_->all()) {
        const int32_t n = share[size_t(slot.seq)];
        for (int32_t i = 0; i < n; ++i) {
            const size_t at = slot.n_past + size_t(i);
            put(slot, slot.tokens[at], at + 1 == slot.tokens.size());
        }
        const int64_t deadline = n > 0 ? slot.stream->deadline_us() : 0;
        if (deadline > 0 && (batch_deadline_us_ == 0 || deadline < batch_deadline_us_)) batch_deadline_us_ = deadline;
    }
}

// How many prompt tokens go into a step. While others decode, what they wait for it is at most a few times what they wait
// for each other, on whatever machine: it is measured as it goes.
int32_t Engine::prompt_budget(bool others_decode) const {
    if (!others_decode) return n_batch_;
    if (us_per_prompt_token_ <= 0 || us_per_decode_ <= 0) return std::min(n_batch_, 128);
    return int32_t(std::clamp(6.0 * us_per_decode_ / us_per_prompt_token_, std::min(16.0, double(n_batch_)), double(n_batch_)));
}

bool Engine::decode() {
    const int64_t began = now_us();
    n_polls_ = 0;
    int32_t status;
    do {
        status = llama_decode(ctx_.get(), batch_);
    } while (status == 1 && slots_->drop_oldest());
    llama_synchronize(ctx_.get());
    ++counts_.steps;
    if (status == 0 || status == 2) {
        read_back(status == 2);
    } else {
        fail(status == 1 ? "the KV cache has no room for the batch: give the context more n_cells or fewer n_seq_max"
                         : "llama_decode failed with status " + std::to_string(status));
    }
    if (status != 0) return false;

    const auto blend = [](double & mean, double value) { mean = mean <= 0 ? value : 0.8 * mean + 0.2 * value; };
    const double took = double(now_us() - began);
    if (n_prompt_ == 0) {
        blend(us_per_decode_, took);
    } else if (n_prompt_ >= 16) {
        const double own = n_prompt_ < batch_.n_tokens ? std::max(took - us_per_decode_, took / 4) : took;
        blend(us_per_prompt_token_, own / n_prompt_);
    }
    return true;
}

// What of the batch is in the memory now. After an abort the ubatches that were finished are in, the others are not, and
// no output can be read: a last token that got in is taken out again, to be computed anew for its logits.
void Engine::read_back(bool aborted) {
    for (auto & slot : slots_->all()) {
        if (slot.n_batched == 0) continue;
        size_t in = slot.n_past + size_t(slot.n_batched);
        if (aborted) {
            const llama_pos last = llama_memory_seq_pos_max(llama_get_memory(ctx_.get()), slot.seq);
            in = std::min(in, size_t(last + 1));
        }
        counts_.tokens_in += int64_t(in) - int64_t(slot.n_past);
        slot.n_past = in;
        if (!aborted) continue;
        slot.i_output = -1;
        if (slot.n_left() == 0) slots_->trim(slot, slot.n_past - 1);
    }
}

// An abort throws away the whole ubatch. That is worth it for a prompt, whose chunk may take long, and where no one else
// is in the batch; a neighbour's part is computed again. What cannot be rolled back is not aborted while it is needed.
bool Engine::should_abort() {
    if (stopping_.load(std::memory_order_relaxed)) return true;
    const bool late = batch_deadline_us_ > 0 && ++n_polls_ % 16 == 0 && now_us() >= batch_deadline_us_;
    if (!late && !attention_.load(std::memory_order_relaxed)) return false;
    const int64_t now = now_us();
    bool all = true, prompt = false;
    for (const auto & slot : slots_->all()) {
        if (slot.n_batched == 0) continue;
        if (slot.stream->dead(now) == Finish::running) {
            all = false;
        } else if (slot.n_batched > 1) {
            prompt = true;
        }
    }
    return all || (prompt && slots_->can_roll_back());
}

bool Engine::on_abort(void * engine) { return static_cast<Engine *>(engine)->should_abort(); }

}  // namespace mullama
