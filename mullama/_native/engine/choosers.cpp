// The pool of threads behind slow choices; see choosers.hpp.
#include "engine/choosers.hpp"

#include <algorithm>
#include <exception>
#include <system_error>
#include <utility>

#if defined(__linux__)
#include <sys/resource.h>
#endif

#include "threads/signals.hpp"

namespace mullama {

Choosers::~Choosers() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_.store(true);
        added_.notify_all();
    }
    for (auto & thread : threads_) thread.join();
}

void Choosers::add(std::shared_ptr<Choosing> one) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (waiting_.size() >= n_idle_ && threads_.size() < n_max_) {
        const SignalsForOthers signals;
        try {
            threads_.emplace_back([this] { serve(); });
        } catch (const std::system_error &) {  // the machine gives no more
            if (threads_.empty()) throw;
        }
    }
    waiting_.push_back(std::move(one));
    added_.notify_one();
}

void Choosers::throw_away(std::unique_ptr<Sampler> sampler) {
    try {
        auto one = std::make_shared<Choosing>();
        one->sampler = std::move(sampler);
        one->stop.store(true);
        add(std::move(one));
    } catch (const std::exception &) {  // then it is done here
    }
}

std::vector<std::shared_ptr<Choosing>> Choosers::take_done() {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(done_, {});
}

void Choosers::serve() {
#if defined(__linux__)
    setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) + 10);  // of this thread
#endif
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopping_.load()) {
        if (waiting_.empty()) {
            ++n_idle_;
            added_.wait(lock);
            --n_idle_;
            continue;
        }
        auto one = std::move(waiting_.front());
        waiting_.pop_front();
        lock.unlock();
        const bool done = work(*one), wanted = !one->stop.load();
        if (!wanted) one.reset();
        lock.lock();
        if (!wanted) continue;
        (done ? done_.emplace_back() : waiting_.emplace_back()) = std::move(one);
        if (!done) continue;
        lock.unlock();
        on_done_();
        lock.lock();
    }
}

bool Choosers::work(Choosing & one) {
    try {
        const auto stop = [this, &one] { return one.stop.load() || stopping_.load(); };
        if (stop()) return true;
        const double seconds = one.seconds;
        one.seconds = std::min(4 * seconds, to_choose);
        if (one.sampler->choose(one.logits.data(), one.n_top, *one.banned, seconds, stop, one.choice)) return true;
        if (seconds < to_choose) return false;
        one.failure = too_ambiguous;
    } catch (const std::exception & e) {
        one.failure = e.what();
    }
    return true;
}

}  // namespace mullama
