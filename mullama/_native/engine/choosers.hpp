// Threads that choose tokens beside the engine's, where following a grammar takes longer than a step may wait for it.
//
// They take turns with what they choose, a little at a time and then longer, so that a grammar that never ends keeps no other
// from its turn; and they have a lower priority than the threads that compute.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "sampling/sampler.hpp"

namespace mullama {

// A choice that is not done: the sampler and a copy of what it chooses from. Of the choosers, until they hand it back.
struct Choosing {
    std::unique_ptr<Sampler> sampler;
    std::vector<float> logits;
    uint32_t n_top = 0;
    const std::vector<int32_t> * banned = nullptr;
    size_t slot = 0;
    double seconds = to_choose_in_turn;  // of the next turn
    std::atomic<bool> stop{false};       // nobody wants it any more
    Choice choice;                       // what came of it
    std::string failure;                 // or why nothing did
};

class Choosers {
  public:
    // At most so many threads, which start when they are needed. on_done is called by them.
    Choosers(size_t n_max, std::function<void()> on_done) : n_max_(n_max), on_done_(std::move(on_done)) {}
    ~Choosers();
    void add(std::shared_ptr<Choosing> one);
    void throw_away(std::unique_ptr<Sampler> sampler);  // beside the engine's thread
    std::vector<std::shared_ptr<Choosing>> take_done();

  private:
    void serve();
    bool work(Choosing & one);  // false: its turn is over, and it is not done

    const size_t n_max_;
    const std::function<void()> on_done_;
    std::mutex mutex_;
    std::condition_variable added_;
    std::deque<std::shared_ptr<Choosing>> waiting_;
    std::vector<std::shared_ptr<Choosing>> done_;
    std::vector<std::thread> threads_;
    size_t n_idle_ = 0;
    std::atomic<bool> stopping_{false};
};

}  // namespace mullama
