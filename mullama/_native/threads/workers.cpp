// The threads of one llama_context: a team of ours on Linux, and the record or threads that llama.cpp asks for.
#include "threads/workers.hpp"

#include "ggml-cpu.h"
#include "llama.h"

#if defined(__linux__)
#define MULLAMA_TEAM 1
#include "threads/team.hpp"
#else
#define MULLAMA_TEAM 0
#endif

namespace mullama {

#if !MULLAMA_TEAM
class Team {
  public:
    explicit Team(int) {}
};
#endif

namespace {

// A function of ggml's library for the processor; it may be there twice (vendor/processors.c).
template <typename Function>
Function * of_cpu(const char * name) {
    return reinterpret_cast<Function *>(ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), name));
}

}  // namespace

Workers::Workers(int n_threads)
    : n_threads_(n_threads),
      team_(new Team(n_threads)),
      pool_(nullptr, of_cpu<decltype(ggml_threadpool_free)>("ggml_threadpool_free")) {}

Workers::~Workers() = default;

void Workers::attach(llama_context * ctx) {
    if (!pool_) {  // with OpenMP it is only a record; without, these are the threads
        auto params = ggml_threadpool_params_default(n_threads_);
        pool_.reset(of_cpu<decltype(ggml_threadpool_new)>("ggml_threadpool_new")(&params));
    }
    llama_attach_threadpool(ctx, pool_.get(), pool_.get());
}

#if MULLAMA_TEAM
void Workers::share(size_t n, int n_threads, const std::function<void(size_t)> & work) {
    struct Job {
        const std::function<void(size_t)> & work;
        const size_t n;
        std::atomic<size_t> next;
    } job{work, n, {0}};
    const auto take = [](void * data) {
        Job & job = *static_cast<Job *>(data);
        for (size_t i; (i = job.next.fetch_add(1)) < job.n;) job.work(i);
    };
    if (n > 1 && place.team != nullptr) {
        team_->run(take, &job, int(std::min(n, size_t(n_threads))));
    } else {
        take(&job);
    }
}

Workers::Shift::Shift(Workers & workers) { place.team = workers.team_.get(); }
Workers::Shift::~Shift() { place.team = nullptr; }
#else
void Workers::share(size_t n, int, const std::function<void(size_t)> & work) {
    for (size_t i = 0; i < n; ++i) work(i);
}

Workers::Shift::Shift(Workers &) {}
Workers::Shift::~Shift() = default;
#endif

}  // namespace mullama
