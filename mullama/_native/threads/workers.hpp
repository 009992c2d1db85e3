// The threads that compute for one llama_context, and how they wait for each other.
//
// Both of llama.cpp's ways lose most of the speed somewhere: libgomp puts threads to sleep at each of the hundreds of barriers of
// a token as soon as the process has more teams of threads than cores (two contexts, say), and ggml's own threads never sleep
// at one, so that two threads on one core burn a time slice at each. These wait awake for some microseconds, then asleep.
// Where llama.cpp is compiled with GCC's OpenMP for Linux, its pragmas call gomp.cpp; elsewhere it has ggml's threads.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

struct ggml_threadpool;
struct llama_context;

namespace mullama {

class Team;

class Workers {
  public:
    explicit Workers(int n_threads);  // the one that calls is one of them; the others start when first needed
    ~Workers();
    void attach(llama_context * ctx);  // which must not outlive this
    // Calls work(0), …, work(n - 1), shared out among so many threads if there is a team; during a shift. It must not throw.
    void share(size_t n, int n_threads, const std::function<void(size_t)> & work);

    // While it lives, what this thread computes is shared with the workers. One thread at a time.
    class Shift {
      public:
        explicit Shift(Workers & workers);
        ~Shift();
        Shift(const Shift &) = delete;
    };

  private:
    const int n_threads_;
    std::unique_ptr<Team> team_;
    std::unique_ptr<ggml_threadpool, void (*)(ggml_threadpool *)> pool_;
};

}  // namespace mullama
