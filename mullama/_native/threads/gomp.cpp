// GCC's OpenMP calls, as many of them as ggml makes, answered by the team of the thread that makes them.
//
// The calls are those of libgomp's ABI (GCC's manual of libgomp, "The libgomp ABI"). They are defined here, in the extension, with
// hidden names, and no OpenMP library is linked: whatever else in the process uses one does not meet them. Where ggml makes a call
// that is missing here, the build says so (tools/build_openmp.py).
#if defined(__linux__)

#include <mutex>

#include "threads/team.hpp"

using mullama::place;

extern "C" {

int omp_get_thread_num() { return place.index; }
int omp_get_num_threads() { return place.n; }

void GOMP_parallel(void (*work)(void *), void * data, unsigned n_threads, unsigned) {
    if (place.team == nullptr || place.inside || n_threads == 1) {
        const mullama::Place before = place;
        place.index = 0;
        place.n = 1;
        place.inside = true;
        work(data);
        place = before;
    } else {
        place.team->run(work, data, int(n_threads));
    }
}

void GOMP_barrier() {
    if (place.n > 1) place.team->barrier();
}

// Who does what only one shall do, and all rounds of a loop that is shared out as threads ask for it, may be the first thread.
bool GOMP_single_start() { return place.index == 0; }

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long, long, long * first, long * last) {
    *first = start;
    *last = end;
    return place.index == 0 && start != end;
}
bool GOMP_loop_nonmonotonic_dynamic_next(long *, long *) { return false; }
void GOMP_loop_end() { GOMP_barrier(); }

static std::mutex atomic_mutex;
void GOMP_atomic_start() { atomic_mutex.lock(); }
void GOMP_atomic_end() { atomic_mutex.unlock(); }

}  // extern "C"

#endif
