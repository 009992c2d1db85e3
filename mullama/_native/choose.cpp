// What becomes of the logits of a sequence: a token and its text for the reader, or the logits themselves; see engine.hpp.
#include <algorithm>
#include <memory>
#include <stdexcept>

#include "common.h"
#include "engine.hpp"

namespace mullama {

// Choose the next token of a sequence, turn it into text, hand it over; and end the stream where this is its last.
void Engine::emit(Slot & slot) {
    Stream & stream = *slot.stream;
    const Request & request = stream.request();
    try {
        static const std::vector<int32_t> none;
        const auto & banned = slot.n_generated < request.min_tokens ? end_tokens_ : none;
        const Choice choice = slot.sampler->sample(ctx_.get(), slot.i_output, request.n_top, banned);
        slot.tokens.push_back(choice.token);
        ++slot.n_generated;
        ++counts_.tokens_out;
        Finish how = Finish::running;
        int stop = -1;
        std::string text;
        std::unique_ptr<Text> before;  // this token; null: nothing was held back
        const bool named = std::count(request.shown.begin(), request.shown.end(), choice.token) > 0;
        const bool ends = llama_vocab_is_eog(vocab_, choice.token);
        if (!ends || named) {
            const std::string piece = common_token_to_piece(vocab_, choice.token, named);
            if (slot.text->holds()) before = std::make_unique<Text>(*slot.text);
            stop = slot.text->feed(piece.data(), piece.size(), text);
        }
        if (ends || stop >= 0) how = Finish::stop;
        const bool full = int64_t(slot.tokens.size()) > n_ctx_;
        if (how == Finish::running && (full || slot.n_generated == request.max_tokens)) how = Finish::length;
        if (how != Finish::running && stop < 0) {
            stop = slot.text->finish(text);
            if (stop >= 0) how = Finish::stop;
        }
        if (!stream.append(choice, text, how)) {
            how = Finish::cancelled;
            stop = -1;
            slot.text = std::move(before);  // as if the token had not been, which no one will see
        } else {
            touched_.push_back(slot.stream);
            if (request.delay_us > 0) slot.not_before_us = now_us() + request.delay_us;
        }
        if (how != Finish::running) finish(slot, how, Fault::none, "", stop);
    } catch (const std::exception & e) {
        finish(slot, Finish::error, Fault::sampling, e.what());
    }
}

// The logits of what was computed of a prompt in this step, where they are all that is wanted.
void Engine::emit_logits(Slot & slot) {
    const size_t first = slot.stream->request().first_output(), n_vocab = size_t(llama_vocab_n_tokens(vocab_));
    try {
        for (size_t i = std::max(first, slot.n_past - size_t(slot.n_batched)); i < slot.n_past; ++i) {
            const float * row = llama_get_logits_ith(ctx_.get(), slot.i_output - int32_t(slot.n_past - 1 - i));
            if (row == nullptr) throw std::runtime_error("llama.cpp has no logits for a token");
            slot.stream->set_logits(i - first, row, n_vocab);
        }
        if (slot.n_left() == 0) finish(slot, Finish::stop);
    } catch (const std::exception & e) {
        finish(slot, Finish::error, Fault::generation, e.what());
    }
}

}  // namespace mullama
