// What becomes of the logits of a sequence: a token and its text for the reader, or the logits themselves; see engine.hpp.
#include <algorithm>
#include <iterator>
#include <memory>
#include <stdexcept>

#include "common.h"
#include "engine/engine.hpp"

namespace mullama {

// For all sequences whose logits were computed. Tokens are chosen in parallel: with a large vocabulary, many streams, and many
// threads to compute these, it would else be a good part of a step, in which all threads but one would wait. Where a grammar
// takes more time than the others can wait, the choosers go on with it, and the sequence takes no part in batches until then.
void Engine::choose() {
    static const std::vector<int32_t> none;
    struct Turn {
        Slot * slot;
        float * logits;
        const std::vector<int32_t> * banned;
        Choice choice;
        std::string failure;
    };
    std::vector<Turn> turns, constrained;
    for (auto & slot : slots_->all()) {
        if (slot.i_output < 0 || slot.ended_early) continue;
        const Request & request = slot.stream->request();
        if (request.n_logits > 0) {
            emit_logits(slot);
            continue;
        }
        const auto * banned = slot.n_generated < request.min_tokens ? &end_tokens_ : &none;
        auto & kind = slot.sampler->constrained() ? constrained : turns;
        kind.push_back({&slot, llama_get_logits_ith(ctx_.get(), slot.i_output), banned, {}, ""});
    }
    turns.insert(turns.end(), std::make_move_iterator(constrained.begin()), std::make_move_iterator(constrained.end()));
    const int64_t until = now_us() + int64_t(1e6 * to_choose_in_step);
    std::vector<char> done(turns.size(), 0);
    workers_->share(turns.size(), n_threads_, [&](size_t i) {
        Turn & turn = turns[i];
        Sampler & sampler = *turn.slot->sampler;
        try {
            if (turn.logits == nullptr) throw std::runtime_error("llama.cpp has no logits for this token");
            const double seconds = sampler.constrained() ? 1e-6 * double(std::max<int64_t>(0, until - now_us())) : 0;
            done[i] = sampler.choose(turn.logits, turn.slot->stream->request().n_top, *turn.banned, seconds, {}, turn.choice);
        } catch (const std::exception & e) {
            turn.failure = e.what();
        }
    });
    for (size_t i = 0; i < turns.size(); ++i) {
        Turn & turn = turns[i];
        if (done[i]) {
            emit(*turn.slot, turn.choice);
        } else if (turn.failure.empty()) {
            hand_over(*turn.slot, turn.logits, *turn.banned, std::move(turn.choice));
        } else {
            finish(*turn.slot, Finish::error, Fault::sampling, turn.failure);
        }
    }
}

void Engine::hand_over(Slot & slot, const float * logits, const std::vector<int32_t> & banned, Choice choice) {
    try {
        auto one = std::make_shared<Choosing>();
        one->logits.assign(logits, logits + llama_vocab_n_tokens(vocab_));
        one->n_top = slot.stream->request().n_top;
        one->banned = &banned;
        one->slot = size_t(slot.seq);
        one->choice = std::move(choice);
        one->sampler = std::move(slot.sampler);
        choosers_->add(one);
        slot.choosing = std::move(one);
    } catch (const std::exception & e) {
        finish(slot, Finish::error, Fault::sampling, e.what());
    }
}

void Engine::take_choices() {
    for (auto & one : choosers_->take_done()) {
        Slot & slot = slots_->all()[one->slot];
        if (slot.choosing != one) continue;  // it was cancelled just now
        slot.choosing.reset();
        slot.sampler = std::move(one->sampler);
        if (one->failure.empty()) {
            emit(slot, one->choice);
        } else {
            finish(slot, Finish::error, Fault::sampling, one->failure);
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
