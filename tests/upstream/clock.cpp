// For each grammar on standard input: the longest processor time, in seconds, for which llama.cpp does not allocate memory.
//
// WorkLimit (mullama/_native/checks/work_limit.hpp) checks its clock when memory is allocated. That works as long as every
// step of llama.cpp's recursion through a grammar allocates, which this measures: it feeds text to each grammar until
// following it has taken a second in total.
//
//     clock MODEL          prints "seconds in all TAB longest gap TAB allocations" for each grammar
#include <algorithm>
#include <cstdint>
#include <ctime>
#include <new>
#include <vector>

#include "forked.hpp"
#include "llama.h"

namespace {

double thread_seconds() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

struct Enough {};

bool watching = false;
double last = 0, longest = 0, until = 0;
uint64_t n_allocations = 0;

void watch() {
    if (!watching || ++n_allocations % 128 != 0) return;  // as often as WorkLimit checks
    const double now = thread_seconds();
    longest = std::max(longest, now - last);
    last = now;
    if (now > until) {
        watching = false;
        throw Enough();
    }
}

}  // namespace

void * operator new(std::size_t size) {
    watch();
    void * const found = std::malloc(size == 0 ? 1 : size);
    if (found == nullptr) throw std::bad_alloc();
    return found;
}
void operator delete(void * memory) noexcept { std::free(memory); }
void operator delete(void * memory, std::size_t) noexcept { std::free(memory); }

int main(int, char ** arguments) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    llama_model * model = llama_model_load_from_file(arguments[1], params);
    if (model == nullptr) return 1;
    const llama_vocab * vocab = llama_model_get_vocab(model);
    std::vector<llama_token_data> all;
    std::string grammar;
    while (read_input(grammar)) {
        llama_sampler * made = llama_sampler_init_grammar(vocab, grammar.c_str(), "root");
        if (made == nullptr) return 1;
        llama_token a[2];
        if (llama_tokenize(vocab, "a", 1, a, 2, false, false) < 1) return 1;
        const double began = last = thread_seconds();
        longest = 0;
        n_allocations = 0;
        until = began + 1;
        watching = true;
        try {
            for (int i = 0; i < 200; ++i) {
                all.clear();
                for (llama_token token = 0; token < llama_vocab_n_tokens(vocab); ++token) all.push_back({token, 0.0f, 0.0f});
                llama_token_data_array array{all.data(), all.size(), -1, false};
                llama_sampler_apply(made, &array);
                llama_sampler_accept(made, a[0]);
            }
        } catch (const Enough &) {
        } catch (const std::exception &) {  // the grammar is complete
        }
        watching = false;
        const double now = thread_seconds();
        longest = std::max(longest, now - last);
        std::printf("%.3f\t%.4f\t%llu\n", now - began, longest, (unsigned long long) n_allocations);
        std::fflush(stdout);  // the sampler is leaked: it may be half-way through a step
    }
}
