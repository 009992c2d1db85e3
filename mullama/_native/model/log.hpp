// What llama.cpp says: its log lines are kept here, in C, until Python fetches them. No line ever waits for the GIL.
#pragma once

#include <string>
#include <vector>

namespace mullama {

struct LogLine {
    int level;  // of ggml_log_level: 1 debug, 2 info, 3 warning, 4 error
    std::string text;
};

// Take llama.cpp's logging over and start its backends; once a process. Throws std::runtime_error, before any of it, where
// this processor lacks what ggml was built for.
void start_llama_cpp();

// Take all lines that were kept. At most 1,000 are: beyond that the oldest make room, and a line says how many were lost.
std::vector<LogLine> take_log();

// While one lives, what this thread logs below a warning is not kept: for what is done over and over. Once told that we
// ourselves stop it, what llama.cpp then says of a failure is a detail.
class QuietLog {
  public:
    QuietLog();
    ~QuietLog();
    static void stopped();
    QuietLog(const QuietLog &) = delete;
    QuietLog & operator=(const QuietLog &) = delete;
};

// The error lines that this thread logged since the last call, joined: why a call of llama.cpp on this thread failed.
std::string take_errors();

}  // namespace mullama
