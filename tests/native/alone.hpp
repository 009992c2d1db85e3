// Stream, ring and notifier without an engine: the real classes, compiled in under another namespace, where each atomic
// operation may pause, with an Engine reduced to the mailbox and the waiting. It needs neither llama.cpp nor
// a model, but may be linked with the real engine. `MULLAMA_SOCKETPAIR` selects the other kind of notifier.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <poll.h>
#include <sched.h>

#include "llama.h"

namespace {

class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
    uint64_t operator()(uint64_t below) {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return (state_ >> 11) % below;
    }

  private:
    uint64_t state_;
};

thread_local bool tight = false;
thread_local Random pauses{uint64_t(std::hash<std::thread::id>()(std::this_thread::get_id()))};

// Mostly no pause, sometimes a short one.
void pause() {
    if (tight) return;
    const uint64_t n = pauses(512);
    if (n < 2) sched_yield();
    for (volatile uint64_t i = n < 24 ? n * n * 4 : 0; i > 0; i = i - 1) {}
}

}  // namespace

namespace std {

// std::atomic as the protocol uses it, with a pause before and after.
template <typename T> class pausing_atomic {
  public:
    pausing_atomic(T value) : value_(value) {}
    T load(memory_order order = memory_order_seq_cst) const {
        Between between;
        return value_.load(order);
    }
    void store(T value, memory_order order = memory_order_seq_cst) {
        Between between;
        value_.store(value, order);
    }
    T exchange(T value, memory_order order = memory_order_seq_cst) {
        Between between;
        return value_.exchange(value, order);
    }

  private:
    struct Between {
        Between() { pause(); }
        ~Between() { pause(); }
    };
    atomic<T> value_;
};

}  // namespace std

#define mullama mullama_alone  // not the engine's own classes, which may be linked in too
#define atomic pausing_atomic

#include "engine/engine.hpp"
#include "engine/stream.cpp"
#include "text/text.cpp"

#undef atomic

#define CHECK(condition)                                                                            \
    do {                                                                                            \
        if (!(condition)) {                                                                         \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);             \
            std::abort();                                                                           \
        }                                                                                           \
    } while (false)

namespace {

std::atomic<uint64_t> moved{0};  // checked by the watchdog
std::atomic<uint64_t> wakes{0};  // of engines
std::atomic<uint64_t> places{0};  // places in engines that were given back
std::atomic<uint64_t> submissions{0};

// Aborts if nothing has moved for that long: then a wake-up was lost.
class Watchdog {
  public:
    explicit Watchdog(int seconds) : thread_([this, seconds] { watch(seconds); }) {}
    ~Watchdog() {
        over_.store(true);
        thread_.join();
    }

  private:
    void watch(int seconds) {
        uint64_t last = 0;
        for (int still = 0; !over_.load(); ++still) {
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            const uint64_t now = moved.load();
            if (now != last) still = 0;
            last = now;
            if (still < seconds * 50) continue;
            std::fprintf(stderr, "nothing has moved for %d s, after %llu records: a lost wake-up\n", seconds,
                         (unsigned long long) now);
            std::abort();
        }
    }

    std::atomic<bool> over_{false};
    std::thread thread_;
};

// Record i of a stream: everything in it follows from i and the stream's number.
std::string text_of(int32_t stream, int64_t i) {
    std::string text;
    for (int64_t k = 0; k < (i * 7 + stream) % 13; ++k) text += char('a' + (i + k) % 26);
    return text;
}

constexpr uint32_t n_top = 2;  // candidates per record

mullama::Request make_request(int32_t number, uint32_t capacity, int64_t n) {
    mullama::Request request;
    request.prompt = {number};
    request.max_tokens = n;
    request.buffer_size = capacity;
    request.n_top = n_top;
    request.longest_piece = 4;
    return request;
}

// A stream of `n` records over a ring of `capacity`.
inline std::shared_ptr<mullama::Stream> make_stream(std::shared_ptr<mullama::Engine> engine, int32_t number, uint32_t capacity,
                                             int64_t n) {
    auto stream = std::make_shared<mullama::Stream>(engine, 0, 0);
    engine->open(stream);
    stream->submit(make_request(number, capacity, n));
    return stream;
}

bool append(mullama::Stream & stream, int64_t i) {
    mullama::Choice choice;
    choice.token = int32_t(i);
    choice.logprob = -float(i % 1024);
    for (uint32_t k = 0; k < n_top; ++k) choice.top.push_back({int32_t(i + k), -float(k)});
    const bool last = i + 1 == stream.request().max_tokens;
    const auto finish = last ? mullama::Finish::length : mullama::Finish::running;
    return stream.append(choice, text_of(stream.request().prompt[0], i), finish);
}

// Checks that it is record i, complete.
void check_record(const mullama::Stream & stream, const mullama::Record & record, int64_t i) {
    const bool last = i + 1 == stream.request().max_tokens;
    CHECK(record.token == i);
    CHECK(record.logprob == -float(i % 1024));
    CHECK(record.finish == int32_t(last ? mullama::Finish::length : mullama::Finish::running));
    CHECK(record.n_top == n_top);
    for (uint32_t k = 0; k < n_top; ++k) CHECK(record.top()[k].token == i + k && record.top()[k].logprob == -float(k));
    CHECK(std::string(record.text(), record.n_bytes) == text_of(stream.request().prompt[0], i));
}

// Takes record i, whole. False: there is none.
bool take(mullama::Stream & stream, int64_t i) {
    mullama::PoppedRecord popped;
    if (!stream.pop(popped)) return false;
    check_record(stream, popped.get(), i);
    return true;
}

}  // namespace

namespace mullama {

// ------------------------------------------------------------------------------------------------ the reduced engine

void FreeSampler::operator()(common_sampler *) const {}
void Constraint::Free::operator()(llama_sampler *) const {}
Choosers::~Choosers() = default;
std::shared_mutex & lora_mutex(const std::shared_ptr<llama_model> &) {
    static std::shared_mutex mutex;
    return mutex;
}
class Team {};
Workers::~Workers() = default;
Engine::Engine(std::shared_ptr<llama_model>, const EngineParams &) : vocab_(nullptr), ctx_(nullptr, nullptr) {}
Engine::~Engine() = default;

void Engine::notify() {
    attention_.store(true);
    woken_.notify_one();
}

void Engine::open(std::shared_ptr<Stream>) {}

void Engine::submit(std::shared_ptr<Stream> stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    mailbox_.push_back({std::move(stream), nullptr});
    submissions.fetch_add(1);
    notify();
}

void Engine::leave(Stream & stream) {
    CHECK(!stream.ended());
    places.fetch_add(1);
}

void Engine::wake() {
    wakes.fetch_add(1);
    std::lock_guard<std::mutex> lock(mutex_);
    notify();
}

void Engine::cancelled() { wake(); }

// Here it discards the mail, which nobody takes without a loop.
void Engine::clear_cache() {
    std::lock_guard<std::mutex> lock(mutex_);
    mailbox_.clear();
}

void Engine::stop() {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_.store(true);
    notify();
}

// The loop of engine.cpp: take what was submitted, push one record to each stream that has room, notify, wait.
void Engine::run() {
    while (true) {
        attention_.store(false);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (auto & command : mailbox_) queue_.push_back(std::move(command.stream));
            mailbox_.clear();
            if (queue_.empty() && stopping_.load()) return;
        }
        bool worked = false;
        for (auto & stream : queue_) {
            const int64_t i = stream->generated(), n = stream->request().max_tokens;
            Finish how = stream->end_reason(0);
            if (how == Finish::running && !stream->full()) {
                worked = true;
                if (!append(*stream, i)) {
                    how = Finish::cancelled;
                } else if (i + 1 == n) {
                    how = Finish::length;
                }
                touched_.push_back(stream);
            }
            if (how != Finish::running) endings_.push_back({stream, how, Fault::none, "", -1, "rest"});
        }
        for (auto & e : endings_) {
            e.stream->end(e.finish, e.fault, e.message, e.stop, e.rest);
            queue_.erase(std::find(queue_.begin(), queue_.end(), e.stream));
        }
        for (auto & stream : touched_) stream->notify();
        worked = worked || !endings_.empty();
        endings_.clear();
        touched_.clear();
        if (worked) continue;
        std::unique_lock<std::mutex> lock(mutex_);
        woken_.wait(lock, [this] { return attention_.load(); });
    }
}

}  // namespace mullama

using namespace mullama;

namespace {

// Runs both at the same moment, again and again; `settle` checks the outcome and prepares the next round.
template <typename First, typename Second, typename Settle> void race(int rounds, First first, Second second, Settle settle) {
    std::atomic<int> begun{0}, done{0};
    const auto await = [](std::atomic<int> & counter, int value) {
        for (int i = 0; counter.load() < value; ++i) {
            if (i % 256 == 255) sched_yield();
        }
    };
    std::thread other([&] {
        tight = true;
        for (int round = 1; round <= rounds; ++round) {
            await(begun, round);
            second();
            done.store(round);
        }
    });
    tight = true;
    for (int round = 1; round <= rounds; ++round) {
        begun.store(round);
// meet the other at a different point each time
        for (volatile int i = round % 2 ? round % 64 : round * 7 % 600; i > 0; i = i - 1) {}
        first();
        await(done, round);
        settle();
        moved.fetch_add(1, std::memory_order_relaxed);
    }
    tight = false;
    other.join();
}

}  // namespace
