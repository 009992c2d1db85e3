// What becomes of the logits of a sequence: a token and its text for the reader, or the logits themselves; see engine.hpp.
#include <algorithm>
#include <memory>
#include <stdexcept>

#include "common.h"
#include "engine/engine.hpp"

namespace mullama {

// For all sequences whose logits were computed. Tokens are chosen in parallel: with a large vocabulary, many streams, and many
// threads to compute these, it would else be a good part of a step, in which all threads but one would wait.
void Engine::choose() {
    struct Turn {
        Slot * slot;
        float * logits;
        Choice choice;
        std::string failure;
    };
    std::vector<Turn> together, alone;
    for (auto & slot : slots_->all()) {
        if (slot.i_output < 0 || slot.ended_early) continue;
        if (slot.stream->request().n_logits > 0) {
            emit_logits(slot);
            continue;
        }
        auto & turns = slot.sampler->uses_context() ? alone : together;
        turns.push_back({&slot, llama_get_logits_ith(ctx_.get(), slot.i_output), {}, ""});
    }
    const auto take = [this](Turn & turn) {
        static const std::vector<int32_t> none;
        Slot & slot = *turn.slot;
        const Request & request = slot.stream->request();
        try {
            if (turn.logits == nullptr) throw std::runtime_error("llama.cpp has no logits for this token");
            const auto & banned = slot.n_generated < request.min_tokens ? end_tokens_ : none;
            turn.choice = slot.sampler->sample(ctx_.get(), slot.i_output, turn.logits, request.n_top, banned);
        } catch (const std::exception & e) {
            turn.failure = e.what();
        }
    };
    workers_->share(together.size(), n_threads_, [&](size_t i) { take(together[i]); });
    for (auto & turn : alone) take(turn);
    for (auto * turns : {&together, &alone}) {
        for (auto & turn : *turns) {
            if (turn.choice.token >= 0) {
                emit(*turn.slot, turn.choice);
            } else {
                finish(*turn.slot, Finish::error, Fault::sampling, turn.failure);
            }
        }
    }
}

// Turn the token that was chosen into text, hand it over; and end the stream where this is its last.
void Engine::emit(Slot & slot, const Choice & choice) {
    Stream & stream = *slot.stream;
    const Request & request = stream.request();
    try {
        slot.tokens.push_back(choice.token);
        ++slot.n_generated;
        ++counts_.tokens_out;
        Finish how = Finish::running;
        int stop = -1;
        std::string text;
        std::unique_ptr<Text> before;  // this token; null: nothing was held back
        const bool named = std::count(request.preserved.begin(), request.preserved.end(), choice.token) > 0;
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
        if (!stream.append(choice, text, how, stop)) {
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
