// The clock behind WorkLimit, and the operator new that looks at it; see work_limit.hpp.
//
// llama.cpp's grammars are followed by a recursion that calls nothing of ours, and in an ambiguous grammar it may go on for
// hours with a single token. All that it does for every step is to allocate: so this module, whose symbols no one else sees,
// has an operator new of its own. It hands on to the one that would have been called otherwise, lest memory be taken from
// one allocator and given back to another, as under a sanitizer.
#include "checks/work_limit.hpp"

#include <cstdint>
#include <cstdlib>
#include <ctime>
#include <exception>

#include <dlfcn.h>

namespace mullama {

namespace {

constexpr uint32_t between_looks = 128;

thread_local uint32_t countdown = 0;  // allocations until the next look; 0: there is no limit
thread_local double until = 0;
thread_local const StopSignal * stop_signal = nullptr;
thread_local bool was_reached = false, was_stopped = false;

double thread_seconds() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

struct EndOfWork : std::bad_alloc {
    const char * what() const noexcept override { return "it took too long"; }
};

// countdown is 0 meanwhile: the signal may allocate. What was thrown may be caught and forgotten on the way, so that it is thrown
// again and again; but not into the cleaning up after it.
void look() {
    was_stopped = was_stopped || (stop_signal != nullptr && (*stop_signal)());
    was_reached = was_reached || (!was_stopped && thread_seconds() >= until);
    countdown = between_looks;
    if ((was_stopped || was_reached) && std::uncaught_exceptions() == 0) throw EndOfWork();
}

using New = void * (*)(std::size_t);

New find_new() {
    static_assert(sizeof(std::size_t) == sizeof(unsigned long), "operator new has another name here");
    void * const found = dlsym(RTLD_NEXT, "_Znwm");
    return found != nullptr ? reinterpret_cast<New>(found) : nullptr;
}

}  // namespace

WorkLimit::WorkLimit(double seconds, const StopSignal & stop) : began_(thread_seconds()) {
    was_reached = was_stopped = false;
    stop_signal = stop ? &stop : nullptr;
    until = began_ + seconds;
    countdown = between_looks;
}

WorkLimit::~WorkLimit() { end(); }

void WorkLimit::end() { countdown = 0; }

double WorkLimit::used() const { return thread_seconds() - began_; }
bool WorkLimit::reached() const { return was_reached; }
bool WorkLimit::stopped() const { return was_stopped; }

static void * allocate(std::size_t size) {
    static const New next = find_new();
    if (countdown != 0 && --countdown == 0) look();
    if (next != nullptr) return next(size);
    void * const found = std::malloc(size == 0 ? 1 : size);
    if (found == nullptr) throw std::bad_alloc();
    return found;
}

}  // namespace mullama

void * operator new(std::size_t size) { return mullama::allocate(size); }
