// An end to what a call of llama.cpp may take, for calls whose work nobody can tell beforehand.
#pragma once

#include <functional>
#include <new>
#include <stdexcept>

namespace mullama {

// What may be used of processor time, in seconds.
constexpr double forever = 1e9;
constexpr double to_compile = 3;     // a grammar, or to make one of a schema
constexpr double to_render = 5;      // a chat by its template, which is a program
// Following a grammar: of all streams in a step of the engine, while their neighbours wait; in turn with others, at first; for one
// token; and for a whole stream, which is more by so much for each token.
constexpr double to_choose_in_step = 0.003, to_choose_in_turn = 0.05, to_choose = 2;
constexpr double to_follow = 10, to_follow_each = 0.025;

// Whether nobody wants the result any more; asked from the thread that works, often.
using StopSignal = std::function<bool()>;

// What limited work is stopped with when nobody wants it any more.
struct Stopped : std::runtime_error {
    Stopped() : std::runtime_error("it was stopped") {}
};

// What limited work is stopped with when its time is up.
struct TooLong : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// While one lives, this thread may use so many seconds of processor time, and only as long as `stop` (if there is one) says
// no. Both are looked at when memory is asked for, every few times: a search that multiplies asks for memory all along, and so
// do templates, and tokenizers that cut a text into words. What asks then is thrown out by a std::bad_alloc, because nothing else may come from there. As
// with an AbortGuard, what the call worked on is thrown away afterwards. Not within one another.
class WorkLimit {
  public:
    explicit WorkLimit(double seconds, const StopSignal & stop = {});
    ~WorkLimit();
    WorkLimit(const WorkLimit &) = delete;
    WorkLimit & operator=(const WorkLimit &) = delete;

    void end();
    double used() const;   // seconds so far
    bool reached() const;  // the time was up: what was thrown may have come out as something else
    bool stopped() const;  // `stop` said yes

  private:
    const double began_;
};

// Do the work within a limit. Throws Stopped, and TooLong with `why` where its time was up; else what the work throws.
template <typename Work>
auto limited(double seconds, const StopSignal & stop, const char * why, Work && work) {
    WorkLimit limit(seconds, stop);
    try {
        return work();
    } catch (const std::exception &) {
        limit.end();
        if (limit.stopped()) throw Stopped();
        if (limit.reached()) throw TooLong(why);
        throw;
    }
}

}  // namespace mullama
