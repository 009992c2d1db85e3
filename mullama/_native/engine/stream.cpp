// The two sides of one generation; see stream.hpp for the invariants.
#include "engine/stream.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "engine/engine.hpp"

namespace mullama {

int64_t now_us() {
    using namespace std::chrono;
    return duration_cast<microseconds>(steady_clock::now().time_since_epoch()).count();
}

Stream::Stream(std::shared_ptr<Engine> engine, int64_t called_us, int64_t timeout_us)
    : engine_(std::move(engine)), deadline_us_(timeout_us > 0 ? called_us + timeout_us : 0) {
    outcome_.called_us = called_us;
}

Stream::~Stream() {
    if (notifier_) notifier_->unlist(entry_);
}

bool Stream::stopped() const {
    return ended_.load() || engine_->stopping() || end_reason(now_us()) != Finish::running;
}

void Stream::submit(Request request) {
    const auto text_bytes = uint32_t(Text::bound(request.longest_piece, request.stops));
    auto ring = std::make_unique<Ring>(request.buffer_size, text_bytes, request.n_top);
    std::lock_guard<std::mutex> lock(transcript_mutex_);
    if (ended_.load()) return;
    if (ring_storage_) throw std::logic_error("the stream was submitted already");
    request_ = std::move(request);
    ring_storage_ = std::move(ring);
    ring_.store(ring_storage_.get());
    engine_->submit(shared_from_this());
    submitted_ = true;
}

void Stream::fail(Finish how, Fault fault, const std::string & message) {
    {
        std::lock_guard<std::mutex> lock(transcript_mutex_);
        if (submitted_ || ended_.load()) return;
        finish(how, fault, message, -1, "");
    }
    notify_end();
}

uint32_t Stream::buffered() const {
    const Ring * const ring = ring_.load();
    return ring == nullptr ? 0 : ring->size();
}

bool Stream::pop(PoppedRecord & record) {
    Ring * const ring = ring_.load();
    const Record * front = ring == nullptr ? nullptr : ring->front();
    if (front == nullptr) return false;
    record.copy(*front);
    ring->pop();
    if (paused_.load() && paused_.exchange(false)) engine_->wake();
    return true;
}

bool Stream::cancel() {
    bool running;
    {
        std::lock_guard<std::mutex> lock(transcript_mutex_);
        if (ended_.load()) return false;
        cancelled_.store(true);
        running = submitted_;
        if (!running) finish(Finish::cancelled, Fault::none, "", -1, "");
    }
    if (running) {
        engine_->cancelled();
    } else {
        notify_end();
    }
    return true;
}

Outcome Stream::outcome() const {
    std::lock_guard<std::mutex> lock(transcript_mutex_);
    Outcome copy = outcome_;
    if (copy.finish == Finish::running && cancelled_.load()) copy.finish = Finish::cancelled;
    return copy;
}

std::vector<float> Stream::take_logits() {
    std::lock_guard<std::mutex> lock(transcript_mutex_);
    return std::move(outcome_.logits);
}

double Stream::rate() const {
    std::lock_guard<std::mutex> lock(transcript_mutex_);
    const int64_t took = outcome_.last_us - outcome_.first_us;
    return took > 0 ? 1e6 * double(outcome_.tokens.size() - 1) / double(took) : 0.0;
}

void Stream::arm(std::shared_ptr<Notifier> notifier, uint64_t key) {
    std::lock_guard<std::mutex> lock(notifier_mutex_);
    if (notifier_ != notifier) {
        if (notifier_) notifier_->unlist(entry_);
        notifier_ = std::move(notifier);
    }
    key_ = key;
    armed_.store(true);
}

void Stream::notify() {
    if (!armed_.load() || !armed_.exchange(false)) return;
    std::shared_ptr<Notifier> notifier;
    {
        std::lock_guard<std::mutex> lock(notifier_mutex_);  // also around list(): it must be the notifier of now
        if (!notifier_) return;
        notifier = notifier_;
        notifier->list(entry_, key_);
    }
    notifier->wake();
}

Finish Stream::end_reason(int64_t now) const {
    if (cancelled_.load()) return Finish::cancelled;
    return deadline_us_ > 0 && now >= deadline_us_ ? Finish::timeout : Finish::running;
}

bool Stream::full() {
    if (ring_storage_->size() < ring_storage_->capacity()) return false;
    paused_.store(true);
    if (ring_storage_->size() == ring_storage_->capacity()) return true;
    paused_.store(false);
    return false;
}

bool Stream::append(const Choice & choice, const std::string & text, Finish finish, int stop) {
    std::lock_guard<std::mutex> lock(transcript_mutex_);
    if (cancelled_.load()) return false;
    Record * record = ring_storage_->back();
    if (record == nullptr) return false;  // cannot be: the engine asked full() before it computed this token
    if (text.size() > ring_storage_->text_bytes() || choice.top.size() != request_.n_top) {  // nor this: Text::bound
        throw std::length_error("a token with " + std::to_string(text.size()) + " bytes of text and " +
                                std::to_string(choice.top.size()) + " candidates, where a record holds " +
                                std::to_string(ring_storage_->text_bytes()) + " and " + std::to_string(request_.n_top));
    }
    record->token = choice.token;
    record->logprob = choice.logprob;
    record->finish = int32_t(finish);
    record->n_top = request_.n_top;
    std::copy_n(choice.top.begin(), request_.n_top, record->top());
    record->n_bytes = uint32_t(text.size());
    std::memcpy(record->text(), text.data(), text.size());
    outcome_.tokens.push_back(choice.token);
    outcome_.logprobs.push_back(choice.logprob);
    outcome_.top.insert(outcome_.top.end(), choice.top.begin(), choice.top.end());
    outcome_.text += text;
    outcome_.finish = finish;  // of the last one: who reads it asks for the outcome, before end() perhaps
    outcome_.stop = stop;
    outcome_.last_us = now_us();
    if (outcome_.first_us == 0) outcome_.first_us = outcome_.last_us;
    n_generated_.store(int64_t(outcome_.tokens.size()));
    ring_storage_->push();
    return true;
}

void Stream::set_logits(size_t i, const float * row, size_t n) {
    std::lock_guard<std::mutex> lock(transcript_mutex_);
    outcome_.logits.reserve(request_.n_logits * n);
    outcome_.logits.resize(i * n);
    outcome_.logits.insert(outcome_.logits.end(), row, row + n);
    outcome_.last_us = now_us();
    if (outcome_.first_us == 0) outcome_.first_us = outcome_.last_us;
}

void Stream::admitted(int64_t cached_tokens) {
    std::lock_guard<std::mutex> lock(transcript_mutex_);
    outcome_.admitted_us = now_us();
    outcome_.cached_tokens = cached_tokens;
}

void Stream::end(Finish how, Fault fault, const std::string & message, int stop, const std::string & rest) {
    {
        std::lock_guard<std::mutex> lock(transcript_mutex_);
        finish(how, fault, message, stop, rest);
    }
    notify_end();
}

// Under the transcript's mutex.
void Stream::finish(Finish how, Fault fault, const std::string & message, int stop, const std::string & rest) {
    outcome_.finish = how;
    outcome_.fault = fault;
    outcome_.message = message;
    outcome_.stop = stop;
    outcome_.text += rest;
    outcome_.ended_us = now_us();
    engine_->leave(*this);
    ended_.store(true);
}

void Stream::notify_end() {
    armed_.store(true);  // a close() may have drained what the reader was notified of: the end notifies in any case
    notify();
}

}  // namespace mullama
