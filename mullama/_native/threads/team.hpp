// A team: the thread that computes and its helpers, who take part in what it runs and wait for each other on the way.
//
// It stands behind the OpenMP calls of workers.cpp, on Linux. The waiting is what it is about: a token has hundreds of barriers.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "threads/signals.hpp"

namespace mullama {

using Clock = std::chrono::steady_clock;

// For how long a thread waits awake. Where the others have a core each they are microseconds away; where they have to share this
// one, they come only once it sleeps. So it halves when that was in vain. And since others that have to be woken are late on free
// cores too, now and then it is the most again, and stays so if that was worth it.
class Patience {
  public:
    constexpr explicit Patience(std::chrono::nanoseconds most) : most_(most), now_(most) {}
    std::chrono::nanoseconds now() {
        if (++n_waits_ % 128 == 0) now_ = most_;
        return now_;
    }
    void was_in_vain() { now_ = std::max(now_ / 2, least); }

  private:
    static constexpr std::chrono::nanoseconds least = std::chrono::microseconds(2);
    const std::chrono::nanoseconds most_;
    std::chrono::nanoseconds now_;
    uint32_t n_waits_ = 0;
};

inline thread_local Patience at_barrier(std::chrono::microseconds(100)), between_graphs(std::chrono::microseconds(300));

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A number that threads wait for to change.
class Signal {
  public:
    uint32_t now() const { return value_.load(std::memory_order_acquire); }

    void set(uint32_t value) {
        value_.store(value);
        if (n_asleep_.load() > 0) wake();
    }

    // Both this and set() change one thing and then read the other, in one order for all: a waiter sleeps only on a value that
    // was not yet set, and a setter sees whoever sleeps.
    uint32_t wait_while(uint32_t old, Patience & patience) {
        Clock::time_point until{};
        for (;;) {
            for (int i = 0; i < 64; ++i) {
                if (const uint32_t value = now(); value != old) return value;
                relax();
            }
            const auto time = Clock::now();
            if (until == Clock::time_point{}) until = time + patience.now();
            if (time >= until) break;
        }
        patience.was_in_vain();
        ++n_asleep_;
        while (value_.load() == old) sleep(old);
        --n_asleep_;
        return now();
    }

  private:
    void sleep(uint32_t old) { syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0); }
    void wake() { syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0); }
    std::atomic<uint32_t> value_{0}, n_asleep_{0};
};

class Team;

struct Place {
    Team * team = nullptr;  // whose thread this is
    int index = 0, n = 1;   // in the region that runs
    bool inside = false;    // a region runs
};
inline thread_local Place place;

class Team {
  public:
    explicit Team(int n_max) : n_max_(n_max) {}

    ~Team() {
        stopping_ = true;
        job_.set((job_.now() | max_threads) + 1);  // of another number, for no one
        for (auto & thread : threads_) thread.join();
    }

    void run(void (*work)(void *), void * data, int n) {
        n = start(n > 0 ? std::min(n, n_max_) : n_max_);
        work_ = work;
        data_ = data;
        n_ = n;
        job_.set((job_.now() | max_threads) + 1 + uint32_t(n));
        take_part(0);
    }

    void barrier() {
        const uint32_t turn = turn_.now();
        if (n_arrived_.fetch_add(1) + 1 == place.n) {  // not n_: once the last one is there, the next region may begin
            n_arrived_.store(0);
            turn_.set(turn + 1);
        } else {
            turn_.wait_while(turn, at_barrier);
        }
    }

  private:
    static constexpr uint32_t max_threads = 1023;  // the low bits of a job: who takes part, read together with its number

    int start(int n) {
        try {
            if (int(threads_.size()) + 1 >= n) return n;
            const SignalsForOthers signals;
            while (int(threads_.size()) + 1 < n) {
                threads_.emplace_back([this, index = int(threads_.size()) + 1, job = job_.now()] { serve(index, job); });
            }
        } catch (const std::system_error &) {  // the machine gives no more: ggml asks how many there are
        }
        return std::min(n, int(threads_.size()) + 1);
    }

    void serve(int index, uint32_t job) {
        place.team = this;
        for (;;) {
            job = job_.wait_while(job, between_graphs);
            if (stopping_) return;
            if (index < int(job & max_threads)) take_part(index);
        }
    }

    void take_part(int index) {
        place.index = index;
        place.n = n_;
        place.inside = true;
        work_(data_);
        barrier();
        place.index = 0;
        place.n = 1;
        place.inside = false;
    }

    const int n_max_;
    std::vector<std::thread> threads_;
    std::atomic<bool> stopping_{false};
    void (*work_)(void *) = nullptr;
    void * data_ = nullptr;
    int n_ = 1;
    Signal job_;
    alignas(64) Signal turn_;
    alignas(64) std::atomic<int> n_arrived_{0};
};

}  // namespace mullama
