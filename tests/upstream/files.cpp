// For each path on standard input: what gguf_check says about the file, and what llama.cpp does with it.
//
//     files        prints "verdict of upstream TAB bytes per cell as checked TAB bytes per cell as saved TAB ours" for each
#include <exception>

#include "forked.hpp"

#define mullama mullama_alone
#include "checks/gguf_check.cpp"

std::string mullama::take_errors() { return "upstream says why in its log"; }

namespace {

// Loads it, creates a context, computes one token; the size of a saved sequence then gives the size of a cell.
bool try_model(const std::string & path, double & bytes_per_cell) {
    llama_model * model = llama_model_load_from_file(path.c_str(), llama_model_default_params());
    if (model == nullptr) return false;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = 64;
    params.n_threads = params.n_threads_batch = 1;
    llama_context * ctx = llama_init_from_model(model, params);
    if (ctx == nullptr) return false;
    double sizes[2];
    for (int i = 0; i < 2; ++i) {
        llama_token tokens[16] = {};
        if (llama_decode(ctx, llama_batch_get_one(tokens, 16)) != 0) return false;
        sizes[i] = double(llama_state_seq_get_size(ctx, 0));
    }
    bytes_per_cell = (sizes[1] - sizes[0]) / 16;
    return true;
}

}  // namespace

int main() {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    std::string path;
    int shared[2];
    while (read_input(path)) {
        std::string ours;
        uint64_t checked = 0;
        try {
            checked = mullama::check_gguf(path, false).bytes_per_cell;
        } catch (const std::exception & e) {
            ours = e.what();
        }
        if (pipe(shared) != 0) return 1;
        const Verdict upstream = in_child(20, [&] {
            double saved = 0;
            if (!try_model(path, saved)) return false;
            return write(shared[1], &saved, sizeof saved) == sizeof saved;
        });
        close(shared[1]);
        double saved = 0;
        if (read(shared[0], &saved, sizeof saved) != sizeof saved) saved = 0;
        close(shared[0]);
        for (char & c : ours) c = c == '\n' || c == '\t' ? ' ' : c;
        std::printf("%s\t%llu\t%.1f\t%s\n", name_of(upstream), (unsigned long long) checked, saved, ours.c_str());
        std::fflush(stdout);
    }
}
