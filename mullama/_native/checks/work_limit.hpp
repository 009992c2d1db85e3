// An end to what a call of llama.cpp may take, for calls whose work nobody can tell beforehand.
#pragma once

#include <new>

namespace mullama {

// Thrown, by whatever allocates memory, once the time is up. It is a std::bad_alloc because nothing else may come from there.
struct WorkLimitReached : std::bad_alloc {
    const char * what() const noexcept override { return "it took too long"; }
};

// While one lives, this thread may use so many seconds of processor time, and no more. The clock is looked at when memory is
// asked for, every few times: a search that multiplies asks for memory all along. As with an AbortGuard, what the call
// worked on is thrown away afterwards. Not within one another.
class WorkLimit {
  public:
    explicit WorkLimit(double seconds);
    ~WorkLimit();
    WorkLimit(const WorkLimit &) = delete;
    WorkLimit & operator=(const WorkLimit &) = delete;

    static bool reached();  // whether the last one on this thread was: what it threw may have come out as something else
};

}  // namespace mullama
