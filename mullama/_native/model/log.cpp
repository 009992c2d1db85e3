// llama.cpp's log callback and the store behind it; see log.hpp.
#include "model/log.hpp"

#include <deque>
#include <mutex>
#include <stdexcept>

#include "checks/abort_guard.hpp"
#include "ggml.h"
#include "llama.h"
// after ggml.h
#include "log.h"

namespace mullama {

namespace {

constexpr size_t max_lines = 1000;

struct Store {
    std::mutex mutex;
    std::deque<LogLine> lines;
    size_t lost = 0;
};

Store & store() {
    static Store * const the = new Store;  // never destroyed: threads of ggml may log while the process ends
    return *the;
}

thread_local std::string partial;      // a line that came without its end
thread_local int partial_level = 0;
thread_local std::string errors;
thread_local int quiet = 0;
thread_local bool stopping = false;

void on_log(ggml_log_level level, const char * text, void *) {
    if (level != GGML_LOG_LEVEL_CONT) partial_level = level;
    partial += text;
    size_t begin = 0, end;
    while ((end = partial.find('\n', begin)) != std::string::npos) {
        std::string line = partial.substr(begin, end - begin);
        begin = end + 1;
        if (line.find_first_not_of(" .") == std::string::npos) continue;  // dots that show progress
        const bool detail = stopping && partial_level >= GGML_LOG_LEVEL_WARN;
        if (partial_level == GGML_LOG_LEVEL_ERROR && !detail) errors += (errors.empty() ? "" : "; ") + line;
        if (quiet > 0 && partial_level < GGML_LOG_LEVEL_WARN) continue;
        Store & s = store();
        std::lock_guard<std::mutex> lock(s.mutex);
        if (s.lines.size() == max_lines) {
            s.lines.pop_front();
            ++s.lost;
        }
        s.lines.push_back({detail ? int(GGML_LOG_LEVEL_DEBUG) : partial_level, std::move(line)});
    }
    partial.erase(0, begin);
}

}  // namespace

static void check_processor() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(MULLAMA_BOTH_PROCESSORS)
    __builtin_cpu_init();
    const char * missing = nullptr;
    if (ggml_cpu_has_avx512() && !__builtin_cpu_supports("avx512f")) missing = "AVX-512";
    if (ggml_cpu_has_fma() && !__builtin_cpu_supports("fma")) missing = "FMA";
    if (ggml_cpu_has_avx2() && !__builtin_cpu_supports("avx2")) missing = "AVX2";
    if (ggml_cpu_has_avx() && !__builtin_cpu_supports("avx")) missing = "AVX";
    if (missing != nullptr) {
        throw std::runtime_error(std::string("this mullama was built for a processor with ") + missing +
                                 ", which this one lacks: build it on this machine with `pip install .`, or give "
                                 "CMAKE_ARGS for an older one");
    }
#endif
}

void start_llama_cpp() {
    check_processor();
    static std::once_flag once;
    std::call_once(once, [] {
        llama_log_set(on_log, nullptr);
        install_abort_guard();
        common_log_set_verbosity_thold(-1);  // llama.cpp's common library prints by itself otherwise
        llama_backend_init();
    });
}

std::vector<LogLine> take_log() {
    Store & s = store();
    std::lock_guard<std::mutex> lock(s.mutex);
    std::vector<LogLine> taken;
    if (s.lost > 0) taken.push_back({GGML_LOG_LEVEL_WARN, std::to_string(s.lost) + " older lines were dropped"});
    taken.insert(taken.end(), std::make_move_iterator(s.lines.begin()), std::make_move_iterator(s.lines.end()));
    s.lines.clear();
    s.lost = 0;
    return taken;
}

QuietLog::QuietLog() { ++quiet; }

QuietLog::~QuietLog() {
    --quiet;
    stopping = false;
}

void QuietLog::stopped() { stopping = quiet > 0; }

std::string take_errors() {
    std::string taken;
    taken.swap(errors);
    return taken;
}

}  // namespace mullama
