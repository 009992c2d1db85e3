// The engine's loop: take commands, drop the dead, admit, compute a batch, choose, tell, wait; see engine.hpp.
#include "engine.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include <pthread.h>
#include <signal.h>

#include "abort_guard.hpp"
#include "common.h"
#include "log.hpp"

namespace mullama {

namespace {
const char closed[] = "the context was closed";
}

Engine::Engine(std::shared_ptr<llama_model> model, const EngineParams & params)
    : model_(std::move(model)), vocab_(llama_model_get_vocab(model_.get())), ctx_(nullptr, llama_free) {
    const uint64_t all = uint64_t(params.n_ctx) * params.n_seq_max;
    const uint64_t pool = params.n_cells > 0 ? params.n_cells : all;
    check_room(params.facts, params.n_ctx, pool, params.n_seq_max);
    llama_context_params p = llama_context_default_params();
    p.n_ctx = uint32_t(std::min<uint64_t>(pool, INT32_MAX));
    p.n_seq_max = params.n_seq_max;
    p.n_batch = std::max({params.n_batch, params.n_seq_max, 2u});  // two, for common_context_can_seq_rm
    p.n_ubatch = std::min(params.n_ubatch, p.n_batch);
    p.n_threads = params.n_threads > 0 ? params.n_threads : common_cpu_get_num_math();
    p.n_threads_batch = params.n_threads_batch > 0 ? params.n_threads_batch : p.n_threads;
    // A buffer for each sequence is faster, each attends to its own cells only; cells that all sequences share are for a
    // pool that is smaller than what they could come to use together.
    p.kv_unified = pool < all;
    p.swa_full = true;  // a sliding window that forgets could not be reused
    p.no_perf = true;
    p.abort_callback = on_abort;
    p.abort_callback_data = this;
    take_errors();
    {
        AbortGuard guard;
        ctx_.reset(llama_init_from_model(model_.get(), p));
    }
    if (!ctx_) throw std::runtime_error("llama.cpp could not make the context: " + take_errors());
    slots_ = std::make_unique<Slots>(ctx_.get(), params.n_ctx, p.kv_unified, params.reuse_prefix);
    n_ctx_ = slots_->n_ctx();
    n_batch_ = int32_t(llama_n_batch(ctx_.get()));
    n_threads_ = p.n_threads;
    batch_ = llama_batch_init(n_batch_, 0, 1);
    counts_.slots = int32_t(slots_->all().size());
    counts_.cells = slots_->n_cells();
    published_ = counts_;
}

Engine::~Engine() { release(); }

// ------------------------------------------------------------------------------------------------------ any thread

void Engine::submit(std::shared_ptr<Stream> stream) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!stopping_.load()) {
            mailbox_.push_back(std::move(stream));
            ++published_.queued;
            attention_.store(true);
            woken_.notify_one();
            return;
        }
    }
    stream->end(Finish::error, Fault::closed, closed, -1, "");
}

void Engine::clear_cache() {
    std::lock_guard<std::mutex> lock(mutex_);
    mailbox_.push_back(nullptr);
    attention_.store(true);
    woken_.notify_one();
}

void Engine::wake() {
    std::lock_guard<std::mutex> lock(mutex_);
    attention_.store(true);
    woken_.notify_one();
}

void Engine::stop() {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_.store(true);
    attention_.store(true);
    woken_.notify_one();
}

EngineStats Engine::stats() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return published_;
}

void Engine::release() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (released_) return;
        released_ = true;
        stopping_.store(true);
    }
    close_all();
    if (batch_.token != nullptr) llama_batch_free(batch_);
    batch_ = llama_batch{};
    slots_.reset();
    ctx_.reset();
}

// ------------------------------------------------------------------------------------------------------ the engine thread

void Engine::run() {
    sigset_t signals;  // they are for the interpreter's main thread, never for this one or for ggml's workers below it
    sigfillset(&signals);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    while (!stopping_.load()) {
        bool worked = true;
        try {
            worked = step();
        } catch (const std::exception & e) {
            fail(e.what());
        }
        tell();
        if (!worked && !stopping_.load()) wait();
    }
    close_all();
}

bool Engine::step() {
    take_commands();
    drop_dead();
    admit();
    fill();
    if (batch_.n_tokens == 0) return false;
    if (decode()) {
        for (auto & slot : slots_->all()) {
            if (slot.i_output >= 0) emit(slot);
        }
    }
    return true;
}

void Engine::take_commands() {
    attention_.store(false);
    std::deque<std::shared_ptr<Stream>> mail;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        mail.swap(mailbox_);
    }
    for (auto & stream : mail) {
        if (stream) {
            queue_.push_back(std::move(stream));
        } else {
            slots_->clear_cache();
        }
    }
}

void Engine::drop_dead() {
    const int64_t now = now_us();
    for (auto & slot : slots_->all()) {
        slot.n_batched = 0;
        if (slot.free()) continue;
        const Finish how = slot.stream->dead(now);
        if (how != Finish::running) finish(slot, how);
    }
    const auto gone = [this, now](const std::shared_ptr<Stream> & stream) {
        const Finish how = stream->dead(now);
        if (how != Finish::running) endings_.push_back({stream, how, Fault::none, "", -1, ""});
        return how != Finish::running;
    };
    queue_.erase(std::remove_if(queue_.begin(), queue_.end(), gone), queue_.end());
}

// In order of arrival: whoever cannot be promised its room makes the ones behind it wait too, so that no one starves.
void Engine::admit() {
    while (!queue_.empty()) {
        const Request & request = queue_.front()->request();
        Slot * slot = slots_->admit(request.prompt, request.max_tokens);
        if (slot == nullptr) return;
        slot->stream = std::move(queue_.front());
        queue_.pop_front();
        slot->stream->admitted(int64_t(slot->n_past));
        try {
            slot->sampler = std::make_unique<Sampler>(model_.get(), request.sampling, request.prompt);
            slot->text = std::make_unique<Text>(request.stops);
        } catch (const std::exception & e) {
            finish(*slot, Finish::error, Fault::sampling, e.what());
        }
    }
}

// Choose the next token of a sequence, turn it into text, hand it over; and end the stream where this is its last.
void Engine::emit(Slot & slot) {
    Stream & stream = *slot.stream;
    try {
        float logprob;
        const llama_token token = slot.sampler->sample(ctx_.get(), slot.i_output, &logprob);
        slot.tokens.push_back(token);
        ++slot.n_generated;
        ++counts_.tokens_out;
        Finish how = Finish::running;
        int stop = -1;
        std::string text;
        if (llama_vocab_is_eog(vocab_, token)) {
            how = Finish::stop;
        } else {
            const std::string piece = common_token_to_piece(vocab_, token, false);
            stop = slot.text->feed(piece.data(), piece.size(), text);
            if (stop >= 0) how = Finish::stop;
        }
        const bool full = int64_t(slot.tokens.size()) > n_ctx_;
        if (how == Finish::running && (full || slot.n_generated == stream.request().max_tokens)) how = Finish::length;
        if (how != Finish::running && stop < 0) {
            stop = slot.text->finish(text);
            if (stop >= 0) how = Finish::stop;
        }
        if (!stream.append(token, logprob, text, how != Finish::running)) {
            how = Finish::cancelled;
            slot.text.reset();  // what it holds back belongs to a token that no one will see
        } else {
            touched_.push_back(slot.stream);
            if (stream.request().delay_us > 0) slot.not_before_us = now_us() + stream.request().delay_us;
        }
        if (how != Finish::running) finish(slot, how, Fault::none, "", stop);
    } catch (const std::exception & e) {
        finish(slot, Finish::error, Fault::sampling, e.what());
    }
}

void Engine::finish(Slot & slot, Finish finish, Fault fault, const std::string & message, int stop) {
    std::string rest;
    if (slot.text) slot.text->finish(rest);
    endings_.push_back({std::move(slot.stream), finish, fault, message, stop, rest});
    slots_->release(slot);
}

// What went wrong outside of one sequence ends those in the batch; if that was empty, everyone, lest it go wrong for ever.
void Engine::fail(const std::string & message) {
    bool any = false;
    for (auto & slot : slots_->all()) any = any || (!slot.free() && slot.n_batched > 0);
    for (auto & slot : slots_->all()) {
        if (slot.free() || (any && slot.n_batched == 0)) continue;
        slots_->trim(slot, 0);
        finish(slot, Finish::error, Fault::generation, message);
    }
    if (any) return;
    for (auto & stream : queue_) endings_.push_back({stream, Finish::error, Fault::generation, message, -1, ""});
    queue_.clear();
}

void Engine::close_all() {
    take_commands();
    for (auto & slot : slots_->all()) {
        if (!slot.free()) finish(slot, Finish::error, Fault::closed, closed);
    }
    for (auto & stream : queue_) endings_.push_back({stream, Finish::error, Fault::closed, closed, -1, ""});
    queue_.clear();
    tell();
}

void Engine::tell() {
    counts_.busy = 0;
    for (const auto & slot : slots_->all()) counts_.busy += !slot.free();
    counts_.cached_cells = slots_->n_cached();
    {
        std::lock_guard<std::mutex> lock(mutex_);
        counts_.queued = int32_t(queue_.size() + mailbox_.size());
        published_ = counts_;
    }
    for (auto & e : endings_) e.stream->end(e.finish, e.fault, e.message, e.stop, e.rest);
    for (auto & stream : touched_) stream->notify();
    endings_.clear();
    touched_.clear();
}

void Engine::wait() {
    int64_t until = INT64_MAX;
    const auto heed = [&until](int64_t time) { if (time > 0) until = std::min(until, time); };
    const int64_t now = now_us();
    for (const auto & slot : slots_->all()) {
        if (slot.free()) continue;
        heed(slot.stream->deadline_us());
        if (!slot.stream->paused()) heed(slot.not_before_us);  // also where it came since fill() looked
    }
    for (const auto & stream : queue_) heed(stream->deadline_us());

    std::unique_lock<std::mutex> lock(mutex_);
    const auto called = [this] { return attention_.load(); };
    if (until == INT64_MAX) {
        woken_.wait(lock, called);
    } else {
        woken_.wait_for(lock, std::chrono::microseconds(std::max<int64_t>(0, until - now)), called);
    }
}

}  // namespace mullama
