// One batch of the engine: what goes in, computing it, and what the memory holds afterwards; see engine.hpp.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "engine/engine.hpp"
#include "model/log.hpp"

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

namespace {

bool served_before(const Slot * a, const Slot * b) { return a->served < b->served; }

// The step in which the one of them had its turn that waits longest.
uint64_t longest(const std::vector<Slot *> & slots) {
    return (*std::min_element(slots.begin(), slots.end(), served_before))->served;
}

}  // namespace

// One token for each sequence that decodes and has room in its ring; or a part of the prompts that wait, the oldest first. The
// two take turns. In one batch llama.cpp would compute them one after the other all the same, the first tokens of the prompts
// with those that decode, whose attention then goes over as many cells as the prompts have. In order of the sequences, because
// llama.cpp puts only neighbouring ones into a ubatch (split_equal). Streams with different LoRA adapters share no batch:
// whoever's were worn longest ago decides which ones are worn next.
void Engine::fill() {
    batch_.n_tokens = n_prompt_ = 0;
    step_deadline_us_ = 0;
    const int64_t now = now_us();
    std::vector<Slot *> ready, prompts, decoding;
    std::vector<int32_t> share(slots_->all().size(), 0);
    for (auto & slot : slots_->all()) {
        slot.n_batched = 0;
        slot.i_output = -1;
        if (slot.free()) continue;
        const int64_t deadline = slot.stream->deadline_us();
        if (deadline > 0 && (step_deadline_us_ == 0 || deadline < step_deadline_us_)) step_deadline_us_ = deadline;
        if (slot.choosing) continue;
        if (now >= slot.not_before_us && !(slot.n_generated > 0 && slot.stream->full())) ready.push_back(&slot);
    }
    if (ready.empty()) return;
    if (!keeps_adapters(ready, now)) {
        apply_adapters((*std::min_element(ready.begin(), ready.end(), served_before))->loras);
    }
    const bool any_decodes = std::any_of(ready.begin(), ready.end(), [](Slot * slot) { return slot->decoding(); });
    for (Slot * slot : ready) {
        if (slot->loras != active_adapters_) continue;
        (slot->decoding() ? decoding : prompts).push_back(slot);
    }
    if (!decoding.empty() && !prompts.empty()) (longest(prompts) <= longest(decoding) ? decoding : prompts).clear();
    for (Slot * slot : decoding) share[size_t(slot->seq)] = 1;
    std::sort(prompts.begin(), prompts.end(), [](Slot * a, Slot * b) { return a->admitted < b->admitted; });
    const int32_t budget = prompt_budget(any_decodes);
    for (const auto * turn : {&decoding, &prompts}) {  // if only by a place in the queue for the rest of the batch
        for (Slot * slot : *turn) slot->served = uint64_t(counts_.steps) + 1;
    }
    for (Slot * slot : prompts) {
        const auto n = int32_t(std::min<size_t>(slot->n_left(), size_t(budget - n_prompt_)));
        share[size_t(slot->seq)] = n;
        n_prompt_ += n;
    }
    for (auto & slot : slots_->all()) {
        const int32_t n = share[size_t(slot.seq)];
        if (n == 0) continue;
        const Request & request = slot.stream->request();
        const size_t first_output = request.n_logits > 0 ? request.first_output() : slot.tokens.size() - 1;
        for (int32_t i = 0; i < n; ++i) {
            const size_t at = slot.n_past + size_t(i);
            put(slot, slot.tokens[at], at >= first_output);
        }
    }
}

// A change of adapters costs as much as some tokens of a small model: it is made so seldom that it is a fifth of the time, but not
// so seldom that others wait for more than a few tokens.
bool Engine::keeps_adapters(const std::vector<Slot *> & ready, int64_t now) const {
    const bool used = std::any_of(ready.begin(), ready.end(), [this](Slot * slot) { return slot->loras == active_adapters_; });
    return used && double(now - changed_us_) < std::min(4 * us_per_change_, 8 * us_per_decode_);
}

void Engine::apply_adapters(const Loras & loras) {
    if (loras == active_adapters_) return;
    std::vector<llama_adapter_lora *> adapters;
    std::vector<float> scales;
    for (const auto & [lora, scale] : loras) {
        adapters.push_back(lora->adapter);
        scales.push_back(scale);
    }
    llama_set_adapters_lora(ctx_.get(), adapters.data(), adapters.size(), scales.data());
    active_adapters_ = loras;
    changed_ = true;
}

// How many prompt tokens go into a step. While others decode, what they wait for it is at least a few times what they wait for
// each other (it is measured as it goes), so that the prompt is hardly later for their sake; and not many more: they stream.
// Whole blocks, since ggml's attention computes 64 rows together and needs nearly twice as long for each of a few less; but
// not where a block is much to wait for, and takes a quarter of a second.
int32_t Engine::prompt_budget(bool others_decode) const {
    if (!others_decode) return n_batch_;
    constexpr double block = 64, us_at_once = 250e3;
    const bool known = us_per_prompt_token_ > 0 && us_per_decode_ > 0;
    const double worth = known ? 8.0 * us_per_decode_ / us_per_prompt_token_ : block;
    const bool blocks = worth >= block / 2 || block * us_per_prompt_token_ <= us_at_once;
    return int32_t(std::min(blocks ? block * std::ceil(worth / block) : std::max(worth, 16.0), double(n_batch_)));
}

bool Engine::decode() {
    const int64_t began = now_us();
    const bool changed = std::exchange(changed_, false);
    n_polls_ = 0;
    int32_t status;
    {
        const QuietLog quiet;
        // A change of adapters makes llama.cpp count the nodes of all that are loaded, before it computes; see lora.hpp.
        const std::unique_ptr<Engine, void (*)(Engine *)> when_left(this, [](Engine * engine) { engine->counted(); });
        if (changed) counting_.lock();
        do {
            status = llama_decode(ctx_.get(), batch_);
        } while (status == 1 && slots_->drop_oldest());
        llama_synchronize(ctx_.get());
    }
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
    if (changed) changed_us_ = now_us();
    if (n_prompt_ == 0 && changed && us_per_decode_ > 0) {
        blend(us_per_change_, std::max(took - us_per_decode_, 1.0));
    } else if (n_prompt_ == 0) {
        blend(us_per_decode_, took);
    } else if (n_prompt_ >= 16) {
        blend(us_per_prompt_token_, took / n_prompt_);
    }
    return true;
}

// What of the batch is in the memory now. After an abort the ubatches that were finished are in, the others are not, and
// no output can be read: what got in and was to have one is taken out again, to be computed anew for its logits.
void Engine::read_back(bool aborted) {
    for (auto & slot : slots_->all()) {
        if (slot.n_batched == 0) continue;
        const size_t before = slot.n_past;
        size_t in = before + size_t(slot.n_batched);
        if (aborted) {
            const llama_pos last = llama_memory_seq_pos_max(llama_get_memory(ctx_.get()), slot.seq);
            in = std::min(in, size_t(last + 1));
        }
        counts_.tokens_in += int64_t(in) - int64_t(before);
        slot.n_past = in;
        if (!aborted) continue;
        slot.i_output = -1;
        const Request & request = slot.stream->request();
        const size_t first_output = request.n_logits > 0 ? request.first_output() : slot.tokens.size() - 1;
        if (in > first_output) slots_->trim(slot, std::max(before, first_output));
    }
}

// An abort throws away the whole ubatch. That is worth it for a prompt, whose chunk may take long, and where no one else
// is in the batch; a neighbour's part is computed again. What cannot be rolled back is not aborted while it is needed.
// Whoever is dead need not wait for the end of the step to be told: its slot is free as soon as another can use it.
bool Engine::should_abort() {
    if (stopping_.load(std::memory_order_relaxed)) return true;
    const bool late = step_deadline_us_ > 0 && ++n_polls_ % 16 == 0 && now_us() >= step_deadline_us_;
    if (!late && !cancelled_.load(std::memory_order_relaxed)) return false;
    cancelled_.store(false);  // before it looks: who cancels from here on sets it again
    step_deadline_us_ = 0;
    const int64_t now = now_us();
    bool all = true, prompt = false;
    for (auto & slot : slots_->all()) {
        if (slot.free()) continue;
        const Finish how = slot.stream->end_reason(now);
        if (how != Finish::running) {
            end_early(slot, how);
            prompt = prompt || slot.n_batched > 1;
            continue;
        }
        const int64_t deadline = slot.stream->deadline_us();
        if (deadline > 0 && (step_deadline_us_ == 0 || deadline < step_deadline_us_)) step_deadline_us_ = deadline;
        all = all && slot.n_batched == 0;
    }
    return all || (prompt && slots_->can_roll_back());
}

bool Engine::on_abort(void * engine) {
    static_cast<Engine *>(engine)->counted();  // it computes by now
    const bool stop = static_cast<Engine *>(engine)->should_abort();
    if (stop) QuietLog::stopped();
    return stop;
}

}  // namespace mullama
