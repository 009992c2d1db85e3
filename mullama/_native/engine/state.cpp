// The cached prefixes of a context as bytes: for each, its tokens, and what llama.cpp's memory holds for them.
//
// The layout is private to one build of llama.cpp and one model; whoever keeps the bytes sees to that (mullama/_state.py).
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "engine/engine.hpp"
#include "model/log.hpp"

namespace mullama {

namespace {

void put_number(std::string & out, uint64_t n) { out.append(reinterpret_cast<const char *>(&n), sizeof n); }

struct Reader {
    const std::string & bytes;
    size_t at = 0;

    const char * take(uint64_t n) {
        if (n > bytes.size() - at) throw std::runtime_error("the state ends too early");
        at += n;
        return bytes.data() + at - n;
    }
    uint64_t number() {
        uint64_t n;
        std::memcpy(&n, take(sizeof n), sizeof n);
        return n;
    }
};

}  // namespace

std::string Engine::save_state() {
    std::string out;
    do_now([this, &out] {
        for (const auto & slot : slots_->all()) {
            if (!slot.free() || slot.n_past == 0 || !slot.loras.empty()) continue;
            put_number(out, slot.n_past);
            out.append(reinterpret_cast<const char *>(slot.tokens.data()), slot.n_past * sizeof(llama_token));
            const size_t size = llama_state_seq_get_size(ctx_.get(), slot.seq);
            put_number(out, size);
            out.resize(out.size() + size);
            auto * to = reinterpret_cast<uint8_t *>(out.data() + out.size() - size);
            if (size == 0 || llama_state_seq_get_data(ctx_.get(), to, size, slot.seq) != size) {
                throw std::runtime_error("llama.cpp does not give the state: " + take_errors());
            }
        }
    });
    return out;
}

int64_t Engine::load_state(const std::string & state) {
    struct Prefix {
        std::vector<llama_token> tokens;
        const char * memory;
        uint64_t size;
    };
    std::vector<Prefix> prefixes;
    Reader in{state};
    while (in.at < state.size()) {
        const uint64_t n = in.number();
        if (n == 0 || n > state.size() / sizeof(llama_token)) throw std::runtime_error("the state is none");
        const char * text = in.take(n * sizeof(llama_token));
        std::vector<llama_token> tokens(n);
        std::memcpy(tokens.data(), text, n * sizeof(llama_token));
        const auto none = [this](llama_token token) { return token < 0 || token >= llama_vocab_n_tokens(vocab_); };
        if (std::any_of(tokens.begin(), tokens.end(), none)) throw std::runtime_error("the state names no token of this model");
        const uint64_t size = in.number();
        prefixes.push_back({std::move(tokens), in.take(size), size});
    }
    int64_t n_taken = 0;
    do_now([this, &prefixes, &n_taken] {
        // It is a cache: what finds no place is computed again.
        int32_t n_places = slots_->reuses() ? slots_->n_free() : 0;
        for (auto & prefix : prefixes) {
            const auto n = int64_t(prefix.tokens.size());
            if (n > n_ctx_ || n_places-- <= 0) continue;
            Slot * slot = slots_->spare();
            while (n > slots_->n_unused() && slots_->n_cached() > n_taken && slots_->drop_oldest()) {}
            if (n > slots_->n_unused()) continue;
            take_errors();
            const auto * memory = reinterpret_cast<const uint8_t *>(prefix.memory);
            const bool whole = llama_state_seq_set_data(ctx_.get(), memory, prefix.size, slot->seq) == prefix.size &&
                               llama_memory_seq_pos_max(llama_get_memory(ctx_.get()), slot->seq) + 1 == llama_pos(n);
            slot->tokens = std::move(prefix.tokens);
            slot->n_past = size_t(n);
            if (!whole) {
                slots_->trim(*slot, 0);
                throw std::runtime_error("llama.cpp does not take the state: " + take_errors());
            }
            slots_->release(*slot);
            n_taken += n;
        }
    });
    return n_taken;
}

}  // namespace mullama
